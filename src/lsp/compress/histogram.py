"""How large a value static quantisation keeps, from a histogram of magnitudes, which does not grow with the sample.

A limit cuts off what is beyond it, and what is inside is rounded to steps of limit / 127.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from lsp.compress import calibrate
from lsp.compress.quantize import Tree
from lsp.data.examples import Examples
from lsp.model.config import ModelConfig
from lsp.model.int8 import LARGEST
from lsp.recipe import Calibration

BINS = 2048
LEVELS = LARGEST + 1  # of a magnitude
KEPT = 0.9999  # the share of the values that `percentile` does not cut off


def histograms(
    config: ModelConfig, params: Tree, examples: Examples, factors: dict[str, np.ndarray], ends: dict[str, float]
) -> dict[str, np.ndarray]:
    """int64 [BINS] for each kernel in `ends`: how many of the magnitudes that enter it, times its factors [K] if it has
    any, lie in each of the equal bins from 0 to its end. Real tokens only."""

    def counted(name: str, x_MK: jax.Array, there_M: jax.Array) -> jax.Array:
        if not ends.get(name):
            return jnp.zeros(BINS, jnp.int32)
        x_MK = x_MK * factors[name] if name in factors else x_MK
        bin_MK = jnp.clip((jnp.abs(x_MK) * np.float32(BINS / ends[name])).astype(jnp.int32), 0, BINS - 1)
        once_MK = jnp.broadcast_to(there_M[:, None], x_MK.shape).astype(jnp.int32)
        return jnp.bincount(bin_MK.reshape(-1), once_MK.reshape(-1), length=BINS)

    found = calibrate.observe(config, params, examples, counted, lambda one, other: one.astype(np.int64) + other)
    return {name: found[name].astype(np.int64) for name, end in ends.items() if end}


def minmax(counts: np.ndarray, end: float) -> float:
    """Nothing is cut off."""
    return end


def percentile(counts: np.ndarray, end: float) -> float:
    """All but one value in ten thousand stay inside, to a bin."""
    inside = np.cumsum(counts) >= KEPT * counts.sum()
    return float(end * (int(inside.argmax()) + 1) / BINS)


def mse(counts: np.ndarray, end: float) -> float:
    """The least sum of squared errors, of a hundred limits up to the largest value; a bin counts as its middle."""
    middle = (np.arange(BINS) + 0.5) * (end / BINS)
    limits = end * np.arange(1, 101) / 100

    def error(limit: float) -> float:
        step = limit / LARGEST
        return float(counts @ np.square(np.minimum(np.round(middle / step), LARGEST) * step - middle))

    return float(min(limits, key=error))


def kl(counts: np.ndarray, end: float) -> float:
    """The least KL divergence of the histogram in 128 levels from itself, with what is beyond in the last bin that is
    kept (Migacz, 2017, "8-bit inference with TensorRT"). The first bin, most of which is noise around zero, counts as
    its neighbour does."""
    counts = counts.astype(np.float64)
    counts[0] = counts[1]
    keeps = range(LEVELS, BINS + 1, LEVELS // 8)
    return end * min(keeps, key=lambda kept: _divergence(counts, kept)) / BINS


def _divergence(counts: np.ndarray, kept: int) -> float:
    """Nats: of the first `kept` bins, the rest folded into the last, from these bins in 128 levels, each spread over
    its bins that hold anything."""
    own = counts[:kept].copy()
    level = np.arange(kept) * LEVELS // kept
    there = own > 0
    in_level, bins = (np.bincount(level, each, LEVELS) for each in (own, there))
    coarse = np.where(there, (in_level / np.maximum(bins, 1))[level], 0.0)
    own[-1] += counts[kept:].sum()
    if not coarse.sum():
        return np.inf
    # A bin that holds only what was folded into it has nothing to be compared with but a trace.
    p, q = own / own.sum(), np.maximum(coarse / coarse.sum(), 1e-12)
    return float(np.where(p > 0, p * np.log(np.maximum(p, 1e-300) / q), 0.0).sum())


LIMITS: dict[Calibration, Callable[[np.ndarray, float], float]] = {
    "minmax": minmax,
    "percentile": percentile,
    "mse": mse,
    "kl": kl,
}
