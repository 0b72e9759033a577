"""Hidden width taken out: channels of the stream that all layers share, wherever they are read and written.

Which can go is judged as heads and units are, by the Fisher information of gates (`importance.py`), here one for each
channel at all norms together; CoFi (Xia et al., 2022, "Structured pruning learns compact and accurate models") learns
such a mask. What matrices read of the channels that go is made up for by those that stay, in closed form, from the
products of channels over a sample (the update of Hassibi and Stork, 1993, for many inputs at once); and a norm of fewer
channels, which has another mean and variance, is fitted to what the whole one made of them.

Dimensions: B rows, T tokens, D width, K channels that stay, N columns of a matrix.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lsp import interrupt
from lsp.compress import calibrate, importance
from lsp.compress.importance import EXIT, Gated
from lsp.compress.quantize import Path, Tree, mapped
from lsp.compress.refit import Half, first, solved
from lsp.data.batches import Batch
from lsp.data.examples import Examples
from lsp.model.blocks import unchanged
from lsp.model.config import ModelConfig
from lsp.model.encoder import graphdef

Model = tuple[ModelConfig, Tree]
READS = ("qkv", "up", "gate")  # matrices of a layer that read the stream; the others write to it
TINY = 1e-12  # a channel that is always the same has no slope


class Channels(NamedTuple):
    """Which stay, int [K] in order: of the stream, and of what the pooler makes of it."""

    stream: np.ndarray
    pooled: np.ndarray


def choose(model: Model, count: int, examples: Examples, rows: np.ndarray, task: Callable[[int], None]) -> Channels:
    """The `count` channels without which the labels of the examples in `rows` lose least. `task` hears how many
    examples are done."""
    config, params = model
    parts = {"stream": config.width, "pooled": config.width}
    fisher = importance.information(config, params, examples, rows, parts, _gated, task)
    orders = {name: importance.order(each)[0] for name, each in fisher.items()}
    return Channels(**{name: np.sort(order[config.width - count :]) for name, order in orders.items()})


def _gated(params: Tree, gates: dict[str, jax.Array]) -> Tree:
    """`params` with gates [B, 1, D] behind all norms of the stream, and before the classes."""

    def gated(path: Path, leaf: Any) -> Any:
        if path[-2] == "norm" and path[0] != "pooler":
            return jnp.asarray(leaf) * gates["stream"]
        if path[-2:] == ("classifier", "kernel"):
            return Gated(jnp.asarray(leaf), gates["pooled"])
        return leaf

    return mapped(gated, params)


def cut(model: Model, channels: Channels) -> Model:
    """The model with these channels alone. The leaves that change come out as NumPy arrays."""
    stream, pooled = channels

    def part(path: Path, leaf: Any) -> Any:
        *_, block, name = path
        if block == "classifier":
            return np.asarray(leaf)[pooled] if name == "kernel" else leaf
        if path[0] == "pooler":
            read = np.asarray(leaf)[stream] if name == "kernel" else np.asarray(leaf)
            return np.ascontiguousarray(read[..., pooled])
        if block in READS:
            return np.asarray(leaf)[stream] if name == "kernel" else leaf
        return np.ascontiguousarray(np.asarray(leaf)[..., stream])  # tables, norms, and matrices that write

    config, params = model
    return replace(config, width=len(stream)), mapped(part, params)


def narrowed(
    whole: Model, channels: Channels, sample: Examples, batches: Sequence[Batch], sparse: bool = False
) -> Model:
    """The model with these channels alone, and all that reads them fitted on examples and batches of some of them.
    Zeros of `sparse` matrices stay."""
    small = cut((whole[0], _made_up_for(whole, channels, sample, sparse)), channels)
    return small[0], _levelled(whole, small, channels, batches)


def _made_up_for(model: Model, channels: Channels, examples: Examples, sparse: bool) -> Tree:
    """`params` in which what stays of each reading matrix's inputs makes up for what `cut` takes, by least squares over
    what reaches it of the examples. Zeros of a layer's `sparse` matrices stay."""
    config, params = model
    squares = calibrate.products(config, params, examples)

    def mended(path: Path, leaf: Any) -> Any:
        *_, block, name = path
        if name != "kernel" or (block not in READS and path[0] != "pooler"):
            return leaf
        square_DD = squares[".".join(map(str, path))]
        return _without(np.asarray(leaf), channels.stream, square_DD, sparse and block in READS)

    return mapped(mended, params)


def _without(w_DN: np.ndarray, stays: np.ndarray, square_DD: np.ndarray, sparse: bool = False) -> np.ndarray:
    """The matrix with the rows that stay changed so that their products are nearest to those of all rows."""
    goes = np.setdiff1d(np.arange(len(w_DN)), stays)
    lost = square_DD[np.ix_(stays, goes)] @ w_DN[goes].astype(np.float64)
    there = (w_DN[stays] != 0) | (not sparse)
    made = w_DN.copy()
    made[stays] += solved(square_DD[np.ix_(stays, stays)], lost, there).astype(np.float32)
    return made


def _levelled(whole: Model, small: Model, channels: Channels, batches: Sequence[Batch]) -> Tree:
    """The parameters of `small`, which is `cut` from `whole`, with scale and bias of each norm but the pooler's fitted
    to what the whole model's norm makes of each channel that stays, where both read the whole model's stream in
    `batches`."""
    old, new = (graphdef(config) for config, _ in (whole, small))
    seen = jax.jit(partial(_outputs, old, new, channels.stream))
    sums: dict[Path, Any] = {}
    for batch in batches:
        interrupt.check()
        for norm, found in jax.device_get(seen(whole[1], small[1], batch)).items():
            sums[norm] = sums.get(norm, 0.0) + found.astype(np.float64)
    lines = {norm: _line(found, whole[0].bias) for norm, found in sums.items()}

    def mended(path: Path, leaf: Any) -> Any:
        if path[:-1] not in lines:
            return leaf
        slope_K, shift_K = lines[path[:-1]]
        return (np.asarray(leaf) * slope_K + (shift_K if path[-1] == "bias" else 0.0)).astype(np.float32)

    return mapped(mended, small[1])


def _outputs(old: Any, new: Any, stream: np.ndarray, whole: Tree, small: Tree, batch: Batch) -> dict[Path, jax.Array]:
    """Of each norm of the narrow model, over the tokens of a batch: their number and the sums of x, y, x² and xy,
    [5, K], where x is what it makes of the whole model's stream, and y what the whole model's does."""
    model, narrow = nnx.merge(old, whole), nnx.merge(new, small)
    there_BT1 = batch["segments"][..., None] > 0
    found: dict[Path, jax.Array] = {}

    def see(norm: Path, x_BTK: jax.Array, y_BTD: jax.Array) -> None:
        x_BTK, y_BTK = (jnp.where(there_BT1, values, 0.0) for values in (x_BTK, y_BTD[..., stream]))
        terms = (jnp.broadcast_to(there_BT1, x_BTK.shape), x_BTK, y_BTK, x_BTK * x_BTK, x_BTK * y_BTK)
        found[norm] = jnp.stack([term.astype(jnp.float32).sum((0, 1)) for term in terms])

    x_BTD = first(old, whole, batch)
    see(("embeddings", "norm"), first(new, small, batch), x_BTD)
    for number, (layer, other) in enumerate(zip(model.layers, narrow.layers, strict=True)):
        for name in EXIT:
            _, sum_BTD, _ = Half(old, number, name)(whole, x_BTD, batch)
            block, less = getattr(layer, name), getattr(other, name)
            read_BTD = sum_BTD if layer.post_norm else x_BTD
            if block.norm is not unchanged:
                see(("layers", number, name, "norm"), less.norm(read_BTD[..., stream]), block.norm(read_BTD))
            x_BTD = layer.after(block, sum_BTD)
    if model.norm is not unchanged:
        see(("norm",), narrow.norm(x_BTD[..., stream]), model.norm(x_BTD))
    return found


def _line(sums: np.ndarray, biased: bool) -> tuple[np.ndarray, np.ndarray]:
    """The slope and the shift, [K], of the line through each channel's points that is nearest in y, or of the nearest
    through 0, from the sums [5, K] of `_outputs`."""
    count, x, y, xx, xy = sums
    if not biased:
        return xy / np.maximum(xx, TINY), 0.0 * x
    spread = xx - x * x / count
    slope = np.where(spread > TINY, (xy - x * y / count) / np.maximum(spread, TINY), 1.0)
    return slope, (y - slope * x) / count
