"""Every kind of file gives the same documents; what can't be read is answered with what to type."""

import io
import itertools
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as arrow
import pyarrow.ipc
import pyarrow.parquet
import pytest
import zstandard

from lsp import Exit, LspError
from lsp.data import files, text

DOCUMENTS = ["One line.\nAnother\u2028line.", "A second document", "Ein dritter, mit Ümläuten"]
PLAIN = "\n\n".join(DOCUMENTS).encode()
RECORDS = "".join(json.dumps({"id": 1, "text": document}) + "\n" for document in DOCUMENTS).encode()
NOISE = random.Random(0).randbytes(5000).hex().encode()


def table(texts: list[Any] = DOCUMENTS, name: str = "text") -> arrow.Table:
    return arrow.table({"id": list(range(len(texts))), name: texts})


def parquet(table: arrow.Table) -> bytes:
    sink = io.BytesIO()
    pyarrow.parquet.write_table(table, sink, row_group_size=2)
    return sink.getvalue()


def stream(table: arrow.Table, writer: Callable[..., Any] = pyarrow.ipc.new_stream) -> bytes:
    sink = io.BytesIO()
    with writer(sink, table.schema) as stream:
        stream.write_table(table, max_chunksize=2)
    return sink.getvalue()


def write(path: Path, data: bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return str(path)


def dataset(path: Path, **changes: Any) -> str:
    """A folder as `datasets.Dataset.save_to_disk` lays it out, its two tables listed out of alphabetical order."""
    write(path / "b.arrow", stream(table(DOCUMENTS[:2])))
    write(path / "a.arrow", stream(table(DOCUMENTS[2:])))
    write(path / "dataset_info.json", b"{}")
    state = {"_data_files": [{"filename": "b.arrow"}, {"filename": "a.arrow"}], "_split": "train"} | changes
    write(path / "state.json", json.dumps(state).encode())
    return str(path)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.txt.zst", zstandard.compress(PLAIN)),
        ("two-frames.txt.zst", zstandard.compress(PLAIN[:20]) + zstandard.compress(PLAIN[20:])),
        ("a.jsonl.zst", zstandard.compress(RECORDS)),
        ("a.json", RECORDS),
        ("a.parquet", parquet(table())),
        ("gaps.parquet", parquet(table([DOCUMENTS[0], None, "  ", *DOCUMENTS[1:]]))),
        ("categories.parquet", parquet(arrow.table({"text": arrow.array(DOCUMENTS).dictionary_encode()}))),
        ("large.parquet", parquet(arrow.table({"text": arrow.array(DOCUMENTS, arrow.large_string())}))),
        ("wrongly-named.txt", parquet(table())),
        ("a.arrow", stream(table())),
        ("file.arrow", stream(table(), pyarrow.ipc.new_file)),
    ],
)
def test_every_kind_of_file_reads_the_same(tmp_path: Path, name: str, data: bytes) -> None:
    path = write(tmp_path / name, data)
    heard: list[int] = []
    assert list(text.documents([path], read=heard.append)) == DOCUMENTS
    assert heard == sorted(heard)
    assert heard[-1] <= len(data)


def test_a_saved_dataset_is_read_in_its_own_order_and_found_in_a_folder(tmp_path: Path) -> None:
    saved = dataset(tmp_path / "corpus" / "saved")
    assert list(text.documents(text.expand([saved]))) == DOCUMENTS
    write(tmp_path / "corpus" / "z.txt", b"last")
    assert list(text.documents(text.expand([str(tmp_path / "corpus")]))) == [*DOCUMENTS, "last"]


def test_what_saved_datasets_cannot_say_is_asked_for(tmp_path: Path) -> None:
    for split in ("train", "test"):
        dataset(tmp_path / "both" / split)
    write(tmp_path / "both" / "dataset_dict.json", b'{"splits": ["train", "test"]}')
    with pytest.raises(LspError, match="several splits: test, train") as error:
        text.expand([str(tmp_path / "both")])
    assert "both/train" in error.value.hint
    assert list(text.documents(text.expand([str(tmp_path / "both" / "train")]))) == DOCUMENTS
    with pytest.raises(LspError, match="picked but not written") as error:
        text.expand([dataset(tmp_path / "picked", _indices_data_files=[{"filename": "i.arrow"}])])
    assert "flatten_indices" in error.value.hint
    write(tmp_path / "picked" / "state.json", b"[]")
    with pytest.raises(LspError, match="not the state of a saved dataset"):
        text.expand([str(tmp_path / "picked")])


def test_remote_files_folders_and_globs_are_read_as_local_ones(tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    store.pipe({"/corpus/a.txt": PLAIN, "/corpus/deep/b.parquet": parquet(table()), "/corpus/notes.md": b"no"})
    for part in Path(dataset(tmp_path / "saved")).iterdir():
        store.pipe(f"/saved/{part.name}", part.read_bytes())
    found = text.expand(["memory://corpus"])
    assert found == ["memory:///corpus/a.txt", "memory:///corpus/deep/b.parquet"]
    assert list(text.documents(found)) == DOCUMENTS * 2
    assert list(text.documents(text.expand(["memory://corpus/*.txt"]))) == DOCUMENTS
    assert list(text.documents(text.expand(["memory://saved"]))) == DOCUMENTS
    assert text.size(found) == len(PLAIN) + len(parquet(table()))
    before = text.digest(["memory://corpus"])
    assert before == text.digest(["memory://corpus"])
    store.pipe("/corpus/a.txt", PLAIN + b"!")
    assert before != text.digest(["memory://corpus"])
    for path in ("memory://corpus/missing.txt", "memory://corpus/*.gz", "memory://nowhere/"):
        with pytest.raises(LspError, match="no text at") as error:
            text.expand([path])
        assert error.value.code == Exit.DATA


def test_a_protocol_that_is_not_there_is_answered_with_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for path, package in (("gs://bucket/corpus", "gcsfs"), ("s3://bucket/corpus", "s3fs")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(LspError, match=f"without the Python package {package}") as error:
            text.expand([path])
        assert error.value.code == Exit.MACHINE
        assert error.value.hint == f"Install it: pip install {package}"
    with pytest.raises(LspError, match=r"no protocol 'abf'\. Did you mean 'abfs'") as error:
        text.expand(["abf://bucket/corpus"])
    assert error.value.code == Exit.USAGE


def test_a_missing_package_is_named_with_what_installs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = {
        "pyarrow": write(tmp_path / "a.parquet", parquet(table())),
        "zstandard": write(tmp_path / "a.txt.zst", zstandard.compress(PLAIN)),
    }
    for package, path in paths.items():
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(LspError, match=f"without the Python package {package}") as error:
            list(text.documents([path]))
        assert error.value.code == Exit.MACHINE
        assert "setup.sh data" in error.value.hint


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("cut.txt.zst", zstandard.compress(NOISE)[:-900], "cut short"),
        ("cut.parquet", parquet(table())[:-30], "damaged or cut short"),
        ("cut.arrow", stream(table())[:-200], "damaged or cut short"),
        ("a.parquet", parquet(table(name="txt")), "no column 'text'. Did you mean 'txt'?"),
        ("twice.parquet", parquet(arrow.table([["a"], ["b"]], ["text", "text"])), "2 columns are named 'text'"),
        ("a.arrow", stream(table(name="body")), "no column 'text'"),
        ("numbers.parquet", parquet(table([1, 2, 3])), "the column 'text' holds int64, not text"),
        ("list.json", b'[{"text": "a"}]', "a JSON list, not an object"),
    ],
)
def test_unusable_tables_are_named_with_what_is_wrong(tmp_path: Path, name: str, data: bytes, said: str) -> None:
    path = write(tmp_path / name, data)
    with pytest.raises(LspError) as error:
        list(text.documents([path]))
    assert error.value.code == Exit.DATA
    assert said in error.value.message
    assert path in error.value.message
    assert error.value.hint


def test_what_a_web_server_is_asked_besides_is_no_part_of_the_name() -> None:
    asked = ("https://h.co/a/data.jsonl.gz?download=true", "http://h.co/a.parquet#x", "gs://b/x?.jsonl", "a?.txt")
    assert [files.kind(path) for path in asked] == [".jsonl", ".parquet", ".jsonl", ".txt"]


def test_a_bomb_is_read_in_bounded_steps(tmp_path: Path) -> None:
    bomb = zstandard.compress(bytes(1 << 28))
    path = write(tmp_path / "bomb.txt.zst", bomb)
    with pytest.raises(LspError, match="line 1: longer than 64 MiB"):
        list(text.documents([path]))
    with files.opened(path) as raw:
        stream = files.decompressed(raw, path)
        assert stream.read(1) == b"\0"
        assert len(stream.raw.made) < 1 << 27


def test_weights_are_shares_and_names_are_kept() -> None:
    given = files.sources(["a=0.7:corpus/a.txt", "b=2.1:gs://bucket/b"])
    assert [(source.name, source.paths) for source in given] == [("a", ("corpus/a.txt",)), ("b", ("gs://bucket/b",))]
    assert [source.weight for source in given] == pytest.approx([0.25, 0.75])
    assert files.sources(["x.txt", "y.txt"]) == [("", 1.0, ("x.txt", "y.txt"))]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a=-1:x"], "weight of a is -1; it must be more than 0"),
        (["a=0:x"], "weight of a is 0; it must be more than 0"),
        (["a=nan:x"], "it must be more than 0"),
        (["a=inf:x"], "it must be more than 0"),
        (["a=many:x"], "weight of a is 'many', which is no number"),
        (["a=:x"], "weight of a is '', which is no number"),
        (["a=0,7:x"], "'0,7', which is no number"),
        (["a=0.7"], "a=0.7 names no path"),
        (["a=0.7:"], "a=0.7: names no path"),
        (["a=0.5:x", "a=0.5:y"], "source a is given twice"),
        (["a=0.5:x", "y"], "y has no weight, and a has one"),
    ],
)
def test_bad_weights_get_a_sentence(arguments: list[str], said: str) -> None:
    with pytest.raises(LspError) as error:
        files.sources(arguments)
    assert said in error.value.message
    assert error.value.code == Exit.USAGE
    assert error.value.hint


def test_a_file_whose_name_looks_like_a_weight_is_that_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a=0.7:x.txt", b"x")
    assert files.sources(["a=0.7:x.txt"])[0].paths == ("a=0.7:x.txt",)


def test_weights_belong_to_the_identity_of_a_corpus(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.txt", b"a"), write(tmp_path / "b.txt", b"b")
    digests = [[a, b], [f"a=0.5:{a}", f"b=0.5:{b}"], [f"a=0.7:{a}", f"b=0.3:{b}"], [f"a=7:{a}", f"b=3:{b}"]]
    plain, even, uneven, scaled = map(text.digest, digests)
    assert len({plain, even, uneven}) == 3
    assert uneven == scaled


@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
def test_stretches_between_cuts_are_the_whole_file(tmp_path: Path, suffix: str) -> None:
    pick = random.Random(1)
    documents = ["\n".join("wörd " * pick.randint(1, 9) for _ in range(pick.randint(1, 5))) for _ in range(60)]
    joined = (
        "".join(json.dumps({"text": d}) + "\n" for d in documents) if suffix == ".jsonl" else "\n\n".join(documents)
    )
    path = write(tmp_path / f"a{suffix}", joined.encode())
    length = len(joined.encode())
    for step in (1, 7, 100, 1000, length):
        cuts = [text.cut(path, near, length) for near in range(0, length, step)] + [length]
        assert cuts == sorted(cuts)
        stretches = [text.Stretch(path, *ends) for ends in itertools.pairwise(cuts)]
        assert list(text.documents(stretches)) == list(text.documents([path]))


def test_a_document_without_end_is_cut_at_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "DOCUMENT_LIMIT", 100)
    path = write(tmp_path / "a.txt", b"nine byte\n" * 50)
    assert text.cut(path, 95, 500) == 200


def test_an_error_in_a_stretch_names_the_line_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"fine\n\n" * 20 + b"na\xefve\n")
    with pytest.raises(LspError, match="line 41: not UTF-8"):
        list(text.documents([text.Stretch(path, 60, 125)]))
