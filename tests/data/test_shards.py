"""Packing keeps every token in order and wastes little; a file that is not whole is never read as rows."""

import dataclasses
import hashlib
import json
import random
import shutil
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lsp import Exit, LspError, recipe
from lsp.console import Progress
from lsp.data import packing, parts, shards, tokenizer
from lsp.data.shards import Rows, Subset, segments
from lsp.data.tokenizer import CLS, PAD, SEP, Tokenizer

T = 32


def texts(number: int = 400, seed: int = 0) -> list[str]:
    pick = random.Random(seed)
    return [
        "\n".join(
            " ".join(pick.choices(["cat", "dog", "bird", "fish", "élan"], k=5)) for _ in range(pick.randint(1, 12))
        )
        for _ in range(number)
    ]


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    return tokenizer.train(iter(texts()), vocab_size=300, kind="bpe", lowercase=False, seed=0)


@pytest.fixture(scope="module")
def packed(words: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Rows:
    path = tmp_path_factory.mktemp("packed")
    shards.pack(iter(texts()), words, path, T)
    return Rows.open(path)


def pieces(rows: np.ndarray) -> list[tuple[int, ...]]:
    """The pieces of rows, found by walking over the tokens."""
    found = []
    for row in rows.tolist():
        row = row[: row.index(PAD)] if PAD in row else row
        while row:
            end = row.index(SEP) + 1
            assert row[0] == CLS
            found.append(tuple(row[1 : end - 1]))
            row = row[end:]
    return found


def test_every_document_is_there_once_cut_into_pieces(packed: Rows, words: Tokenizer) -> None:
    expected: Counter[tuple[int, ...]] = Counter()
    for document in texts():
        ids = [index for line in document.split("\n") for index in words.encode([line])[0]]
        expected.update(tuple(ids[at : at + T - 2]) for at in range(0, len(ids), T - 2))
    assert Counter(pieces(packed.take(np.arange(len(packed))))) == expected


def test_the_counts_are_those_of_the_rows(packed: Rows) -> None:
    rows = packed.take(np.arange(len(packed)))
    counts = packed.counts
    assert (counts.rows, counts.tokens) == (len(rows), rows.size)
    assert counts.useful_tokens == packed.useful_tokens == (rows != PAD).sum()
    assert counts.documents == 400
    assert counts.bytes_in == sum(len(document.encode()) for document in texts())
    one_piece_a_row = 1 - counts.useful_tokens / (T * len(pieces(rows)))
    assert counts.padding_share < 0.25 * one_piece_a_row


def test_a_piece_goes_into_the_fullest_row_that_has_room() -> None:
    shelf = packing.Shelf(12)
    full = shelf.place(np.repeat([5, 8, 4], [5, 8, 4]), np.array([5, 8, 4]))  # rooms 7 and 4 wait for the piece of 4
    assert full.tolist() == [[8] * 8 + [4] * 4]
    assert shelf.rest().tolist() == [[5] * 5 + [PAD] * 7]


def test_rows_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "OPEN_ROWS", 4)
    shelf = packing.Shelf(10)
    full = shelf.place(np.ones(7 * 9, np.int32), np.full(9, 7))
    assert len(full) == 5
    assert len(shelf.rest()) == 4


def test_packing_is_the_same_in_chunks_of_any_size(
    packed: Rows, words: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "CHUNK", 500)
    shards.pack(iter(texts()), words, tmp_path, T)
    rows = Rows.open(tmp_path)
    every = np.arange(len(packed))
    assert Counter(pieces(rows.take(np.arange(len(rows))))) == Counter(pieces(packed.take(every)))


def test_many_shards_read_as_one(
    packed: Rows, words: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "CHUNK", 1000)
    monkeypatch.setattr(shards, "OPEN", 2)
    shards.pack(iter(texts()), words, tmp_path, T, size=5000)
    rows = Rows.open(tmp_path)
    files = sorted((tmp_path / "rows").iterdir())
    assert len(files) > 10
    assert dataclasses.replace(rows.counts, rows=0, tokens=0) == dataclasses.replace(packed.counts, rows=0, tokens=0)
    stored = [np.frombuffer(file.read_bytes()[shards.HEADER_BYTES :], "<u2").reshape(-1, T) for file in files]
    whole = np.concatenate(stored).astype(np.int32)
    assert Counter(pieces(whole)) == Counter(pieces(packed.take(np.arange(len(packed)))))
    chosen = np.random.default_rng(0).permutation(len(whole))
    np.testing.assert_array_equal(rows.take(chosen), whole[chosen])
    np.testing.assert_array_equal(rows[40], whole[40])
    np.testing.assert_array_equal(Subset(rows, chosen)[3], whole[chosen[3]])


def test_a_missing_shard_is_noticed(words: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "CHUNK", 1000)
    shards.pack(iter(texts()), words, tmp_path, T, size=5000)
    (tmp_path / "rows" / "00001.rows").unlink()
    with pytest.raises(LspError, match="missing") as error:
        Rows.open(tmp_path)
    assert error.value.code == Exit.ARTIFACT


def test_a_row_that_is_not_there_is_an_index_error(packed: Rows) -> None:
    for index in (-1, len(packed)):
        with pytest.raises(IndexError):
            packed[index]


def test_segments_are_counted_at_each_start_and_padding_has_none() -> None:
    tokens = np.array([[CLS, 9, SEP, CLS, 9, 9, SEP, PAD], [CLS, 9, 9, 9, 9, 9, 9, SEP]])
    expected = [[1, 1, 1, 2, 2, 2, 2, 0], [1] * 8]
    assert segments(tokens).tolist() == expected
    assert segments(tokens).dtype == np.int32


def test_any_changed_byte_of_a_header_and_any_cut_is_refused(packed: Rows, tmp_path: Path) -> None:
    whole = next((packed.path / "rows").iterdir()).read_bytes()
    file = tmp_path / "rows" / "00000.rows"
    file.parent.mkdir()
    damaged = [bytes([*whole[:at], whole[at] ^ 1, *whole[at + 1 :]]) for at in range(shards.HEADER_BYTES)]
    damaged += [whole[:cut] for cut in (0, 7, 100, shards.HEADER_BYTES, len(whole) - 1)] + [whole + b"\0"]
    damaged += [bytes(shards.HEADER_BYTES) + whole[shards.HEADER_BYTES :]]  # as a killed process leaves it
    for content in damaged:
        file.write_bytes(content)
        with pytest.raises(LspError) as error:
            Rows.open(tmp_path)
        assert error.value.code == Exit.ARTIFACT
        assert str(file) in error.value.message


def test_a_header_that_lies_allocates_nothing(packed: Rows, tmp_path: Path) -> None:
    file = tmp_path / "rows" / "00000.rows"
    file.parent.mkdir()
    header = shards.HEADER.pack(shards.MAGIC, 1, 2, 2**50, 128, 300, 0, 0, 0, bytes(32), 0, 0).ljust(124, b"\0")
    file.write_bytes(header + zlib.crc32(header).to_bytes(4, "little") + bytes(1000))
    with pytest.raises(LspError, match="promises"):
        Rows.open(tmp_path)


def test_large_vocabularies_are_stored_in_four_bytes(tmp_path: Path, words: Tokenizer) -> None:
    class Large:
        size, hash = 70_000, hashlib.sha256(b"").hexdigest()

        def encode_arrays(self, parts: list[str]) -> list[np.ndarray]:
            return [np.array([69_999, 5], np.int32) for _ in parts]

    stand_in: Any = Large()
    shards.pack(["x"], stand_in, tmp_path, T)
    assert Rows.open(tmp_path)[0][:4].tolist() == [CLS, 69_999, 5, SEP]
    assert (tmp_path / "rows" / "00000.rows").stat().st_size == shards.HEADER_BYTES + 4 * T


def test_a_killed_packing_leaves_no_rows_and_goes_on_at_the_shard_that_is_not_whole(
    words: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "CHUNK", 1000)

    def killed() -> Iterator[str]:
        yield from texts(150)
        raise KeyboardInterrupt

    shards.pack(texts(), words, tmp_path / "calm", T, size=5000)
    with pytest.raises(KeyboardInterrupt):
        shards.pack(killed(), words, tmp_path / "killed", T, size=5000)
    with pytest.raises(LspError, match="no packed rows"):
        Rows.open(tmp_path / "killed")
    done = sorted((tmp_path / "killed" / "rows.tmp").iterdir())
    times = [file.stat().st_mtime_ns for file in done[:-1]]
    assert len(times) > 2
    shards.pack(texts(), words, tmp_path / "killed", T, size=5000)
    assert times == [(tmp_path / "killed" / "rows" / file.name).stat().st_mtime_ns for file in done[:-1]]
    for file in (tmp_path / "calm" / "rows").iterdir():
        assert file.read_bytes() == (tmp_path / "killed" / "rows" / file.name).read_bytes()


def test_a_duplicate_is_counted_and_takes_no_room(words: Tokenizer, tmp_path: Path) -> None:
    shards.pack(["a cat", "", "a dog", ""], words, tmp_path / "with", T)
    shards.pack(["a cat", "a dog"], words, tmp_path / "without", T)
    one, other = (Rows.open(tmp_path / name) for name in ("with", "without"))
    assert (one.counts.documents, one.counts.duplicates) == (2, 2)
    assert dataclasses.replace(one.counts, duplicates=0) == other.counts
    np.testing.assert_array_equal(one[0], other[0])


def test_shards_of_the_first_format_still_open(packed: Rows, tmp_path: Path) -> None:
    """Those had no count of duplicates: zeros stand there."""
    whole = next((packed.path / "rows").iterdir()).read_bytes()
    assert whole[shards.HEADER.size - 8 : shards.HEADER_BYTES - 4] == bytes(
        shards.HEADER_BYTES - shards.HEADER.size + 4
    )
    assert packed.counts.duplicates == 0


def mixed(rows: list[int], weights: list[float], path: Path, packed: Rows) -> Rows:
    sources = [{"name": f"s{i}", "weight": w, "rows": n} for i, (n, w) in enumerate(zip(rows, weights, strict=True))]
    shutil.copytree(packed.path / "rows", path / "rows")
    (path / "rows" / shards.MIXTURE).write_text(json.dumps(sources))
    return Rows.open(path)


@pytest.mark.parametrize(("share", "weight"), [(0.5, 0.7), (0.9, 0.1), (0.2, 0.2), (0.05, 0.6)])
def test_in_an_epoch_each_source_fills_its_share_and_no_row_is_left_out(
    packed: Rows, tmp_path: Path, share: float, weight: float
) -> None:
    first = round(share * len(packed))
    rows = mixed([first, len(packed) - first], [weight, 1 - weight], tmp_path, packed)
    without = np.arange(0, len(rows), 50)
    epoch = rows.epoch(without)
    times = np.bincount(epoch, minlength=len(rows))
    assert (times[without] == 0).all()
    own = np.split(np.delete(times, without), [first - len(without[without < first])])
    assert all(part.min() >= 1 and part.max() - part.min() <= 1 for part in own)
    assert min(part.max() for part in own) == 1  # no shorter epoch would do
    assert own[0].sum() / len(epoch) == pytest.approx(weight, abs=1 / len(epoch))


def test_weights_that_would_repeat_a_row_without_end_are_refused(packed: Rows, tmp_path: Path) -> None:
    rows = mixed([1, len(packed) - 1], [0.9, 0.1], tmp_path, packed)
    with pytest.raises(LspError, match=r"each of the 1 rows of s0 more than 100 times to fill 0\.9 of it"):
        rows.epoch()


def test_a_mixture_that_does_not_fit_its_rows_is_refused(packed: Rows, tmp_path: Path) -> None:
    with pytest.raises(LspError, match="does not fit the rows beside it") as error:
        mixed([1, 1], [0.5, 0.5], tmp_path, packed)
    assert error.value.code == Exit.ARTIFACT


@pytest.mark.parametrize("given", [True, False])
def test_no_text_is_said_so_and_where(words: Tokenizer, tmp_path: Path, given: bool) -> None:
    words.save(tmp_path / "words" / "tokenizer")
    (tmp_path / "empty.txt").write_text("\u200b\n\n" if given else "\n\n", "utf-8")  # the first encodes to nothing
    with pytest.raises(LspError, match=r"no text in .*empty\.txt") as error:
        parts.prepare(
            [str(tmp_path / "empty.txt")],
            tmp_path / "out",
            recipe.Text(sequence_length=T),
            tmp_path / "words" if given else None,
            0,
            Progress(True),
        )
    assert error.value.code == Exit.DATA
    assert not (tmp_path / "out" / "rows").exists()


def test_preparing_again_changes_nothing_and_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    source = tmp_path / "a.txt"
    source.write_text("\n\n".join(texts()), "utf-8")
    data = recipe.Text(vocab_size=300, tokenizer="bpe", sequence_length=T)
    counts = [parts.prepare([str(source)], tmp_path / out, data, None, 0, Progress(True)) for out in ("a", "b", "a")]
    assert counts[0] == counts[1] == counts[2]
    for name in ("rows/00000.rows", "tokenizer/tokenizer.model"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
