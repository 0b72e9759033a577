"""Which weights become int8, how small that is, and that the model still answers the same, alone or in company."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lsp import Exit, LspError, recipe
from lsp.compress.quantize import dequantize, quantize
from lsp.model import encoder
from lsp.model.config import ModelConfig
from lsp.model.int8 import Int8

Draw = Callable[[ModelConfig, int], dict]


def leaves(params: dict) -> dict[str, object]:
    found = jax.tree_util.tree_leaves_with_path(params, is_leaf=lambda leaf: isinstance(leaf, Int8))
    return {".".join(str(part.key) for part in path): leaf for path, leaf in found}


@pytest.mark.parametrize("head", ["words", "classes"])
def test_kernels_and_tables_become_int8_and_nothing_else(config: ModelConfig, head: str, draw: Draw) -> None:
    config = config.classifier(3, "mean", 0.0) if head == "classes" else config
    params = draw(config, 0)
    before, after = leaves(params), leaves(quantize(params))
    assert before.keys() == after.keys()
    for name, leaf in after.items():
        matrix = name.endswith((".kernel", ".table")) and name != "classifier.kernel"
        assert isinstance(leaf, Int8) == matrix, name
        if isinstance(leaf, Int8):
            assert leaf.axis == (0 if name.endswith("table") else 1), name
        else:
            assert leaf is before[name]


def test_quantizing_twice_or_after_going_back_changes_nothing(config: ModelConfig, draw: Draw) -> None:
    once = quantize(draw(config, 0))
    assert all(a is b for a, b in zip(leaves(quantize(once)).values(), leaves(once).values(), strict=True))
    floats = dequantize(once)
    assert not any(isinstance(leaf, Int8) for leaf in leaves(floats).values())
    for name, leaf in leaves(quantize(floats)).items():
        if isinstance(leaf, Int8):
            before: Any = leaves(once)[name]
            np.testing.assert_array_equal(leaf.q, before.q, err_msg=name)


@pytest.mark.parametrize("preset", ["bert", "modern"])
def test_int8_takes_at_most_27_percent_of_the_bytes(preset: Any, draw: Draw) -> None:
    config = ModelConfig.from_recipe(recipe.Model(preset=preset), 8192)
    params = draw(config.classifier(2, "mean", 0.0), 0)
    stored = [[leaf.q, leaf.scale] if isinstance(leaf, Int8) else leaf for leaf in leaves(quantize(params)).values()]
    share = sum(a.nbytes for a in jax.tree.leaves(stored)) / sum(a.nbytes for a in jax.tree.leaves(params))
    assert share <= 0.27, share


def test_answers_stay_close_and_do_not_depend_on_the_batch(config: ModelConfig, draw: Draw) -> None:
    config = config.classifier(3, "mean", 0.0)
    params = draw(config, 0)
    int8 = quantize(params)
    graph = encoder.graphdef(config)
    classify = jax.jit(lambda p, tokens, segments: nnx.merge(graph, p).classify(tokens, segments))
    tokens = jax.random.randint(jax.random.key(0), (6, 12), 5, 300, jnp.int32)
    segments = jnp.ones((6, 12), jnp.int32)
    logits = np.asarray(classify(int8, tokens, segments))
    exact = np.asarray(classify(dequantize(int8), tokens, segments))
    assert np.abs(logits - exact).max() < 0.1 * np.abs(exact).max()
    alone = np.concatenate([classify(int8, tokens[i : i + 1], segments[i : i + 1]) for i in range(6)])
    np.testing.assert_allclose(alone, logits, rtol=1e-4, atol=1e-5)
    padding = ((0, 0), (0, 4))
    padded = classify(int8, jnp.pad(tokens, padding), jnp.pad(segments, padding))
    np.testing.assert_allclose(padded, logits, rtol=1e-4, atol=1e-5)


def test_a_weight_that_is_not_finite_is_named(config: ModelConfig, draw: Draw) -> None:
    params = draw(config, 0)
    kernel = params["layers"][1]["attention"]["qkv"]["kernel"]
    params["layers"][1]["attention"]["qkv"]["kernel"] = kernel.at[0, 0].set(jnp.nan)
    with pytest.raises(LspError, match=r"layers\.1\.attention\.qkv\.kernel can't be quantised") as caught:
        quantize(params)
    assert caught.value.code == Exit.ARTIFACT
