"""SmoothQuant: the float product to the last bit, and less error where a channel is loud."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsp.compress import smooth
from lsp.compress.calibrated import maker
from lsp.compress.quantize import quantize
from lsp.data.examples import Examples
from lsp.model.config import Layer, ModelConfig
from lsp.model.int8 import Int8, matmul, quantize_array
from lsp.model.weightonly import dequantize
from lsp.recipe import Quantization
from lsp.train.evaluate import Classifier

Draw = Callable[[ModelConfig, int], dict]
Invent = Callable[..., Examples]
RNG = np.random.default_rng(0)


def loud(rows: int, channels: int) -> np.ndarray:
    """Inputs of which three channels are a hundred times as large as the others."""
    x = RNG.standard_normal((rows, channels)).astype(np.float32)
    x[:, [1, 7, 20]] *= 100
    return x


@pytest.mark.parametrize("alpha", [0.25, 0.5, 1.0])
def test_factors_are_the_papers_to_a_power_of_two(alpha: float) -> None:
    x, w = loud(64, 32), RNG.standard_normal((32, 24)).astype(np.float32)
    largest = np.abs(x).max(0)
    factor = smooth.factors(largest, w, alpha)
    wanted = np.abs(w).max(1) ** (1 - alpha) / largest**alpha
    wanted /= np.median(wanted)
    assert factor.dtype == np.float32 and (np.abs(np.log2(factor / wanted)) <= 0.5 + 0.05).all()
    mantissa, _ = np.frexp(factor)
    assert (mantissa == 0.5).all()
    np.testing.assert_array_equal((x * factor) @ (w / factor[:, None]), x @ w)


def test_channels_that_are_never_there_are_left_alone() -> None:
    x, w = loud(64, 32), RNG.standard_normal((32, 24)).astype(np.float32)
    x[:, 3], w[5] = 0, 0
    factor = smooth.factors(np.abs(x).max(0), w, 0.5)
    assert factor[3] == factor[5] == 1
    assert (smooth.factors(np.zeros(32, np.float32), w, 0.5) == 1).all()
    largest = np.ones(32, np.float32)
    largest[3] = 1e-9  # in the sample
    assert smooth.factors(largest, np.ones((32, 8), np.float32), 0.5).tolist() == [1.0] * 3 + [8.0] + [1.0] * 28


def test_a_loud_channel_costs_less_when_smoothed() -> None:
    x, w = loud(64, 32), RNG.standard_normal((32, 24)).astype(np.float32)
    factor = smooth.factors(np.abs(x).max(0), w, 0.5)
    small = quantize_array(w / factor[:, None], 1)
    smoothed = Int8.stored(small.q, small.scale, 1, factor)
    plain_error, smooth_error = (
        float(np.square(np.asarray(matmul(jnp.asarray(x), each)) - x @ w).mean())
        for each in (quantize_array(w, 1), smoothed)
    )
    assert smooth_error < 0.2 * plain_error


@pytest.mark.parametrize("preset", ["bert", "bilstm"])
def test_a_smoothed_model_is_nearer_and_answers_alone_as_in_company(draw: Draw, invent: Invent, preset: str) -> None:
    """One channel of the first layer's output is loud, as they are in trained models."""
    config = ModelConfig(preset, 300, 16, (Layer(2, 8, 24),) * 2, 32).classifier(3, "mean", 0.0)
    params, some, classifier = draw(config, 0), invent(12), Classifier(config)
    if preset == "bert":
        norm = params["layers"][0]["feedforward"]["norm"]
        params["layers"][0]["feedforward"]["norm"] = norm | {"bias": norm["bias"].at[5].set(60.0)}
    small = quantize(params, maker(Quantization(smooth=0.5), config, params, some))
    exact, plain, smoothed = (classifier.logits(each, some) for each in (params, quantize(params), small))
    away, before = np.abs(smoothed - exact).max(), np.abs(plain - exact).max()
    assert away < 0.5 * before if preset == "bert" else away < 2 * before
    alone = np.concatenate([classifier.logits(small, some.some(np.array([i]))) for i in range(3)])
    np.testing.assert_allclose(alone, smoothed[:3], rtol=1e-4, atol=1e-5)
    back = classifier.logits(dequantize(small), some)
    assert np.abs(back - exact).max() < 0.1 * np.abs(exact).max()
    kernels = [leaf for leaf in jax.tree.leaves(small, is_leaf=lambda leaf: isinstance(leaf, Int8))]
    assert any(isinstance(leaf, Int8) and leaf.factor is not None for leaf in kernels)
