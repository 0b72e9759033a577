"""Movement and second-order scores against slow NumPy versions and against what they claim to minimise."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lsp import LspError, recipe
from lsp.compress import fisher, prune
from lsp.compress.scores import MOVEMENT
from lsp.model.config import Layer, ModelConfig
from lsp.train import optimizer

Draw = Callable[[ModelConfig, int], dict]
RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.fixture
def params(draw: Draw) -> dict:
    return draw(ModelConfig("bert", 300, 16, (Layer(2, 8, 24),), max_length=32), 0)


def remembered(gradients: list[np.ndarray], size: int) -> tuple[jax.Array, np.ndarray]:
    """What the score keeps of gradients [K, N], and the same summed by hand: float64 [N, B, B]."""
    by = fisher.score(size)
    note = jax.jit(by.note)
    memory = by.begin({"w": jnp.asarray(gradients[0])})
    slow = np.zeros(memory["w"].shape)
    for gradient in gradients:
        memory = note(memory, {"w": gradient}, {"w": gradient})
        flat = np.zeros(slow.shape[0] * size)
        flat[: gradient.size] = [value for column in gradient.T for value in column]
        slow *= 1 - fisher.FORGET
        for n, g in enumerate(flat.reshape(-1, size)):
            slow[n] += fisher.FORGET * np.outer(g, g)
    return memory["w"], slow


def test_blocks_are_runs_of_inputs_and_come_back() -> None:
    kernel = jnp.arange(12, dtype=jnp.float32).reshape(4, 3)
    taken = fisher.blocks(kernel, 5)
    np.testing.assert_array_equal(taken, [[0, 3, 6, 9, 1], [4, 7, 10, 2, 5], [8, 11, 0, 0, 0]])
    np.testing.assert_array_equal(fisher.unblocked(taken, kernel.shape), kernel)


def test_a_sweep_inverts_what_it_goes_over() -> None:
    halves, overs = normal(3, 6, 9), np.array([[1, 0, 1, 1, 0, 1], [0] * 6, [1] * 6], bool)
    matrices = halves @ halves.transpose(0, 2, 1)
    swept = jax.jit(fisher.swept)(matrices.transpose(1, 2, 0), overs.T).transpose(2, 0, 1)
    for found, matrix, over in zip(np.asarray(swept), matrices.astype(float), overs, strict=True):
        inverse, across = np.linalg.inv(matrix[np.ix_(over, over)]), np.ix_(over, ~over)
        np.testing.assert_allclose(found[np.ix_(over, over)], -inverse, rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(found[across], inverse @ matrix[across], rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(swept[1], matrices[1])


def test_scores_are_those_of_oberts_recursion() -> None:
    """Woodbury's update of an inverse for each gradient (Kurtić et al., 2022, equation 8), from 1 / damping."""
    gradients, w = [normal(4, 3) for _ in range(30)], normal(4, 3)
    w[1, 2] = 0  # a weight that is gone
    gradients = [np.where(w != 0, g, 0) for g in gradients]
    memory, slow = remembered(gradients, 5)
    np.testing.assert_allclose(memory, slow, rtol=1e-4, atol=1e-7)
    damping = fisher.DAMPING * np.einsum("nbb->", slow) / 11
    shares = [fisher.FORGET * (1 - fisher.FORGET) ** age for age in range(30)][::-1]
    wanted = []
    for n in range(3):
        inverse = np.eye(5) / damping
        for share, gradient in zip(shares, gradients, strict=True):
            g = np.pad(gradient.T.ravel(), (0, 3)).reshape(3, 5)[n]
            v = inverse @ g
            inverse -= np.outer(v, v) / (1 / share + g @ v)
        wanted.append(np.pad(w.T.ravel(), (0, 3)).reshape(3, 5)[n] ** 2 / (2 * np.diag(inverse)))
    found = jax.jit(fisher.score(5).judge)({"w": memory}, {"w": w})["w"]
    np.testing.assert_allclose(found.T.ravel(), np.ravel(wanted)[:12], rtol=1e-3)


def test_a_weight_alone_scores_by_its_square_and_its_curvature() -> None:
    gradients, w, left = [normal(4, 3) for _ in range(30)], normal(4, 3), RNG.random((4, 3)) < 0.5
    by, memory, slow = fisher.score(1), fisher.score(1).begin({"w": jnp.zeros((4, 3))}), np.zeros((4, 3))
    for gradient in gradients:
        memory = by.note(memory, {"w": w}, {"w": gradient})
        slow = (1 - fisher.FORGET) * slow + fisher.FORGET * gradient.astype(float) ** 2
    found = by.judge(memory, {"w": w})["w"]
    np.testing.assert_allclose(found, w**2 * (slow + fisher.DAMPING * slow.mean()) / 2, rtol=1e-4)
    assert not np.asarray(by.mend(memory, {"w": w}, {"w": ~left}, {"w": left})["w"]).any()
    # As blocks are judged in which weights have nothing to do with each other.
    apart = {"w": fisher.blocks(memory["w"], 2)[:, :, None] * jnp.eye(2)}
    np.testing.assert_allclose(found, fisher.score(2).judge(apart, {"w": w})["w"], rtol=1e-4)


def test_survivors_move_to_where_the_quadratic_is_least() -> None:
    memory, slow = remembered([normal(6, 2) for _ in range(40)], 4)
    w, left = normal(6, 2), RNG.random((6, 2)) < 0.6
    gone = ~left
    gone[2, 0] = left[2, 0] = False  # went before
    w[2, 0] = 0
    found = jax.jit(fisher.score(4).mend)({"w": memory}, {"w": w}, {"w": gone}, {"w": left})["w"]
    assert not np.asarray(found)[~left].any() and np.asarray(found)[left].any()
    damping = fisher.DAMPING * np.einsum("nbb->", slow) / 11

    def rise(moved: np.ndarray) -> float:
        step = np.where(gone, -w, np.where(left, moved, 0)).T.reshape(3, 4)
        return sum(s @ (block + damping * np.eye(4)) @ s for s, block in zip(step, slow, strict=True)) / 2

    least = rise(np.asarray(found))
    assert least < rise(np.zeros_like(w))
    for _ in range(20):
        assert least < rise(np.asarray(found) + 0.01 * normal(6, 2))


def test_without_a_gradient_the_smallest_weights_go_first() -> None:
    w = normal(5, 5)
    by = fisher.score(10)
    found = np.asarray(by.judge(by.begin({"w": jnp.asarray(w)}), {"w": w})["w"])
    np.testing.assert_array_equal(np.argsort(found, axis=None), np.argsort(np.abs(w), axis=None))


def test_movement_is_the_sum_of_weight_times_descent() -> None:
    history = [(normal(3, 2), normal(3, 2)) for _ in range(4)]
    memory = MOVEMENT.begin({"w": jnp.asarray(history[0][0])})
    for w, g in history:
        memory = MOVEMENT.note(memory, {"w": w}, {"w": g})
    wanted = -sum(w * g for w, g in history)
    np.testing.assert_allclose(MOVEMENT.judge(memory, {"w": w})["w"], wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("score", ["movement", "fisher"])
def test_pruning_sees_the_gradient_before_adamw(params: dict, score: str) -> None:
    """Of the first four inputs gradients are large, towards zero or, for curvature, of any sign; Adam's updates are as
    large for all inputs."""
    plan = recipe.Pruning(score=score, block=8, sparsity=0.25, begin=0.9, end=0.9)
    tx = optimizer.make(recipe.Train(steps=10, learning_rate=1e-4, warmup=0.0, clip=0.0), prune.gradual(plan, 10))

    def gradient(w: jax.Array, key: jax.Array) -> jax.Array:
        sizes = jnp.where(jnp.arange(w.shape[0]) < 4, 1.0, 1e-3).reshape(-1, *[1] * (w.ndim - 1))
        return sizes * (w if score == "movement" else jax.random.normal(key, w.shape))

    @jax.jit
    def step(params: Any, state: Any, index: jax.Array) -> tuple[Any, Any]:
        grads = jax.tree.map(lambda w: gradient(w, jax.random.key(index)), params)
        with jax.numpy_dtype_promotion("standard"):
            share = (index + 1) / 11
            updates, state = optax.with_extra_args_support(tx).update(grads, state, params, progress=share, grad=grads)
        return optax.apply_updates(params, updates), state

    weights, state = params, tx.init(params)
    for index in range(10):
        weights, state = step(weights, state, jnp.int32(index))
    assert prune.sparsity(weights) == pytest.approx(0.25, abs=1e-3)
    gone = (np.asarray(weights["layers"][0]["attention"]["qkv"]["kernel"]) == 0).mean(1)
    if score == "movement":
        assert gone[:4].min() > 0.8 and gone[4:].max() < 0.1
    else:  # where the curvature is high less goes
        assert gone[:4].mean() < 0.7 * gone[4:].mean()


def test_blocks_that_do_not_fit_are_refused_before_they_are_made(monkeypatch: pytest.MonkeyPatch, params: dict) -> None:
    monkeypatch.setattr("lsp.train.memory.usable", lambda: 40_000)
    tx = prune.gradual(recipe.Pruning(block=50), 10)
    with pytest.raises(
        LspError, match=r"keeps 50 numbers for each .*, 0\.00108 GB, and the device has 4e-05 GB"
    ) as error:
        jax.eval_shape(tx.init, params)
    assert error.value.code == 5 and "prune.block=1" in error.value.hint


def test_scores_of_gradients_do_not_do_without(params: dict) -> None:
    tx = prune.gradual(recipe.Pruning(score="movement"), 10)
    with pytest.raises(ValueError, match="grad="):
        tx.update(params, tx.init(params), params, progress=jnp.float32(0.1))
