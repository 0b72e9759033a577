"""Whole layers taken out: those without which a classifier's answers change least, one after the other."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lsp import interrupt
from lsp.data.batches import Batch
from lsp.model.config import ModelConfig
from lsp.model.encoder import graphdef
from lsp.train.objectives import divergence

Tree = Any
Model = tuple[ModelConfig, Tree]


def with_layers(model: Model, kept: Sequence[int]) -> Model:
    """The model with these of its layers alone, in order."""
    config, params = model
    layers = {place: params["layers"][number] for place, number in enumerate(kept)}
    return replace(config, layers=tuple(config.layers[number] for number in kept)), params | {"layers": layers}


def shallower(model: Model, count: int, batches: Sequence[Batch], task: Callable[[int], None]) -> list[int]:
    """Which `count` layers to keep. Each layer that is left is taken out in turn, and the one goes for good without
    which answers to `batches` diverge least from those of the whole model. `task` hears how many are gone.

    The first layer of `modern` stays: it reads what is normalised already, and has no norm for that.
    """
    kept = list(range(len(model[0].layers)))
    stays = int(model[0].preset == "modern")
    answers = _answers(model[0])
    wanted = [answers(model[1], batch) for batch in batches]
    while len(kept) > count:
        ways = [kept[:place] + kept[place + 1 :] for place in range(stays, len(kept))]
        # Layers of one shape leave models of one shape: compiled once.
        compiled: dict[ModelConfig, Callable[[Tree, Batch], jax.Array]] = {}
        strays = []
        for way in ways:
            config, params = with_layers(model, way)
            answer = compiled.setdefault(config, _answers(config))
            pairs = zip(batches, wanted, strict=True)
            strays.append(sum(_stray(config, logits, answer(params, batch), batch) for batch, logits in pairs))
        kept = ways[int(np.argmin(strays))]
        task(len(model[0].layers) - len(kept))
    return kept


def _answers(config: ModelConfig) -> Callable[[Tree, Batch], jax.Array]:
    structure = graphdef(config)

    @jax.jit
    def run(params: Tree, tokens_BT: jax.Array, segments_BT: jax.Array, types_BT: jax.Array) -> jax.Array:
        return nnx.merge(structure, params).classify(tokens_BT, segments_BT, types_BT)

    def answer(params: Tree, batch: Batch) -> jax.Array:
        interrupt.check()
        return run(params, *(jnp.asarray(batch[name]) for name in ("tokens", "segments", "types")))

    return answer


def _stray(config: ModelConfig, wanted_BC: jax.Array, found_BC: jax.Array, batch: Batch) -> float:
    return float((divergence(config.problem, wanted_BC, found_BC) * batch["weights"]).sum())
