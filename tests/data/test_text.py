"""Documents come out the same however they were stored, and bad files are named with file and line."""

import errno
import gzip
import io
import json
import lzma
import os
import random
import sys
from pathlib import Path
from typing import Any

import pytest

from lsp import Exit, LspError
from lsp.data import text

PLAIN = "One line.\nAnother\u2028line.\n\n\n  \nA second document\r\n\nThe third"
NOISE = random.Random(0).randbytes(5000).hex().encode()
DOCUMENTS = ["One line.\nAnother\u2028line.", "A second document", "The third"]


def write(path: Path, data: bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return str(path)


def test_a_blank_line_ends_a_document_and_only_newlines_end_a_line(tmp_path: Path) -> None:
    assert list(text.documents([write(tmp_path / "a.txt", PLAIN.encode())])) == DOCUMENTS


def test_the_four_ways_to_store_documents_read_the_same(tmp_path: Path) -> None:
    records = "".join(json.dumps({"id": 1, "text": document}) + "\n" for document in DOCUMENTS)
    stored = {
        "a.txt": PLAIN.encode(),
        "a.txt.gz": gzip.compress(PLAIN.encode()),
        "a.txt.xz": lzma.compress(PLAIN.encode()),
        "wrongly-named.txt": gzip.compress(PLAIN.encode()),
        "a.jsonl": records.encode(),
        "a.jsonl.xz": lzma.compress(records.encode()),
        "bom.txt": b"\xef\xbb\xbf" + PLAIN.encode(),
    }
    for name, data in stored.items():
        assert list(text.documents([write(tmp_path / name, data)])) == DOCUMENTS, name


def test_a_folder_is_searched_to_the_bottom_and_each_file_comes_once(tmp_path: Path) -> None:
    names = ["b.txt", "deep/er/a.jsonl.gz", "notes.md", ".hidden.txt", "c.txt.xz"]
    for name in names:
        write(tmp_path / name, b"x")
    found = text.expand([str(tmp_path), str(tmp_path / "*.txt"), str(tmp_path / "**" / "*.gz")])
    assert found == [str(tmp_path / name) for name in ("b.txt", "c.txt.xz", "deep/er/a.jsonl.gz")]


def test_folders_are_read_through_links_once_and_none_is_left_out_unsaid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path / "elsewhere" / "b.txt", b"x")
    write(tmp_path / "corpus" / "a.txt", b"x")
    for name in ("mine", "mine-too"):
        (tmp_path / "corpus" / name).symlink_to(tmp_path / "elsewhere")
    (tmp_path / "corpus" / "up").symlink_to(tmp_path / "corpus")  # a circle
    corpus = str(tmp_path / "corpus")
    assert text.expand([corpus]) == [f"{corpus}/a.txt", f"{corpus}/mine/b.txt"]
    listed = os.scandir

    def scandir(path: str) -> Any:
        if path.endswith("mine"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(LspError, match="corpus/mine can't be read: Permission denied"):
        text.expand([corpus])


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path: Path) -> None:
    path = write(tmp_path / "part[1].txt", b"x")
    assert text.expand([path]) == [path]


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.txt", "fine\nna\xefve\n".encode("latin1"), "a.txt, line 2: not UTF-8 (byte 0xef at column 3)"),
        ("b.txt", "x".encode("utf-16"), "UTF-16"),
        ("c.txt.gz", gzip.compress(NOISE)[:-900], "damaged or cut short"),
        ("d.txt.xz", lzma.compress(NOISE)[:-900], "damaged or cut short"),
        ("e.jsonl", b'{"text": "x"}\n{"txt": "y"}\n', "e.jsonl, line 2: no field 'text'. Did you mean 'txt'?"),
        ("f.jsonl", b'{"text": "x"}\n{"text"', "f.jsonl, line 2: not JSON"),
        ("g.jsonl", b'["x"]\n', "g.jsonl, line 1: a JSON list, not an object"),
        ("h.jsonl", b'{"text": 7}\n', "h.jsonl, line 1: field 'text' holds int, not text"),
        ("i.jsonl", b'{"text": "\\ud800"}\n', "surrogate"),
        ("j.jsonl", b"[" * 100_000, "not JSON"),
        ("k.jsonl", b'{"text": ' + b"9" * 10_000 + b"}", "not JSON"),
        ("l.parquet", b"PAR1....", "damaged or cut short"),
        ("m.txt.zst", b"\x28\xb5\x2f\xfd....", "damaged or cut short"),
    ],
)
@pytest.mark.usefixtures("uncollected")
def test_unusable_text_is_named_with_file_and_line(tmp_path: Path, name: str, data: bytes, said: str) -> None:
    path = write(tmp_path / name, data)
    with pytest.raises(LspError) as error:
        list(text.documents([path]))
    assert error.value.code == Exit.DATA
    assert said in error.value.message
    assert str(tmp_path) in error.value.message
    assert error.value.hint


def test_a_missing_file_gets_the_nearest_name(tmp_path: Path) -> None:
    write(tmp_path / "corpus.txt", b"x")
    with pytest.raises(LspError, match=r"no file .*corpse\.txt\. Did you mean 'corpus\.txt'") as error:
        text.expand([str(tmp_path / "corpse.txt")])
    assert error.value.code == Exit.DATA


def test_a_line_without_end_is_refused_before_it_fills_the_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "LINE_LIMIT", 1000)
    with pytest.raises(LspError, match="line 2: longer than"):
        list(text.documents([write(tmp_path / "a.txt", b"short\n" + b"x" * 5000)]))


def test_a_file_is_cut_without_reading_a_line_that_does_not_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "dump.jsonl", b"x" * 5000)
    monkeypatch.setattr(text, "LINE_LIMIT", 100)
    assert text.cut(path, 2000, 5000) == 2100


def test_a_document_without_end_comes_in_parts_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text, "DOCUMENT_LIMIT", 50)
    lines = [f"line {number}" for number in range(100)]
    parts = list(text.documents([write(tmp_path / "a.txt", "\n".join(lines).encode())]))
    assert len(parts) > 5
    assert "\n".join(parts).split("\n") == lines


def test_the_digest_is_of_the_bytes_and_not_of_the_names(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.txt", b"one"), write(tmp_path / "x" / "b.txt", b"one")
    assert text.digest([a]) == text.digest([b]) == text.digest([str(tmp_path / "x")])
    assert text.digest([a]) != text.digest([write(tmp_path / "c.jsonl", b"one")])
    assert text.digest([a]) != text.digest([write(tmp_path / "d.txt", b"two")])


def test_standard_input_can_be_read_twice_and_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stdin:
        buffer = io.BufferedReader(io.BytesIO(PLAIN.encode()))

    monkeypatch.setattr(sys, "stdin", Stdin)
    with text.spooled(["-"], tmp_path / "out") as paths:
        assert list(text.documents(paths)) == DOCUMENTS
        assert list(text.documents(paths)) == DOCUMENTS
        assert text.digest(paths) == text.digest(paths)
        assert os.listdir(tmp_path / "out") == []


def test_standard_input_that_begins_with_a_brace_is_jsonl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stdin:
        buffer = io.BufferedReader(io.BytesIO(b'{"text": "a"}\n{"text": "b"}\n'))

    monkeypatch.setattr(sys, "stdin", Stdin)
    assert list(text.documents(["-"])) == ["a", "b"]


def test_reading_tells_how_far_it_is(tmp_path: Path) -> None:
    paths = [write(tmp_path / name, b"some words\n\n" * 10) for name in ("a.txt", "b.txt")]
    heard: list[int] = []
    list(text.documents(paths, read=heard.append))
    assert heard == sorted(heard)
    assert heard[-1] == text.size(paths)
