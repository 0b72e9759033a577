"""Which weights become int8, how small that is, and that the model still answers the same, alone or in company."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lsp import Exit, LspError, recipe
from lsp.compress import prune
from lsp.compress.calibrated import maker
from lsp.compress.quantize import quantize
from lsp.model import encoder
from lsp.model.config import Layer, ModelConfig
from lsp.model.int8 import Int8
from lsp.model.weightonly import WeightOnly, dequantize, is_quantized
from lsp.train.evaluate import Classifier

Draw = Callable[[ModelConfig, int], dict]


def leaves(params: dict) -> dict[str, object]:
    found = jax.tree_util.tree_leaves_with_path(params, is_leaf=is_quantized)
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


@pytest.mark.parametrize(("bits", "group"), [(8, 0), (4, 8)])
def test_weights_alone_are_smaller_and_answers_depend_on_no_batch(
    config: ModelConfig, draw: Draw, invent: Callable[..., Any], bits: int, group: int
) -> None:
    config = config.classifier(3, "mean", 0.0)
    params, some = draw(config, 0), invent(12)
    plan = recipe.Quantization(method="weights", bits=bits, group=group)
    small = quantize(params, maker(plan, config, params, None))
    held = [leaf for leaf in leaves(small).values() if isinstance(leaf, WeightOnly)]
    stored = sum(np.asarray(leaf.q).nbytes for leaf in held)
    assert stored == sum(int(np.prod(leaf.shape)) for leaf in held) * bits // 8
    classifier = Classifier(config)
    exact, plain, found = (classifier.logits(each, some) for each in (dequantize(small), params, small))
    np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-5, err_msg="the float product of what is stored")
    assert 0 < np.abs(found - plain).mean() < (0.05 if bits == 8 else 0.5) * np.abs(plain).mean()
    alone = np.concatenate([classifier.logits(small, some.some(np.array([i]))) for i in range(3)])
    np.testing.assert_allclose(alone, found[:3], rtol=1e-4, atol=1e-5)
    assert (
        quantize(small)["layers"][0]["attention"]["qkv"]["kernel"] is small["layers"][0]["attention"]["qkv"]["kernel"]
    )


def test_gptq_makes_four_bits_better_and_keeps_zeros(draw: Draw, invent: Callable[..., Any]) -> None:
    config = ModelConfig("bert", 300, 16, (Layer(2, 8, 24),) * 2, 32).classifier(3, "mean", 0.0)
    params, some = draw(config, 0), invent(60)
    kernel = params["layers"][0]["feedforward"]["up"]["kernel"]
    params["layers"][0]["feedforward"]["up"]["kernel"] = kernel.at[::2, ::3].set(0.0)
    plan = recipe.Quantization(method="weights", bits=4, group=8)
    near, better = (
        quantize(params, maker(dataclasses.replace(plan, rounding=how), config, params, some))
        for how in ("nearest", "gptq")
    )
    classifier = Classifier(config)
    exact, *found = (classifier.logits(each, some) for each in (params, near, better))
    away = [float(np.square(each - exact).mean()) for each in found]
    assert away[1] < 0.8 * away[0]
    assert prune.sparsity(better) >= prune.sparsity(params) > 0
