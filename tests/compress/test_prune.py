"""Pruning against a slow NumPy version: the schedule, the exact global threshold, and zeros that stay."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lsp import LspError, recipe
from lsp.compress import prune
from lsp.compress.quantize import quantize
from lsp.model.config import Layer, ModelConfig
from lsp.train import optimizer

Draw = Callable[[ModelConfig, int], dict]


@pytest.fixture
def params(draw: Draw) -> dict:
    return draw(ModelConfig("bert", 300, 16, (Layer(2, 8, 24),), max_length=32), 0)


def chosen(params: dict) -> np.ndarray:
    """The prunable weights in order, written out by hand."""
    matrices = [
        layer[block][name]["kernel"]
        for _, layer in sorted(params["layers"].items())
        for block, names in (("attention", ("out", "qkv")), ("feedforward", ("down", "up")))
        for name in names
    ]
    return np.concatenate([np.asarray(w).ravel() for w in matrices])


def smallest(weights: np.ndarray, count: int) -> np.ndarray:
    """Which are the `count` smallest; of equal ones the first."""
    found = np.zeros(weights.size, bool)
    found[np.argsort(np.abs(weights), kind="stable")[:count]] = True
    return found


def train(params: dict, tx: optax.GradientTransformation, steps: int, shares: list[float] | None = None) -> list[dict]:
    """The parameters after each of some steps with random gradients, jitted and donated as in the loop. `shares` is how
    much of the run is done at each, by steps if left out."""

    def step(params: Any, state: optax.OptState, grads: dict, share: jax.Array) -> tuple[Any, optax.OptState]:
        with jax.numpy_dtype_promotion("standard"):
            updates, state = optax.with_extra_args_support(tx).update(grads, state, params, progress=share)
        return optax.apply_updates(params, updates), state

    jitted = jax.jit(step, donate_argnums=(0, 1))
    rng = np.random.default_rng(1)
    state, history = tx.init(params), []
    params = jax.tree.map(jnp.array, params)
    for share in shares or [(index + 1) / (steps + 1) for index in range(steps)]:
        grads = jax.tree.map(lambda w: rng.standard_normal(w.shape).astype(np.float32), params)
        params, state = jitted(params, state, grads, np.float32(share))
        history.append(jax.device_get(params))
    return history


def test_encoder_matrices_are_prunable_and_nothing_else(config: ModelConfig, draw: Draw) -> None:
    found = jax.tree_util.tree_leaves_with_path(prune.prunable(draw(config, 0)))
    names = {".".join(str(part.key) for part in path) for path, yes in found if yes}
    matrices = ["attention.qkv", "attention.out", "feedforward.up", "feedforward.down"]
    matrices += ["feedforward.gate"] if config.preset == "modern" else []
    assert names == {f"layers.{i}.{name}.kernel" for i in range(2) for name in matrices}


def test_the_schedule_is_zhu_and_guptas() -> None:
    found = np.asarray(prune.cubic(jnp.arange(41, dtype=jnp.int32), 10, 30, 0.8))
    wanted = [0.8 - 0.8 * (1 - min(max(t - 10, 0), 20) / 20) ** 3 for t in range(41)]
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert found[10] == 0 and found[30] == found[40] == np.float32(0.8)
    np.testing.assert_array_equal(prune.cubic(jnp.array([4, 5, 6], jnp.int32), 5, 5, 0.5), np.float32([0, 0.5, 0.5]))


def test_gradual_pruning_under_adamw_equals_the_slow_version(params: dict) -> None:
    plan = recipe.Pruning(score="magnitude", sparsity=0.5, begin=0.1, end=0.6, every=3)
    settings = recipe.Train(steps=20, learning_rate=1e-2, weight_decay=0.1, warmup=0.0)
    history = train(params, optimizer.make(settings, prune.gradual(plan, 20)), 20)
    number, wanted, dead = chosen(params).size, 0, np.zeros(chosen(params).size, bool)
    for step, weights in enumerate(chosen(each) for each in history):
        if step in {2, 5, 8, 11, 12}:
            wanted = round(0.5 * (1 - (1 - (step - 2) / 10) ** 3) * number)
        zeros = weights == 0
        assert abs(int(zeros.sum()) - wanted) <= 1, (step, zeros.sum(), wanted)
        assert zeros[dead].all()
        dead = zeros
    assert dead.sum() == round(0.5 * number) and prune.sparsity(history[-1]) == dead.mean()


def test_masks_are_drawn_over_the_weights_that_the_update_leaves(params: dict) -> None:
    rng = np.random.default_rng(2)
    updates = jax.tree.map(lambda w: rng.standard_normal(w.shape).astype(np.float32) * 0.5, params)
    tx = prune.gradual(
        recipe.Pruning(score="magnitude", sparsity=0.3, begin=0.0, end=0.25, every=1), 4
    )  # the whole of it at the second update
    update = jax.jit(tx.update)
    same, state = update(updates, tx.init(params), params, progress=np.float32(0.2))
    jax.tree.map(np.testing.assert_array_equal, same, updates)
    final, _ = update(updates, state, params, progress=np.float32(0.4))
    after = chosen(jax.tree.map(jnp.add, params, final))
    free = chosen(params) + chosen(updates)
    np.testing.assert_array_equal(after, np.where(smallest(free, round(0.3 * free.size)), 0, free))


def test_a_pruned_model_keeps_its_zeros_and_biases_are_free(params: dict) -> None:
    kernel = params["layers"][0]["attention"]["qkv"]["kernel"]
    params["layers"][0]["attention"]["qkv"]["kernel"] = kernel.at[:8].set(0.0)
    before = prune.sparsity(params)
    tx = optimizer.make(
        recipe.Train(steps=4, learning_rate=1e-2, warmup=0.0),
        prune.gradual(recipe.Pruning(score="magnitude", sparsity=0.01), 4),
    )
    last = train(params, tx, 4)[-1]
    assert prune.sparsity(last) == before > 0.01
    assert not last["layers"][0]["attention"]["qkv"]["kernel"][:8].any()
    for path, leaf in jax.tree_util.tree_leaves_with_path(last):
        assert path[-1].key != "bias" or np.asarray(leaf).all(), path


def test_zeros_of_a_sparse_model_outlive_training_that_does_not_prune(params: dict) -> None:
    kernel = params["layers"][0]["attention"]["qkv"]["kernel"]
    params["layers"][0]["attention"]["qkv"]["kernel"] = kernel.at[:8].set(0.0)
    last = train(params, optimizer.make(recipe.Train(steps=4, learning_rate=1e-2, warmup=0.0), prune.keep_zeros()), 4)[
        -1
    ]
    for (path, before), after in zip(jax.tree_util.tree_leaves_with_path(params), jax.tree.leaves(last), strict=True):
        matrix = path[0].key == "layers" and path[-1].key == "kernel"
        np.testing.assert_array_equal(after != 0, before != 0 if matrix else True, str(path))
    sparse = {"stage": "prune", "sparsity": 0.9}
    for stages, expected in (([], False), ([sparse], True), ([sparse, {"stage": "quantize"}], True)):
        assert prune.pruned({"compression": stages}) == expected
        assert not prune.pruned({"compression": [*stages, {"stage": "distill"}]}), "a student has weights of its own"


def test_donating_the_state_leaves_the_callers_arrays_alone(params: dict) -> None:
    state = prune.gradual(recipe.Pruning(score="magnitude"), 10).init(params)
    jax.jit(lambda masks: jax.tree.map(jnp.logical_not, masks), donate_argnums=0)(state.masks)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(params))


def test_a_run_that_time_ends_early_has_all_its_zeros(params: dict) -> None:
    shares = [0.05, 0.13, 0.3, 0.31, 0.55, 0.7, 0.9]  # of a run that might have had 1,000 steps
    history = train(
        params,
        prune.gradual(recipe.Pruning(score="magnitude", sparsity=0.4, begin=0.1, end=0.6, every=20), 1000),
        0,
        shares,
    )
    number = chosen(params).size
    wanted = [0.4 * (1 - (1 - min(max(share - 0.1, 0) / 0.5, 1)) ** 3) for share in shares]
    wanted[3] = wanted[2]  # twenty steps had not gone by
    np.testing.assert_allclose([prune.sparsity(each) for each in history], wanted, atol=0.01)
    assert prune.sparsity(history[5]) == prune.sparsity(history[6]) == round(0.4 * number) / number


def test_the_last_step_can_be_the_end(params: dict) -> None:
    last = train(
        params, prune.gradual(recipe.Pruning(score="magnitude", sparsity=0.4, begin=0.0, end=1.0, every=100), 5), 5
    )[-1]
    assert prune.sparsity(last) == round(0.4 * chosen(params).size) / chosen(params).size


def test_quantizing_keeps_the_zeros(params: dict) -> None:
    out = params["layers"][0]["attention"]["out"]
    out["kernel"] = jnp.zeros_like(out["kernel"])
    share = prune.sparsity(params)
    assert 0 < share <= prune.sparsity(quantize(params)) < share + 0.05


def matrices(params: dict) -> list[np.ndarray]:
    """The prunable matrices."""
    return [
        np.asarray(w) for w, yes in zip(*map(jax.tree.leaves, (params, prune.prunable(params))), strict=True) if yes
    ]


def test_by_layer_each_matrix_loses_the_same_share_and_its_own_smallest(params: dict) -> None:
    kernel = params["layers"][0]["attention"]["qkv"]["kernel"]
    params["layers"][0]["attention"]["qkv"]["kernel"] = 100 * kernel  # of which a global threshold would leave all
    still = jax.tree.map(jnp.zeros_like, params)
    tx = prune.gradual(recipe.Pruning(score="magnitude", sparsity=0.3, begin=0.0, end=0.0, scope="layer"), 4)
    updates, _ = jax.jit(tx.update)(still, tx.init(params), params, progress=np.float32(0.2))
    for before, after in zip(matrices(params), matrices(jax.tree.map(jnp.add, params, updates)), strict=True):
        wanted = np.where(smallest(before.ravel(), round(0.3 * before.size)).reshape(before.shape), 0, before)
        np.testing.assert_array_equal(after, wanted)


@pytest.mark.parametrize("scope", ["global", "layer"])
def test_a_pattern_is_there_at_the_end_and_never_exceeded_before(params: dict, scope: str) -> None:
    plan = recipe.Pruning(score="magnitude", begin=0.1, end=0.6, every=2, scope=scope, pattern="1:4")
    settings = recipe.Train(steps=20, learning_rate=1e-2, warmup=0.0)
    history = train(params, optimizer.make(settings, prune.gradual(plan, 20)), 20)
    shares = [prune.sparsity(each) for each in history]
    assert 0 < shares[4] < shares[6] < shares[12] == shares[-1] == 0.75
    for weights in history:
        for kernel in matrices(weights):
            gone = [sum(kernel[row : row + 4, column] == 0) for row in (0, 4) for column in range(kernel.shape[1])]
            assert max(gone) <= 3 and (weights is not history[-1] or min(gone) == 3)


def test_a_pattern_that_does_not_divide_a_matrix_is_refused_with_its_name(params: dict) -> None:
    with pytest.raises(LspError, match=r"layers\.0\.attention\.out\.kernel has 16 inputs, which .* = 2:5 does not"):
        prune.gradual(recipe.Pruning(score="magnitude", pattern="2:5"), 10).init(params)
