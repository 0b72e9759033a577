"""Second-order scores: how much the loss is said to rise when a weight goes and others of its block make up for it
(Kurtić et al., 2022, "The Optimal BERT Surgeon"; Hassibi and Stork, 1993).

The curvature is the empirical Fisher, the mean of g gᵀ over the gradients g of the last batches, of which only blocks
on the diagonal are kept: size × 4 bytes for each weight; blocks of one weight are the diagonal alone. oBERT stops
training, takes 1,024 gradients, and updates an inverse by each (Woodbury). Here the training's own gradients are taken,
in a mean that forgets, and it is inverted when weights are to go.

Dimensions: N blocks of a matrix, B weights of a block, L blocks that are inverted at once, G groups of so many.
"""

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from lsp import Exit, LspError
from lsp.compress.scores import Score, unmoved
from lsp.train import memory as memories

Tree = Any
FORGET = 1 / 256  # of the mean with each batch
# Added to the diagonal, in means of it over all weights, so that it means the same however large gradients are. oBERT
# adds 1e-7.
DAMPING = 0.1
TOGETHER = 64  # blocks that are inverted at once, of 50 about what a cache holds


def score(size: int) -> Score:
    """The scores by blocks of `size` weights, w² / (2 · diagonal of the inverse). `begin` raises LspError (exit 5) when
    blocks of more than one do not fit the memory."""
    return _alone() if size == 1 else _blocked(size)


def _alone() -> Score:
    """Of blocks of one weight, w² · (F + damping) / 2: the inverse is a division, and nothing makes up for a loss."""

    def note(memory: Tree, weights: Tree, gradients: Tree) -> Tree:
        return jax.tree.map(lambda fisher, g: fisher + FORGET * (g * g - fisher), memory, gradients)

    def judge(memory: Tree, weights: Tree) -> Tree:
        damping = _damping(map(jnp.sum, jax.tree.leaves(memory)), weights)
        return jax.tree.map(lambda fisher, w: w * w * (fisher + damping) / 2, memory, weights)

    return Score(partial(jax.tree.map, jnp.zeros_like), note, judge, unmoved)


def _blocked(size: int) -> Score:
    def begin(weights: Tree) -> Tree:
        _refuse_excess(weights, size)

        def empty(w: jax.Array) -> jax.Array:
            return jnp.zeros((math.ceil(w.size / size), size, size), jnp.float32)

        return jax.tree.map(empty, weights)

    def note(memory: Tree, weights: Tree, gradients: Tree) -> Tree:
        def mean(fisher_NBB: jax.Array, gradient: jax.Array) -> jax.Array:
            g_NB = blocks(gradient, size)
            return fisher_NBB + FORGET * (g_NB[:, :, None] * g_NB[:, None, :] - fisher_NBB)

        return jax.tree.map(mean, memory, gradients)

    def judge(memory: Tree, weights: Tree) -> Tree:
        damping = _damping(map(_trace, jax.tree.leaves(memory)), weights)

        def rise(fisher_NBB: jax.Array, w: jax.Array) -> jax.Array:
            w_NB = blocks(w, size)
            inverse_NB = inverse_diagonal(fisher_NBB, w_NB != 0, damping)
            return unblocked(w_NB**2 / (2 * inverse_NB), w.shape)

        return jax.tree.map(rise, memory, weights)

    def mend(memory: Tree, weights: Tree, gone: Tree, left: Tree) -> Tree:
        damping = _damping(map(_trace, jax.tree.leaves(memory)), weights)

        def moved(fisher_NBB: jax.Array, w: jax.Array, gone: jax.Array, left: jax.Array) -> jax.Array:
            removed_NB = blocks(jnp.where(gone, w, 0.0), size)
            return unblocked(compensation(fisher_NBB, removed_NB, blocks(left, size), damping), w.shape)

        return jax.tree.map(moved, memory, weights, gone, left)

    return Score(begin, note, judge, mend)


def blocks(array: jax.Array, size: int) -> jax.Array:
    """[N, B]: the elements of a kernel, the inputs of an output side by side, and zeros after the last."""
    flat = array.T.reshape(-1)
    return jnp.pad(flat, (0, -flat.size % size)).reshape(-1, size)


def unblocked(array_NB: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The kernel that `blocks` took apart."""
    return array_NB.reshape(-1)[: math.prod(shape)].reshape(shape[::-1]).T


def inverse_diagonal(fisher_NBB: jax.Array, alive_NB: jax.Array, damping: jax.Array) -> jax.Array:
    """float32 [N, B]: the diagonal of each block's damped inverse, over the weights that are alive; 1 elsewhere."""

    def some(matrix_BBL: jax.Array, alive_BL: jax.Array) -> jax.Array:
        return jnp.where(alive_BL, -jnp.diagonal(swept(matrix_BBL, alive_BL)).T, 1.0)

    return _side_by_side(some, fisher_NBB, damping, alive_NB)


def compensation(fisher_NBB: jax.Array, removed_NB: jax.Array, left_NB: jax.Array, damping: jax.Array) -> jax.Array:
    """float32 [N, B]: by what the weights that are `left` move so that the loss rises least when the `removed` ones (0
    where none is) become 0, all of a block together; 0 elsewhere.

    oBERT adds up what each removed weight asks for by itself, which is too much where several of a block go.
    """

    def some(matrix_BBL: jax.Array, removed_BL: jax.Array, left_BL: jax.Array) -> jax.Array:
        return jnp.where(left_BL, (swept(matrix_BBL, left_BL) * removed_BL).sum(1), 0.0)

    return _side_by_side(some, fisher_NBB, damping, removed_NB, left_NB)


def swept(matrix_BBL: jax.Array, over_BL: jax.Array) -> jax.Array:
    """The sweep operator (Goodnight, 1979) of symmetric matrices over the rows S that `over_BL` names: [S, S] is minus
    the inverse of what was there, and [S, the others] is that inverse times what was there.

    By hand, because LAPACK's calls of XLA on a processor wait for threads of the pool that they run on, and two of them
    at a time can wait for ever (jaxlib 0.10.2).
    """

    def pivot(k: Any, matrix_BBL: jax.Array) -> jax.Array:
        row_BL, over_L = matrix_BBL[k], over_BL[k]
        d_L = jnp.where(over_L, row_BL[k], 1.0)
        solved_BL = jnp.where(over_L, row_BL, 0.0) / d_L
        matrix_BBL = matrix_BBL - row_BL[:, None] * solved_BL
        row_BL = jnp.where(over_L, solved_BL.at[k].set(-1.0 / d_L), row_BL)
        return matrix_BBL.at[k].set(row_BL).at[:, k].set(row_BL)

    return jax.lax.fori_loop(0, over_BL.shape[0], pivot, matrix_BBL)


def _side_by_side(
    some: Callable[..., jax.Array], fisher_NBB: jax.Array, damping: Any, *more_NB: jax.Array
) -> jax.Array:
    """[N, B]: `some` of damped blocks, L at a time along the last dimension, where a processor's vectors lie."""
    blocks, size = fisher_NBB.shape[:2]
    identity_BB1 = jnp.eye(size, dtype=jnp.float32)[:, :, None]

    def groups(array: jax.Array) -> jax.Array:
        filled = jnp.pad(array, [(0, -blocks % TOGETHER)] + [(0, 0)] * (array.ndim - 1))
        return filled.reshape(-1, TOGETHER, *array.shape[1:])

    def group(parts: tuple[jax.Array, ...]) -> jax.Array:
        fisher_BBL, *more_BL = (jnp.moveaxis(part, 0, -1) for part in parts)
        return some(fisher_BBL + damping * identity_BB1, *more_BL)

    found_GBL = jax.lax.map(group, tuple(map(groups, (fisher_NBB, *more_NB))))
    return jnp.moveaxis(found_GBL, 1, 2).reshape(-1, size)[:blocks]


def _trace(fisher_NBB: jax.Array) -> jax.Array:
    return jnp.einsum("nbb->", fisher_NBB)


def _damping(traces: Iterable[jax.Array], weights: Tree) -> jax.Array:
    alive = sum(jnp.count_nonzero(w) for w in jax.tree.leaves(weights))
    # Before there is a gradient it is 0, and the smallest weights go first.
    return jnp.maximum(DAMPING * sum(traces) / jnp.maximum(alive, 1).astype(jnp.float32), 1e-20)


def _refuse_excess(weights: Tree, size: int) -> None:
    # The blocks, those of the next step, and what they are made of: measured 3.1 times the blocks.
    needed = 3 * 4 * size * sum(w.size for w in jax.tree.leaves(weights))
    if needed > memories.usable():
        raise LspError(
            f"prune.score = fisher keeps {size} numbers for each of the encoder's weights, a step needs three times "
            f"that, {needed / 1e9:.3g} GB, and "
            f"the device has {memories.usable() / 1e9:.3g} GB.",
            hint=f"Use --set prune.block={max(1, memories.usable() * size // needed)}.",
            code=Exit.MACHINE,
        )
