"""Which of int8 and bfloat16 an int8 model answers in on a GPU: the faster one on this card, which depends on the card,
on XLA and on the shapes of the model, and so is measured. On a processor int8 stays int8."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lsp import timing
from lsp.checkpoint import Checkpoint
from lsp.deploy import bench
from lsp.model import int8
from lsp.model.weightonly import dequantize

ROWS, TOKENS = 32, 128  # of the batch that both answer in turns
LIMITS = timing.Limits(rounds=10, seconds=2.0)


class Choice(NamedTuple):
    """Parameters to answer with, and why in words; no words where there was nothing to choose."""

    params: Any
    why: str = ""


def applies(params: Any) -> bool:
    """Whether there is something to choose."""
    return jax.default_backend() == "gpu" and int8.present(params)


def choose(base: Checkpoint, limits: timing.Limits = LIMITS) -> Choice:
    """The parameters of a run, int8 or in bfloat16."""
    if not applies(base.params):
        return Choice(base.params)
    kinds = {"int8": base.params, "bfloat16": in_bfloat16(base.params)}
    models = [bench.of_params(base, params, name) for name, params in kinds.items()]
    timings = bench.measure(bench.rows(models, ROWS, min(TOKENS, base.config.max_length)), limits)
    rates = dict(zip(kinds, ROWS / np.median(timings.seconds_MRE, axis=(1, 2)), strict=True))
    taken = max(rates, key=rates.__getitem__)
    told = ", ".join(f"{name} {rate:,.0f}" for name, rate in rates.items())
    return Choice(
        kinds[taken], f"answering in {taken}, the faster on this {jax.devices()[0].device_kind}: {told} texts/s"
    )


def in_bfloat16(params: Any) -> Any:
    """The same weights for products in bfloat16: those of int8 as the floats that they stand for."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf).astype(jnp.bfloat16), dequantize(params))
