"""What a teacher said is kept, and believed only if it is whole and of the same teacher and texts."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lsp import cache
from lsp.compress import teacher
from lsp.console import Progress


class Asked:
    """In the place of a classifier: counts how often it is asked."""

    times = 0

    def __init__(self, config: Any) -> None:
        pass

    def logits(self, params: Any, examples: Any) -> np.ndarray:
        Asked.times += 1
        return np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)


@pytest.fixture
def said(tmp_path: Any, monkeypatch: Any) -> Any:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("lsp.compress.teacher.Classifier", Asked)
    Asked.times = 0

    class Examples:
        def __init__(self) -> None:
            self.tokens = [np.array([2, 7, 3], np.int32), np.array([2, 8, 3], np.int32)]
            self.lengths, self.seconds = np.array([3, 3]), np.array([3, 3], np.int32)

        def __len__(self) -> int:
            return 2

    config = SimpleNamespace(classes=2)
    base = SimpleNamespace(manifest={"self": "one"}, config=config, params={})
    return base, Examples()


def ask(base: Any, examples: Any) -> np.ndarray:
    return teacher.answers(base, examples, Progress(quiet=True))


def test_it_is_asked_once(said: Any) -> None:
    base, examples = said
    first, second = ask(base, examples), ask(base, examples)
    assert Asked.times == 1 and np.array_equal(first, second)
    examples.tokens[1][1] = 9
    ask(base, examples)
    base.manifest["self"] = "another"
    ask(base, examples)
    assert Asked.times == 3


@pytest.mark.parametrize("at", [0, 40, -1])
def test_a_damaged_entry_is_told_of_and_made_again(said: Any, at: int, capsys: Any) -> None:
    base, examples = said
    wanted = ask(base, examples)
    (entry,) = cache.folder("teacher").iterdir()
    content = bytearray(entry.read_bytes())
    content[at] ^= 1
    entry.write_bytes(content)
    assert np.array_equal(ask(base, examples), wanted)
    assert "damaged" in capsys.readouterr().err
    assert Asked.times == 2
    ask(base, examples)
    assert Asked.times == 2


@pytest.mark.parametrize("size", [0, 31, 44])
def test_a_truncated_entry_is_made_again(said: Any, size: int) -> None:
    base, examples = said
    wanted = ask(base, examples)
    (entry,) = cache.folder("teacher").iterdir()
    entry.write_bytes(entry.read_bytes()[:size])
    assert np.array_equal(ask(base, examples), wanted) and Asked.times == 2


def test_entries_that_were_not_used_for_longest_make_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(cache, "LARGEST", 3 * (32 + 40) - 1)  # two entries, each with its hash, and hardly a third
    for age, key in ((9, "a"), (8, "b")):
        cache.save("teacher", key, bytes(40))
        os.utime(cache.folder("teacher") / key, (1e9 - age, 1e9 - age))
    assert cache.load("teacher", "a") == bytes(40), "used since"
    cache.save("teacher", "c", bytes(40))
    assert [cache.load("teacher", key) is not None for key in "abc"] == [True, False, True]
    cache.save("teacher", "huge", bytes(3 * 72))
    assert [cache.load("teacher", key) is not None for key in ("a", "c", "huge")] == [True, True, False]
