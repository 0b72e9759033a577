"""What encoders are built of: dense layers, norms and tables that hold parameters and nothing else, dropout, and the
functions between them whose gradients XLA's CPU would make slow.

Dimensions: M rows of a matrix, N its columns.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.ad_checkpoint import checkpoint_name

from lsp.model.config import ModelConfig
from lsp.model.int8 import matmul, take

PRODUCT = "product"  # what checkpoint policies know the results of Linear by


class Linear(nnx.Module):
    """x @ kernel + bias, for a float kernel [in, out] or an int8 one."""

    def __init__(self, size_in: int, size_out: int, *, bias: bool, std: float, rngs: nnx.Rngs) -> None:
        self.kernel = nnx.Param(normal(rngs, (size_in, size_out), std))
        self.bias = nnx.Param(jnp.zeros(size_out)) if bias else None

    def __call__(self, x: jax.Array) -> jax.Array:
        y = checkpoint_name(matmul(x, self.kernel.get_value()), PRODUCT)
        return y if self.bias is None else add_bias(y, self.bias[...].astype(x.dtype))


class Norm(nnx.Module):
    """Layer normalisation (Ba et al., 2016) with statistics in fp32."""

    def __init__(self, size: int, *, bias: bool, epsilon: float) -> None:
        self.scale = nnx.Param(jnp.ones(size))
        self.bias = nnx.Param(jnp.zeros(size)) if bias else None
        self.epsilon = epsilon

    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)
        mean = x32.mean(-1, keepdims=True)
        centred = x32 - mean
        y = centred * inverse_root(jnp.square(centred).mean(-1, keepdims=True) + self.epsilon)
        y = y * self.scale[...].astype(jnp.float32)
        return (y if self.bias is None else y + self.bias[...].astype(jnp.float32)).astype(x.dtype)


class Table(nnx.Module):
    """An embedding table [rows, width], fp or int8 by row."""

    def __init__(self, rows: int, width: int, rngs: nnx.Rngs) -> None:
        self.table = nnx.Param(normal(rngs, (rows, width), 0.02))

    def __call__(self, ids: jax.Array) -> jax.Array:
        return take(self.table.get_value(), ids)


def norm(config: ModelConfig) -> Norm:
    return Norm(config.width, bias=config.bias, epsilon=config.epsilon)


@jax.custom_jvp
def inverse_root(x: jax.Array) -> jax.Array:
    """1/√x, x > 0. XLA's CPU approximates `rsqrt`, to other bits where few values leave a register half empty, and an
    int8 model's answers would depend on how many there are. The maximum keeps it from seeing one here."""
    return 1.0 / jnp.maximum(jnp.sqrt(x), jnp.finfo(x.dtype).tiny)


@inverse_root.defjvp
def _inverse_root_tangent(x: tuple[jax.Array], dx: tuple[jax.Array]) -> tuple[jax.Array, jax.Array]:
    y = inverse_root(*x)
    return y, -0.5 * y * y * y * dx[0]


def unchanged(x: jax.Array) -> jax.Array:
    """In place of a norm."""
    return x


def kernel_std(config: ModelConfig, fan_in: int) -> float:
    """BERT starts every matrix at 0.02; `modern` by fan-in, so that small widths are not started too quiet."""
    return 0.02 if config.preset == "bert" else fan_in**-0.5


def normal(rngs: nnx.Rngs, shape: tuple[int, ...], std: float) -> jax.Array:
    """A normal distribution cut at two standard deviations, fp32."""
    return std * jax.random.truncated_normal(rngs.params(), -2.0, 2.0, shape, jnp.float32)


def gelu(x: jax.Array) -> jax.Array:
    """The exact x·Φ(x) of Hendrycks and Gimpel (2016), through erf: XLA's CPU takes 2.5 times as long over the erfc
    that `jax.nn.gelu` uses, for digits far out in the negative tail."""
    return 0.5 * x * (1.0 + jax.lax.erf(x * 0.5**0.5))


def gelu_tanh(x: jax.Array) -> jax.Array:
    """Hendrycks and Gimpel's approximation of it by tanh."""
    return jax.nn.gelu(x, approximate=True)


@jax.custom_vjp
def add_bias(y: jax.Array, bias: jax.Array) -> jax.Array:
    """y [..., N] + bias [N]. The bias's gradient is a product of ones and dy as a matrix: XLA's CPU sums the columns of
    1,024 rows of 30,522 in 68 ms, and multiplies them in 3 ms."""
    return y + bias


def _add_bias_backward(_: None, dy: jax.Array) -> tuple[jax.Array, jax.Array]:
    dy_MN = dy.reshape(-1, dy.shape[-1])
    return dy, jnp.ones(dy_MN.shape[0], dy.dtype) @ dy_MN


add_bias.defvjp(lambda y, bias: (y + bias, None), _add_bias_backward)


def drop(x: jax.Array, rate: float, key: jax.Array | None) -> jax.Array:
    """Dropout. A value's fate is a hash of the key and of its place in the whole array, so it does not depend on how
    rows are spread over devices; XLA computes the hash where it is needed and stores no bits."""
    if key is None or rate == 0:
        return x
    first, second = jax.random.bits(key, (2,), jnp.uint32)
    place = jnp.zeros(x.shape, jnp.uint32)
    for axis, size in enumerate(x.shape):
        place = place * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
    bits = mix(mix(place ^ first) + second)
    return jnp.where(bits >= jnp.uint32(rate * 2**32), x * (1 / (1 - rate)), 0.0).astype(x.dtype)


def mix(bits: jax.Array) -> jax.Array:
    """A bijection of uint32 in which each bit of the input moves half of the output's (MurmurHash3's finaliser)."""
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> 13)) * jnp.uint32(0xC2B2AE35)
    return bits ^ (bits >> 16)
