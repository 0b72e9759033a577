"""Post-training quantisation by a sample: each matrix from its weights and from what reaches it."""

from functools import partial
from typing import Any, NamedTuple

import numpy as np

from lsp.compress import calibrate, gptq, smooth
from lsp.compress.quantize import Make, Tree, nearest
from lsp.data.examples import Examples
from lsp.model import weightonly
from lsp.model.config import ModelConfig
from lsp.model.int8 import LARGEST, Int8
from lsp.model.weightonly import WeightOnly
from lsp.recipe import Quantization


class Seen(NamedTuple):
    """What reached the kernels, by their names; empty where nobody asked."""

    largest: dict[str, np.ndarray]  # magnitude of each channel, float32 [K]
    products: dict[str, np.ndarray]  # XᵀX, float64 [K, K]


def maker(recipe: Quantization, config: ModelConfig, params: Tree, sample: Examples | None) -> Make:
    """How the recipe makes a smaller matrix of a float one (`quantize.quantize`). What the sample does not reach, the
    tables and the products inside an LSTM, is rounded to nearest."""
    seen = Seen({}, {})
    if sample is not None:
        seen = Seen(
            calibrate.largest(config, params, sample) if recipe.smooth else {},
            calibrate.products(config, params, sample) if recipe.rounding == "gptq" else {},
        )
    return partial(_weights, recipe, seen) if recipe.method == "weights" else partial(_int8, recipe, seen)


def _int8(recipe: Quantization, seen: Seen, name: str, w: Any, axis: int) -> Int8:
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


def _weights(recipe: Quantization, seen: Seen, name: str, w: Any, axis: int) -> WeightOnly:
    w, most = np.asarray(w, np.float32), weightonly.LARGEST[recipe.bits]
    scale = weightonly.group_scales(w, axis, recipe.bits, recipe.group)
    each = weightonly.spread(scale, w.shape[1 - axis], 1 - axis)
    if name in seen.products:
        q = gptq.rounded(w, each, most, seen.products[name])
    else:
        q = np.clip(np.round(w / each), -most, most).astype(np.int8)
    return WeightOnly(weightonly.packed(q) if recipe.bits == 4 else q, scale, axis)
