"""GPTQ against a plain version that knows neither blocks nor Cholesky, and against rounding to nearest."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from lsp.compress import calibrate, gptq
from lsp.compress.calibrated import maker
from lsp.compress.quantize import quantize
from lsp.data.examples import Examples
from lsp.model.config import Layer, ModelConfig
from lsp.model.int8 import Int8
from lsp.recipe import Quantization
from lsp.train.evaluate import Classifier

Draw = Callable[[ModelConfig, int], dict]
Invent = Callable[..., Examples]
RNG = np.random.default_rng(0)


def problem(channels: int, columns: int, rows: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Inputs whose channels go together, and weights."""
    x = RNG.standard_normal((rows, channels)) @ RNG.standard_normal((channels, channels)) / channels**0.5
    return x.T @ x, RNG.standard_normal((channels, columns))


def plain(w: np.ndarray, scale: np.ndarray, largest: int, square: np.ndarray) -> np.ndarray:
    """Optimal Brain Quantization for a given order (Frantar and Alistarh, 2022): the inverse of what is left is made
    anew at each step."""
    order = np.argsort(-np.diag(square), kind="stable").tolist()
    damped = square + gptq.DAMPING * np.diag(square).mean() * np.eye(len(w))
    w, free, q = w.copy(), w != 0, np.zeros_like(w)
    while order:
        k = order[0]
        inverse = np.linalg.inv(damped[np.ix_(order, order)])
        q[k] = np.where(free[k], np.clip(np.round(w[k] / scale[k]), -largest, largest), 0)
        error = (w[k] - q[k] * scale[k]) / inverse[0, 0]
        for place, other in enumerate(order[1:], 1):
            w[other] -= inverse[0, place] * error
        order = order[1:]
    return q


@pytest.mark.parametrize("zeros", [0.0, 0.5])
def test_blocks_and_cholesky_change_nothing(monkeypatch: pytest.MonkeyPatch, zeros: float) -> None:
    monkeypatch.setattr(gptq, "BLOCK", 7)
    square, w = problem(20, 6)
    w[RNG.random(w.shape) < zeros] = 0
    scale = np.broadcast_to(np.abs(w).max(0) / 7, w.shape)
    found = gptq._in_turn(*(each[order := np.argsort(-np.diag(square), kind="stable")] for each in (w, scale)), 7,
                          square[np.ix_(order, order)])  # fmt: skip
    wanted = plain(w, scale, 7, square)
    np.testing.assert_array_equal(found, wanted[order])
    assert not found[w[order] == 0].any()


@pytest.mark.parametrize("largest", [127, 7])
def test_no_column_is_worse_than_rounded_to_nearest_and_few_bits_gain(largest: int) -> None:
    square, w = problem(160, 30)  # more than a block
    scale = np.abs(w).max(0, keepdims=True) / largest
    q = gptq.rounded(w, scale, largest, square)
    assert q.dtype == np.int8 and np.abs(q).max() <= largest
    nearest = np.round(w / scale)
    ours, theirs = (gptq.output_error(w - each * scale, square) for each in (q, nearest))
    assert (ours <= theirs).all() and ours.sum() < 0.7 * theirs.sum()
    x = np.linalg.cholesky(square).T  # XᵀX = square
    np.testing.assert_allclose(ours, np.square(x @ (w - q * scale)).sum(0), rtol=1e-8)


def test_what_is_never_there_is_rounded_to_nearest_and_zeros_stay() -> None:
    square, w = problem(24, 8)
    square[5], square[:, 5] = 0, 0
    w[3], w[9, ::2] = 0, 0
    scale = np.abs(w).max(0, keepdims=True) / 7
    q = gptq.rounded(w, scale, 7, square)
    np.testing.assert_array_equal(q[5], np.round(w / scale)[5])
    assert not q[3].any() and not q[9, ::2].any()
    nothing = gptq.rounded(w, scale, 7, np.zeros_like(square))
    np.testing.assert_array_equal(nothing, np.round(w / scale))


@pytest.mark.parametrize("smooth", [0.0, 0.5])
def test_a_models_kernels_are_no_worse_on_what_they_read(draw: Draw, invent: Invent, smooth: float) -> None:
    config = ModelConfig("bert", 300, 16, (Layer(2, 8, 24),) * 2, 32).classifier(3, "mean", 0.0)
    params, some = draw(config, 0), invent(40)
    nearest = quantize(params, maker(Quantization(smooth=smooth), config, params, some if smooth else None))
    small = quantize(params, maker(Quantization(rounding="gptq", smooth=smooth), config, params, some))
    seen = calibrate.products(config, params, some)
    gained = 0
    for name, square in seen.items():

        def at(tree: Any, name: str = name) -> Any:
            for part in name.split("."):
                tree = tree[int(part) if part.isdecimal() else part]
            return tree

        w, ours, theirs = (np.asarray(x.dequantize() if isinstance(x, Int8) else x, np.float64)
                           for x in (at(params), at(small), at(nearest)))  # fmt: skip
        errors = [gptq.output_error(w - each, square).sum() for each in (ours, theirs)]
        assert errors[0] <= errors[1] * (1 + 1e-6), name
        gained += errors[0] < 0.9 * errors[1]
    assert gained >= 4
    table = small["embeddings"]["tokens"]["table"]
    np.testing.assert_array_equal(table.q, nearest["embeddings"]["tokens"]["table"].q)
    classifier = Classifier(config)
    exact, found = classifier.logits(params, some), classifier.logits(small, some)
    assert np.abs(found - exact).mean() < 0.1 * np.abs(exact).mean()
