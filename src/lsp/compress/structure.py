"""Which heads and feed-forward units a classifier can do without, for a speed that is measured on this machine."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

from lsp import Exit, LspError
from lsp.compress import importance, latency
from lsp.compress.importance import Block
from lsp.compress.shrink import shrink
from lsp.data.batches import Batch
from lsp.data.examples import Examples
from lsp.model.config import ModelConfig

Tree = Any
Model = tuple[ModelConfig, Tree]
ROUNDS = 5  # of choosing, measuring and choosing again


class Wish(NamedTuple):
    """To be `speedup` times as fast over batches like `batch`, parameters as `form` makes them: float, or `Int8`."""

    speedup: float
    batch: Batch
    form: Callable[[Tree], Tree]


class Chosen(NamedTuple):
    """The heads and units that stay of each block, int [n] in order, and how many times as fast the model then is."""

    kept: dict[Block, np.ndarray]
    speedup: float


def choose(model: Model, examples: Examples, rows: np.ndarray, wish: Wish, progress: Any) -> Chosen:
    """The cheapest structure that is as fast as wished, by what the examples in `rows` say and this machine measures.

    What blocks save one by one is less, or more, than what they save together: the whole model is measured, and chosen
    again until it is fast enough. Raises LspError (exit 1) when one head and few units a layer are too slow still.
    """
    config, params = model
    with progress.task("judging heads and units", len(rows)) as task:
        fisher = importance.fisher(config, params, examples, rows, task.update)
    orders = {block: importance.order(each) for block, each in fisher.items()}
    with progress.task("measuring layers", None) as task:
        gains = latency.saved(config, wish.batch, wish.form, task.update)
    choices = latency.options(config, {block: costs for block, (_, costs) in orders.items()}, gains)
    removed = {block: order for block, (order, _) in orders.items()}
    whole = latency.seconds({"whole": (config, wish.form(params))}, wish.batch)["whole"]
    asked, best = wish.speedup, Chosen({}, 0.0)
    for _ in range(ROUNDS):
        counts = latency.allot(choices, whole * (1 - 1 / asked))
        kept = _kept(removed, counts or {block: each[0].kept for block, each in choices.items()})
        best = Chosen(kept, _faster(model, kept, wish))
        if best.speedup >= wish.speedup or counts is None:
            break
        progress.say(f"{best.speedup:.2f} times as fast: choosing again")
        asked *= wish.speedup / best.speedup
    if best.speedup < wish.speedup:
        raise LspError(
            f"Without heads and units the model is {best.speedup:.2f} times as fast on this machine, not "
            f"{wish.speedup:g}.",
            hint="Lower prune.speedup, or distil to fewer layers: lsp compress distill --set model.layers=…",
            code=Exit.NO,
        )
    return best


def _kept(removed: Mapping[Block, np.ndarray], counts: Mapping[Block, int]) -> dict[Block, np.ndarray]:
    return {block: np.sort(order[len(order) - counts[block] :]) for block, order in removed.items()}


def _faster(model: Model, kept: dict[Block, np.ndarray], wish: Wish) -> float:
    config, params = shrink(*model, kept)
    models = {"whole": (model[0], wish.form(model[1])), "small": (config, wish.form(params))}
    taken = latency.seconds(models, wish.batch)
    return taken["whole"] / taken["small"]
