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


def rotary(positions_BT: jax.Array, size: int) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines [B, 1, T, S/2], fp32, of rotary position embedding (Su et al., 2021) with base 10,000."""
    frequencies = 10_000.0 ** (-jnp.arange(0, size, 2, dtype=jnp.float32) / size)
    angles = positions_BT[:, None, :, None].astype(jnp.float32) * frequencies
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x_BHTS: jax.Array, cos: jax.Array, sin: jax.Array) -> jax.Array:
    """Turns each pair (i, i + S/2) of a head by its position's angle."""
    first, second = jnp.split(x_BHTS.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x_BHTS.dtype)


def attend(q_BHTS: jax.Array, k_BHTS: jax.Array, v_BHTS: jax.Array, segments_BT: jax.Array) -> jax.Array:
    """Scaled dot-product attention [B, H, T, S] within equal segments; scores and softmax in fp32."""
    scores_BHTT = jnp.einsum("bhts,bhus->bhtu", q_BHTS, k_BHTS, preferred_element_type=jnp.float32)
    meet_BTT = segments_BT[:, :, None] == segments_BT[:, None, :]
    scores_BHTT = scores_BHTT * q_BHTS.shape[-1] ** -0.5 + jnp.where(meet_BTT, 0.0, BLOCKED)[:, None]
    weights_BHTT = jax.nn.softmax(scores_BHTT, axis=-1).astype(v_BHTS.dtype)
    return jnp.einsum("bhtu,bhus->bhts", weights_BHTT, v_BHTS)
