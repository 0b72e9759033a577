"""Batch i as a function of (rows or examples, seed, i): resuming is "go to index".

    step ──▶ which rows, in which epoch ──▶ their tokens ──▶ masks ──▶ one dict of arrays for the device

Index spaces: a *step* counts batches from 0 without end; a *row* (or example) is a place in the data set; an *epoch*
is one pass over it. Grain shuffles row numbers without holding them, and reads ahead with threads.

Suffixes: B rows of a batch, T tokens, K slots, N examples.
"""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from lsp import LspError
from lsp.data import pairs
from lsp.data.clients import Rounds
from lsp.data.masking import Draw, Rates, mask, single_tokens, slots_for, slots_seen
from lsp.data.shards import Rows, Subset, segments
from lsp.data.tasks import Table
from lsp.data.tokenizer import CLS, PAD, SEP, Tokenizer
from lsp.recipe import Problem

if TYPE_CHECKING:
    from grain import MapDataset

Batch = dict[str, np.ndarray]

EVALUATION_SEED = 0x15B  # evaluation masks are the same in every run, so their losses compare
EVALUATION_RATE = 0.15
SAMPLE = 2048  # rows that are looked at to know how many slots words and spans need
POOL = 64  # batches whose examples are sorted by length together
AHEAD = 8  # batches read ahead
SHORTEST_ROW = 64  # tokens of a row that examples share, at least
TOKENS_AT_ONCE = 2048  # of such a batch
THREADS = 2  # that read them; NumPy lets go of the interpreter lock for the larger copies only


def pretraining(
    rows: Rows | Subset,
    *,
    batch_size: int,
    seed: int,
    mask_rate: float,
    mask_rate_end: float = 0.0,
    steps: int = 0,
    draw: Draw = single_tokens,
    rounds: Rounds | None = None,
) -> "MapDataset":
    """Endless masked batches; `dataset[step]` is the same whoever asks and whenever.

    A batch holds tokens and segments int32 [B, T], slots and targets int32 [B, K], weights float32 [B, K] and the
    int32 scalar overflow (positions drawn beyond the slots). Every row comes once an epoch, in a new order each time.
    Rows that are pairs bring types int32 [B, T], labels int32 [B] (1: the second text is a random one), and
    pair_weights float32 [B], which add up to what the weights of the masked positions do.

    The mask rate goes from `mask_rate` to `mask_rate_end` (0 means that it stays) as `Rates` says, and K with it, in
    steps. With `rounds` it is clients that choose the rows, and examples float32 [B] says how many each one's has.
    Raises LspError (exit 2) when the rate should change and the number of steps is not known.
    """
    rates = Rates(mask_rate, mask_rate_end or mask_rate, steps)
    if rates.first != rates.last and steps < 1:
        raise LspError(
            f"The mask rate should reach {mask_rate_end} at the last step, and the number of steps is not known.",
            hint="Say it: --set train.steps=N, or leave out data.mask_rate_end.",
        )
    if draw is single_tokens:
        slots = {rate: slots_for(rate, rows.sequence_length) for rate in set(rates.stages())}
    else:
        sample = rows.take(np.linspace(0, len(rows) - 1, SAMPLE).astype(np.int64))
        slots = {rate: slots_seen(rate, sample, draw) for rate in set(rates.stages())}

    def batch_at(step: int, chosen: np.ndarray) -> Batch:
        epochs = (step * batch_size + np.arange(batch_size)) // len(rows)
        return masked(step, chosen, epochs)

    def masked(step: int, chosen: np.ndarray, epochs: np.ndarray) -> Batch:
        return _masked(rows, chosen, epochs, seed, rates.at(step), slots[rates.highest(step)], draw)

    def of_clients(step: int) -> Batch:
        assert rounds is not None
        chosen, passes, examples = rounds(step)
        return masked(int(step), chosen, passes) | {"examples": examples}

    if rounds is not None:
        from grain import MapDataset

        return MapDataset.range(sys.maxsize).map(of_clients)
    return row_numbers(rows, batch_size=batch_size, seed=seed).map_with_index(batch_at)


class Growth:
    """Something that grows from `first` to `full` by doubling, in equal stages over the first `over` steps: the rows of
    a batch, or the length that is seen at once. `keys` are what the recipe calls first, full and over. Raises LspError
    (exit 2) unless full / first is a power of two and `over` is known."""

    def __init__(
        self,
        first: int,
        full: int,
        over: int,
        keys: tuple[str, str, str] = ("train.batch_start", "train.batch_size", "train.batch_warmup"),
    ) -> None:
        doublings = max(1, full // first).bit_length() - 1
        if doublings and not over:
            raise LspError(
                f"{keys[0]} needs train.steps and {keys[2]}, to know when {keys[1]} is reached.",
                hint="Add --set train.steps=N.",
            )
        if first << doublings != full:
            raise LspError(
                f"{keys[1]} = {full} is no doubling of {keys[0]} = {first}.",
                hint=f"Use --set {keys[0]}={full // 4 or full}, say.",
            )
        self.doublings, self.stage = doublings, max(1, over // max(1, doublings))

    def units(self, step: int) -> int:
        """How many times `first` it is at a step."""
        return 1 << min(step // self.stage, self.doublings)

    def before(self, step: int) -> int:
        """Units in all batches before this step's."""
        stage = min(step // self.stage, self.doublings)
        return self.stage * ((1 << stage) - 1) + ((step - stage * self.stage) << stage)


def growing(dataset: "MapDataset", growth: Growth, length: Growth, start: int, stop: int) -> Iterator[Batch]:
    """Batches of the steps `start` to `stop - 1`, put together from the units of `dataset`. Rows are cut so that no
    token sees further than the `length` of its step: segments are int32 [B, P, T / P] where there are P > 1 pieces."""
    units = read_ahead(dataset, growth.before(start), min(growth.before(stop), sys.maxsize))
    for step in range(start, stop):
        parts = [next(units) for _ in range(growth.units(step))]
        batch = parts[0] if len(parts) == 1 else {name: _stacked([part[name] for part in parts]) for name in parts[0]}
        pieces = (1 << length.doublings) // length.units(step)
        if pieces > 1:
            rows, tokens = batch["segments"].shape
            batch["segments"] = batch["segments"].reshape(rows, pieces, tokens // pieces)
        yield batch


def _stacked(arrays: list[np.ndarray]) -> np.ndarray:
    """One after another, narrower ones (of fewer slots) filled up with zeros; numbers are added."""
    if not arrays[0].ndim:
        return np.sum(arrays, dtype=arrays[0].dtype)
    width = max(array.shape[-1] for array in arrays)
    grown = [np.pad(each, ((0, 0), (0, width - each.shape[1]))) if each.ndim == 2 else each for each in arrays]
    return np.concatenate(grown)


def row_numbers(rows: Rows | Subset, *, batch_size: int, seed: int) -> "MapDataset":
    """Which rows each batch of `pretraining` holds: `dataset[step]` is an integer array [B]."""
    from grain import MapDataset  # imports jax: 2 s that evaluation and prediction can spare

    return MapDataset.range(len(rows)).seed(seed % 2**32).shuffle().repeat().batch(batch_size)


def evaluation(rows: Rows | Subset, batch_size: int, mask_rate: float = EVALUATION_RATE) -> "FixedBatches":
    """Masked batches to measure on: every row once, under the same masks every time."""
    return FixedBatches(rows, batch_size, mask_rate)


class FixedBatches:
    """What `evaluation` gives: `len`, `[i]`, iteration. The last batch is filled up with rows whose weights are 0."""

    def __init__(self, rows: Rows | Subset, batch_size: int, mask_rate: float) -> None:
        self.rows, self.batch_size, self.mask_rate = rows, batch_size, mask_rate
        self.slots = slots_for(mask_rate, rows.sequence_length)

    def __len__(self) -> int:
        return math.ceil(len(self.rows) / self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Batch:
        if not 0 <= index < len(self):
            raise IndexError(index)
        start = index * self.batch_size
        chosen = np.arange(start, min(start + self.batch_size, len(self.rows)))
        batch = _masked(self.rows, chosen, 0, EVALUATION_SEED, self.mask_rate, self.slots)
        missing = self.batch_size - len(chosen)
        return {
            name: np.pad(array, [(0, missing), (0, 0)][: array.ndim]) if array.ndim else array
            for name, array in batch.items()
        }


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
        self.sequence_length, self.decode = sequence_length, tokenizer.decode
        self.labels = _labels(table, problem)
        self.weights = np.ones(len(table.texts), np.float32)  # of the examples, in training
        self.tokens: list[np.ndarray] = []
        seconds: list[int] = []
        too_long: list[bool] = []
        for texts in zip(*encoded, strict=True):
            sizes = pairs.fitting([len(each) for each in texts], room)
            too_long.append(sum(sizes) < sum(map(len, texts)))
            ended = [part for each, n, end in zip(texts, sizes, ends, strict=True) for part in (each[:n], end)]
            self.tokens.append(np.concatenate([[CLS], *ended]).astype(np.int32))
            seconds.append(1 + sizes[0] + len(ends[0]))
        self.too_long, self.cut = np.array(too_long, bool), sum(too_long)
        self.seconds = np.array(seconds, np.int32)  # where the second text of a pair begins
        self.lengths = np.fromiter(map(len, self.tokens), np.int64, len(self.tokens))

    def __len__(self) -> int:
        return len(self.tokens)

    def batch(self, chosen: np.ndarray, batch_size: int, longest: int = 0, fine: bool = False) -> Batch:
        """The examples `chosen` [n ≤ B] as tokens, segments, types int32 [B, T], labels int32 [B], weights float32 [B].

        T is the width (`width_for`) that holds the longest of them, and `longest` tokens. Missing rows weigh 0.
        """
        longest = max(longest, int(self.lengths[chosen].max(initial=1)))
        tokens = np.full((batch_size, min(width_for(longest, fine), self.sequence_length)), PAD, np.int32)
        types = np.zeros_like(tokens)
        for row, example in enumerate(chosen.tolist()):
            tokens[row, : self.lengths[example]] = self.tokens[example]
            types[row, self.seconds[example] : self.lengths[example]] = 1
        missing = batch_size - len(chosen)
        return {
            "tokens": tokens,
            "segments": (tokens != PAD).astype(np.int32),
            "types": types,
            "labels": np.pad(self.labels[chosen], [(0, missing), (0, 0)][: self.labels.ndim]),
            "weights": np.pad(self.weights[chosen], (0, missing)),
        }


def _labels(table: Table, problem: Problem) -> np.ndarray:
    if problem != "multi_label":
        kind = np.float32 if problem == "regression" else np.int32
        return np.array(table.labels or [0] * len(table.texts), kind)
    marks = np.zeros((len(table.texts), len(table.names)), np.float32)
    for row, held in enumerate(table.labels):
        marks[row, held] = 1
    return marks


def labelled(examples: Examples, *, batch_size: int, seeds: Sequence[int], fine: bool = False) -> "MapDataset":
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
    """Which examples each batch of `labelled` holds: of a step, an integer array [n ≤ B]. How long those of a batch are
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


def shared(examples: Examples) -> Iterator[tuple[np.ndarray, Batch]]:
    """Every example once, for measuring and predicting, in rows that examples share: (which example is segment 1, 2, …
    of which row, int64 [B, E] with -1 where none is; tokens, segments and types [B, T]). There is hardly any padding,
    and most batches have one shape.

    The longest example goes first, each into the fullest row with room for it; a row is as wide as the one that opened
    it needs.
    """
    rows: dict[int, list[list[int]]] = {}  # by width
    waiting: dict[int, list[tuple[int, list[int]]]] = {}  # rows and their widths, by the room that is left
    rooms = 0  # bit r is set when a row with room r waits
    lengths = examples.lengths.tolist()
    for example in np.argsort(-examples.lengths, kind="stable").tolist():
        size = lengths[example]
        if fitting := rooms >> size:
            room = size + (fitting & -fitting).bit_length() - 1
            width, row = waiting[room].pop()
            rooms &= ~(1 << room) if not waiting[room] else -1
        else:
            room = width = max(width_for(size), SHORTEST_ROW)
            row = []
            rows.setdefault(width, []).append(row)
        row.append(example)
        if room > size and len(row) < places(width):
            waiting.setdefault(room - size, []).append((width, row))
            rooms |= 1 << (room - size)
    for width, some in rows.items():
        full = max(1, TOKENS_AT_ONCE // width)
        for start in range(0, len(some), full):
            part = some[start : start + full]
            yield _shared_batch(examples, part, min(full, 1 << (len(part) - 1).bit_length()), width)


def places(width: int) -> int:
    """How many examples may share a row of so many tokens."""
    return width // 8


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


def read_ahead(dataset: "MapDataset", start: int, stop: int) -> Iterator[Any]:
    """`dataset[start]` to `dataset[stop - 1]`, made by threads while the device works on earlier ones."""
    from grain import ReadOptions

    if start < stop:
        yield from dataset[start:stop].to_iter_dataset(ReadOptions(num_threads=THREADS, prefetch_buffer_size=AHEAD))


def width_for(length: int, fine: bool = False) -> int:
    """The smallest of 16, 32, 64, 96, 128, 192, 256, 384, … that holds `length`: few shapes to compile for. Of a `fine`
    scale 8, 24 and 48 are too: less padding where there are many batches."""
    least, whole = (3, 16) if fine else (4, 64)
    power = 1 << max(least, (int(length) - 1).bit_length())
    return power * 3 // 4 if power > whole and length <= power * 3 // 4 else power


def _masked(
    rows: Rows | Subset,
    chosen: np.ndarray,
    epochs: np.ndarray | int,
    seed: int,
    rate: float,
    slots: int,
    draw: Draw = single_tokens,
) -> Batch:
    tokens = rows.take(chosen)
    if rows.pairs:
        tokens, types, labels = pairs.parted(tokens)
    masked = mask(
        tokens, chosen, epoch=epochs, seed=seed, rate=rate, slots=slots, vocab_size=rows.vocab_size, draw=draw
    )
    batch = {
        "tokens": masked.tokens,
        "segments": segments(tokens),
        "slots": masked.slots,
        "targets": masked.targets,
        "weights": masked.weights,
        "overflow": np.array(masked.overflow, np.int32),
    }
    if rows.pairs:
        share = masked.weights.sum() / len(tokens)
        batch |= {"types": types, "labels": labels, "pair_weights": np.full(len(tokens), share, np.float32)}
    return batch
