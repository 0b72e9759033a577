"""However often a preparing is killed, and however many share it, the bytes are those of one calm process."""

import dataclasses
import json
import lzma
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lsp import Exit, LspError, directory, lock, recipe
from lsp.commands import prepare
from lsp.console import Progress
from lsp.data import corpus, duplicates, files, packing, parts, text
from lsp.data.shards import Rows
from lsp.data.tokenizer import Tokenizer

SMALL = 4000  # stored bytes of a slice
T = 32
PLAN = recipe.Prepare(data=recipe.Text(vocab_size=300, tokenizer="bpe", sequence_length=T))


def sentences(number: int, seed: int) -> list[str]:
    pick = random.Random(seed)
    return [
        f"The {pick.choice(['cat', 'dog', 'élan'])} saw {pick.randint(0, 40)} birds. " * pick.randint(1, 4)
        for _ in range(number)
    ]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "SMALLEST", SMALL)
    monkeypatch.setattr(packing, "CHUNK", 1000)


@pytest.fixture(scope="module")
def top(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A corpus of small files, a large one and a compressed one; and a tokenizer for it."""
    top = tmp_path_factory.mktemp("parts")
    (top / "corpus").mkdir()
    for index in range(4):
        (top / "corpus" / f"a{index}.txt").write_text("\n\n".join(sentences(20, index)), "utf-8")
    (top / "corpus" / "b.txt").write_text("\n\n".join(sentences(500, 7)), "utf-8")
    (top / "corpus" / "c.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in sentences(200, 8)), "utf-8")
    (top / "corpus" / "d.txt.xz").write_bytes(lzma.compress("\n\n".join(sentences(900, 9)).encode()))
    run(top, "words", ["b.txt"])
    return top


def run(top: Path, out: str, paths: list[str] | None = None, words: bool = False, **given: Any) -> dict[str, Any]:
    sources = [str(top / "corpus" / path) for path in paths or [""]]
    plan = given.get("plan", PLAN)
    return prepare.run(
        sources, top / out, plan, top / "words" if words else None, False, Progress(quiet=True), given.get("part")
    )


def stored(out: Path) -> dict[str, bytes]:
    folders = [out / "rows", out / "tokenizer"]
    return {str(file.relative_to(out)): file.read_bytes() for folder in folders for file in folder.iterdir()}


def command(top: Path, out: str, *more: str) -> list[str]:
    """The real command line in a process of its own, with the small slices of this file."""
    code = (
        "import sys; from lsp import cli; from lsp.data import corpus, packing; "
        f"corpus.SMALLEST = {SMALL}; packing.CHUNK = 1000; sys.exit(cli.main(sys.argv[1:]))"
    )
    sets = [word for key in ("data.tokenizer=bpe",) for word in ("--set", key)]
    words = ["prepare", str(top / "corpus"), "--out", str(top / out), "--tokenizer", str(top / "words")]
    return [sys.executable, "-c", code, *words, "--seq-len", str(T), *sets, "--quiet", "--json", *more]


def test_slices_are_even_and_hold_every_document_in_order(top: Path) -> None:
    slices = corpus.slices(files.sources([str(top / "corpus")]))
    assert len(slices) > 8
    read = [document for each in slices for document in corpus.read(each, "text")]
    assert read == list(text.documents(text.expand([str(top / "corpus")])))
    assert sum(each.stored for each in slices) == text.size(text.expand([str(top / "corpus")]))
    plain = [each.stored for each in slices if each.stretches[0].path.endswith("b.txt")]
    assert all(SMALL * 2 / 3 <= size <= SMALL * 3 / 2 for size in plain)


@pytest.mark.parametrize("order", ["forwards", "backwards", "forwards in pairs"])
def test_parts_made_one_after_another_are_the_bytes_of_one_process(top: Path, tmp_path: Path, order: str) -> None:
    paired = dataclasses.replace(PLAN, data=dataclasses.replace(PLAN.data, next_sentence=True))
    calm, plan = ("calm in pairs", paired) if "pairs" in order else ("calm", PLAN)
    run(top, calm, words=True, plan=plan)
    shares = [(1, 3), (2, 3), (3, 3)]
    shares = shares[::-1] if order == "backwards" else shares
    made = [run(top, order, words=True, plan=plan, part=part) for part in shares]
    whole = run(top, order, words=True, plan=plan)
    assert stored(top / order) == stored(top / calm)
    assert Rows.open(top / order).pairs == ("pairs" in order)
    assert sum(each["documents"] for each in made) == whole["documents"]
    assert sum(each["rows"] for each in made) == whole["rows"]
    assert {each["status"] for each in made} == {f"part {k} of 3 complete" for k in (1, 2, 3)}
    assert not (top / order / "parts").exists()
    assert directory.read(top / order)["stage"] == "prepare"
    assert run(top, order, words=True, plan=plan, part=(1, 3))["status"] == "already complete"


def test_parts_made_at_the_same_time_are_the_bytes_of_one_process(top: Path) -> None:
    run(top, "calm", words=True)
    together = [
        subprocess.Popen(command(top, "together", "--part", f"{k}/3"), stdout=subprocess.PIPE) for k in (1, 2, 3)
    ]
    assert [process.wait() for process in together] == [0, 0, 0]
    for process in together:
        assert process.stdout is not None
        assert "complete" in json.load(process.stdout)["status"]
        process.stdout.close()
    run(top, "together", words=True)
    assert stored(top / "together") == stored(top / "calm")


@pytest.mark.parametrize("moment", [0.0, 0.2, 0.5, 0.8])
def test_killed_at_any_moment_the_same_command_ends_with_the_same_bytes(top: Path, moment: float) -> None:
    """Killed when a share of the slices is there, three times in a row; what was made stays."""
    run(top, "calm", words=True)
    out = f"killed-{moment}"
    goal = round(moment * len(corpus.slices(files.sources([str(top / "corpus")]))))
    for extra in range(3):
        process = subprocess.Popen(command(top, out), stdout=subprocess.DEVNULL)
        while process.poll() is None and len(list((top / out / "parts").glob("*/rows"))) < goal + extra:
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
        process.wait()
        if not (top / out / "rows").exists():
            done = {file: file.stat().st_mtime_ns for file in (top / out / "parts").glob("*/rows/*.rows")}
    run(top, out, words=True)
    assert stored(top / out) == stored(top / "calm")
    kept = {file.stat().st_mtime_ns for file in (top / out / "rows").iterdir()}
    assert set(done.values()) <= kept


def test_what_moved_while_joining_is_counted_too(top: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With all but one document moved away, and no room on the disk for all of it again."""
    (tmp_path / "z.txt").write_text(" ".join(sentences(40, 5)))  # a slice with a single document
    plan, paths = (
        dataclasses.replace(PLAN, data=dataclasses.replace(PLAN.data, next_sentence=True)),
        ["b.txt", str(tmp_path / "z.txt")],
    )
    run(top, "moved", paths, words=True, plan=plan)
    renamed, last = Path.rename, len(list((top / "moved" / "rows").iterdir())) - 1

    def rename(self: Path, target: Path) -> Path:
        if Path(target).name == f"{last:05d}.rows":
            raise KeyboardInterrupt
        return renamed(self, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", rename)
        run(top, "moved killed", paths, words=True, plan=plan)
    moved = sum(file.stat().st_size for file in (top / "moved killed" / "parts" / "rows").iterdir())
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=moved // 2))
    run(top, "moved killed", paths, words=True, plan=plan)
    assert stored(top / "moved killed") == stored(top / "moved")


def test_killed_while_joining_nothing_is_lost(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(top, "calm", words=True)
    renamed = Path.rename
    moves = len(list((top / "calm" / "rows").iterdir())) + 2
    for stop in (0, 1, 2, moves // 2, moves - 2, moves - 1):
        left = stop

        def rename(self: Path, target: Path) -> Path:
            nonlocal left
            if not left:
                raise KeyboardInterrupt
            left -= 1
            return renamed(self, target)

        out = f"joining-{stop}"
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(Path, "rename", rename)
            run(top, out, words=True)
        run(top, out, words=True)
        assert stored(top / out) == stored(top / "calm")


def test_a_slice_that_another_process_holds_is_left_to_it(top: Path) -> None:
    run(top, "held", words=True, part=(1, 3))
    folder = top / "held" / "parts" / "00007"
    folder.mkdir()
    with lock.only_writer(folder):
        with pytest.raises(LspError, match=r"1 of the \d+ slices of .*held are still being made") as error:
            run(top, "held", words=True)
        assert error.value.code == Exit.STOPPED
    run(top, "held", words=True)
    run(top, "calm", words=True)
    assert stored(top / "held") == stored(top / "calm")


def test_a_whole_preparing_that_runs_holds_parts_off(top: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(directory, "PATIENCE", 0.1)
    (top / "owned").mkdir()
    with lock.only_writer(top / "owned"), pytest.raises(LspError, match="being written by another run") as error:
        run(top, "owned", words=True, part=(1, 2))
    assert error.value.code == Exit.STOPPED


def test_a_part_that_asks_for_something_else_is_refused(top: Path) -> None:
    run(top, "other", words=True, part=(1, 3))
    longer = recipe.Prepare(data=dataclasses.replace(PLAN.data, sequence_length=64))
    with pytest.raises(LspError, match=r"data\.sequence_length: 32 → 64"):
        run(top, "other", words=True, plan=longer, part=(2, 3))


def test_an_error_in_one_slice_names_file_and_line_and_leaves_the_others(
    top: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "PROBES", 1)
    monkeypatch.setattr(corpus, "PROBE", 100)
    bad = tmp_path / "bad.txt"
    bad.write_bytes("".join(f"line {n}\n\n" for n in range(2000)).encode() + b"\xff\n")
    with pytest.raises(LspError, match=r"bad\.txt, line 4001: not UTF-8"):
        prepare.run([str(bad)], tmp_path / "out", PLAN, top / "words", False, Progress(quiet=True))
    assert (tmp_path / "out" / "parts" / "00000" / "rows").is_dir()


@pytest.mark.parametrize("given", [False, True])
def test_duplicates_are_those_that_a_set_finds(top: Path, tmp_path: Path, given: bool, monkeypatch: Any) -> None:
    """With and without a tokenizer; by one process, and by three one after the other, the last first."""
    monkeypatch.setattr(duplicates, "BUCKET", 64)
    plan = dataclasses.replace(PLAN, data=dataclasses.replace(PLAN.data, deduplicate=True))
    calm = run(top, f"alone-{given}", words=given, plan=plan)
    seen: set[str] = set()
    first = []
    for document in text.documents(text.expand([str(top / "corpus")])):
        if document.strip() not in seen:
            seen.add(document.strip())
            first.append(document)
    every = len(list(text.documents(text.expand([str(top / "corpus")]))))
    assert 0 < len(first) < every / 2
    assert (calm["documents"], calm["duplicates"]) == (len(first), every - len(first))
    words = Tokenizer.load(top / f"alone-{given}")
    kept = sum(len(words.encode([line])[0]) for document in first for line in document.split("\n"))
    rows = Rows.open(top / f"alone-{given}")
    tokens = rows.take(np.arange(len(rows)))
    assert (tokens > 4).sum() + (tokens == 1).sum() == kept
    if given:
        for part in ((3, 3), (1, 3), (2, 3)):
            run(top, "shared", words=True, plan=plan, part=part)
        assert run(top, "shared", words=True, plan=plan)["duplicates"] == calm["duplicates"]
        assert stored(top / "shared") == stored(top / "alone-True")


def test_repeats_are_found_across_tables_and_buckets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pick = random.Random(3)
    slices = [[str(pick.randint(0, 300)) for _ in range(pick.randint(0, 200))] for _ in range(6)]
    tables = [tmp_path / f"{index}.npy" for index in range(len(slices))]
    for documents, table in zip(slices, tables, strict=True):
        duplicates.write(documents, table)
    seen: set[str] = set()
    expected = [[document in seen or bool(seen.add(document)) for document in documents] for documents in slices]
    for bucket in (1 << 21, 100, 1):
        monkeypatch.setattr(duplicates, "BUCKET", bucket)
        assert [found.tolist() for found in duplicates.repeats(tables)] == expected
    assert duplicates.repeats([]) == [] or len(duplicates.repeats([])[0]) == 0


def test_weighted_sources_keep_their_rows_apart(top: Path) -> None:
    made = prepare.run(
        [f"a=0.7:{top}/corpus/b.txt", f"b=0.3:{top}/corpus/c.jsonl"],
        *(top / "mixed", PLAN, top / "words", False, Progress(quiet=True)),
    )
    one, other = run(top, "one", ["b.txt"], words=True), run(top, "two", ["c.jsonl"], words=True)
    assert [(source["name"], source["rows"]) for source in made["sources"]] == [
        ("a", one["rows"]),
        ("b", other["rows"]),
    ]
    rows, parted = Rows.open(top / "mixed"), [Rows.open(top / name) for name in ("one", "two")]
    np.testing.assert_array_equal(
        rows.take(np.arange(len(rows))), np.concatenate([each.take(np.arange(len(each))) for each in parted])
    )
    epoch = rows.epoch()
    assert (epoch < len(parted[0])).mean() == pytest.approx(0.7, abs=1 / len(epoch))
    assert len(np.unique(epoch)) == len(rows)


def test_weights_that_no_epoch_can_have_are_refused_by_prepare(top: Path, tmp_path: Path) -> None:
    with pytest.raises(LspError, match=r"rows of a more than 100 times to fill 0\.9999 of it"):
        prepare.run(
            [f"a=0.9999:{top}/corpus/a0.txt", f"b=0.0001:{top}/corpus/b.txt"],
            *(tmp_path / "out", PLAN, top / "words", False, Progress(quiet=True)),
        )


def test_prepared_data_is_not_prepared_again(top: Path) -> None:
    run(top, "calm", words=True)
    with pytest.raises(LspError, match="prepared already") as error:
        prepare.run([str(top / "calm")], top / "again", PLAN, top / "words", False, Progress(quiet=True))
    assert "lsp pretrain --data" in error.value.hint


def test_a_weighted_source_without_text_is_named(top: Path, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    with pytest.raises(LspError, match=r"no text in .*empty\.txt"):
        prepare.run(
            [f"a=0.7:{top}/corpus/b.txt", f"b=0.3:{tmp_path}/empty.txt"],
            *(tmp_path / "out", PLAN, top / "words", False, Progress(quiet=True)),
        )


@pytest.mark.parametrize("paths", [["b.txt"], ["c.jsonl"], ["e.txt.xz"], ["e.txt.xz", "b.txt"]])
@pytest.mark.parametrize(("length", "pairs"), [(16, False), (128, False), (64, True)])
def test_the_size_is_foretold_within_a_tenth(
    top: Path, tmp_path: Path, paths: list[str], length: int, pairs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(corpus, "PROBE", 1000)
    monkeypatch.setattr(packing, "OPEN_ROWS", 8)
    pick = random.Random(0)
    noise = "\n\n".join(" ".join(pick.choices(sorted("abcdefgh "), k=99)) for _ in range(3000))
    (tmp_path / "b.txt").write_text("\n\n".join(sentences(2000, 7)), "utf-8")
    (tmp_path / "c.jsonl").write_bytes((top / "corpus" / "c.jsonl").read_bytes())
    (tmp_path / "e.txt.xz").write_bytes(lzma.compress(noise.encode()))
    data = dataclasses.replace(PLAN.data, sequence_length=length, next_sentence=pairs)
    plan = dataclasses.replace(PLAN, data=data)
    found, words = [str(tmp_path / path) for path in paths], Tokenizer.load(top / "words")
    rows, tokens = corpus.expected(corpus.slices(files.sources(found)), "text", words, length, pairs)
    made = prepare.run(found, tmp_path / "out", plan, top / "words", False, Progress(quiet=True))
    assert rows == pytest.approx(made["rows"], rel=0.1)
    assert tokens == pytest.approx(made["useful_tokens"], rel=0.1)


def test_what_is_fetched_at_once_is_not_taken_for_what_was_read(tmp_path: Path) -> None:
    """8 KB of a compressed file at once, 128 KB on Python 3.14: far more than a short look at it takes. What it is
    judged by is one such piece, less a buffer of text that was not read yet."""
    pick = random.Random(0)
    noise = "\n\n".join(" ".join(pick.choices(sorted("abcdefgh "), k=99)) for _ in range(12000))
    path = tmp_path / "e.txt.xz"
    path.write_bytes(lzma.compress(noise.encode()))
    size = path.stat().st_size
    held, stored = corpus._head(corpus.Stretch(str(path), 0, None), size, "text", 200)
    assert sum(map(len, held)) < 0.01 * len(noise)
    assert stored / sum(map(len, held)) == pytest.approx(size / len(noise), rel=0.25)


def test_a_disk_without_the_room_is_said_before_anything_is_packed(
    top: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = type("Usage", (), {"free": 5000})
    monkeypatch.setattr(parts.shutil, "disk_usage", lambda path: full)
    with pytest.raises(LspError, match=r"needs about 0\.\d MB for the rows, and 0\.0 MB are free") as error:
        run(top, "full", words=True)
    assert error.value.code == Exit.MACHINE
    assert not list((top / "full" / "parts").glob("*"))
