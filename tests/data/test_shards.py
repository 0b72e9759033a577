"""Packing keeps every token in order and wastes little; a file that is not whole is never read as rows."""

import hashlib
import random
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from lsp import Exit, LspError, recipe
from lsp.console import Progress
from lsp.data import packing, shards, tokenizer
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
    monkeypatch.setattr(shards, "SHARD_BYTES", 37 * T * 2)
    shards.pack(iter(texts()), words, tmp_path, T)
    rows = Rows.open(tmp_path)
    assert len(list((tmp_path / "rows").iterdir())) == -(-len(packed) // 37)
    assert rows.counts == packed.counts
    chosen = np.random.default_rng(0).permutation(len(packed))
    np.testing.assert_array_equal(rows.take(chosen), packed.take(chosen))
    np.testing.assert_array_equal(rows[40], packed[40])
    np.testing.assert_array_equal(Subset(rows, chosen)[3], packed[int(chosen[3])])


def test_a_missing_shard_is_noticed(words: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 37 * T * 2)
    shards.pack(iter(texts()), words, tmp_path, T)
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
    header = shards.HEADER.pack(shards.MAGIC, 1, 2, 2**50, 128, 300, 0, 0, 0, bytes(32)).ljust(124, b"\0")
    file.write_bytes(header + zlib.crc32(header).to_bytes(4, "little") + bytes(1000))
    with pytest.raises(LspError, match="promises"):
        Rows.open(tmp_path)


def test_large_vocabularies_are_stored_in_four_bytes(tmp_path: Path, words: Tokenizer) -> None:
    class Large:
        size, hash = 70_000, hashlib.sha256(b"").hexdigest()

        def encode_arrays(self, parts: list[str]) -> list[np.ndarray]:
            return [np.array([69_999, 5], np.int32) for _ in parts]

    shards.pack(["x"], Large(), tmp_path, T)  # type: ignore[arg-type]
    assert Rows.open(tmp_path)[0][:4].tolist() == [CLS, 69_999, 5, SEP]
    assert (tmp_path / "rows" / "00000.rows").stat().st_size == shards.HEADER_BYTES + 4 * T


def test_a_killed_packing_leaves_no_rows_and_can_be_done_again(words: Tokenizer, tmp_path: Path) -> None:
    def killed() -> Iterator[str]:
        yield from texts(50)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        shards.pack(killed(), words, tmp_path, T)
    with pytest.raises(LspError, match="no packed rows"):
        Rows.open(tmp_path)
    shards.pack(texts(50), words, tmp_path, T)
    assert Rows.open(tmp_path).counts.documents == 50


@pytest.mark.parametrize("given", [True, False])
def test_no_text_is_said_so_and_where(words: Tokenizer, tmp_path: Path, given: bool) -> None:
    words.save(tmp_path / "words" / "tokenizer")
    (tmp_path / "empty.txt").write_text("\u200b\n\n" if given else "\n\n", "utf-8")  # the first encodes to nothing
    with pytest.raises(LspError, match=r"no text in .*empty\.txt") as error:
        shards.prepare(
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
    counts = [shards.prepare([str(source)], tmp_path / out, data, None, 0, Progress(True)) for out in ("a", "b", "a")]
    assert counts[0] == counts[1] == counts[2]
    for name in ("rows/00000.rows", "tokenizer/tokenizer.model"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
