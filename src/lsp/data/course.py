"""What a run of pretraining reads, step by step: which rows, under which masks, and how much of them at once.

Suffix: B rows of a batch.
"""

from collections.abc import Iterator

import numpy as np

from lsp import LspError
from lsp.data import batches
from lsp.data.batches import Batch, Growth
from lsp.data.clients import Rounds
from lsp.data.masking import Rates, drawing
from lsp.data.shards import Rows, Subset
from lsp.data.tokenizer import Tokenizer
from lsp.recipe import Pretrain


class Course:
    """The batches of a recipe whose `train.steps` are counted, where they end at all. Raises LspError (exit 2) for what
    does not go together."""

    def __init__(self, recipe: Pretrain, rows: Rows | Subset, words: Tokenizer) -> None:
        data, train = recipe.data, recipe.train
        first = train.batch_start or train.batch_size
        self.rows, self.rounds = rows, _rounds(recipe, rows)
        self.growth = Growth(first, train.batch_size, round(train.batch_warmup * train.steps))
        self.length = _length(recipe, rows)
        self.rates = Rates(data.mask_rate, data.mask_rate_end or data.mask_rate, self.growth.before(train.steps))
        self.units = batches.row_numbers(rows, batch_size=first, seed=train.seed)
        self.dataset = batches.pretraining(
            rows,
            batch_size=first,
            seed=train.seed,
            mask_rate=self.rates.first,
            mask_rate_end=self.rates.last,
            steps=self.rates.steps,
            draw=drawing(data.masking, words),
            rounds=self.rounds,
        )

    def batches(self, start: int, stop: int) -> Iterator[Batch]:
        """Those of the steps `start` to `stop - 1`."""
        return batches.growing(self.dataset, self.growth, self.length, start, stop)

    def numbers(self, step: int) -> np.ndarray:
        """Which rows a step reads [B]."""
        if self.rounds:
            return self.rows.numbers(self.rounds(step)[0])
        units = range(self.growth.before(step), self.growth.before(step + 1))
        return self.rows.numbers(np.concatenate([self.units[unit] for unit in units]))

    def seen(self, step: int) -> int:
        """How many tokens of a row see one another."""
        return self.rows.sequence_length * self.length.units(step) >> self.length.doublings

    def mask_rate(self, step: int) -> float:
        """The share of tokens that a step hides."""
        return self.rates.at(self.growth.before(step))


def _length(recipe: Pretrain, rows: Rows | Subset) -> Growth:
    """The tokens that see one another as the run goes on. Raises LspError (exit 2) where pairs would be cut."""
    data, train, full = recipe.data, recipe.train, rows.sequence_length
    if data.length_start and rows.pairs:
        raise LspError("data.length_start would cut the pairs of data.next_sentence.", hint="Leave one of the two out.")
    keys = ("data.length_start", "data.sequence_length", "data.length_warmup")
    return Growth(data.length_start or full, full, round(data.length_warmup * train.steps), keys)


def _rounds(recipe: Pretrain, rows: Rows | Subset) -> Rounds | None:
    """Who trains when, with `replicas.clients`. Raises LspError (exit 2) where that can't be."""
    copies, train = recipe.replicas, recipe.train
    if not copies.clients:
        return None
    if train.batch_start:
        raise LspError("train.batch_start does not go together with replicas.clients.", hint="Leave it out.")
    whole = rows.rows if isinstance(rows, Subset) else rows
    owned = whole.owned(rows.numbers(np.arange(len(rows))))
    return Rounds(owned, copies.clients, copies.every, train.batch_size, train.seed)
