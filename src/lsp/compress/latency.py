"""What heads and feed-forward units cost on this machine, measured, and how many of each to keep for a speed.

Dimensions: B rows, T tokens, D width.
"""

import math
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lsp import interrupt, timing
from lsp.compress.importance import Block, sizes
from lsp.data.batches import Batch
from lsp.data.examples import Examples, places, shared
from lsp.model import attention
from lsp.model.config import Layer, ModelConfig
from lsp.model.encoder import compiler_options, graphdef, initialise

Tree = Any
Key = TypeVar("Key", bound=Hashable)
LIMITS = timing.Limits(rounds=15, seconds=float("inf"))  # of layers, of which there are dozens
# Of two models, longer: on a noisy machine 15 rounds, a second, said 3.7 times as fast of what was 2.8 a minute later.
LONGER = timing.Limits(rounds=60, seconds=8.0)
UNITS = 16  # a processor's vectors are so wide: units are kept in whole ones
STEPS = 16  # numbers of units that are tried of a layer
GRID = 4000  # parts that a budget of time is counted in


class Option(NamedTuple):
    """A number of parts that a block may keep: what removing the others costs, in nats, and saves, in seconds."""

    kept: int
    cost: float
    saved: float


def typical(examples: Examples, model_width: int) -> Batch:
    """The batch with the commonest shape of those that the examples are predicted in."""
    batches = [batch for _, batch in shared(examples, model_width)]
    counts = Counter(batch["tokens"].shape for batch in batches)
    wanted = counts.most_common(1)[0][0]
    return next(batch for batch in batches if batch["tokens"].shape == wanted)


def counts(parts: int, block: str) -> list[int]:
    """The numbers of heads, or units, that a block of `parts` may keep: ascending, at least one, all at last."""
    if block == "attention":
        return list(range(1, parts + 1))
    some = {UNITS * math.ceil(parts * step / STEPS / UNITS) for step in range(1, STEPS + 1)}
    return sorted({min(parts, each) for each in some})


def saved(
    config: ModelConfig, batch: Batch, form: Callable[[Tree], Tree], task: Callable[[int], None]
) -> dict[Block, dict[int, float]]:
    """The seconds by which each block is faster with so many parts. Layers of the same shape are measured once, each
    with random weights in the form that `form` gives them (float, or `Int8`), on a stream of the batch's shape."""
    segments_BT = jnp.asarray(batch["segments"])
    x_BTD = jnp.asarray(np.random.default_rng(0).standard_normal((*segments_BT.shape, config.width)), jnp.float32)
    wanted: set[Layer] = set(config.layers)
    for layer in config.layers:
        wanted |= {replace(layer, heads=n) for n in counts(layer.heads, "attention")}
        wanted |= {replace(layer, feedforward=n) for n in counts(layer.feedforward, "feedforward")}
    calls = {}
    for done, shape in enumerate(sorted(wanted, key=repr), 1):
        interrupt.check()
        calls[shape] = _call(replace(config, layers=(shape,), vocab_size=8), form, x_BTD, segments_BT)
        task(done)
    turns = _turns(calls, LIMITS)
    found: dict[Block, dict[int, float]] = {}
    for number, layer in enumerate(config.layers):
        whole = float(np.median(turns[layer]))
        for (block, parts), key in zip(_blocks(layer), ("heads", "feedforward"), strict=True):
            shares = {n: ratio(turns[replace(layer, **{key: n})], turns[layer]) for n in counts(parts, block)}
            found[number, block] = {n: whole * (1 - share) for n, share in shares.items()}
    return found


def _turns(calls: Mapping[Key, Callable[[], Any]], limits: timing.Limits) -> dict[Key, np.ndarray]:
    """The seconds [R] of each call, which is made once before for what it compiles."""
    for call in calls.values():
        call()
    return dict(zip(calls, timing.interleaved(list(calls.values()), limits)[:, :, 0], strict=True))


def ratio(one: np.ndarray, other: np.ndarray) -> float:
    """How many times as long one took as the other: the median over rounds in which both had a turn, so that what else
    the machine does hardly shows."""
    return float(np.median(one / other))


def _blocks(layer: Layer) -> list[tuple[str, int]]:
    return [("attention", layer.heads), ("feedforward", layer.feedforward)]


def _call(
    config: ModelConfig, form: Callable[[Tree], Tree], x_BTD: jax.Array, segments_BT: jax.Array
) -> Callable[[], Any]:
    structure, params = graphdef(config), form(initialise(config, 0))

    @partial(jax.jit, compiler_options=compiler_options(params))
    def run(params: Tree, x_BTD: jax.Array, segments_BT: jax.Array) -> jax.Array:
        model = nnx.merge(structure, params)
        turn = model.turns(attention.positions(segments_BT))[0]
        return model.layers[0](x_BTD, segments_BT, turn, None)

    return lambda: jax.block_until_ready(run(params, x_BTD, segments_BT))


def seconds(models: Mapping[str, tuple[ModelConfig, Tree]], batch: Batch) -> dict[str, float]:
    """How long each model takes over a batch that examples share: of the first the median of several turns, of each
    other so much more or less as it took in the same rounds."""
    arrays = {name: jnp.asarray(batch[name]) for name in ("tokens", "segments", "types")}
    calls = {name: _classify(config, params, arrays) for name, (config, params) in models.items()}
    turns = _turns(calls, LONGER)
    first = next(iter(turns.values()))
    return {name: float(np.median(first)) * ratio(taken, first) for name, taken in turns.items()}


def _classify(config: ModelConfig, params: Tree, arrays: dict[str, jax.Array]) -> Callable[[], Any]:
    params = jax.device_put(params)
    structure, room = graphdef(config), places(arrays["tokens"].shape[1])

    @partial(jax.jit, compiler_options=compiler_options(params))
    def run(params: Tree, batch: dict[str, jax.Array]) -> jax.Array:
        model = nnx.merge(structure, params)
        return model.classify(batch["tokens"], batch["segments"], batch["types"], shared=room)

    return lambda: jax.block_until_ready(run(params, arrays))


def options(
    config: ModelConfig, costs: Mapping[Block, np.ndarray], gains: Mapping[Block, Mapping[int, float]]
) -> dict[Block, list[Option]]:
    """What each block may keep: `costs` [parts + 1] are those of removing 0, 1, … parts (`importance.order`), `gains`
    what is `saved`."""
    found = {}
    for block, parts in sizes(config).items():
        found[block] = [Option(n, float(costs[block][parts - n]), gains[block][n]) for n in counts(parts, block[1])]
    return found


def allot(choices: Mapping[Block, Sequence[Option]], saving: float) -> dict[Block, int] | None:
    """How many parts each block keeps so that together they save `saving` seconds, more than none, at the least cost;
    None where not even the smallest do.

    A knapsack with one choice a block, exact on a grid of `GRID` parts of the saving: of each reachable saving the
    cheapest way is kept, block after block.
    """
    unit = saving / GRID
    cheapest, reached = np.full(GRID + 1, np.inf), np.arange(GRID + 1)
    cheapest[0] = 0.0
    ways: list[tuple[np.ndarray, np.ndarray]] = []  # of each block: the option that leads to a saving, and from which
    for block in choices:
        before, cheapest = cheapest, np.full(GRID + 1, np.inf)
        chosen, origin = np.zeros((2, GRID + 1), np.int64)
        for index, option in enumerate(choices[block]):
            gain = min(GRID, max(0, math.floor(option.saved / unit)))  # rounded down: what is promised is saved
            # To save more than all that is asked for is to save that.
            last = GRID - gain + int(before[GRID - gain :].argmin())
            source = np.append(reached[:-1] - gain, last)
            costs = np.where(source >= 0, before[source] + option.cost, np.inf)
            better = costs < cheapest
            cheapest, chosen, origin = (
                np.where(better, new, old) for new, old in ((costs, cheapest), (index, chosen), (source, origin))
            )
        ways.append((chosen, origin))
    if np.isinf(cheapest[GRID]):
        return None
    found, at = {}, GRID
    for block, (chosen, origin) in zip(reversed(list(choices)), reversed(ways), strict=True):
        found[block] = choices[block][int(chosen[at])].kept
        at = int(origin[at])
    return found
