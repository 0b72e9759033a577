"""The LSTM layer against its textbook equations, a token at a time."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lsp import recipe
from lsp.compress.quantize import quantize
from lsp.model import cost
from lsp.model.bilstm import LSTMLayer
from lsp.model.config import ModelConfig
from lsp.model.encoder import graphdef, initialise

CONFIG = ModelConfig.from_recipe(recipe.Model(preset="bilstm", layers=2, width=12, max_length=32), 300)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def test_each_direction_is_the_textbook_lstm() -> None:
    layer = LSTMLayer(CONFIG, CONFIG.layers[0], True, nnx.Rngs(0))
    random, size = np.random.default_rng(0), 6
    x = random.standard_normal((1, 7, 12)).astype(np.float32)
    segments = np.array([[1, 1, 1, 1, 2, 2, 0]], np.int32)
    found = np.asarray(layer(jnp.asarray(x), jnp.asarray(segments), None, None))[0]
    below = np.asarray(layer.below(jnp.asarray(x)))[0].reshape(7, 2, 4 * size)
    for direction, module in enumerate((layer.forward, layer.backward)):
        kernel = np.asarray(module.kernel[...])
        for places in ([0, 1, 2, 3], [4, 5], [6]):
            state, cell = np.zeros(size), np.zeros(size)
            for place in places[::-1] if direction else places:
                take, keep, new, give = np.split(below[place, direction] + state @ kernel, 4)
                cell = sigmoid(keep) * cell + sigmoid(take) * np.tanh(new)
                state = sigmoid(give) * np.tanh(cell)
                np.testing.assert_allclose(found[place, direction * size :][:size], state, atol=1e-5)


def test_it_forgets_nothing_at_first() -> None:
    bias = np.asarray(initialise(CONFIG, 0)["layers"][0]["below"]["bias"]).reshape(2, 4, 6)
    assert (bias[:, 1] == 1).all() and (bias[:, [0, 2, 3]] == 0).all()


def test_parameters_and_flops_agree_with_hand_arithmetic() -> None:
    layer = 12 * 48 + 48 + 2 * 6 * 24
    heads = 12 * 12 + 12 + 2 * 12 + 300
    assert cost.parameters(CONFIG) == 300 * 12 + 2 * 12 + 2 * layer + heads
    products = 10 * 2 * (12 * 48 + 2 * 6 * 24) + 3 * (12 * 12 + 12 * 300)
    assert cost.forward_flops(CONFIG, [4, 6], 3) == 2 * products


def test_int8_answers_alike() -> None:
    config = CONFIG.classifier(3, "mean", 0.0)
    params, random = jax.tree.map(lambda leaf: 3 * leaf, initialise(config, 0)), np.random.default_rng(0)
    tokens = jnp.asarray(random.integers(5, 300, (4, 9)), jnp.int32)
    whole, small = (
        nnx.merge(graphdef(config), each).classify(tokens, jnp.ones((4, 9), jnp.int32))
        for each in (params, quantize(params))
    )
    np.testing.assert_allclose(small, whole, atol=0.05 * np.abs(whole).max())
    assert np.abs(whole).max() > 1
