import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lsp import recipe
from lsp.model.config import ModelConfig
from lsp.model.encoder import graphdef, initialise
from lsp.train import optimizer
from lsp.train.metrics import classification, value
from lsp.train.objectives import Objective, cross_entropy, masked_lm
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


def run(config: ModelConfig, data: dict[str, np.ndarray], **options):
    tx = optimizer.make(TRAIN)
    step = make_train_step(make_update(graphdef(config), Objective(masked_lm), tx, **options), seed=0)
    return step(start(config, tx), None, data, np.int32(0), HALF)


def moments(state: TrainState):
    return optax.tree.get(state.opt_state, "mu")


def test_micro_batches_of_unequal_weight_make_the_same_step(config: ModelConfig):
    (whole, metrics), (parts, others) = run(config, batch()), run(config, batch(), accumulate=4)
    assert value(metrics["loss"]) == pytest.approx(value(others["loss"]), rel=1e-5)
    assert float(metrics["gradient_norm"]) == pytest.approx(float(others["gradient_norm"]), rel=1e-4)
    # The first moments are the gradients; Adam's first update is only their sign, which hides errors.
    for a, b in zip(jax.tree.leaves(moments(whole)), jax.tree.leaves(moments(parts)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-4)


def test_a_smaller_batch_is_cut_into_fewer_micro_batches(config: ModelConfig):
    half = {name: array[:4] for name, array in batch().items()}
    (whole, _), (parts, _) = run(config, half), run(config, half, accumulate=4, full=8)
    for a, b in zip(jax.tree.leaves(moments(whole)), jax.tree.leaves(moments(parts)), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-4)


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
    step = make_train_step(make_update(graphdef(config), Objective(masked_lm), tx), seed=0)
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
