"""A matrix in 8 or 4 bits whose products are float: smaller on disk and in memory, not faster, since it is made float
again wherever it is used. What it is multiplied with is not quantised.

Dimensions: K rows of a kernel (what enters), N its columns; V rows of a table, D its columns; G groups.
"""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lsp.model.int8 import SMALLEST, Int8, Matrix, matmul

LARGEST = {8: 127, 4: 7}  # of a weight in so many bits; its negation is the smallest


@functools.partial(jax.tree_util.register_dataclass, data_fields=("q", "scale"), meta_fields=("axis",))
@dataclass(frozen=True)
class WeightOnly(Matrix):
    """A matrix equal to `q · scale`, with a scale for each output channel and each group of neighbours on the other
    axis. Leaves may be JAX or NumPy arrays, and are kept so on disk and in memory.

    q: int8 [K, N], or uint8 [K, N / 2] of 4 bits each, the first of two neighbours in the low half; a table likewise.
    scale: float32 [G, N], each for the next ceil(K / G) rows; of a table [V, G]. axis: the output-channel axis, static.
    """

    q: Any
    scale: Any
    axis: int

    @property
    def shape(self) -> tuple[int, ...]:
        rows, columns = self.q.shape
        return (rows, 2 * columns) if self.q.dtype == np.uint8 else (rows, columns)

    def dequantize(self) -> jax.Array:
        """float32, in the matrix's shape."""
        q = unpacked(jnp.asarray(self.q)).astype(jnp.float32)
        return q * spread(jnp.asarray(self.scale), self.shape[1 - self.axis], 1 - self.axis)

    def product(self, x: jax.Array, transpose: bool) -> jax.Array:
        return matmul(x, self.dequantize(), transpose=transpose)

    def rows(self, ids: jax.Array) -> jax.Array:
        if self.axis != 0:
            raise ValueError("a table has its scales by row: axis 0")
        q, scale = (jnp.take(jnp.asarray(part), ids, axis=0, mode="clip") for part in (self.q, self.scale))
        return unpacked(q).astype(jnp.float32) * spread(scale, self.shape[1], -1)


def is_quantized(leaf: Any) -> bool:
    """Whether it is a matrix that was made smaller: it has a shape and can be dequantised."""
    return isinstance(leaf, Int8 | WeightOnly)


def any_weight_only(params: Any) -> bool:
    """Whether any leaf of a parameter tree is `WeightOnly`."""
    leaves = jax.tree.leaves(params, is_leaf=is_quantized)
    return any(isinstance(leaf, WeightOnly) for leaf in leaves)


def any_quantized(params: Any) -> bool:
    """Whether a tree holds such a matrix."""
    return any(map(is_quantized, jax.tree.leaves(params, is_leaf=is_quantized)))


def dequantize(params: Any) -> Any:
    """Every quantised leaf of a tree as float32 again. What rounding lost stays lost."""
    return jax.tree.map(lambda leaf: leaf.dequantize() if is_quantized(leaf) else leaf, params, is_leaf=is_quantized)


def group_scales(w: np.ndarray, axis: int, bits: int, group: int) -> np.ndarray:
    """The scales of a matrix with at most `group` neighbours in a group (0: all), each absmax / largest: float32
    [G, N], or [V, G] for axis 0. Groups are of one size, but for the last. Zeros have a scale of 1. Raises ValueError
    for NaN and infinity."""
    size = w.shape[1 - axis]
    groups = -(-size // (group or size))
    width = -(-size // groups)
    ends = [(0, 0), (0, 0)]
    ends[1 - axis] = (0, groups * width - size)
    parts = np.abs(np.pad(w.astype(np.float32), ends))
    shape = (groups, width, -1) if axis else (-1, groups, width)
    absmax = parts.reshape(shape).max(1 if axis else 2)
    if not np.isfinite(absmax).all():
        raise ValueError("a weight holds NaN or infinity, which whole numbers cannot hold")
    return np.where(absmax < SMALLEST, np.float32(1), absmax / np.float32(LARGEST[bits]))


def spread(scale: Any, size: int, axis: int) -> Any:
    """Scales of groups along an axis as one for each of `size` places."""
    numbers = np if isinstance(scale, np.ndarray) else jnp
    each = numbers.arange(size, dtype=np.int32) // -(-size // scale.shape[axis])
    return numbers.take(scale, each, axis=axis)


def packed(q: np.ndarray) -> np.ndarray:
    """Whole numbers from -8 to 7, int8 [rows, columns], two in a byte: uint8 [rows, columns / 2]. An odd number of
    columns can't be shared out, and comes back as it is."""
    if q.shape[1] % 2:
        return q
    halves = q.astype(np.uint8) & 15
    return halves[:, 0::2] | halves[:, 1::2] << 4


def unpacked(q: jax.Array) -> jax.Array:
    """int8, twice as many along the last axis where they were packed."""
    if q.dtype != jnp.uint8:
        return q
    halves = jnp.stack([q & 15, q >> 4], axis=-1).astype(jnp.int8)
    return ((halves ^ 8) - 8).reshape(*q.shape[:-1], -1)
