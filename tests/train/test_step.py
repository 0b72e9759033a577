import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from lsp import LspError, recipe
from lsp.model.config import Layer, ModelConfig
from lsp.model.encoder import Model, graphdef, initialise
from lsp.train import optimizer
from lsp.train.metrics import classification, value
from lsp.train.objectives import Objective, cross_entropy, masked_lm, pretraining
from lsp.train.step import Signals, TrainState, make_train_step, make_update

HALF = Signals(0.5)  # of the run is done
TRAIN = recipe.Train(steps=100, learning_rate=1e-2, warmup=0.1)


def batch(rows: int = 8, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "tokens": rng.integers(5, 300, (rows, 16), np.int32),
        "segments": np.repeat([[1] * 9 + [2] * 7], rows, axis=0).astype(np.int32),
        "slots": rng.integers(0, 16, (rows, 4), np.int32),
        "targets": rng.integers(5, 300, (rows, 4), np.int32),
        # Unequal counts in a row: a mean of means would be wrong.
        "weights": (rng.random((rows, 4)) < np.linspace(0.1, 1, rows)[:, None]).astype(np.float32),
    }


def start(config: ModelConfig, tx: optax.GradientTransformation) -> TrainState:
    params = initialise(config, 0)
    return TrainState(jnp.int32(0), params, tx.init(params))


def pairs(rows: int = 8) -> dict[str, np.ndarray]:
    """Rows of two texts, each alone in its row."""
    made = batch(rows)
    segments = np.ones((rows, 16), np.int32)
    types = np.repeat([[0] * 9 + [1] * 7], rows, axis=0).astype(np.int32)
    labels = np.arange(rows, dtype=np.int32) % 2
    shares = np.full(rows, made["weights"].sum() / rows, np.float32)
    return made | {"segments": segments, "types": types, "labels": labels, "pair_weights": shares}


def run(config: ModelConfig, data: dict[str, np.ndarray], **options):
    tx = optimizer.make(TRAIN)
    step = make_train_step(make_update(graphdef(config), Objective(pretraining(config)), tx, **options))
    return step(start(config, tx), None, data, np.int32(0), HALF)


def moments(state: TrainState):
    return optax.tree.get(state.opt_state, "mu")


@pytest.mark.parametrize("next_sentence", [False, True])
def test_micro_batches_of_unequal_weight_make_the_same_step(config: ModelConfig, next_sentence: bool):
    if next_sentence:
        config = ModelConfig("bert", 300, config.width, config.layers, config.max_length).paired(True)
    data = pairs() if next_sentence else batch()
    (whole, metrics), (parts, others) = run(config, data), run(config, data, accumulate=4)
    assert value(metrics["loss"]) == pytest.approx(value(others["loss"]), rel=1e-5)
    assert float(metrics["gradient_norm"]) == pytest.approx(float(others["gradient_norm"]), rel=1e-4)
    # The first moments are the gradients; Adam's first update is only their sign, which hides errors.
    for a, b in zip(jax.tree.leaves(moments(whole)), jax.tree.leaves(moments(parts)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("remat", ["dots", "full"])
def test_what_is_computed_again_makes_the_same_step(config: ModelConfig, remat: str):
    config = dataclasses.replace(config, dropout=0.1)  # its bits too
    tx, objective = optimizer.make(TRAIN), Objective(masked_lm)
    states = [
        make_train_step(make_update(graphdef(config, policy), objective, tx))(
            start(config, tx), None, batch(), np.int32(0), HALF
        )[0]
        for policy in ("none", remat)
    ]
    for a, b in zip(*map(jax.tree.leaves, map(moments, states)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-4)


def test_a_smaller_batch_is_cut_into_fewer_micro_batches(config: ModelConfig):
    half = {name: array[:4] for name, array in batch().items()}
    (whole, _), (parts, _) = run(config, half), run(config, half, accumulate=4, full=8)
    for a, b in zip(jax.tree.leaves(moments(whole)), jax.tree.leaves(moments(parts)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-4)


def test_a_batch_that_few_micro_batches_do_not_divide_is_cut_into_more():
    config = ModelConfig("modern", 300, 8, (Layer(1, 8, 8),), max_length=32)
    odd = {name: array[:5] for name, array in batch().items()}
    (whole, _), (parts, _) = run(config, odd), run(config, odd, accumulate=4, full=10)  # 2 by the share, 5 in the end
    for a, b in zip(jax.tree.leaves(moments(whole)), jax.tree.leaves(moments(parts)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-4)


def test_the_loss_of_pairs_is_the_mean_over_slots_plus_the_mean_over_rows():
    config = ModelConfig("bert", 300, 16, (Layer(2, 8, 24),), max_length=32).paired(True)
    params, data = initialise(config, 0), pairs()
    params["classifier"]["kernel"] = 20 * params["classifier"]["kernel"]  # sure of its answers, right or wrong
    for name in ("segments", "types", "slots", "targets", "weights", "labels", "pair_weights", "tokens"):
        data[name] = np.concatenate([data[name], np.zeros_like(data[name][:2])])  # two rows fill the batch up
    model: Model = nnx.merge(graphdef(config), params)
    loss, metrics = pretraining(config)(model, None, data, None)
    hidden = model.encode(data["tokens"], data["segments"], data["types"])
    words = np.asarray(jax.nn.log_softmax(model.guess(hidden, data["slots"])))
    x = np.tanh(np.asarray(hidden[:, 0]) @ np.asarray(params["pooler"]["kernel"]))
    logits = x @ np.asarray(params["classifier"]["kernel"])  # biases start at 0
    follows = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    word_losses = -np.take_along_axis(words, data["targets"][..., None], 2)[..., 0]
    pair_losses = -follows[np.arange(8), data["labels"][:8]]
    expected = (word_losses * data["weights"]).sum() / data["weights"].sum(), pair_losses.mean()
    assert value(metrics["masked_lm_loss"]) == pytest.approx(expected[0], rel=1e-5)
    assert value(metrics["next_sentence_loss"]) == pytest.approx(expected[1], rel=1e-4)
    assert value(loss) == pytest.approx(sum(expected), rel=1e-5)
    right = (follows[:8].argmax(1) == data["labels"][:8]).mean()
    assert value(metrics["next_sentence_accuracy"]) == pytest.approx(right)


def test_only_a_model_with_types_tells_pairs_apart():
    with pytest.raises(LspError, match="this model has no embeddings"):
        ModelConfig("modern", 300, 16, (Layer(2, 8, 24),), max_length=32).paired(True)
    config = ModelConfig("bert", 300, 16, (Layer(2, 8, 24),), max_length=32)
    assert config.paired(True).paired(False) == config


def test_the_written_out_cross_entropy_is_the_derived_one():
    rng = np.random.default_rng(0)
    logits = (5 * rng.standard_normal((3, 4, 50))).astype(np.float32)
    targets, weights = rng.integers(0, 50, (3, 4), np.int32), rng.random((3, 4)).astype(np.float32)
    targets[1] = logits[1].argmax(-1)

    def plain(logits: jax.Array) -> jax.Array:
        return (optax.softmax_cross_entropy_with_integer_labels(logits, targets) * weights).sum()

    def ours(logits: jax.Array) -> jax.Array:
        return (cross_entropy(logits, targets)[0] * weights).sum()

    for found, expected in zip(jax.value_and_grad(ours)(logits), jax.value_and_grad(plain)(logits), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(cross_entropy(logits, targets)[1], logits.argmax(-1) == targets)


def test_a_loss_that_is_not_finite_changes_nothing(config: ModelConfig):
    tx = optimizer.make(TRAIN)
    step = make_train_step(make_update(graphdef(config), Objective(masked_lm), tx))
    bad = batch() | {"weights": np.full((8, 4), np.inf, np.float32)}
    state, metrics = step(start(config, tx), None, bad, np.int32(0), HALF)
    assert not metrics["ok"]
    state, metrics = step(state, None, batch(), np.int32(1), HALF)
    assert not metrics["ok"], "the batch of a later step must wait too"
    assert int(state.step) == 0
    jax.tree.map(np.testing.assert_array_equal, state.params, initialise(config, 0))


def test_bf16_trains_fp32_master_weights(config: ModelConfig):
    state, metrics = run(config, batch(), precision="bf16")
    assert metrics["ok"]
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {jnp.dtype("float32")}


def test_classifier_metrics_by_hand():
    logits = np.log(np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.7, 0.3]]))
    found = classification(logits, np.array([0, 0, 1, 1]))
    assert found["accuracy"] == 0.5
    assert found["f1"] == pytest.approx(2 * 1 / (2 + 2))
    assert found["loss"] == pytest.approx(-np.log([0.9, 0.4, 0.8, 0.3]).mean())
