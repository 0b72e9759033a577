"""Strict types for every test: an implicit promotion is an error."""

import jax
import pytest

from lsp.model.config import Layer, ModelConfig

jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture(params=["bert", "modern"])
def config(request: pytest.FixtureRequest) -> ModelConfig:
    """A small model whose layers differ, as pruning leaves them."""
    return ModelConfig(request.param, 300, 16, (Layer(2, 8, 24), Layer(1, 8, 40)), max_length=32)
