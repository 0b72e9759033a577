"""Self-attention inside segments: packed neighbours cannot see each other, and positions restart at each border.

Dimensions: B rows, T tokens, Q tokens that ask, H heads, S head size, D width.
"""

import re

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from lsp.model import sharding

# Added to the score of a pair that must not meet. Finite, so that a row of padding stays a number.
BLOCKED = -1e9
BLOCK = 64  # rows of a product in multiples of which XLA's CPU gives one the same bits, however many there are
COLUMNS = 32  # and columns: of others it adds up even and odd rows apart, and a text may begin at either
KEPT_BARRIERS = {"xla_disable_hlo_passes": "cse_barrier_expander"}  # XLA's CPU would take them out before it fuses
AMPERE = 8.0  # the first cards that cuDNN has fused attention for


def positions(segments_BT: jax.Array) -> jax.Array:
    """int32 [B, T]: the distance of each token from the start of its segment."""
    index_T = jnp.arange(segments_BT.shape[1], dtype=jnp.int32)
    starts_BT = jnp.pad(segments_BT[:, 1:] != segments_BT[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    return index_T - jax.lax.cummax(jnp.where(starts_BT, index_T, 0), axis=1)


def rotary(positions_BT: jax.Array, size: int, base: float) -> tuple[jax.Array, jax.Array]:
    """Cosines and signed sines [B, 1, T, S], fp32, of rotary position embedding (Su et al., 2021)."""
    frequencies = base ** (-jnp.arange(0, size, 2, dtype=jnp.float32) / size)
    angles = positions_BT[:, None, :, None].astype(jnp.float32) * frequencies
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    return jnp.concatenate([cos, cos], axis=-1), jnp.concatenate([-sin, sin], axis=-1)


def rotate(x_BHTS: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Turns each pair (i, i + S/2) of a head by its position's angle. Rolling the whole head costs XLA's CPU half of
    what cutting it in two and joining it again does."""
    x = x_BHTS.astype(jnp.float32)
    return (x * cos + jnp.roll(x, x.shape[-1] // 2, axis=-1) * sin).astype(x_BHTS.dtype)


def attend(
    q_BHQS: jax.Array,
    k_BHTS: jax.Array,
    v_BHTS: jax.Array,
    segments_BT: jax.Array,
    window: int = 0,
    at_BQ: jax.Array | None = None,
) -> jax.Array:
    """Scaled dot-product attention [B, H, Q, S] within equal segments; scores and softmax in fp32. With a `window`
    tokens see so many neighbours to either side only. The queries are those of all tokens, or of the tokens `at`.
    """
    own_BQ = segments_BT if at_BQ is None else jnp.take_along_axis(segments_BT, at_BQ, axis=1)
    queries = q_BHQS.shape[2]
    if at_BQ is not None and queries > 1:
        # One for each example that may share a row: other numbers, with other rows, would be other products.
        q_BHQS, own_BQ, at_BQ = (_whole(x, axis, BLOCK) for x, axis in ((q_BHQS, 2), (own_BQ, 1), (at_BQ, 1)))
    meet_BQT = own_BQ[:, :, None] == segments_BT[:, None, :]
    if window:
        place_T = jnp.arange(segments_BT.shape[1])
        place_BQ = place_T[None] if at_BQ is None else at_BQ
        meet_BQT &= jnp.abs(place_BQ[:, :, None] - place_T) <= window
    if at_BQ is None and fuses(q_BHQS):
        return fused(q_BHQS, k_BHTS, v_BHTS, meet_BQT)
    return plain(q_BHQS, k_BHTS, v_BHTS, meet_BQT)[:, :, :queries]


def _whole(x: jax.Array, axis: int, block: int) -> jax.Array:
    """With zeros after it up to a multiple of `block`."""
    widths = [(0, -x.shape[axis] % block if number == axis else 0) for number in range(x.ndim)]
    return jnp.pad(x, widths)


def plain(q_BHQS: jax.Array, k_BHTS: jax.Array, v_BHTS: jax.Array, meet_BQT: jax.Array) -> jax.Array:
    """Attention of the pairs that `meet`, as two products and a softmax between them.

    The softmax's sum divides the S values of a token's answer, not its T weights, as in FlashAttention (Dao et al.,
    2022): T²·H fewer values are written.
    """
    size = q_BHQS.shape[-1]
    q_BHQS = q_BHQS * size**-0.5  # the smaller array of the two to scale
    mask_BQT = jnp.where(meet_BQT, 0.0, BLOCKED)
    if jax.default_backend() == "cpu":
        # A mask of each layer's own: one for all XLA's CPU writes out for every head, and each layer reads T²·H of it.
        mask_BQT, q_BHQS = jax.lax.optimization_barrier((mask_BQT, q_BHQS))
        v_BHTS = _whole(v_BHTS, 3, COLUMNS)
    mask_BQT = jax.lax.stop_gradient(mask_BQT)  # which a barrier would keep
    scores_BHQT = jnp.einsum("bhqs,bhts->bhqt", q_BHQS, k_BHTS, preferred_element_type=jnp.float32)
    scores_BHQT = scores_BHQT + mask_BQT[:, None]
    largest_BHQ1 = jax.lax.stop_gradient(scores_BHQT.max(-1, keepdims=True))
    weights_BHQT = jnp.exp(scores_BHQT - largest_BHQ1)
    sums_BHQ1 = weights_BHQT.sum(-1, keepdims=True)
    y_BHQS = jnp.einsum(
        "bhqt,bhts->bhqs", weights_BHQT.astype(v_BHTS.dtype), v_BHTS, preferred_element_type=jnp.float32
    )
    return (y_BHQS[..., :size] / sums_BHQ1).astype(v_BHTS.dtype)


def fuses(q_BHTS: jax.Array) -> bool:
    """Whether `fused` takes queries of this shape and type, here. Before 0.11 jax has cuDNN work out a gradient of the
    mask too; and it maps no mask that is the same for all heads over several models."""
    *_, tokens, size = q_BHTS.shape
    half = q_BHTS.dtype in (jnp.bfloat16, jnp.float16)
    fits = tokens % 2 == 0 and size % 8 == 0 and size <= 128
    return half and fits and not mapped() and jax.__version_info__ >= (0, 11) and capability() >= AMPERE


def mapped() -> bool:
    """Whether this is traced for several models at once."""
    try:
        return jax.lax.axis_size(sharding.EACH) > 0
    except NameError:
        return False


def capability() -> float:
    """The compute capability of the NVIDIA card that answers, 9.0 of an H100; 0 where none does."""
    if jax.default_backend() != "gpu":
        return 0.0
    found = str(getattr(jax.local_devices()[0], "compute_capability", ""))  # AMD's cards have names there
    return float(found) if re.fullmatch(r"\d+\.\d+", found) else 0.0


def fused(q_BHTS: jax.Array, k_BHTS: jax.Array, v_BHTS: jax.Array, meet_BTT: jax.Array) -> jax.Array:
    """As `plain`, by one kernel that keeps scores and weights on the chip (FlashAttention: Dao et al., 2022): of a row
    T² numbers are read, those of `meet`, the same for all heads, where `plain` reads and writes T²·H, several times.

    Of several devices each runs the kernel on its own rows and heads.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if all(mesh.shape.get(axis, 1) == 1 for axis in sharding.SPLIT):
        return kernel(q_BHTS, k_BHTS, v_BHTS, meet_BTT)
    split = sharding.even(sharding.HEADS, q_BHTS.shape, mesh)
    specs, axes = (split, split, split, P(split[0])), set(mesh.axis_names) - set(mesh.manual_axes)
    apart = jax.shard_map(kernel, in_specs=specs, out_specs=split, axis_names=axes, check_vma=False)
    return apart(q_BHTS, k_BHTS, v_BHTS, meet_BTT)


def kernel(q_BHTS: jax.Array, k_BHTS: jax.Array, v_BHTS: jax.Array, meet_BTT: jax.Array) -> jax.Array:
    """cuDNN's attention, on one device."""
    q, k, v = (x.transpose(0, 2, 1, 3) for x in (q_BHTS, k_BHTS, v_BHTS))
    y_BTHS = jax.nn.dot_product_attention(q, k, v, mask=meet_BTT[:, None], implementation="cudnn")
    return y_BTHS.transpose(0, 2, 1, 3)


def pick(x: jax.Array, at_BQ: jax.Array) -> jax.Array:
    """The tokens `at` of x [B, …, T, S]: [B, …, Q, S]. A product with one-hot rows is exact, and so is its gradient,
    which is a product too and no scatter."""
    onehot_BQT = jax.nn.one_hot(at_BQ, x.shape[-2], dtype=x.dtype)
    return jnp.einsum("bqt,b...ts->b...qs", onehot_BQT, x)
