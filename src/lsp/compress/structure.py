"""Which heads and feed-forward units a classifier can do without, for a speed that is measured on this machine."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from lsp import Exit, LspError
from lsp.compress import depth, importance, latency
from lsp.compress.importance import Block
from lsp.compress.shrink import shrink
from lsp.data.batches import Batch
from lsp.data.examples import Examples
from lsp.model.config import ModelConfig

Tree = Any
Model = tuple[ModelConfig, Tree]
ROWS, JUDGES = 32, 16  # examples of a batch, and batches, that layers are judged by
TRIES = 6  # to choose, to measure and to choose again


class Wish(NamedTuple):
    """To be `speedup` times as fast over batches like `batch`, parameters as `form` makes them (float, or `Int8`), with
    `layers` layers, or all where that is 0."""

    speedup: float
    layers: int
    batch: Batch
    form: Callable[[Tree], Tree]

    def faster(self, whole: Model, small: Model) -> float:
        """How many times as fast as the whole model the small one is."""
        models = {"whole": (whole[0], self.form(whole[1])), "small": (small[0], self.form(small[1]))}
        taken = latency.seconds(models, self.batch)
        return taken["whole"] / taken["small"]


class Chosen(NamedTuple):
    """The layers that stay, the heads and units that stay of each of those, int [n] in order, and how many times as
    fast the model then is."""

    layers: list[int]
    kept: dict[Block, np.ndarray]
    speedup: float


def choose(model: Model, examples: Examples, rows: np.ndarray, wish: Wish, progress: Any) -> Chosen:
    """The cheapest structure that is as fast as wished, by what the examples in `rows` say and this machine measures.

    Raises LspError: 2 where there are not so many layers, 1 when one head and few units a layer are too slow still.
    """
    count = len(model[0].layers)
    if wish.layers > count:
        raise LspError(f"prune.depth = {wish.layers}, and the model has {count}.", hint="Give fewer.")
    layers = list(range(count))
    if wish.layers:
        some = rows[: ROWS * JUDGES]
        batches = [examples.batch(some[at : at + ROWS], ROWS) for at in range(0, len(some), ROWS)]
        with progress.task("judging layers", count - wish.layers) as task:
            layers = depth.shallower(model, wish.layers, batches, task.update)
        progress.say(f"layers {', '.join(str(number + 1) for number in layers)} of {count} stay")
    shallow = depth.with_layers(model, layers)
    everything = {block: np.arange(size) for block, size in importance.sizes(shallow[0]).items()}
    found = wish.faster(model, shallow) if wish.layers else 1.0
    if found >= wish.speedup:
        return Chosen(layers, everything, found)
    kept, found = _narrower(model, shallow, (examples, rows), wish, progress)
    return Chosen(layers, kept, found)


def _narrower(
    whole: Model, model: Model, sample: tuple[Examples, np.ndarray], wish: Wish, progress: Any
) -> tuple[dict[Block, np.ndarray], float]:
    """The heads and units that stay, and the speed.

    What blocks save one by one is less, or more, than what they save together: the whole model is measured, and chosen
    again until it is fast enough.
    """
    config, params = model
    with progress.task("judging heads and units", len(sample[1])) as task:
        fisher = importance.fisher(config, params, *sample, task.update)
    orders = {block: importance.order(each) for block, each in fisher.items()}
    with progress.task("measuring layers", None) as task:
        gains = latency.saved(config, wish.batch, wish.form, task.update)
    choices = latency.options(config, {block: costs for block, (_, costs) in orders.items()}, gains)
    models = {"whole": (whole[0], wish.form(whole[1])), "now": (config, wish.form(params))}
    taken = latency.seconds(models, wish.batch)
    asked, found, kept = wish.speedup, 0.0, {}
    for _ in range(TRIES):
        counts = latency.allot(choices, taken["now"] - taken["whole"] / asked)
        left = counts or {block: each[0].kept for block, each in choices.items()}
        kept = {block: np.sort(order[len(order) - left[block] :]) for block, (order, _) in orders.items()}
        found = wish.faster(whole, shrink(*model, kept))
        if found >= wish.speedup:
            return kept, found
        if counts is None:
            break
        progress.say(f"{found:.2f} times as fast: choosing again")
        asked *= wish.speedup / found
    raise LspError(
        f"Without heads and units the model is {found:.2f} times as fast on this machine, not {wish.speedup:g}.",
        hint=f"Lower prune.speedup, or keep fewer layers: --set prune.depth={max(1, len(config.layers) // 2)}",
        code=Exit.NO,
    )
