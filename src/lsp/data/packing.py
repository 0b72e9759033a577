"""Documents to rows of exactly T tokens with as little padding as possible.

    documents ──encode──▶ tokens ──frame──▶ pieces [CLS] … [SEP] of at most T ──best fit──▶ rows

Everything goes by in chunks of a few megabytes, so memory does not grow with the corpus.

Suffixes: T tokens of a row, N rows.
"""

import itertools
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from lsp.data.tokenizer import CLS, PAD, SEP, Tokenizer

if TYPE_CHECKING:
    from lsp.data.pairs import Pairs

CHUNK = 4 << 20  # characters encoded at once: enough to keep all cores busy, little to hold
LONGEST_TEXT = 64 << 10  # characters given to one core at once; longer lines are cut there
OPEN_ROWS = 2048  # rows that still wait for a piece that fits
SMALLEST = 3  # tokens of the smallest piece: [CLS], one token, [SEP]


class Encoded(NamedTuple):
    """Documents as tokens, one after another."""

    tokens: np.ndarray  # int32
    lines: np.ndarray  # int64, tokens of each line
    documents: np.ndarray  # int64, lines of each document

    def lengths(self) -> np.ndarray:
        """Tokens of each document, int64."""
        lengths = np.zeros(len(self.documents), np.int64)
        np.add.at(lengths, np.repeat(np.arange(len(lengths)), self.documents), self.lines)
        return lengths


class Packed(NamedTuple):
    """Rows that became full, and what was read meanwhile."""

    rows: np.ndarray  # [N, T]
    documents: int
    duplicates: int  # documents that were left out
    bytes_in: int  # of UTF-8


def rows(chunks: Iterable[list[str]], tokenizer: Tokenizer, shelf: "Shelf | Pairs") -> Iterator[Packed]:
    """All documents of `chunks` as the rows of `shelf`; an empty one stands for a duplicate and is only counted.

    While a chunk is encoded the next one is read and the one before it is placed.
    """
    before: tuple[list[str], Future[Encoded]] | None = None
    with ThreadPoolExecutor(1) as encoder:
        for chunk in itertools.chain(chunks, [None]):
            now = (chunk, encoder.submit(encode, chunk, tokenizer)) if chunk else None
            if before:
                documents, encoded = before
                ready = shelf.add(encoded.result())
                duplicates = documents.count("")
                bytes_in = sum(len(document.encode()) for document in documents)
                yield Packed(ready, len(documents) - duplicates, duplicates, bytes_in)
            before = now
    yield Packed(shelf.rest(), 0, 0, 0)


def frame(tokens: np.ndarray, lengths: np.ndarray, sequence_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Documents cut into pieces of at most `sequence_length` with [CLS] before and [SEP] after each.

    `tokens` holds the documents one after another, `lengths` [documents] how many each has. Returns the pieces the
    same way: all tokens, and the size of each piece.
    """
    room = sequence_length - 2
    parts = -(-lengths // room)
    first = np.cumsum(parts) - parts
    part = np.arange(parts.sum()) - np.repeat(first, parts)
    sizes = np.minimum(room, np.repeat(lengths, parts) - part * room) + 2
    ends = np.cumsum(sizes)
    framed = np.empty(sizes.sum(), tokens.dtype)
    inner = np.ones(len(framed), bool)
    framed[ends - sizes], framed[ends - 1] = CLS, SEP
    inner[ends - sizes] = inner[ends - 1] = False
    framed[inner] = tokens
    return framed, sizes


class Shelf:
    """The rows that are not yet full. A piece goes into the fullest row that still has room for it (best fit).

    A document longer than a row is cut into pieces, the last of which shares its row.
    """

    def __init__(self, sequence_length: int) -> None:
        self.length = sequence_length
        self.rows = np.zeros((OPEN_ROWS, sequence_length), np.int32)
        self.empty = list(range(OPEN_ROWS))
        self.waiting: list[list[int]] = [[] for _ in range(sequence_length + 1)]  # rows by the room they have left
        self.rooms = 0  # bit r is set when a row with room r waits, so the best fit is found in one step

    def add(self, encoded: Encoded) -> np.ndarray:
        """The rows [N, T] that become full with these documents; what is left waits."""
        pieces, sizes = frame(encoded.tokens, encoded.lengths(), self.length)
        full = sizes == self.length
        whole = np.repeat(full, sizes)
        return np.concatenate([pieces[whole].reshape(-1, self.length), self.place(pieces[~whole], sizes[~full])])

    def place(self, pieces: np.ndarray, sizes: np.ndarray) -> np.ndarray:
        """Finds room for pieces under T tokens, lying one after another. Returns the rows that became full [N, T]."""
        closed: list[np.ndarray] = []
        end = 0
        for size in sizes.tolist():
            start, end = end, end + size
            fitting = self.rooms >> size
            if fitting:
                room = size + (fitting & -fitting).bit_length() - 1
                row = self._take(room)
            else:
                if not self.empty:
                    closed.append(self._close(self._take((self.rooms & -self.rooms).bit_length() - 1)))
                row, room = self.empty.pop(), self.length
            at = self.length - room
            self.rows[row, at : at + size] = pieces[start:end]
            if room - size < SMALLEST:
                closed.append(self._close(row))
            else:
                self.waiting[room - size].append(row)
                self.rooms |= 1 << (room - size)
        return np.array(closed, np.int32).reshape(-1, self.length)

    def rest(self) -> np.ndarray:
        """All rows that still wait, [N, T], the fullest first."""
        return self.rows[[row for rows in self.waiting for row in rows]]

    def _take(self, room: int) -> int:
        row = self.waiting[room].pop()
        if not self.waiting[room]:
            self.rooms &= ~(1 << room)
        return row

    def _close(self, row: int) -> np.ndarray:
        tokens = self.rows[row].copy()
        self.rows[row] = PAD
        self.empty.append(row)
        return tokens


def chunks(documents: Iterable[str]) -> Iterator[list[str]]:
    """Documents in lists of about `CHUNK` characters."""
    held: list[str] = []
    length = 0
    for document in documents:
        held.append(document)
        length += len(document)
        if length >= CHUNK:
            yield held
            held, length = [], 0
    if held:
        yield held


def shares(documents: Iterable[str], size: int) -> Iterator[tuple[int, Iterator[list[str]]]]:
    """`chunks` of the documents in numbered groups of `size` characters or a little more."""

    def numbered() -> Iterator[tuple[int, list[str]]]:
        number = length = 0
        for chunk in chunks(documents):
            yield number, chunk
            length += sum(map(len, chunk))
            if length >= size:
                number, length = number + 1, 0

    for number, group in itertools.groupby(numbered(), key=lambda pair: pair[0]):
        yield number, (chunk for _, chunk in group)


def encode(documents: list[str], tokenizer: Tokenizer) -> Encoded:
    """The documents as tokens.

    A line is encoded by itself, and very long lines in parts, so that the cores have even shares: without its newline
    where that is a space to the tokenizer, and with it where it has a piece of its own.
    """
    whole, bare, ended, last = tokenizer.encode_arrays(["a\nb", "a", "a\n", "b"])
    spaced = np.array_equal(np.concatenate([bare, last]), whole)
    end = "\n" if not spaced and np.array_equal(np.concatenate([ended, last]), whole) else ""
    parts = [[*_lines(document, end)] for document in documents]
    encoded = tokenizer.encode_arrays([part for each in parts for part in each])
    lines = np.fromiter(map(len, encoded), np.int64, len(encoded))
    counts = np.fromiter(map(len, parts), np.int64, len(parts))
    return Encoded(np.concatenate(encoded) if encoded else np.zeros(0, np.int32), lines, counts)


def _lines(document: str, end: str) -> Iterator[str]:
    *lines, last = document.split("\n")
    for line in (*(line + end for line in lines), last):
        if len(line) <= LONGEST_TEXT:
            yield line
        else:
            yield from (line[start : start + LONGEST_TEXT] for start in range(0, len(line), LONGEST_TEXT))
