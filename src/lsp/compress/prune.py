"""Unstructured pruning: the weights of the encoder's matrices that score least become zero, little by little, while
training goes on and makes up for them (Zhu and Gupta, 2017, "To prune, or not to prune").

The zeros make a model smaller (they are stored packed), not faster. Pruning is a gradient transformation chained after
AdamW, so the loop does not know of it; the masks are its state, and what a score remembers of the gradients before
AdamW, which the step hands over as `grad`, Optax's name for them.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lsp import arrays
from lsp import recipe as recipes
from lsp.compress import fisher
from lsp.compress.masks import Pattern, largest
from lsp.compress.scores import MAGNITUDE, MOVEMENT, Score
from lsp.model.int8 import Int8
from lsp.model.weightonly import is_quantized

Tree = Any


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


def footprint(params: Tree) -> dict[str, Any]:
    """Of the prunable weights, float or `Int8`: `sparsity`, their bytes before the store compresses them, and the bytes
    that no code of the places of these zeros can go below (`arrays.bound_bytes`)."""
    matrices = jax.tree.leaves(_each(lambda w: w, params), is_leaf=lambda leaf: isinstance(leaf, Int8))
    found = dict(enumerate(matrices))
    return {
        "sparsity": sparsity(params),
        "matrix_bytes": arrays.stored_bytes(found),
        "matrix_bound_bytes": arrays.bound_bytes(found),
    }


def cubic(step: Any, begin: int, end: int, sparsity: float) -> jax.Array:
    """Zhu and Gupta's schedule: 0 until step `begin`, `sparsity` from step `end` on, rising fast at first. Where both
    are one step, all at once there."""
    step = jnp.asarray(step)
    progress = jnp.clip((step - begin).astype(jnp.float32) / max(1, end - begin), 0, 1)
    return sparsity * (1 - jnp.where(step >= end, 0.0, 1 - progress) ** 3)


class Pruned(NamedTuple):
    """int32 step at which the masks were drawn, and masks: bool in the shape of each prunable weight, True where it
    lives, else None; and the memory of the score."""

    drawn: jax.Array
    masks: Tree
    memory: Tree


def score(recipe: recipes.Pruning) -> Score:
    """What the recipe judges weights by."""
    match recipe.score:
        case "magnitude":
            return MAGNITUDE
        case "movement":
            return MOVEMENT
        case "fisher":
            return fisher.score(recipe.block)


class _Draw(NamedTuple):
    """When masks are drawn in a run, and how many weights they then leave; a share `goal` is gone at `end`."""

    goal: float
    pattern: Pattern | None
    by_layer: bool
    begin: int
    end: int
    every: int

    @classmethod
    def of(cls, recipe: recipes.Pruning, steps: int) -> "_Draw":
        """Raises LspError (exit 2) for a `pattern` that is none."""
        pattern = Pattern.parse(recipe.pattern) if recipe.pattern else None
        begin, end = round(recipe.begin * steps), round(recipe.end * steps)
        end = min(end, steps - 1)  # the last update of all is number steps - 1
        goal = pattern.sparsity if pattern else recipe.sparsity
        return cls(goal, pattern, recipe.scope == "layer", min(begin, end), end, recipe.every)

    def due(self, step: jax.Array, drawn: jax.Array) -> jax.Array:
        """Whether they are drawn anew at a step, when they last were at the step `drawn`."""
        return (step >= self.begin) & (drawn < self.end) & ((step - drawn >= self.every) | (step >= self.end))

    def masks(self, scores: Tree, masks: Tree, step: jax.Array) -> Tree:
        """What is left of `masks` at a step: of the least scores so many go as the schedule has it."""
        if self.pattern:
            scores = jax.tree.map(self.pattern.held, scores)

        def fewer(scores: Tree, masks: Tree) -> Tree:
            number = sum(score.size for score in jax.tree.leaves(scores))
            behind = (self.goal - cubic(step, self.begin, self.end, self.goal)) * number
            return largest(scores, round(self.goal * number) - jnp.round(behind).astype(jnp.int32), masks)

        return jax.tree.map(fewer, scores, masks) if self.by_layer else fewer(scores, masks)


def gradual(recipe: recipes.Pruning, steps: int) -> optax.GradientTransformationExtraArgs:
    """Zeros that grow along `cubic` over a run of `steps`, to be chained last, after weight decay.

    Every `every` steps, from `begin` to `end` of the run, the masks are drawn anew over the weights as this update
    leaves them; a weight without mask is set to exactly 0 and never returns. Zeros that the model brings are kept and
    count. A step is that of the run's `progress`, so that a budget of time that ends it early still has all of it.
    With a `pattern` the last masks have it, and the zeros on the way there are among those that it takes.
    Scores other than magnitude need the gradient, `update(…, grad=…)`, and are of all batches from the first on.
    `init` raises LspError when the pattern does not fit a matrix (2) or what the score remembers does not fit the
    memory (5).
    """
    by, draw = score(recipe), _Draw.of(recipe, steps)

    def init(params: Tree) -> Pruned:
        if draw.pattern:
            _fits(draw.pattern, params)
        # A comparison makes new arrays: donating the state can't delete the caller's parameters. Only for matrices:
        # `params != 0` on a bias that starts at zero would freeze it.
        masks, memory = _each(lambda w: w != 0, params), by.begin(_each(lambda w: w, params))
        # At `begin` itself there is nothing to remove yet.
        first = draw.begin if draw.begin < draw.end else draw.begin - recipe.every
        return Pruned(jnp.int32(first), masks, memory)

    def update(
        updates: Tree, state: Pruned, params: Tree = None, *, progress: Any, grad: Tree = None, **others: Any
    ) -> tuple[Tree, Pruned]:
        if params is None or (grad is None and by is not MAGNITUDE):
            raise ValueError("pruning needs more: call update(updates, state, params, progress=…, grad=…)")
        step = jnp.round(progress * (steps + 1)).astype(jnp.int32) - 1  # as `Clock.progress` counts

        def living(tree: Tree) -> Tree:
            return jax.tree.map(lambda mask, x: jnp.where(mask, x, 0.0), state.masks, tree)

        memory = state.memory
        if grad is not None:
            kept, gradients = living(_each(lambda w: w, params)), living(_each(lambda g: g, grad))
            memory = by.note(memory, kept, gradients)
        moved = living(_each(lambda w, u: w + u, params, updates))

        def redrawn() -> tuple[Tree, Tree]:
            # A weight without mask goes first, whatever its score.
            scores = jax.tree.map(lambda m, s: jnp.where(m, s, -jnp.inf), state.masks, by.judge(memory, moved))
            masks = draw.masks(scores, state.masks, step)
            gone = jax.tree.map(lambda before, after: before & ~after, state.masks, masks)
            return masks, by.mend(memory, moved, gone, masks)

        due = draw.due(step, state.drawn)
        masks, mended = jax.lax.cond(due, redrawn, lambda: (state.masks, jax.tree.map(jnp.zeros_like, moved)))
        updates = jax.tree.map(
            lambda mask, u, w, m: u if mask is None else jnp.where(mask, u + m, -w),
            masks,
            updates,
            params,
            mended,
            is_leaf=lambda mask: mask is None,
        )
        return updates, Pruned(jnp.where(due, step, state.drawn), masks, memory)

    return optax.GradientTransformationExtraArgs(init, update)


def keep_zeros() -> optax.GradientTransformationExtraArgs:
    """Zeros of the prunable weights stay, and no others come: for training that is not to prune, of a sparse model."""

    def init(params: Tree) -> Tree:
        return _each(lambda w: w != 0, params)

    def update(updates: Tree, masks: Tree, params: Tree = None, **others: Any) -> tuple[Tree, Tree]:
        def living(mask: Any, u: Any) -> Any:
            return u if mask is None else jnp.where(mask, u, 0.0)

        return jax.tree.map(living, masks, updates, is_leaf=lambda mask: mask is None), masks

    return optax.GradientTransformationExtraArgs(init, update)


def pruned(manifest: dict[str, Any]) -> bool:
    """Whether weights of a run were pruned, as its manifest says; those of a teacher are no more in its student."""
    sparse = False
    for stage in manifest["compression"]:
        sparse = stage["stage"] != "distill" and (sparse or bool(stage.get("sparsity")))
    return sparse


def _fits(pattern: Pattern, params: Tree) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(_each(lambda w: w, params)):
        pattern.check(jax.tree_util.keystr(path, simple=True, separator="."), leaf.shape[0])


def _each(function: Any, params: Tree, *others: Tree) -> Tree:
    """`function` of each prunable weight (and its fellows in `others`), None for all else."""
    return jax.tree.map(lambda chosen, *w: function(*w) if chosen else None, prunable(params), params, *others)
