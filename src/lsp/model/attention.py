"""Self-attention inside segments: packed neighbours cannot see each other, and positions restart at each border.

Dimensions: B rows, T tokens, H heads, S head size, D width.
"""

import jax
import jax.numpy as jnp

# Added to the score of a pair that must not meet. Finite, so that a row of padding stays a number.
BLOCKED = -1e9


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
    q_BHTS: jax.Array, k_BHTS: jax.Array, v_BHTS: jax.Array, segments_BT: jax.Array, window: int = 0
) -> jax.Array:
    """Scaled dot-product attention [B, H, T, S] within equal segments; scores and softmax in fp32. With a `window`
    tokens see so many neighbours to either side only.

    The softmax's sum divides the S values of a token's answer, not its T weights, as in FlashAttention (Dao et al.,
    2022): T²·H fewer values are written.
    """
    q_BHTS = q_BHTS * q_BHTS.shape[-1] ** -0.5  # the smaller array of the two to scale
    scores_BHTT = jnp.einsum("bhts,bhus->bhtu", q_BHTS, k_BHTS, preferred_element_type=jnp.float32)
    meet_BTT = segments_BT[:, :, None] == segments_BT[:, None, :]
    if window:
        place_T = jnp.arange(segments_BT.shape[1])
        meet_BTT &= jnp.abs(place_T[:, None] - place_T) <= window
    scores_BHTT = scores_BHTT + jnp.where(meet_BTT, 0.0, BLOCKED)[:, None]
    largest_BHT1 = jax.lax.stop_gradient(scores_BHTT.max(-1, keepdims=True))
    weights_BHTT = jnp.exp(scores_BHTT - largest_BHT1)
    sums_BHT1 = weights_BHTT.sum(-1, keepdims=True)
    y_BHTS = jnp.einsum(
        "bhtu,bhus->bhts", weights_BHTT.astype(v_BHTS.dtype), v_BHTS, preferred_element_type=jnp.float32
    )
    return (y_BHTS / sums_BHT1).astype(v_BHTS.dtype)
