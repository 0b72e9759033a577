"""Int8 weights as a leaf of the parameter tree, and the one `matmul` that takes any kind of weight.

A weight is symmetric int8 with one float32 scale for each output channel (a kernel's column, a table's row). An
activation is quantised when it meets such a weight: one scale for each token, so what a row becomes depends on no other
row, alone, in a batch or padded; or, with a `limit` that a sample told, one scale for all. The products are summed
exactly in int32.

On a CPU the fast dot is uint8 x int8 -> int32 (AVX512-VNNI has no signed by signed form), so q + 128 is sent and
128 x the column's sum is taken off again. `lax.dot_general` cannot express mixed types on a CPU: JAX widens both sides
to int32 first. Hence two small primitives; elsewhere, and where an x86 has no VNNI, they lower to an ordinary int8 x
int8 -> int32 dot, and on a GPU to products in bfloat16, exact too. An exported program has for each platform what is
right on any machine. The sums are the same whole numbers in each.
"""

import abc
import functools
import platform
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import Primitive
from jax.extend.mlir import ir
from jax.extend.mlir.dialects import stablehlo
from jax.interpreters import mlir

from lsp import processor
from lsp.model.lowrank import LowRank

LARGEST = 127  # -128 is never used, so a weight and its negation both exist
EXACT = 1024  # products of whole numbers of 8 bits whose sum is below 2^24, up to where float32 has them all
SMALLEST = 1e-30  # rows weaker than this become zeros; keeps 127 / absmax finite in float32


class Matrix(abc.ABC):
    """What stands in the place of a matrix in a parameter tree and makes its products itself: to be looked on, to be
    tried out, to be trained. It may hold an array or `Int8`, and be a pytree where it enters a compiled function."""

    @abc.abstractmethod
    def product(self, x: jax.Array, transpose: bool) -> jax.Array:
        """As `matmul`."""

    @abc.abstractmethod
    def rows(self, ids: jax.Array) -> jax.Array:
        """As `take`."""


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=("q", "scale", "colsum", "factor", "limit"), meta_fields=("axis",)
)
@dataclass(frozen=True)
class Int8:
    """A matrix in int8, equal to `q * scale` with the scale along `axis`. Leaves may be JAX or NumPy arrays.

    q: int8 [K, N] (a kernel, axis 1) or [V, D] (an embedding table, axis 0). scale: float32 [channels].
    colsum: int32 [channels], 128 x the sum of q over the other axis; follows from q, so it is never stored.
    axis: the output-channel axis, static.
    factor: None, or float32 [inputs] that x is multiplied by before it is quantised, and the matrix so too: the matrix
    is then `factor · q · scale` (SmoothQuant: Xiao et al., 2023).
    limit: None, or a positive float32 scalar: the largest magnitude of x · factor that is kept; all of x then has one
    scale, limit / 127, and goes from -128 to 127 of it, as ONNX's QuantizeLinear has it.
    """

    q: Any
    scale: Any
    colsum: Any
    axis: int
    factor: Any = None
    limit: Any = None

    @classmethod
    def stored(cls, q: Any, scale: Any, axis: int, factor: Any = None, limit: Any = None) -> "Int8":
        """The leaf from what a checkpoint keeps of it. NumPy in, NumPy out."""
        numbers = np if isinstance(q, np.ndarray) else jnp
        return cls(q, scale, 128 * numbers.sum(q, axis=1 - axis, dtype=np.int32), axis, factor, limit)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.q.shape

    def dequantize(self) -> jax.Array:
        """float32, in the shape of q."""
        w = jnp.asarray(self.q).astype(jnp.float32) * jnp.expand_dims(jnp.asarray(self.scale), 1 - self.axis)
        return w if self.factor is None else w * jnp.expand_dims(jnp.asarray(self.factor), self.axis)


def quantize_array(w: Any, axis: int) -> Int8:
    """The nearest symmetric int8 matrix: scale = absmax / 127 over the other axis, rounded half to even.

    w: float [rows, columns], JAX or NumPy. An all-zero channel has scale 1 and zeros.
    Raises ValueError for other ranks and for NaN or infinity, which int8 cannot hold.
    """
    if np.ndim(w) != 2 or axis not in (0, 1):
        raise ValueError(f"int8 takes matrices and an axis of 0 or 1, not shape {np.shape(w)} and axis {axis}")
    w = jnp.asarray(w).astype(jnp.float32)
    absmax = jnp.abs(w).max(axis=1 - axis, keepdims=True)
    if not np.isfinite(absmax).all():
        raise ValueError("a weight holds NaN or infinity, which int8 cannot hold")
    scale = jnp.where(absmax < SMALLEST, 1.0, absmax / LARGEST)
    q = jnp.clip(jnp.round(w / scale), -LARGEST, LARGEST).astype(jnp.int8)
    return Int8.stored(q, scale.squeeze(1 - axis), axis)


def matmul(x: jax.Array, w: Any, *, transpose: bool = False) -> jax.Array:
    """`x @ w` in x's dtype, x: float [..., K], w: [K, N] or, with `transpose`, a table [N, K]; an array, `Int8`,
    `Matrix` or, but for tables, `LowRank`.

    With `Int8` x is quantised too: for each token (row over the last axis) scale = absmax / 127, or limit / 127 with
    what is beyond cut off; rounded half to even; int32 sums are exact. A row with NaN or infinity gives NaN or
    infinity, never a finite number; but with a limit nobody looks for them, and the sums around a block that keep x
    are what shows it. Not differentiable with `Int8`: dequantize before training.
    """
    if isinstance(w, Matrix):
        return w.product(x, transpose)
    if isinstance(w, LowRank):
        base, a, b = (jnp.asarray(part).astype(x.dtype) for part in (w.base, w.a, w.b))
        return _product(x, base, False) + w.scale * _product(_product(x, a, False), b, False)
    if not isinstance(w, Int8):
        return _product(x, jnp.asarray(w).astype(x.dtype), transpose)
    if w.axis == transpose:
        raise ValueError(f"int8 scales lie along axis {w.axis}, which this product sums over")
    smooth = x if w.factor is None else x.astype(jnp.float32) * jnp.asarray(w.factor)
    limit = None if w.limit is None else jnp.asarray(w.limit)
    weights = jnp.asarray(w.q), jnp.asarray(w.scale), jnp.asarray(w.colsum)
    return _quantized_matmul(smooth, *weights, limit, transpose).astype(x.dtype)


def take(table: Any, ids: jax.Array) -> jax.Array:
    """Rows of an embedding table [V, D] (array, `Int8` or `Matrix`) as float32 [..., D]; ids outside are clipped."""
    if isinstance(table, Matrix):
        return table.rows(ids)
    if not isinstance(table, Int8):
        return jnp.take(jnp.asarray(table), ids, axis=0, mode="clip").astype(jnp.float32)
    if table.axis != 0:
        raise ValueError("an int8 table has one scale for each row: axis 0")
    rows = jnp.take(jnp.asarray(table.q), ids, axis=0, mode="clip").astype(jnp.float32)
    return rows * jnp.take(jnp.asarray(table.scale), ids, axis=0, mode="clip")[..., None]


def present(params: Any) -> bool:
    """Whether any leaf of a parameter tree is `Int8`."""
    return any(isinstance(leaf, Int8) for leaf in jax.tree.leaves(params, is_leaf=lambda leaf: isinstance(leaf, Int8)))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _product(x: jax.Array, w: jax.Array, transpose: bool) -> jax.Array:
    """`x @ w` of floats, with the weight's gradient as one product over the rows of x and dy as they lie in memory.

    They must be matrices for that: of the form that JAX derives, XLA's CPU transposes dy first, and computes anew,
    column by column, all that made it, which takes a third of a training step.
    """
    return x @ (w.T if transpose else w)


def _product_forward(x: jax.Array, w: jax.Array, transpose: bool) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _product(x, w, transpose), (x, w)


def _product_backward(transpose: bool, kept: tuple[jax.Array, jax.Array], dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, w = kept
    x_MK, dy_MN = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
    left, right = (dy_MN, x_MK) if transpose else (x_MK, dy_MN)
    return dy @ (w if transpose else w.T), lax.dot_general(left, right, (((0,), (0,)), ((), ())))


_product.defvjp(_product_forward, _product_backward)


@functools.partial(jax.custom_jvp, nondiff_argnums=(5,))
def _quantized_matmul(
    x: jax.Array, q: jax.Array, scale: jax.Array, colsum: jax.Array, limit: jax.Array | None, transpose: bool
) -> jax.Array:
    x32 = x.astype(jnp.float32)
    if limit is None:
        # maximum keeps NaN, so a row that holds one has scale NaN and comes out NaN; infinity likewise.
        absmax = jnp.maximum(jnp.abs(x32).max(axis=-1, keepdims=True), SMALLEST)
        steps = jnp.round(x32 * (LARGEST / absmax))
    else:
        # No pass over a row before it is rounded: that alone makes a MiniLM 1.4 times as fast. -128 as ONNX has it.
        absmax = limit
        steps = jnp.round(jnp.clip(x32 * (LARGEST / limit), -LARGEST - 1, LARGEST))
    y = _dot.bind(steps, q, colsum, transpose=transpose)
    return (y.astype(jnp.float32) * (absmax / LARGEST) * scale).astype(x.dtype)


@_quantized_matmul.defjvp
def _no_gradient(transpose: bool, primals: Any, tangents: Any) -> Any:
    raise TypeError("int8 weights have no gradient; dequantize them before training")


# --- the integer dot -----------------------------------------------------------------------------------------------

_dot = Primitive("int8_dot")  # whole numbers -127..127 as float32 [..., K], q, colsum -> int32 [..., N]
_mixed = Primitive("uint8_int8_dot")  # uint8 [..., K], q -> int32 [..., N]; q: int8 [K, N], or [N, K] if transposed


def mixed_dot(u: jax.Array, q: jax.Array, *, transpose: bool = False) -> jax.Array:
    """uint8 [..., K] x int8 [K, N] (or [N, K], `transpose`) -> int32 [..., N], exact. For CPUs only."""
    return _mixed.bind(u, q, transpose=transpose)


def _plain(x: jax.Array, q: jax.Array, colsum: jax.Array, *, transpose: bool) -> jax.Array:
    contract = (((x.ndim - 1,), (int(transpose),)), ((), ()))
    return lax.dot_general(x.astype(jnp.int8), q, contract, preferred_element_type=jnp.int32)


def _biased(x: jax.Array, q: jax.Array, colsum: jax.Array, *, transpose: bool) -> jax.Array:
    """The same numbers through uint8. Adding 128 before the cast keeps the whole prologue in one loop of XLA's. Beside
    2^23 a float32 has whole numbers in its last bits; XLA's cast looks for what has no place in uint8 first."""
    u = lax.bitcast_convert_type(x + (2.0**23 + 128), jnp.uint32).astype(jnp.uint8)
    first, *others = x.shape[:-1] or (0,)
    alone = (first == 1 or not isinstance(first, int)) and all(size == 1 for size in others)
    if alone:  # or perhaps: with a single row XLA's CPU widens all of q to int32 first, and takes three times as long
        u = jnp.concatenate([u, u[:1]])
    y = mixed_dot(u, q, transpose=transpose) - colsum
    return y[:-1] if alone else y


def _floats(x: jax.Array, q: jax.Array, colsum: jax.Array, *, transpose: bool) -> jax.Array:
    """The same numbers through bfloat16, which holds each of -128 to 127, and float32, which holds the sums of EXACT
    products. For GPUs: there XLA fuses a cast to int8 into a Triton kernel, which with tiles of 16 along K gave twice
    the right sum (jax 0.11.2, an H100). What tiles one gets is found by timing, so no trial tells of the next."""
    inputs, axis, sums = x.shape[-1], int(transpose), []
    for start in range(0, inputs, EXACT):
        stop = min(start + EXACT, inputs)
        left = lax.slice_in_dim(x, start, stop, axis=-1).astype(jnp.bfloat16)
        right = lax.slice_in_dim(q, start, stop, axis=axis).astype(jnp.bfloat16)
        contract = (((x.ndim - 1,), (axis,)), ((), ()))
        sums.append(lax.dot_general(left, right, contract, preferred_element_type=jnp.float32).astype(jnp.int32))
    return functools.reduce(jnp.add, sums)


def _lower_mixed(ctx: Any, u: ir.Value, q: ir.Value, *, transpose: bool) -> list[Any]:
    numbers = stablehlo.DotDimensionNumbers.get([], [], [ctx.avals_in[0].ndim - 1], [int(transpose)])
    sizes = [n if isinstance(n, int) else ir.ShapedType.get_dynamic_size() for n in ctx.avals_out[0].shape]
    out = ir.RankedTensorType.get(sizes, ir.IntegerType.get_signless(32))
    return [stablehlo.dot_general(out, u, q, numbers)]


def _lower_cpu(ctx: mlir.LoweringRuleContext, *operands: ir.Value, transpose: bool) -> Any:
    # What is lowered for several platforms is to be exported: nobody knows the processor that will run it.
    pays = len(ctx.module_context.platforms) > 1 or _mixed_pays()
    rule = mlir.lower_fun(_biased if pays and _mixed_works() else _plain, multiple_results=False)
    return rule(ctx, *operands, transpose=transpose)


def _out(x: Any, q: Any, *_: Any, transpose: bool) -> jax.core.ShapedArray:
    return jax.core.ShapedArray((*x.shape[:-1], q.shape[1 - int(transpose)]), jnp.dtype("int32"))


def _define(primitive: Primitive) -> None:
    primitive.def_abstract_eval(_out)
    primitive.def_impl(jax.jit(primitive.bind, static_argnames="transpose"))


_define(_dot)
_define(_mixed)
mlir.register_lowering(_mixed, _lower_mixed)
mlir.register_lowering(_dot, mlir.lower_fun(_plain, multiple_results=False))
mlir.register_lowering(_dot, _lower_cpu, platform="cpu")
mlir.register_lowering(_dot, mlir.lower_fun(_floats, multiple_results=False), platform="gpu")


def _mixed_pays() -> bool:
    """Whether the mixed dot is the fast one. On an x86 without VNNI XLA takes ten times as long for it as for the plain
    one. Not measured here: a program must not be another with each process."""
    return processor.multiplies_int8() is not False or platform.machine() not in processor.X86


@functools.cache
def _mixed_works() -> bool:
    """Does this machine's XLA compile the mixed dot, and to the right numbers? Asked once, before the first use.

    The question comes up while another function is lowered, perhaps under a mesh: a thread of its own has neither.
    """
    with ThreadPoolExecutor(1) as thread:
        works = thread.submit(_agrees, mixed_dot).result()
    if not works:
        warnings.warn("This CPU build of XLA has no exact uint8 x int8 dot: int8 runs on a slower one.", stacklevel=2)
    return works


def _agrees(dot: Callable[[jax.Array, jax.Array], jax.Array]) -> bool:
    """Whether a dot of uint8 and int8 gives NumPy's numbers on the CPU."""
    rng = np.random.default_rng(0)
    u = rng.integers(0, 256, (16, 64), dtype=np.uint8)
    q = rng.integers(-LARGEST, LARGEST + 1, (64, 32), dtype=np.int8)
    u[0], q[:, 0], q[:, 1] = 255, LARGEST, -LARGEST  # instructions older than VNNI saturate at 16 bits here
    try:
        found = jax.jit(dot)(*jax.device_put((u, q), jax.local_devices(backend="cpu")[0]))
        return np.array_equal(found, u.astype(np.int32) @ q.astype(np.int32))
    except Exception:  # whatever a future XLA says to a mixed dot, the plain one remains
        return False
