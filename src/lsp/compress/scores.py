"""What decides which weights go first: how large they are, or where training moves them. The curvature of the loss, the
third answer, is in `fisher`.

Trees hold the prunable matrices alone.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

Tree = Any


class Score(NamedTuple):
    """Four functions of trees. `begin(weights)` is a first memory, and `note(memory, weights, gradients)` the one after
    a batch, at the weights that the gradients were taken at. `judge(memory, weights)` has a float32 for each weight;
    the least go first. `mend(memory, weights, gone, left)` is what the weights that are left are moved by when others
    go; masks are bool, and a weight in neither is 0 and has a gradient of 0."""

    begin: Callable[[Tree], Tree]
    note: Callable[[Tree, Tree, Tree], Tree]
    judge: Callable[[Tree, Tree], Tree]
    mend: Callable[[Tree, Tree, Tree, Tree], Tree]


def unmoved(memory: Tree, weights: Tree, gone: Tree, left: Tree) -> Tree:
    """Nothing is moved."""
    return jax.tree.map(jnp.zeros_like, weights)


MAGNITUDE = Score(
    begin=lambda weights: None,
    note=lambda memory, weights, gradients: None,
    judge=lambda memory, weights: jax.tree.map(jnp.abs, weights),
    mend=unmoved,
)

# The sum of -w · dloss/dw: high for weights that training moves away from zero, low for those that it moves to it, as
# small or large as they are (Sanh et al., 2020, "Movement pruning"). Unlike there, what is gone does not come back.
MOVEMENT = Score(
    begin=lambda weights: jax.tree.map(jnp.zeros_like, weights),
    note=lambda memory, weights, gradients: jax.tree.map(lambda m, w, g: m - w * g, memory, weights, gradients),
    judge=lambda memory, weights: memory,
    mend=unmoved,
)
