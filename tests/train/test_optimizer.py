"""Every optimizer against its paper's formula in plain NumPy, every schedule against its own."""

import dataclasses
import typing

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lsp import LspError, recipe
from lsp.model.config import Layer, ModelConfig
from lsp.model.encoder import shapes
from lsp.train import optimizer
from lsp.train.clock import Clock

NAMES = typing.get_args(typing.get_type_hints(recipe.Train)["optimizer"])
SCHEDULES = typing.get_args(typing.get_type_hints(recipe.Train)["schedule"])
PLAIN = recipe.Train(warmup=0.0, learning_rate=0.1, weight_decay=0.0, clip=0.0, beta1=0.9, beta2=0.98)
# The learning rate is whole at the start of a run without warm-up.
START = jnp.float32(0.0)


def tree(seed: int) -> dict:
    """Parameters, or gradients, of an encoder in small: embeddings, two layers with a matrix and a bias, a head."""
    rng = np.random.default_rng(seed)
    layer = {"kernel": (3, 4), "bias": (4,)}
    sizes = {"embeddings": {"table": (5, 3)}, "layers": {0: layer, 1: layer}, "words": {"kernel": (3, 3)}}
    return jax.tree.map(
        lambda shape: jnp.asarray(rng.standard_normal(shape), jnp.float32),
        sizes,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def run(train: recipe.Train, steps: int, progress: typing.Any = START) -> list[dict]:
    """The weights after each of some steps."""
    tx, params = optimizer.make(train), tree(0)
    state, history = tx.init(params), []
    with jax.numpy_dtype_promotion("standard"):
        for step in range(steps):
            now = progress[step] if isinstance(progress, list) else progress
            updates, state = tx.update(tree(step + 1), state, params, progress=now)
            params = optax.apply_updates(params, updates)
            history.append(params)
    return [*history, optimizer.weights(params, state)]


def by_hand(train: recipe.Train, steps: int) -> dict:
    """The same, leaf by leaf, from the papers."""
    gradients = [tree(step + 1) for step in range(steps)]

    def one(path: typing.Any, w: jax.Array) -> np.ndarray:
        return leaf_by_hand(train, np.float64(w), [np.float64(at(tree, path)) for tree in gradients], path)

    return jax.tree_util.tree_map_with_path(one, tree(0))


def at(node: typing.Any, path: typing.Any) -> typing.Any:
    for part in path:
        node = node[part.key]
    return node


def leaf_by_hand(train: recipe.Train, w: np.ndarray, gradients: list[np.ndarray], path: typing.Any) -> np.ndarray:
    m, v, total = np.zeros_like(w), np.zeros_like(w), np.zeros_like(w)
    b1, b2, rate = train.beta1, train.beta2, train.learning_rate
    decay = train.weight_decay if w.ndim > 1 else 0.0
    name = train.optimizer
    if name == "muon" and (path[0].key != "layers" or w.ndim == 1):
        name = "adamw"
    for t, g in enumerate(gradients, 1):
        if name in ("sgd", "adagrad", "adam"):
            g = g + decay * w
        if name == "sgd":
            m = b1 * m + g
            u = m
        elif name == "adagrad":
            total = total + g * g
            u = g / np.sqrt(total + 1e-10)
        elif name == "lion":
            u = np.sign(b1 * m + (1 - b1) * g) + decay * w
            m = b2 * m + (1 - b2) * g
        elif name == "muon":
            m = 0.95 * m + 0.05 * g
            nesterov = 0.95 * m / (1 - 0.95 ** (t + 1)) + 0.05 * g / (1 - 0.95**t)
            u = 0.2 * np.sqrt(max(w.shape)) * newton_schulz(nesterov) + decay * w
        else:
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
            m_hat, v_hat = m / (1 - b1**t), v / (1 - b2**t)
            epsilon = 1e-6 if name in ("lamb", "stableadamw") else 1e-8
            u = m_hat / (np.sqrt(v_hat) + epsilon)
            if name == "stableadamw":
                u = u / max(1.0, np.sqrt(np.mean(g * g / np.maximum(v_hat, epsilon**2))))
            if name != "adam":
                u = u + decay * w
            if name == "lamb" and w.ndim > 1:
                u = u * np.linalg.norm(w) / np.linalg.norm(u)
        w = w - rate * u
    return w


def newton_schulz(g: np.ndarray) -> np.ndarray:
    """Muon's polynomial on the singular values themselves, which is what its products of matrices do."""
    u, s, vt = np.linalg.svd(g, full_matrices=False)
    s = s / (np.linalg.norm(g) + 1e-8)
    for _ in range(5):
        s = 3.4445 * s - 4.7750 * s**3 + 2.0315 * s**5
    return (u * s) @ vt


@pytest.mark.parametrize("decay", [0.0, 0.5])
@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_is_its_paper_by_hand(name: str, decay: float):
    train = dataclasses.replace(PLAIN, optimizer=name, weight_decay=decay)
    found, wanted = run(train, 4)[-1], by_hand(train, 4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4), found, wanted)


@pytest.mark.parametrize("name", NAMES)
def test_every_optimizer_finds_the_bottom_of_a_bowl(name: str):
    train = dataclasses.replace(PLAIN, optimizer=name, learning_rate={"adagrad": 0.3, "muon": 0.06}.get(name, 0.02))
    tx, params = optimizer.make(train), tree(0)
    state = tx.init(params)
    before = optax.tree.norm(params)

    @jax.jit
    def step(params: typing.Any, state: optax.OptState) -> tuple[typing.Any, optax.OptState]:
        with jax.numpy_dtype_promotion("standard"):
            updates, state = tx.update(params, state, params, progress=START)
        return optax.apply_updates(params, updates), state

    for _ in range(150):
        params, state = step(params, state)
    assert optax.tree.norm(params) < 0.3 * before


def test_clipping_is_by_the_norm_of_all_gradients_together():
    train = dataclasses.replace(PLAIN, optimizer="sgd", beta1=0.0, clip=1.0)
    gradients = tree(1)
    norm = np.sqrt(sum(float(jnp.square(leaf).sum()) for leaf in jax.tree.leaves(gradients)))
    moved = jax.tree.map(lambda after, before: after - before, run(train, 1)[-1], tree(0))
    jax.tree.map(lambda m, g: np.testing.assert_allclose(m, -0.1 * g / norm, atol=1e-6), moved, gradients)


def test_a_stable_update_is_small_where_a_gradient_surprises():
    train = dataclasses.replace(PLAIN, optimizer="stableadamw", beta1=0.0)
    params = {"layers": {}, "x": jnp.zeros((1, 1))}
    moved = {}
    for name in ("adamw", "stableadamw"):
        tx = optimizer.make(dataclasses.replace(train, optimizer=name))
        state = tx.init(params)
        for gradient in (*[0.01] * 20, 10.0):
            grads = {"layers": {}, "x": jnp.full((1, 1), gradient)}
            with jax.numpy_dtype_promotion("standard"):
                updates, state = tx.update(grads, state, params, progress=START)
        moved[name] = abs(float(updates["x"][0, 0]))
    # Adam moves by 0.1·10/√v̂, v̂ = 100·0.02/(1 − 0.98²¹); the clipped one by the learning rate itself.
    assert moved["adamw"] == pytest.approx(0.1 * np.sqrt((1 - 0.98**21) / 0.02), rel=1e-3)
    assert moved["stableadamw"] == pytest.approx(0.1, rel=1e-3)


def test_lower_layers_move_less():
    train = dataclasses.replace(PLAIN, optimizer="sgd", beta1=0.0, layer_decay=0.5)
    moved = jax.tree.map(lambda after, before, g: (before - after) / g, run(train, 1)[-1], tree(0), tree(1))
    # The head is the top; two layers; the embeddings are the bottom.
    for part, rate in (("words", 0.1), ("embeddings", 0.1 / 8)):
        np.testing.assert_allclose(next(iter(moved[part].values())), rate, rtol=1e-2)
    for layer, rate in ((1, 0.1 / 2), (0, 0.1 / 4)):
        jax.tree.map(lambda m, rate=rate: np.testing.assert_allclose(m, rate, rtol=1e-2), moved["layers"][layer])


def test_the_average_is_of_the_last_share_of_the_steps():
    train = dataclasses.replace(PLAIN, optimizer="sgd", average=0.5)
    progress = [jnp.float32((step + 1) / 9) for step in range(8)]  # as the clock counts 8 steps
    *history, averaged = run(train, 8, progress)
    last = history[4:]  # those whose progress is over a half
    wanted = jax.tree.map(lambda *w: np.mean(np.stack(w), 0), *last)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), averaged, wanted)


def test_muon_is_for_the_matrices_of_the_layers():
    config = ModelConfig("modern", 304, 16, (Layer(2, 8, 24),), max_length=16)
    names = jax.tree_util.tree_leaves_with_path(optimizer.hidden(shapes(config)))
    muon = {".".join(str(part.key) for part in path) for path, label in names if label == "muon"}
    kernels = ("attention.qkv", "attention.out", "feedforward.up", "feedforward.gate", "feedforward.down")
    assert muon == {f"layers.0.{name}.kernel" for name in kernels}


def rate_by_hand(train: recipe.Train, p: float) -> float:
    if p < train.warmup:
        return train.learning_rate * p / train.warmup
    fallen = (p - train.warmup) / (1 - train.warmup)
    late = max(0.0, (p - (1 - train.decay)) / train.decay)
    shape = {
        "linear": 1 - fallen,
        "cosine": (1 + np.cos(np.pi * fallen)) / 2,
        "inverse_sqrt": np.sqrt(train.warmup / p),
        "wsd": 1 - np.sqrt(late),
    }
    return train.learning_rate * shape[train.schedule]


@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_is_its_formula(name: str):
    train = recipe.Train(steps=10, learning_rate=1e-2, warmup=0.1, schedule=name, decay=0.25)
    rate = optimizer.schedule(train)
    points = np.linspace(0.01, 1, 60)
    # 1 - sqrt is steep where it begins: float32 is felt there.
    np.testing.assert_allclose([float(rate(p)) for p in points], [rate_by_hand(train, p) for p in points], atol=5e-6)
    ends = 0.0 if name != "inverse_sqrt" else 1e-2 * np.sqrt(0.1)
    assert float(rate(1.0)) == pytest.approx(ends, abs=1e-8)


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_rate_that_begins_anew_has_its_course_twice(name: str):
    train = recipe.Train(steps=10, learning_rate=1e-2, warmup=0.1, schedule=name, decay=0.25)
    rate = optimizer.schedule(dataclasses.replace(train, restart=0.6))
    for p in np.linspace(0.01, 1, 50):
        within = p / 0.6 if p < 0.6 else (p - 0.6) / 0.4
        assert float(rate(p)) == pytest.approx(rate_by_hand(train, within), abs=5e-6)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_first_and_the_last_step_move(name: str):
    rate = optimizer.schedule(recipe.Train(steps=1, warmup=0.1, schedule=name))
    clock = Clock()
    assert all(float(rate(clock.progress(step, 5))) > 0 for step in range(5))


@pytest.mark.parametrize(
    "change, said",
    [({"schedule": "inverse_sqrt", "warmup": 0.0}, "warm-up"), ({"schedule": "wsd", "warmup": 0.9}, "0.9")],
)
def test_schedules_that_can_not_be_are_refused(change: dict, said: str):
    with pytest.raises(LspError, match=said) as caught:
        optimizer.schedule(dataclasses.replace(PLAIN, **change))
    assert caught.value.code == 2


def test_a_clock_counts_steps_or_time_whichever_is_further(monkeypatch: pytest.MonkeyPatch):
    now = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now)
    clock = Clock(60.0)
    clock.add(15.0)  # an earlier process
    assert clock.progress(0, 0) == 0.25
    clock.check()
    assert clock.progress(8, 9) == 0.9, "the steps are further"
    now = 130.0
    assert (clock.seconds(), clock.progress(0, 9), clock.left()) == (45.0, 0.75, {"minutes_left": 0.25})
    now = 145.0
    assert clock.progress(1, 0) == 1.0
    with pytest.raises(LspError, match="before the first step"):
        clock.check()
    Clock().check()
    assert Clock().progress(0, 1) == 0.5
