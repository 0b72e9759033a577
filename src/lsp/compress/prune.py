"""Unstructured pruning: the smallest weights of all encoder matrices together become zero, little by little, while
training goes on and makes up for them (Zhu and Gupta, 2017, "To prune, or not to prune").

The zeros make a model smaller (they are stored packed), not faster. Pruning is a gradient transformation chained after
AdamW, so the loop does not know of it; the masks are its state.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lsp import LspError
from lsp import recipe as recipes
from lsp.model.weightonly import is_quantized

Tree = Any
BITS = 31  # of a non-negative float32 or int32: its sign bit is always 0


def prunable(params: Tree) -> Tree:
    """The same structure with True at the encoder layers' matrices. Embeddings, heads, biases and norms are kept
    whole: biases start at zero and are few, and embeddings and heads lose more accuracy than they save bytes."""

    def inside(path: Any, leaf: Any) -> bool:
        return path[0].key == "layers" and path[-1].key == "kernel"

    return jax.tree_util.tree_map_with_path(inside, params, is_leaf=is_quantized)


def sparsity(params: Tree) -> float:
    """The share of exact zeros among the prunable weights, float or quantised."""
    zeros = size = 0
    leaves = jax.tree.leaves(params, is_leaf=is_quantized)
    for leaf, chosen in zip(leaves, jax.tree.leaves(prunable(params)), strict=True):
        if chosen:
            w = np.asarray(leaf.dequantize() if is_quantized(leaf) else leaf)
            zeros, size = zeros + w.size - int(np.count_nonzero(w)), size + w.size
    return zeros / size if size else 0.0


def cubic(step: Any, begin: int, end: int, sparsity: float) -> jax.Array:
    """Zhu and Gupta's schedule: 0 until step `begin`, `sparsity` from step `end` on, rising fast at first."""
    progress = (jnp.asarray(step) - begin).astype(jnp.float32) / max(1, end - begin)
    return sparsity * (1 - (1 - jnp.clip(progress, 0, 1)) ** 3)


class Pruned(NamedTuple):
    """int32 step at which the masks were drawn, and masks: bool in the shape of each prunable weight, True where it
    lives, else None."""

    drawn: jax.Array
    masks: Tree


def gradual(recipe: recipes.Pruning, steps: int) -> optax.GradientTransformationExtraArgs:
    """Zeros that grow along `cubic` over a run of `steps`, to be chained last, after weight decay.

    Every `every` steps, from `begin` to `end` of the run, the masks are drawn anew over the weights as this update
    leaves them; a weight without mask is set to exactly 0 and never returns. Zeros that the model brings are kept and
    count. A step is that of the run's `progress`, so that a budget of time that ends it early still has all of it.
    Raises LspError (exit 2) when `begin` is after `end`.
    """
    begin, end = round(recipe.begin * steps), round(recipe.end * steps)
    if begin > end:
        raise LspError(f"prune.begin = {recipe.begin} is after prune.end = {recipe.end}.", hint="Lower prune.begin.")
    end = min(end, steps - 1)  # the last update of all is number steps - 1
    begin = min(begin, end)

    def init(params: Tree) -> Pruned:
        # A comparison makes new arrays: donating the state can't delete the caller's parameters. Only for matrices:
        # `params != 0` on a bias that starts at zero would freeze it.
        return Pruned(jnp.int32(begin - recipe.every), _each(lambda w: w != 0, params))

    def update(
        updates: Tree, state: Pruned, params: Tree = None, *, progress: Any, **others: Any
    ) -> tuple[Tree, Pruned]:
        if params is None:
            raise ValueError("pruning needs the parameters: call update(updates, state, params, progress=…)")
        step = jnp.round(progress * (steps + 1)).astype(jnp.int32) - 1  # as `Clock.progress` counts
        moved = _each(lambda w, u: w + u, params, updates)
        # A masked weight is judged as 0, wherever AdamW would have moved it.
        alive = jax.tree.map(lambda mask, w: jnp.where(mask, w, 0.0), state.masks, moved)
        number = sum(w.size for w in jax.tree.leaves(alive))
        behind = (recipe.sparsity - cubic(step, begin, end, recipe.sparsity)) * number
        count = round(recipe.sparsity * number) - jnp.round(behind).astype(jnp.int32)
        due = (step >= begin) & (state.drawn < end) & ((step - state.drawn >= recipe.every) | (step >= end))
        masks = jax.lax.cond(due, lambda: largest(alive, count, state.masks), lambda: state.masks)
        updates = jax.tree.map(
            lambda mask, w, u: u if mask is None else jnp.where(mask, u, -w),
            masks,
            params,
            updates,
            is_leaf=lambda mask: mask is None,
        )
        return updates, Pruned(jnp.where(due, step, state.drawn), masks)

    return optax.GradientTransformationExtraArgs(init, update)


def largest(weights: Tree, count: jax.Array, masks: Tree) -> Tree:
    """`masks` without the `count` weights of least magnitude in the whole tree; of equal ones the first go.

    Exact, and no weight leaves its device: the threshold is found by halving the range of bit patterns, which order
    non-negative floats as their values do, and only counts are summed over devices.
    """
    leaves, structure = jax.tree.flatten(weights)
    magnitudes = [jax.lax.bitcast_convert_type(jnp.abs(w).astype(jnp.float32), jnp.int32) for w in leaves]
    threshold = _kth_smallest(magnitudes, count)
    smaller = sum(jnp.sum(m < threshold, dtype=jnp.int32) for m in magnitudes)
    starts = np.cumsum([0] + [w.size for w in leaves])
    places = [
        jnp.where(m == threshold, start + jnp.arange(m.size, dtype=jnp.int32).reshape(m.shape), 2**BITS - 1)
        for m, start in zip(magnitudes, starts.tolist(), strict=False)
    ]
    last = _kth_smallest(places, count - smaller)
    gone = [(m < threshold) | (p <= last) for m, p in zip(magnitudes, places, strict=True)]
    # Of nothing to remove, `_kth_smallest` knows no last one.
    return jax.tree.map(lambda mask, g: mask & ~(g & (count > 0)), masks, jax.tree.unflatten(structure, gone))


def _kth_smallest(values: list[jax.Array], k: jax.Array) -> jax.Array:
    """The k-th smallest (from 1) of non-negative int32 values over all arrays; 0 for k = 0."""

    def halve(_: Any, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = low + (high - low) // 2
        enough = sum(jnp.sum(v <= middle, dtype=jnp.int32) for v in values) >= k
        return jnp.where(enough, low, middle + 1), jnp.where(enough, middle, high)

    return jax.lax.fori_loop(0, BITS, halve, (jnp.int32(0), jnp.int32(2**BITS - 1)))[0]


def _each(function: Any, params: Tree, *others: Tree) -> Tree:
    """`function` of each prunable weight (and its fellows in `others`), None for all else."""
    return jax.tree.map(lambda chosen, *w: function(*w) if chosen else None, prunable(params), params, *others)
