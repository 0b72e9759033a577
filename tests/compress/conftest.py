"""Parameters without compiling an initialiser."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
