"""Post-training quantisation by a sample: each matrix from its weights and from what reaches it."""

from typing import Any, NamedTuple

import numpy as np

from lsp.compress import calibrate, gptq, smooth
from lsp.compress.quantize import Make, Tree, nearest
from lsp.data.examples import Examples
from lsp.model.config import ModelConfig
from lsp.model.int8 import LARGEST, Int8
from lsp.recipe import Quantization


class Seen(NamedTuple):
    """What reached the kernels, by their names; empty where nobody asked."""

    largest: dict[str, np.ndarray]  # magnitude of each channel, float32 [K]
    products: dict[str, np.ndarray]  # XᵀX, float64 [K, K]


def maker(recipe: Quantization, config: ModelConfig, params: Tree, sample: Examples | None) -> Make:
    """How the recipe makes a smaller matrix of a float one (`quantize.quantize`). What the sample does not reach, the
    tables and the products inside an LSTM, is rounded to nearest."""
    if sample is None:
        return nearest
    seen = Seen(
        calibrate.largest(config, params, sample) if recipe.smooth else {},
        calibrate.products(config, params, sample) if recipe.rounding == "gptq" else {},
    )

    def make(name: str, w: Any, axis: int) -> Int8:
        factor = None
        if name in seen.largest:
            factor = smooth.factors(seen.largest[name], np.asarray(w), recipe.smooth)
            w = np.asarray(w) / factor[:, None]
        small = nearest(name, w, axis)
        q = small.q
        if name in seen.products:
            square = seen.products[name] if factor is None else seen.products[name] * np.outer(factor, factor)
            q = gptq.rounded(np.asarray(w), np.asarray(small.scale), LARGEST, square)
        return Int8.stored(q, small.scale, axis, factor)

    return make
