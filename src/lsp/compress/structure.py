"""Which heads and feed-forward units a classifier can do without, for a speed that is measured on this machine."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from lsp import Exit, LspError, timing
from lsp.compress import depth, importance, latency, width
from lsp.compress.importance import Block
from lsp.compress.shrink import shrink
from lsp.data.batches import Batch
from lsp.data.examples import Examples
from lsp.model.config import ModelConfig

Tree = Any
Model = tuple[ModelConfig, Tree]
Orders = dict[Block, tuple[np.ndarray, np.ndarray]]  # of `importance.order`
ROWS, JUDGES = 32, 16  # examples of a batch, and batches, that layers are judged by
NEAR = 1.06  # times what was wished for is not too fast
TRIES = 8  # to choose, to measure and to choose again


class Wish(NamedTuple):
    """To be `speedup` times as fast as the model `whole` over batches like `batch`, parameters as `form` makes them
    (float, or `Int8`), with `layers` layers and `channels` channels, or all where that is 0. `shape` says what each
    layer keeps, `heads+units`, whatever the speed is."""

    whole: Model
    speedup: float
    layers: int
    channels: int
    shape: str
    batch: Batch
    form: Callable[[Tree], Tree]

    def seconds(self, model: Model) -> tuple[float, float]:
        """How long the whole model takes, and this one in the same turns."""
        models = {name: (one[0], self.form(one[1])) for name, one in (("whole", self.whole), ("other", model))}
        taken = latency.seconds(models, self.batch)
        return taken["whole"], taken["other"]

    def faster(self, small: Model) -> float:
        """How many times as fast as the whole model a small one is."""
        whole, other = self.seconds(small)
        return whole / other


class Chosen(NamedTuple):
    """The layers that stay, the heads and units that stay of each of those, int [n] in order, how many times as fast
    the model then is, and the channels that stay where some go."""

    layers: list[int]
    kept: dict[Block, np.ndarray]
    speedup: float
    channels: width.Channels | None = None


def choose(model: Model, examples: Examples, rows: np.ndarray, wish: Wish, progress: Any) -> Chosen:
    """The cheapest structure that is as fast as wished, by what the examples in `rows` say and this machine measures.

    Raises LspError: 2 where there are not so many layers or channels, 1 where nothing that was tried comes within
    `timing.NOISE` of that speed.
    """
    count = len(model[0].layers)
    for key, asked, there in (("depth", wish.layers, count), ("channels", wish.channels, model[0].width)):
        if asked > there:
            raise LspError(f"prune.{key} = {asked}, and the model has {there}.", hint="Give fewer.")
    layers = list(range(count))
    if 0 < wish.layers < count:
        some = rows[: ROWS * JUDGES]
        batches = [examples.batch(some[at : at + ROWS], ROWS) for at in range(0, len(some), ROWS)]
        with progress.task("judging layers", count - wish.layers) as task:
            layers = depth.shallower(model, wish.layers, batches, task.update)
        progress.say(f"layers {', '.join(str(number + 1) for number in layers)} of {count} stay")
    shallow = depth.with_layers(model, layers)
    everything = {block: np.arange(size) for block, size in importance.sizes(shallow[0]).items()}
    counts = _spelt(wish.shape, everything) if wish.shape else {}
    channels, narrow = None, shallow
    if 0 < wish.channels < model[0].width:
        with progress.task("judging channels", len(rows)) as task:
            channels = width.choose(shallow, wish.channels, examples, rows, task.update)
        narrow = width.cut(shallow, channels)
    if counts == {block: len(parts) for block, parts in everything.items()}:
        return Chosen(layers, everything, wish.faster(narrow), channels)
    if not wish.shape:
        found = wish.faster(narrow) if narrow[0] != wish.whole[0] else 1.0
        if found >= wish.speedup:
            return Chosen(layers, everything, found, channels)
    with progress.task("judging heads and units", len(rows)) as task:
        fisher = importance.fisher(*shallow, examples, rows, task.update)
    orders = {block: importance.order(each) for block, each in fisher.items()}
    if wish.shape:
        kept = _kept(orders, counts)
        return Chosen(layers, kept, wish.faster(shrink(*narrow, kept)), channels)
    kept, found = _narrower(narrow, orders, wish, progress)
    return Chosen(layers, kept, found, channels)


def _spelt(shape: str, everything: dict[Block, np.ndarray]) -> dict[Block, int]:
    """How many parts each block keeps, as `prune.shape` says. Raises LspError (exit 2)."""
    layers = [layer.split("+") for layer in shape.split()]
    blocks = [(number, name) for number in range(len(layers)) for name in ("attention", "feedforward")]
    counts = dict(zip(blocks, (int(n) if n.isdecimal() else 0 for layer in layers for n in layer), strict=False))
    pairs = all(len(layer) == 2 for layer in layers)
    if (
        not pairs
        or counts.keys() != everything.keys()
        or any(not 1 <= count <= len(everything[block]) for block, count in counts.items())
    ):
        whole = " ".join(
            f"{len(everything[number, 'attention'])}+{len(everything[number, 'feedforward'])}"
            for number, name in everything
            if name == "attention"
        )
        raise LspError(f"prune.shape = {shape!r} does not fit the layers, which have {whole}.")
    return counts


def _kept(orders: Orders, counts: dict[Block, int]) -> dict[Block, np.ndarray]:
    return {block: np.sort(order[len(order) - counts[block] :]) for block, (order, _) in orders.items()}


def _narrower(model: Model, orders: Orders, wish: Wish, progress: Any) -> tuple[dict[Block, np.ndarray], float]:
    """The heads and units that stay, and the speed.

    What blocks save one by one is less, or more, than what they save together: the whole model is measured, and chosen
    again until it is fast enough and hardly faster. Of those that are fast enough the slowest is taken, and of none the
    fastest, where a clock can hardly tell it from what was wished.
    """
    config = model[0]
    with progress.task("measuring layers", None) as task:
        gains = latency.saved(config, wish.batch, wish.form, task.update)
    choices = latency.options(config, {block: costs for block, (_, costs) in orders.items()}, gains)
    whole, now = wish.seconds(model)
    asked, tried = wish.speedup, []
    slow, fast = 1.0, math.inf  # what was asked when it was too slow, and when it was fast enough
    for _ in range(TRIES):
        counts = latency.allot(choices, max(now - whole / asked, now / 1000))
        kept = _kept(orders, counts or {block: each[0].kept for block, each in choices.items()})
        found = wish.faster(shrink(*model, kept))
        tried.append((found, kept))
        if wish.speedup <= found <= NEAR * wish.speedup or (counts is None and found < wish.speedup):
            break
        progress.say(f"{found:.2f} times as fast: choosing again")
        slow, fast = (slow, min(fast, asked)) if found >= wish.speedup else (max(slow, asked), fast)
        asked *= wish.speedup / found * NEAR**0.5
        if not slow < asked < fast and slow < fast < math.inf:
            asked = math.sqrt(slow * fast)  # speed goes in leaps: a layer with one head has a program of its own
    enough = [one for one in tried if one[0] >= wish.speedup]
    found, kept = min(enough, key=lambda one: one[0]) if enough else max(tried, key=lambda one: one[0])
    if found >= (1 - timing.NOISE) * wish.speedup:
        return kept, found
    raise LspError(
        f"Without heads and units the model is {found:.2f} times as fast on this machine, not {wish.speedup:g}.",
        hint=f"Lower prune.speedup, or keep fewer layers: --set prune.depth={max(1, len(config.layers) // 2)}",
        code=Exit.NO,
    )
