"""Limits from histograms against the same computed from all values, and static quantisation of a whole model."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsp.compress import calibrate, histogram
from lsp.compress.calibrated import look, maker
from lsp.compress.quantize import quantize
from lsp.data.examples import Examples
from lsp.model.config import Layer, ModelConfig
from lsp.model.int8 import Int8, matmul, quantize_array
from lsp.recipe import Quantization
from lsp.train.evaluate import Classifier

Draw = Callable[[ModelConfig, int], dict]
Invent = Callable[..., Examples]
RNG = np.random.default_rng(0)


def values(kind: str) -> np.ndarray:
    x = {
        "normal": RNG.standard_normal(40_000),
        "heavy": RNG.standard_t(2, 40_000),
        "one far": np.append(RNG.standard_normal(40_000), [300.0]),
    }[kind]
    return np.abs(x)


def binned(x: np.ndarray) -> tuple[np.ndarray, float]:
    end = float(x.max())
    return np.histogram(x, histogram.BINS, (0, end))[0], end


@pytest.mark.parametrize("kind", ["normal", "heavy", "one far"])
def test_percentile_and_squared_error_are_those_of_all_values(kind: str) -> None:
    x = values(kind)
    counts, end = binned(x)
    width = end / histogram.BINS
    assert histogram.minmax(counts, end) == x.max()
    kept = histogram.percentile(counts, end)
    assert abs(kept - np.sort(x)[int(np.ceil(histogram.KEPT * len(x))) - 1]) <= width

    def error(limit: float) -> float:
        return float(np.square(np.minimum(np.round(x / limit * 127), 127) * limit / 127 - x).sum())

    best = min(error(limit) for limit in end * np.arange(1, 101) / 100)
    assert error(histogram.mse(counts, end)) <= best * 1.05 + len(x) * width**2 / 6


def slow_kl(counts: np.ndarray, end: float) -> float:
    """As TensorRT's slides have it, in loops."""
    counts, best = counts.astype(float), (np.inf, 0)
    counts[0] = counts[1]
    for kept in range(128, histogram.BINS + 1, 16):
        p = counts[:kept].tolist()
        p[-1] += counts[kept:].sum()
        q = [0.0] * kept
        for level in range(128):
            mine = [i for i in range(kept) if i * 128 // kept == level]
            full = [i for i in mine if counts[i] > 0]
            for i in full:
                q[i] = sum(counts[j] for j in mine) / len(full)
        total_p, total_q = sum(p), sum(q)
        if total_q == 0:
            continue
        away = sum(a / total_p * np.log(a / total_p / max(b / total_q, 1e-12)) for a, b in zip(p, q, strict=True) if a)
        best = min(best, (away, kept))
    return end * best[1] / histogram.BINS


@pytest.mark.parametrize("kind", ["normal", "one far"])
def test_kl_is_the_one_of_the_slides(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(histogram, "BINS", 512)
    counts, end = binned(values(kind))
    found = histogram.kl(counts, end)
    assert found == pytest.approx(slow_kl(counts, end))
    assert found == end if kind == "normal" else 0 < found < end, "a far tail is cut"


def test_histograms_count_real_tokens_once_and_do_not_grow(draw: Draw, invent: Invent) -> None:
    """The same values on their own, put through `observe` in another way: sums of powers."""
    config = ModelConfig("bert", 300, 16, (Layer(2, 8, 24),), 32).classifier(3, "mean", 0.0)
    params, some = draw(config, 0), invent(300)
    largest = calibrate.largest(config, params, some)
    ends = {name: float(top.max()) for name, top in largest.items()}
    counts = histogram.histograms(config, params, some, {}, ends)
    assert counts.keys() == largest.keys() and all(each.shape == (histogram.BINS,) for each in counts.values())
    sums = calibrate.observe(config, params, some, lambda name, x, there: jnp.abs(x).sum(), np.add)
    for name, each in counts.items():
        tokens = 300 if name == "pooler.kernel" else int(some.lengths.sum())
        assert each.sum() == tokens * len(largest[name]), name
        assert each[-1] > 0, "the largest is in the last bin"
        middle = (np.arange(histogram.BINS) + 0.5) * ends[name] / histogram.BINS
        np.testing.assert_allclose(each @ middle, sums[name], rtol=0.02, err_msg=name)
    # A factor moves values as it moves the inputs.
    name = "layers.0.feedforward.up.kernel"
    doubled = histogram.histograms(config, params, some, {name: np.full(16, 2, np.float32)}, {name: 2 * ends[name]})
    np.testing.assert_array_equal(doubled[name], counts[name])


@pytest.mark.parametrize("calibration", ["minmax", "percentile", "mse", "kl"])
def test_a_static_model_is_near_and_answers_alone_as_in_company(draw: Draw, invent: Invent, calibration: Any) -> None:
    config = ModelConfig("modern", 300, 16, (Layer(2, 8, 24),) * 2, 32).classifier(3, "mean", 0.0)
    params, some, classifier = draw(config, 0), invent(30), Classifier(config)
    plan = Quantization(method="static", calibration=calibration, smooth=0.5 if calibration == "mse" else 0.0)
    small = quantize(params, maker(plan, config, params, some))
    limits = look(plan, config, params, some).limits
    kernel = small["layers"][1]["attention"]["qkv"]["kernel"]
    assert isinstance(kernel, Int8) and kernel.limit == limits["layers.1.attention.qkv.kernel"] > 0
    assert small["embeddings"]["tokens"]["table"].limit is None and len(limits) == 11
    exact, found = classifier.logits(params, some), classifier.logits(small, some)
    assert np.abs(found - exact).mean() < 0.25 * np.abs(exact).mean()
    alone = np.concatenate([classifier.logits(small, some.some(np.array([i]))) for i in range(3)])
    np.testing.assert_allclose(alone, found[:3], rtol=1e-4, atol=1e-5)


def test_what_never_carries_anything_keeps_a_scale_for_each_token(draw: Draw, invent: Invent) -> None:
    config = ModelConfig("bert", 300, 16, (Layer(2, 8, 24),), 32).classifier(3, "mean", 0.0)
    params = draw(config, 0)
    block = params["layers"][0]["feedforward"]
    block["up"] = block["up"] | {"kernel": jnp.zeros_like(block["up"]["kernel"])}
    small = quantize(params, maker(Quantization(method="static"), config, params, invent(4)))
    assert small["layers"][0]["feedforward"]["down"]["kernel"].limit is None
    assert small["layers"][0]["feedforward"]["up"]["kernel"].limit is not None
    assert not jax.tree.leaves(small["embeddings"]["tokens"]["table"].limit)
    w = quantize_array(np.zeros((4, 4), np.float32), 1)
    assert not np.asarray(matmul(jnp.ones((2, 4)), w)).any()
