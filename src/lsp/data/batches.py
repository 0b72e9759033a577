"""Batch i as a function of (rows, seed, i): resuming is "go to index".

    step ──▶ which rows, in which epoch ──▶ their tokens ──▶ masks ──▶ one dict of arrays for the device

Index spaces: a *step* counts batches from 0 without end; a *row* is a place in the data set; an *epoch*
is one pass over it. Grain shuffles row numbers without holding them, and reads ahead with threads.

Suffixes: B rows of a batch, T tokens, K slots.
"""

import math
import sys
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from lsp import LspError
from lsp.data import pairs
from lsp.data.clients import Rounds
from lsp.data.masking import Draw, Rates, mask, single_tokens, slots_for, slots_seen
from lsp.data.shards import Rows, Subset, segments

if TYPE_CHECKING:
    from grain import MapDataset

Batch = dict[str, np.ndarray]

EVALUATION_SEED = 0x15B  # evaluation masks are the same in every run, so their losses compare
EVALUATION_RATE = 0.15
SAMPLE = 2048  # rows that are looked at to know how many slots words and spans need
AHEAD = 8  # batches read ahead
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

    # Half of what Grain takes for endless, which its division into batches of one row rounds beyond what `len` can say.
    epochs = sys.maxsize // 2 // max(1, len(rows))
    return MapDataset.range(len(rows)).seed(seed % 2**32).shuffle().repeat(epochs).batch(batch_size)


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


def read_ahead(dataset: "MapDataset", start: int, stop: int) -> Generator[Any, None, None]:
    """`dataset[start]` to `dataset[stop - 1]`, made by threads while the device works on earlier ones."""
    from grain import ReadOptions

    if start < stop:
        yield from dataset[start:stop].to_iter_dataset(ReadOptions(num_threads=THREADS, prefetch_buffer_size=AHEAD))


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
