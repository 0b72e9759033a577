"""Strict types for every test: an implicit promotion is an error. And programs that LLVM does not optimise, that XLA
emits in its older and quicker way, and that are compiled once for all tests: they run once or twice, and compiling them
is most of what the tests take. tests/test_compiled.py runs a few as users have them."""

import atexit
import gc
import os
import shutil
import tempfile
from collections.abc import Iterator
from importlib.metadata import version

# Before jax reads them; commands, and the other workers of pytest-xdist, inherit them. The older emitters are gone
# since 0.11, and a flag that jax does not know ends the process.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0"
    + (" --xla_cpu_use_fusion_emitters=false" if version("jaxlib").startswith("0.10.") else ""),
)
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="lsp-tests-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsp.model.config import Layer, ModelConfig

jax.config.update("jax_numpy_dtype_promotion", "strict")


@pytest.fixture
def uncollected() -> Iterator[None]:
    """For what nests until Python's stack ends: a finalizer that runs there fails for want of stack, and pytest takes
    its failure for the test's."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture(params=["bert", "modern"])
def config(request: pytest.FixtureRequest) -> ModelConfig:
    """A small model whose layers differ, as pruning leaves them."""
    return ModelConfig(request.param, 300, 16, (Layer(2, 8, 24), Layer(1, 8, 40)), max_length=32)


@pytest.fixture
def examples() -> dict[str, jax.Array]:
    """A batch of three labelled rows, and a fourth that only fills it."""
    return {
        "tokens": jnp.asarray(np.random.default_rng(0).integers(5, 300, (4, 9)), jnp.int32),
        "segments": jnp.ones((4, 9), jnp.int32),
        "types": jnp.zeros((4, 9), jnp.int32),
        "labels": jnp.asarray([0, 1, 2, 1], jnp.int32),
        "weights": jnp.asarray([1, 1, 1, 0], jnp.float32),
    }
