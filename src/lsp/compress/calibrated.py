"""Post-training quantisation by a sample: each matrix from its weights and from what reaches it."""

from functools import partial
from typing import Any, NamedTuple

import numpy as np

from lsp.compress import calibrate, gptq, histogram, smooth
from lsp.compress.quantize import Make, Tree, mapped, nearest
from lsp.data.examples import Examples
from lsp.model import weightonly
from lsp.model.config import ModelConfig
from lsp.model.int8 import LARGEST, Int8
from lsp.model.weightonly import WeightOnly
from lsp.recipe import Quantization


class Seen(NamedTuple):
    """What the sample says of the kernels, by their names; empty where nobody asked."""

    factors: dict[str, np.ndarray]  # of SmoothQuant, float32 [K]
    products: dict[str, np.ndarray]  # XᵀX, float64 [K, K]
    limits: dict[str, np.float32]  # of static quantisation, of what enters times the factors


def maker(recipe: Quantization, config: ModelConfig, params: Tree, sample: Examples | None) -> Make:
    """How the recipe makes a smaller matrix of a float one (`quantize.quantize`). What the sample does not reach, the
    tables and the products inside an LSTM, is rounded to nearest, and has a scale for each token."""
    seen = Seen({}, {}, {}) if sample is None else look(recipe, config, params, sample)
    return partial(_weights, recipe, seen) if recipe.method == "weights" else partial(_int8, seen)


def look(recipe: Quantization, config: ModelConfig, params: Tree, sample: Examples) -> Seen:
    """What the recipe wants to know of the sample."""
    kernels: dict[str, np.ndarray] = {}
    mapped(lambda path, w: kernels.setdefault(".".join(map(str, path)), w), params)
    products = calibrate.products(config, params, sample) if recipe.rounding == "gptq" else {}
    if not recipe.smooth and recipe.method != "static":
        return Seen({}, products, {})
    largest, factors, limits = calibrate.largest(config, params, sample), {}, {}
    if recipe.smooth:
        factors = {name: smooth.factors(top, np.asarray(kernels[name]), recipe.smooth) for name, top in largest.items()}
    if recipe.method == "static":
        ends = {name: float((top * factors.get(name, np.float32(1))).max()) for name, top in largest.items()}
        counts = histogram.histograms(config, params, sample, factors, ends)
        limit = histogram.LIMITS[recipe.calibration]
        limits = {name: np.float32(limit(counts[name], ends[name])) for name in counts}
    return Seen(factors, products, limits)


def _int8(seen: Seen, name: str, w: Any, axis: int) -> Int8:
    factor = seen.factors.get(name)
    w = w if factor is None else np.asarray(w) / factor[:, None]
    small = nearest(name, w, axis)
    q = small.q
    if name in seen.products:
        square = seen.products[name] if factor is None else seen.products[name] * np.outer(factor, factor)
        q = gptq.rounded(np.asarray(w), np.asarray(small.scale), LARGEST, square)
    return Int8.stored(q, small.scale, axis, factor, seen.limits.get(name))


def _weights(recipe: Quantization, seen: Seen, name: str, w: Any, axis: int) -> WeightOnly:
    w, most = np.asarray(w, np.float32), weightonly.LARGEST[recipe.bits]
    scale = weightonly.group_scales(w, axis, recipe.bits, recipe.group)
    each = weightonly.spread(scale, w.shape[1 - axis], 1 - axis)
    if name in seen.products:
        q = gptq.rounded(w, each, most, seen.products[name])
    else:
        q = np.clip(np.round(w / each), -most, most).astype(np.int8)
    return WeightOnly(weightonly.packed(q) if recipe.bits == 4 else q, scale, axis)
