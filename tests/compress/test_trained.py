"""Training in int8: the forward of real int8, a gradient that passes straight through, and a model that is nearer."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from lsp import recipe
from lsp.compress import trained
from lsp.compress.quantize import quantize
from lsp.model.config import Layer, ModelConfig
from lsp.model.encoder import graphdef
from lsp.model.int8 import matmul, quantize_array, take
from lsp.train.objectives import classification
from lsp.train.step import Signals, begin, make_train_step, make_update

Draw = Callable[[ModelConfig, int], dict]
RNG = np.random.default_rng(0)


def test_what_is_trained_multiplies_as_int8_does() -> None:
    w, table = (RNG.standard_normal(shape).astype(np.float32) for shape in ((24, 10), (30, 24)))
    x = RNG.standard_normal((2, 5, 24)).astype(np.float32)
    x[0, 1] = 0
    found = jax.jit(matmul)(x, trained.Rounded(w, 1))
    np.testing.assert_allclose(found, matmul(jnp.asarray(x), quantize_array(w, 1)), rtol=1e-4, atol=1e-5)
    rows, ids = trained.Rounded(table, 0), jnp.array([3, 29, 3], jnp.int32)
    np.testing.assert_allclose(take(rows, ids), take(quantize_array(table, 0), ids), rtol=1e-6)
    other = matmul(jnp.asarray(x), quantize_array(table, 0), transpose=True)
    np.testing.assert_allclose(matmul(jnp.asarray(x), rows, transpose=True), other, rtol=1e-4, atol=1e-5)
    assert matmul(jnp.ones((2, 24), jnp.bfloat16), trained.Rounded(jnp.asarray(w, jnp.bfloat16), 1)).dtype == "bfloat16"


def test_gradients_are_those_of_the_rounded_values() -> None:
    """Of y = x̂ ŵ the gradient for w is x̂ᵀ dy, and for x it is dy ŵᵀ, as if rounding were not there."""
    w, x, dy = (jnp.asarray(RNG.standard_normal(shape), jnp.float32) for shape in ((24, 10), (5, 24), (5, 10)))
    loss = lambda x, w: (matmul(x, trained.Rounded(w, 1)) * dy).sum()  # noqa: E731
    for_x, for_w = jax.grad(loss, (0, 1))(x, w)
    near = quantize_array(w, 1).dequantize()
    steps = jnp.abs(x).max(1, keepdims=True) / 127
    np.testing.assert_allclose(for_x, dy @ near.T, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(for_w, (jnp.round(x / steps) * steps).T @ dy, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("preset", ["modern", "bilstm"])
def test_the_trained_model_answers_in_int8_as_it_would_in_training(draw: Draw, preset: str, examples: dict) -> None:
    config = ModelConfig(preset, 300, 16, (Layer(2, 8, 24),), 32).classifier(3, "mean", 0.0)
    params, graph = draw(config, 0), graphdef(config)
    classify = jax.jit(lambda p: nnx.merge(graph, p).classify(examples["tokens"], examples["segments"]))
    found, wanted = classify(trained.rounded(params)), classify(quantize(params))
    # A step of rounding may go the other way where float sums differ in their last bit.
    assert np.abs(np.asarray(found) - np.asarray(wanted)).max() < 0.02 * np.abs(np.asarray(wanted)).max()


def test_training_brings_int8_nearer_to_the_float_model(draw: Draw, examples: dict) -> None:
    """Through the one step, with a model whose weights have a few large ones, so that rounding costs."""
    config = ModelConfig("bert", 300, 16, (Layer(2, 8, 24),), 32).classifier(3, "mean", 0.0)
    params = draw(config, 0)
    block = params["layers"][0]["feedforward"]
    block["up"] = block["up"] | {"kernel": block["up"]["kernel"].at[0].multiply(40.0)}
    objective = trained.objective("single_label", hard=0.0)
    inputs = (examples["tokens"], examples["segments"], examples["types"])
    wanted = nnx.merge(graphdef(config), params).classify(*inputs)
    examples = examples | {"wanted": wanted, "known": jnp.ones(4)}
    tx = optax.with_extra_args_support(optax.adam(2e-4))
    update = make_update(graphdef(config), objective, tx)
    step = make_train_step(update)
    losses, state = [], begin(update, jax.tree.map(jnp.array, params))
    for index in range(60):
        state, metrics = step(
            state, objective.frozen, examples, jnp.int32(index), Signals(np.float32(0.5), np.float32(0))
        )
        losses.append(float(metrics["loss"].total / metrics["loss"].count))
    assert np.mean(losses[-10:]) < 0.5 * losses[0]
    classify = jax.jit(lambda p: nnx.merge(graphdef(config), p).classify(examples["tokens"], examples["segments"]))
    of_each = (np.asarray(classify(p))[:3] for p in (params, quantize(params), quantize(state.params)))
    exact, before, after = (logits - np.log(np.exp(logits).sum(1, keepdims=True)) for logits in of_each)
    away = [(np.exp(exact) * (exact - found)).sum(1).mean() for found in (before, after)]
    assert away[1] < 0.6 * away[0], "the divergence of real int8"


def test_labels_count_as_much_as_they_are_said_to(draw: Draw, examples: dict) -> None:
    config = ModelConfig("bert", 300, 16, (Layer(2, 8, 24),), 32).classifier(3, "mean", 0.0)
    params = draw(config, 0)
    whole = trained.objective("single_label", hard=1.0)
    examples = examples | {"wanted": jnp.zeros((4, 3)), "known": jnp.ones(4)}
    model = nnx.merge(graphdef(config), whole.whole(params, None))
    found, _ = jax.jit(lambda: whole.loss(model, params, examples, None))()
    wanted, _ = jax.jit(lambda: classification(model, None, examples, None))()
    assert float(found.total) == pytest.approx(float(wanted.total), rel=1e-5)
    assert dataclasses.replace(recipe.Quantize().train).learning_rate < recipe.Finetune().train.learning_rate / 5
