"""Parameters without compiling an initialiser, and examples without texts."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsp.data.examples import Examples
from lsp.model import encoder
from lsp.model.config import ModelConfig


@pytest.fixture
def draw() -> Callable[[ModelConfig, int], dict]:
    """`draw(config, seed)`: matrices loud enough that two models disagree, norms at 1, biases at 0."""

    def params(config: ModelConfig, seed: int) -> dict:
        rng = np.random.default_rng(seed)

        def leaf(path: tuple, shape: jax.ShapeDtypeStruct) -> jax.Array:
            if path[-1].key in ("kernel", "table"):
                return jnp.asarray(rng.standard_normal(shape.shape).astype(np.float32) * 1.5 * shape.shape[0] ** -0.5)
            return jnp.full(shape.shape, float(path[-1].key == "scale"))

        return jax.tree_util.tree_map_with_path(leaf, encoder.shapes(config))

    return params


@pytest.fixture
def invent() -> Callable[..., Examples]:
    """`invent(count, seed=0, lengths=(…))`: labelled examples of random tokens, so many of them long each."""

    def examples(count: int, seed: int = 0, lengths: tuple[int, ...] = (3, 7, 9, 15, 20)) -> Examples:
        random = np.random.default_rng(seed)
        made = Examples.__new__(Examples)
        made.sequence_length, made.decode = 32, str
        made.tokens = [random.integers(5, 300, random.choice(lengths)).astype(np.int32) for _ in range(count)]
        made.labels = random.integers(0, 3, count).astype(np.int32)
        made.texts, made.wanted, made.known = [("",)] * count, None, np.ones(count, np.float32)
        made.weights, made.seconds = np.ones(count, np.float32), np.full(count, 2, np.int32)
        made.lengths = np.array([len(each) for each in made.tokens])
        made.too_long, made.cut = np.zeros(count, bool), 0
        return made

    return examples
