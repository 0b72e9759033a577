"""A bidirectional LSTM (Hochreiter and Schmidhuber, 1997; Graves and Schmidhuber, 2005) as a layer like those of a
transformer: texts that share a row do not see each other, and an answer does not depend on the padding.

Dimensions: B rows, T tokens, D width, S state of a direction (D / 2), Z directions.
"""

import jax
import jax.numpy as jnp
from flax import nnx

from lsp.model.attention import pick
from lsp.model.blocks import Linear, drop
from lsp.model.config import Layer, ModelConfig
from lsp.model.int8 import matmul

GATES = 4  # input, forget, new value, output; a direction's gates lie side by side


class LSTMLayer(nnx.Module):
    """Two LSTMs, one from each end of a text, side by side. What comes from the layer below is one product for all
    tokens; what comes from the neighbour is one for each token, in turn."""

    def __init__(self, config: ModelConfig, layer: Layer, first: bool, rngs: nnx.Rngs) -> None:
        size, self.dropout = layer.head_size, config.dropout
        std = config.width**-0.5
        self.below = Linear(config.width, layer.heads * GATES * size, bias=True, std=std, rngs=rngs)
        self.forward = Linear(size, GATES * size, bias=False, std=size**-0.5, rngs=rngs)
        self.backward = Linear(size, GATES * size, bias=False, std=size**-0.5, rngs=rngs)
        # A cell that forgets nothing at first learns over longer texts (Gers et al., 2000).
        self.below.bias = nnx.Param(jnp.zeros((layer.heads, GATES, size)).at[:, 1].set(1.0).reshape(-1))

    def __call__(
        self,
        x_BTD: jax.Array,
        segments_BT: jax.Array,
        turn: tuple[jax.Array, jax.Array] | None,
        key: jax.Array | None,
        at_BQ: jax.Array | None = None,
    ) -> jax.Array:
        # Pieces of rows that are cut go through as rows of their own, as in attention.
        rows, length = segments_BT.shape
        below = self.below(x_BTD).reshape(rows, length, 2, -1)
        gates_TZBG = jnp.stack([below[:, :, 0], jnp.flip(below[:, :, 1], 1)]).transpose(2, 0, 1, 3)
        goes_on_TZB1 = jnp.stack([_goes_on(segments_BT), _goes_on(jnp.flip(segments_BT, 1))]).transpose(2, 0, 1)[
            ..., None
        ]
        kernels = self.forward.kernel.get_value(), self.backward.kernel.get_value()

        def step(
            carry: tuple[jax.Array, jax.Array], at: tuple[jax.Array, jax.Array]
        ) -> tuple[tuple[jax.Array, jax.Array], jax.Array]:
            gates_ZBG, goes_on_ZB1 = at
            state_ZBS, cell_ZBS = (each * goes_on_ZB1.astype(each.dtype) for each in carry)
            around_ZBG = jnp.stack([matmul(state, kernel) for state, kernel in zip(state_ZBS, kernels, strict=True)])
            take, keep, new, give = jnp.split((gates_ZBG + around_ZBG).astype(jnp.float32), GATES, axis=-1)
            cell_ZBS = jax.nn.sigmoid(keep) * cell_ZBS + jax.nn.sigmoid(take) * jnp.tanh(new)
            state_ZBS = (jax.nn.sigmoid(give) * jnp.tanh(cell_ZBS)).astype(x_BTD.dtype)
            return (state_ZBS, cell_ZBS), state_ZBS

        none = jnp.zeros((2, rows, gates_TZBG.shape[-1] // GATES), jnp.float32)
        _, states_TZBS = jax.lax.scan(step, (none.astype(x_BTD.dtype), none), (gates_TZBG, goes_on_TZB1))
        ahead_BTS, back_BTS = states_TZBS.transpose(1, 2, 0, 3)
        y_BTD = jnp.concatenate([ahead_BTS, jnp.flip(back_BTS, 1)], axis=-1)
        y_BTD = y_BTD.reshape(x_BTD.shape)
        return drop(y_BTD if at_BQ is None else pick(y_BTD, at_BQ), self.dropout, key)


def _goes_on(segments_BT: jax.Array) -> jax.Array:
    """bool [B, T]: the token before is of the same text."""
    return jnp.pad(segments_BT[:, 1:] == segments_BT[:, :-1], ((0, 0), (1, 0)))
