"""Documents to pairs of texts for next-sentence prediction, as BERT makes them (Devlin et al., 2019, and the authors'
`create_pretraining_data.py`).

    documents ──encode──▶ lines ──Pairs──▶ rows: [CLS] A [SEP] B [SEP] and padding

What BERT calls a sentence is a line. A and B are some lines each: B follows A in its document, or comes from another.
Which of the two is stored in the first token of a row: [CLS] where B follows, [SEP] where it is random. `parted` reads
that, and puts the [CLS] back.

Suffixes: B rows, T tokens of a row, N rows.
"""

import random
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from lsp.data.packing import Encoded
from lsp.data.tokenizer import CLS, PAD, SEP

SHORT = 0.1  # share of the documents whose pairs are made shorter, so that short texts are not new to the model
NEXT, RANDOM = 0, 1  # labels, as BERT's


class Pool(NamedTuple):
    """Documents side by side, without empty lines and without empty documents."""

    tokens: np.ndarray  # int32
    lines: list[int]  # where in `tokens` each line begins, and where the last one ends
    documents: list[int]  # where in `lines` each document begins, and where the last one ends


class Pairs:
    """Makes pairs of the documents of one shard; what it draws is decided by `seed` and the text.

    A random B comes from the same few megabytes of text as A, so that memory does not grow with the corpus, and always
    from another document, unless the shard has only one.
    """

    def __init__(self, sequence_length: int, seed: str) -> None:
        self.length = sequence_length
        self.draw = random.Random(seed)
        self.held: list[Encoded] = []
        self.drawn_from = 0  # documents at the beginning of `held` whose pairs are made: the last one before

    def add(self, encoded: Encoded) -> np.ndarray:
        """The pairs [N, T] of what was added so far; none yet while it is a single document."""
        self.held.append(encoded)
        pool = pooled(self.held)
        if len(pool.documents) <= 2:
            return self._made(pool, ())
        rows = self._made(pool, range(self.drawn_from, len(pool.documents) - 1))
        first = pool.documents[-2]
        sizes = np.diff(pool.lines[first:])
        self.held = [Encoded(pool.tokens[pool.lines[first] :], sizes, np.array([len(sizes)]))]
        self.drawn_from = 1
        return rows

    def rest(self) -> np.ndarray:
        """The pairs [N, T] that still wait: those of a shard's only document, whose random texts are its own."""
        pool = pooled(self.held)
        rows = self._made(pool, range(self.drawn_from, len(pool.documents) - 1))
        self.held, self.drawn_from = [], 0
        return rows

    def _made(self, pool: Pool, documents: Sequence[int]) -> np.ndarray:
        rows = [row for document in documents for row in self._of(pool, document)]
        return np.array(rows, np.int32).reshape(-1, self.length)

    def _of(self, pool: Pool, document: int) -> Iterator[np.ndarray]:
        """A document's pairs, in order. Lines that a random B took the place of come again, as the next A."""
        room = self.length - 3
        target = 2 + self._below(room - 1) if self.draw.random() < SHORT else room
        line, end = pool.documents[document : document + 2]
        while line < end:
            stop = self._stop(pool, line, end, target)
            middle = line + 1 + self._below(stop - line - 1) if stop - line > 1 else stop
            first = pool.tokens[pool.lines[line] : pool.lines[middle]]
            if middle == stop or self.draw.random() < 0.5:
                yield self._row(first, self._elsewhere(pool, document, target - len(first)), RANDOM)
                line = middle
            else:
                yield self._row(first, pool.tokens[pool.lines[middle] : pool.lines[stop]], NEXT)
                line = stop

    def _elsewhere(self, pool: Pool, document: int, target: int) -> np.ndarray:
        """Lines of another document from a random one on."""
        others = len(pool.documents) - 2
        other = (document + 1 + self._below(others)) % (others + 1) if others else document
        begin, end = pool.documents[other : other + 2]
        line = begin + self._below(end - begin)
        return pool.tokens[pool.lines[line] : pool.lines[self._stop(pool, line, end, target)]]

    def _stop(self, pool: Pool, line: int, end: int, target: int) -> int:
        """The line before which at least `target` tokens, and at least one line, are read; at most `end`."""
        return bisect_left(pool.lines, pool.lines[line] + target, line + 1, end)

    def _row(self, first: np.ndarray, second: np.ndarray, label: int) -> np.ndarray:
        """The pair, the longer text cut token by token at a random end."""
        sizes = fitting([len(first), len(second)], self.length - 3)
        first, second = (self._cut(text, size) for text, size in zip((first, second), sizes, strict=True))
        row = np.full(self.length, PAD, np.int32)
        row[0] = CLS if label == NEXT else SEP
        middle = 1 + len(first)
        row[1:middle] = first
        row[middle] = row[middle + 1 + len(second)] = SEP
        row[middle + 1 : middle + 1 + len(second)] = second
        return row

    def _cut(self, text: np.ndarray, size: int) -> np.ndarray:
        over = len(text) - size
        front = self.draw.getrandbits(over).bit_count() if over else 0  # of so many coins
        return text[front : front + size]

    def _below(self, number: int) -> int:
        return int(self.draw.random() * number)


def pooled(parts: Sequence[Encoded]) -> Pool:
    """The parts' documents together."""
    lines = np.concatenate([np.zeros(0, np.int64), *(part.lines for part in parts)])
    counts = np.concatenate([np.zeros(0, np.int64), *(part.documents for part in parts)])
    owner = np.repeat(np.arange(len(counts)), counts)[lines > 0]
    counts = np.bincount(owner, minlength=1)
    tokens = np.concatenate([np.zeros(0, np.int32), *(part.tokens for part in parts)])
    starts = [np.cumsum(np.append(0, sizes[sizes > 0])).tolist() for sizes in (lines, counts)]
    return Pool(tokens, *starts)


def parted(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Stored rows [B, T] as tokens with their [CLS], types (0, and 1 for B and its [SEP]), and labels [B]; int32."""
    tokens = rows.copy()
    tokens[:, 0] = CLS
    ends = tokens == SEP
    types = (np.cumsum(ends, axis=1) - ends == 1) & (tokens != PAD)
    return tokens, types.astype(np.int32), np.where(rows[:, 0] == CLS, NEXT, RANDOM).astype(np.int32)


def fitting(sizes: list[int], room: int, odd: int = 0) -> list[int]:
    """Sizes that fit into `room` together, the longer of two cut first. Where both are, and the room is odd, the text
    number `odd` has one token more: BERT's pretraining gives it to the first."""
    if sum(sizes) <= room or len(sizes) == 1:
        return [min(sizes[0], room), *sizes[1:]]
    half = room // 2 + (room % 2 if odd == 0 else 0)
    first = min(sizes[0], max(half, room - sizes[1]))
    return [first, min(sizes[1], room - first)]
