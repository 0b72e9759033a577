"""Labelled examples as tokens, and the batches that they are trained on, measured in and predicted in.

Training batches are a function of (examples, seed, step), as those of rows are (`data/batches.py`); examples of like
length go together. To measure and to predict, examples share rows.

Suffixes: B rows of a batch, T tokens, E examples of a row, N examples, C classes.
"""

import copy
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from lsp.data import pairs
from lsp.data.batches import Batch
from lsp.data.tasks import Table
from lsp.data.tokenizer import CLS, MASK, PAD, SEP, Tokenizer
from lsp.recipe import Problem

if TYPE_CHECKING:
    from grain import MapDataset

POOL = 64  # batches whose examples are sorted by length together
# Rows that examples share. XLA's CPU has other programs for small arrays, and adds up a text of more than 32 tokens in
# another order where it does not begin the row: so last bits would differ, of which an int8 model makes hundredths of a
# logit. With two rows or more, of multiples of 64 tokens and with 16 places, and long texts at their start, an example
# has the same answer alone and in any company; benchmarks/company.py looks for one that has not. Small are arrays whose
# rows are added up, those of norms, of fewer than 4,096 numbers: a model less than 128 wide needs more rows.
ROW, PLACES, LONG, SMALL = 64, 16, 32, 4096
TOKENS_AT_ONCE = 2048  # of such a batch
EACH = ("labels", "weights", "known", "too_long", "seconds", "lengths")  # arrays [N, …] of `Examples`


class Examples:
    """A table as tokens: `[CLS] a [SEP]`, or `[CLS] a [SEP] b [SEP]` (with two [SEP] between the texts where the
    tokenizer has it so), at most `sequence_length` long.

    `labels` is int32 [N] classes, float32 [N, C] ones for the classes of an example that may have several, or float32
    [N] numbers, as `problem` says; zeros when the table has none. `lengths` [N] counts tokens, `too_long`
    bool [N] says which examples were cut, and `cut` counts them; of a pair the longer text is cut first.
    """

    def __init__(
        self, table: Table, tokenizer: Tokenizer, sequence_length: int, problem: Problem = "single_label"
    ) -> None:
        encoded = [tokenizer.encode_arrays(column) for column in zip(*table.texts, strict=True)]
        ends = [*[tokenizer.between] * (len(encoded) - 1), (SEP,)]
        room = sequence_length - 1 - sum(map(len, ends))
        self.sequence_length, self.decode, self.texts = sequence_length, tokenizer.decode, table.texts
        self.labels = _labels(table, problem)
        self.weights = np.ones(len(table.texts), np.float32)  # of the examples, in training
        self.wanted: np.ndarray | None = None  # fp32 [N, C], logits to learn instead of labels: a teacher's
        self.known = np.ones(len(table.texts), np.float32)  # 0 where the label may be wrong, of a text that was made up
        self.tokens: list[np.ndarray] = []
        seconds: list[int] = []
        too_long: list[bool] = []
        for texts in zip(*encoded, strict=True):
            sizes = [len(each) for each in texts]
            sizes = pairs.fitting(sizes, room, odd=int(sizes[0] <= sizes[-1]))  # as Hugging Face's tokenizers have it
            too_long.append(sum(sizes) < sum(map(len, texts)))
            ended = [part for each, n, end in zip(texts, sizes, ends, strict=True) for part in (each[:n], end)]
            self.tokens.append(np.concatenate([[CLS], *ended]).astype(np.int32))
            seconds.append(1 + sizes[0] + len(ends[0]))
        self.too_long, self.cut = np.array(too_long, bool), sum(too_long)
        self.seconds = np.array(seconds, np.int32)  # where the second text of a pair begins
        self.lengths = np.fromiter(map(len, self.tokens), np.int64, len(self.tokens))

    @classmethod
    def random(cls, tokenizer: Tokenizer, lengths: Sequence[int], sequence_length: int) -> "Examples":
        """Examples of so many tokens each, always the same random pieces: to time a model, any are as good as text."""
        made = cls(Table([("",)] * len(lengths), [], ()), tokenizer, sequence_length)
        draw = np.random.default_rng(0)
        middles = [draw.integers(MASK + 1, tokenizer.size, max(0, n - 2)) for n in lengths]
        made.tokens = [np.array([CLS, *middle, SEP], np.int32)[:sequence_length] for middle in middles]
        made.lengths = np.fromiter(map(len, made.tokens), np.int64, len(made.tokens))
        made.seconds = made.lengths.astype(np.int32)
        return made

    @classmethod
    def joined(cls, parts: Sequence["Examples"]) -> "Examples":
        """The examples of all parts, one after the other; the parts are alike but for their texts and labels."""
        made = copy.copy(parts[0])
        made.tokens = [tokens for part in parts for tokens in part.tokens]
        made.texts = [texts for part in parts for texts in part.texts]
        for name in EACH:
            setattr(made, name, np.concatenate([getattr(part, name) for part in parts]))
        wanted = [part.wanted for part in parts if part.wanted is not None]
        made.wanted = np.concatenate(wanted) if wanted else None
        made.cut = int(made.too_long.sum())
        return made

    def __len__(self) -> int:
        return len(self.tokens)

    def some(self, chosen: np.ndarray) -> "Examples":
        """Those with the numbers `chosen` alone, in that order."""
        part = copy.copy(self)
        part.tokens, part.texts = ([every[number] for number in chosen.tolist()] for every in (self.tokens, self.texts))
        for name in EACH:
            setattr(part, name, getattr(self, name)[chosen])
        part.wanted = None if self.wanted is None else self.wanted[chosen]
        part.cut = int(part.too_long.sum())
        return part

    def batch(self, chosen: np.ndarray, batch_size: int, longest: int = 0, fine: bool = False) -> Batch:
        """The examples `chosen` [n ≤ B] as tokens, segments, types int32 [B, T], labels int32 [B], weights float32 [B];
        where logits are `wanted`, those [B, C], and for which rows the labels are `known`, float32 [B].

        T is the width (`width_for`) that holds the longest of them, and `longest` tokens. Missing rows weigh 0.
        """
        longest = max(longest, int(self.lengths[chosen].max(initial=1)))
        tokens = np.full((batch_size, min(width_for(longest, fine), self.sequence_length)), PAD, np.int32)
        types = np.zeros_like(tokens)
        for row, example in enumerate(chosen.tolist()):
            tokens[row, : self.lengths[example]] = self.tokens[example]
            types[row, self.seconds[example] : self.lengths[example]] = 1
        missing = batch_size - len(chosen)
        wanted = {} if self.wanted is None else {"wanted": np.pad(self.wanted[chosen], [(0, missing), (0, 0)])}
        known = {} if self.wanted is None else {"known": np.pad(self.known[chosen], (0, missing))}
        return (
            wanted
            | known
            | {
                "tokens": tokens,
                "segments": (tokens != PAD).astype(np.int32),
                "types": types,
                "labels": np.pad(self.labels[chosen], [(0, missing), (0, 0)][: self.labels.ndim]),
                "weights": np.pad(self.weights[chosen], (0, missing)),
            }
        )


def _labels(table: Table, problem: Problem) -> np.ndarray:
    if problem != "multi_label":
        kind = np.float32 if problem == "regression" else np.int32
        return np.array(table.labels or [0] * len(table.texts), kind)
    marks = np.zeros((len(table.texts), len(table.names)), np.float32)
    for row, held in enumerate(table.labels):
        marks[row, held] = 1
    return marks


def in_batches(examples: Examples, *, batch_size: int, seeds: Sequence[int], fine: bool = False) -> "MapDataset":
    """Endless batches of `Examples.batch`, ⌈N/B⌉ an epoch, each example once; examples of like length go together.

    Of several seeds each has an order of its own, and row i of a batch is of seed number i % the number of seeds.
    """
    from grain import MapDataset

    orders = {seed: example_numbers(examples, batch_size=batch_size, seed=seed) for seed in seeds}

    def together(step: int) -> Batch:
        chosen = {seed: numbers(step) for seed, numbers in orders.items()}
        longest = max(int(examples.lengths[rows].max()) for rows in chosen.values())
        made = {seed: examples.batch(rows, batch_size, longest, fine) for seed, rows in chosen.items()}
        if len(seeds) == 1:
            return made[seeds[0]]
        each = [made[seed] for seed in seeds]
        return {
            name: np.stack([batch[name] for batch in each], 1).reshape(-1, *each[0][name].shape[1:]) for name in each[0]
        }

    return MapDataset.range(sys.maxsize).map(together)


def sampled(examples: Examples, *, rows: int, share: float, seed: int) -> "MapDataset":
    """Endless batches of `rows` rows, in which each example is with the chance `share`, whatever else is there. What
    has no row left is left out."""
    from grain import MapDataset

    def drawn(step: int) -> Batch:
        chosen = np.flatnonzero(np.random.default_rng([seed, step]).random(len(examples)) < share)
        return examples.batch(chosen[:rows], rows)

    return MapDataset.range(sys.maxsize).map(drawn)


def example_numbers(examples: Examples, *, batch_size: int, seed: int) -> Callable[[int], np.ndarray]:
    """Which examples a batch of `in_batches` holds: of a step, an integer array [n ≤ B]. How long those of a batch are
    does not depend on the seed, but for a few tokens: batches of several seeds go together."""
    per_epoch = math.ceil(len(examples) / batch_size)

    @lru_cache(maxsize=2)
    def order(epoch: int) -> list[np.ndarray]:
        random = np.random.default_rng([seed, epoch])
        shuffled = random.permutation(len(examples))
        pools = [shuffled[at : at + POOL * batch_size] for at in range(0, len(shuffled), POOL * batch_size)]
        by_length = np.concatenate([pool[np.argsort(examples.lengths[pool], kind="stable")] for pool in pools])
        batches = [by_length[at : at + batch_size] for at in range(0, len(by_length), batch_size)]
        return [batches[index] for index in np.random.default_rng(epoch).permutation(per_epoch)]

    def numbers(step: int) -> np.ndarray:
        epoch, index = divmod(int(step), per_epoch)
        return order(epoch)[index]

    return numbers


def shared(examples: Examples, model_width: int) -> Iterator[tuple[np.ndarray, Batch]]:
    """Every example once, for measuring and predicting, in rows that examples share: (which example is segment 1, 2, …
    of which row, int64 [B, E] with -1 where none is; tokens, segments and types [B, T]). There is hardly any padding,
    and most batches have one shape. A batch has rows enough for a model of that width to answer as in any other.

    The longest example goes first. Long ones open a row each, short ones go into the fullest row with room for them; a
    row is as wide as the one that opened it needs.
    """
    rows: dict[int, list[list[int]]] = {}  # by width
    waiting: dict[int, list[tuple[int, list[int]]]] = {}  # rows and their widths, by the room that is left
    rooms = 0  # bit r is set when a row with room r waits
    lengths = examples.lengths.tolist()
    for example in np.argsort(-examples.lengths, kind="stable").tolist():
        size = lengths[example]
        if size <= LONG and (fitting := rooms >> size):
            room = size + (fitting & -fitting).bit_length() - 1
            width, row = waiting[room].pop()
            rooms &= ~(1 << room) if not waiting[room] else -1
        else:
            room = width = math.ceil(width_for(size) / ROW) * ROW
            row = []
            rows.setdefault(width, []).append(row)
        row.append(example)
        if room > size and len(row) < places(width):
            waiting.setdefault(room - size, []).append((width, row))
            rooms |= 1 << (room - size)
    for width, some in rows.items():
        full = max(1, TOKENS_AT_ONCE // width)
        least = max(2, math.ceil(SMALL / (places(width) * model_width)))
        for start in range(0, len(some), full):
            part = some[start : start + full]
            yield _shared_batch(examples, part, min(full, 1 << (max(least, len(part)) - 1).bit_length()), width)


def alone(examples: Examples) -> Iterator[tuple[np.ndarray, Batch]]:
    """Every example once, for models that read one a row: (which examples are the first rows, `Examples.batch` of
    them). Those of one width go together, in batches of few shapes: each is compiled for."""
    widths = np.array([min(width_for(length), examples.sequence_length) for length in examples.lengths.tolist()])
    for width in np.unique(widths).tolist():
        some, full = np.flatnonzero(widths == width), max(1, TOKENS_AT_ONCE // width)
        for start in range(0, len(some), full):
            chosen = some[start : start + full]
            yield chosen, examples.batch(chosen, min(full, 1 << (len(chosen) - 1).bit_length()))


def sorted_by_length(examples: Examples) -> Iterator[tuple[np.ndarray, Batch]]:
    """The same for models that take any shape: the longest first, and no wider than the longest of a batch."""
    order, start = np.argsort(-examples.lengths, kind="stable"), 0
    while start < len(order):
        longest = int(examples.lengths[order[start]])
        chosen = order[start : start + max(1, TOKENS_AT_ONCE // longest)]
        batch = examples.batch(chosen, len(chosen))
        yield chosen, batch | {name: batch[name][:, :longest] for name in ("tokens", "segments", "types")}
        start += len(chosen)


def places(width: int) -> int:
    """How many examples may share a row of so many tokens."""
    return max(PLACES, width // 8)


def _shared_batch(examples: Examples, rows: list[list[int]], count: int, width: int) -> tuple[np.ndarray, Batch]:
    """The rows, and empty ones after them."""
    chosen = np.full((count, places(width)), -1)
    tokens, segments, types = (np.full((count, width), fill, np.int32) for fill in (PAD, 0, 0))
    for row, held in enumerate(rows):
        chosen[row, : len(held)] = held
        end = 0
        for place, example in enumerate(held, 1):
            start, end = end, end + len(examples.tokens[example])
            tokens[row, start:end] = examples.tokens[example]
            segments[row, start:end] = place
            types[row, start + examples.seconds[example] : end] = 1
    return chosen, {"tokens": tokens, "segments": segments, "types": types}


def width_for(length: int, fine: bool = False) -> int:
    """The smallest of 16, 32, 64, 96, 128, 192, 256, 384, … that holds `length`: few shapes to compile for. Of a `fine`
    scale 8, 24 and 48 are too: less padding where there are many batches."""
    least, whole = (3, 16) if fine else (4, 64)
    power = 1 << max(least, (int(length) - 1).bit_length())
    return power * 3 // 4 if power > whole and length <= power * 3 // 4 else power
