"""Which weights live: of scores, the exact number of largest ones, over all matrices together, in each, or N of each M
inputs.

Dimensions: K inputs of a matrix, N its outputs.
"""

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lsp import LspError

Tree = Any
BITS = 32
LAST = np.uint32(2**BITS - 1)


class Pattern(NamedTuple):
    """Of each `group` weights that follow each other along the input dimension, `keep` are left (Zhou et al., 2021,
    "Learning N:M fine-grained structured sparse neural networks from scratch")."""

    keep: int
    group: int

    @classmethod
    def parse(cls, text: str) -> "Pattern":
        """That of `2:4`. Raises LspError (exit 2)."""
        found = re.fullmatch(r"(\d{1,4}):(\d{1,4})", text)
        pattern = cls(int(found[1]), int(found[2])) if found else cls(0, 0)
        if not 0 < pattern.keep < pattern.group:
            raise LspError(
                f"prune.pattern = {text!r} is no N:M, N weights kept of each M.", hint="Write 2:4, or leave it out."
            )
        return pattern

    @property
    def sparsity(self) -> float:
        return 1 - self.keep / self.group

    def check(self, name: str, inputs: int) -> None:
        """Raises LspError (exit 2) when a matrix has another number of inputs than whole groups have."""
        if inputs % self.group:
            raise LspError(
                f"{name} has {inputs} inputs, which prune.pattern = {self.keep}:{self.group} does not divide.",
                hint="Choose a group that divides the encoder's widths.",
            )

    def held(self, scores_KN: jax.Array) -> jax.Array:
        """Infinity at the `keep` largest of each group; of equal ones the last. So the others go first, and the
        matrix has the pattern once all of them are gone."""
        groups = scores_KN.reshape(-1, self.group, scores_KN.shape[1])
        ranks = jnp.argsort(jnp.argsort(groups, axis=1), axis=1)
        return jnp.where(ranks >= self.group - self.keep, jnp.inf, groups).reshape(scores_KN.shape)


def largest(scores: Tree, count: jax.Array, masks: Tree) -> Tree:
    """`masks` without the `count` weights of least score in the whole tree; of equal ones the first go.

    Exact, and no weight leaves its device: the threshold is found by halving the range of bit patterns, which are made
    to order as float32 values do, and only counts are summed over devices.
    """
    leaves, structure = jax.tree.flatten(scores)
    keys = [_ordered(score) for score in leaves]
    threshold = _kth_smallest(keys, count)
    smaller = sum(jnp.sum(key < threshold, dtype=jnp.int32) for key in keys)
    starts = np.cumsum([0] + [key.size for key in keys])
    places = [
        jnp.where(key == threshold, np.uint32(start) + jnp.arange(key.size, dtype=jnp.uint32).reshape(key.shape), LAST)
        for key, start in zip(keys, starts.tolist(), strict=False)
    ]
    last = _kth_smallest(places, count - smaller)
    gone = [(key < threshold) | (place <= last) for key, place in zip(keys, places, strict=True)]
    # Of nothing to remove, `_kth_smallest` knows no last one.
    return jax.tree.map(lambda mask, g: mask & ~(g & (count > 0)), masks, jax.tree.unflatten(structure, gone))


def _ordered(scores: jax.Array) -> jax.Array:
    """uint32 that order as these floats do: the sign bit turned over, and all bits of the negative ones."""
    bits = jax.lax.bitcast_convert_type(scores.astype(jnp.float32), jnp.uint32)
    sign = np.uint32(2 ** (BITS - 1))
    return jnp.where(bits >= sign, ~bits, bits | sign)


def _kth_smallest(values: list[jax.Array], k: jax.Array) -> jax.Array:
    """The k-th smallest (from 1) of uint32 values over all arrays; 0 for k = 0."""

    def halve(_: Any, bounds: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = bounds
        middle = low + (high - low) // np.uint32(2)
        enough = sum(jnp.sum(v <= middle, dtype=jnp.int32) for v in values) >= k
        return jnp.where(enough, low, middle + np.uint32(1)), jnp.where(enough, middle, high)

    return jax.lax.fori_loop(0, BITS, halve, (jnp.uint32(0), jnp.uint32(LAST)))[0]
