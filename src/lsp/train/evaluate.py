"""A model measured on data it did not train on: the forward pass, compiled once for each batch shape and timed."""

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from flax import nnx

from lsp import Exit, LspError, interrupt
from lsp.data.examples import Examples, places, shared, width_for
from lsp.model.config import ModelConfig
from lsp.model.encoder import Model, compiler_options, graphdef
from lsp.train import metrics, objectives, processes
from lsp.train.metrics import Mean


@dataclass(frozen=True)
class Scores:
    """What a classifier says of examples: metrics, fp32 logits [N, C] in the examples' order, and the speed."""

    metrics: dict[str, float]
    logits: np.ndarray
    examples_per_second: float

    def expect_numbers(self, model: str) -> "Scores":
        """Itself. Raises LspError (exit 4) where an answer is NaN or infinite: its largest class would be any, and no
        gate may pass by that."""
        if bad := int((~np.isfinite(self.logits)).any(axis=1).sum()):
            raise LspError(
                f"{model} answers {bad:,} of {len(self.logits):,} texts with what is no number.",
                hint="Its parameters are too large or damaged: make it again.",
                code=Exit.ARTIFACT,
            )
        return self

    def summary(self) -> dict[str, Any]:
        return {"metrics": self.metrics, "examples_per_second": self.examples_per_second}


class Forward:
    """`forward(params, batch)` for host batches. The clock, `seconds`, does not count compiling."""

    def __init__(self, config: ModelConfig, compute: Callable[[Any, dict[str, jax.Array]], Any]) -> None:
        self.jitted, self.compiled = _programs(config, compute)
        self.seconds = 0.0

    def __call__(self, params: Any, batch: dict[str, np.ndarray]) -> Any:
        if processes.alone():  # of several none stops by itself: they agree on it between two steps
            interrupt.check()
        # Float and int8 parameters of one config are different programs, and so are those on one device and on several.
        leaves, structure = jax.tree.flatten(params)
        arrays = [*leaves, *batch.values()]
        shape = (structure, *batch, *((array.shape, array.dtype) for array in arrays), *map(_spread, leaves))
        if shape not in self.compiled:
            lowered, options = self.jitted.lower(params, batch), compiler_options(params)
            work = functools.partial(lowered.compile, compiler_options=options)
            self.compiled[shape] = interrupt.apart(work) if processes.alone() else work()
            jax.block_until_ready(self.compiled[shape](params, batch))
        began = time.perf_counter()
        answer = jax.device_get(self.compiled[shape](params, batch))
        self.seconds += time.perf_counter() - began
        return answer


def _spread(leaf: Any) -> Any:
    """How an array lies on several devices, None where it is on one."""
    sharding = getattr(leaf, "sharding", None)
    return sharding if sharding is not None and len(sharding.device_set) > 1 else None


@functools.lru_cache(maxsize=8)
def _programs(config: ModelConfig, compute: Callable[[Any, dict[str, jax.Array]], Any]) -> tuple[Any, dict[Any, Any]]:
    """The jitted function and what was compiled of it, once in a process: a search measures a model in every stage."""
    structure = graphdef(config)
    return jax.jit(lambda params, batch: compute(nnx.merge(structure, params), batch)), {}


def _classify(model: Model, batch: dict[str, jax.Array]) -> jax.Array:
    tokens_BT, inputs = batch["tokens"], (batch["segments"], batch["types"])
    return model.classify(tokens_BT, *inputs, shared=places(tokens_BT.shape[1]))


class Classifier:
    """Logits of labelled or unlabelled examples, which share rows."""

    def __init__(self, config: ModelConfig) -> None:
        self.classes, self.problem, self.width = config.classes, config.problem, config.width
        self.forward = Forward(config, _classify)

    def logits(self, params: Any, examples: Examples) -> np.ndarray:
        """fp32 [N, C], in the examples' order."""
        params = jax.device_put(params)  # once: what a checkpoint holds is NumPy, and would be copied for every batch
        logits = np.zeros((len(examples), self.classes), np.float32)
        for chosen_BE, batch in shared(examples, self.width):
            answers_BEC = self.forward(params, batch)
            there_BE = chosen_BE >= 0
            logits[chosen_BE[there_BE]] = answers_BEC[there_BE]
        return logits

    def score(self, params: Any, examples: Examples) -> Scores:
        """Metrics over all examples; needs their labels."""
        self.forward.seconds = 0.0
        logits = self.logits(params, examples)
        rate = len(examples) / self.forward.seconds if self.forward.seconds else 0.0
        return Scores(metrics.measured(self.problem, logits, examples.labels), logits, rate)


class Pretraining:
    """Loss (nats) and metrics of an encoder on held-out rows, with the same masks every time."""

    def __init__(self, config: ModelConfig) -> None:
        loss = objectives.pretraining(config)
        self.forward = Forward(config, lambda model, batch: loss(model, None, batch, None))

    def score(self, params: Any, held_out: Any) -> dict[str, float]:
        """`held_out` is what `batches.evaluation` gives."""
        sums: dict[str, Mean] = {}
        for batch in held_out:
            inputs = {name: array for name, array in batch.items() if name != "overflow"}
            loss, others = self.forward(params, inputs)
            for name, mean in (others | {"loss": loss}).items():
                sums[name] = sums.get(name, Mean(0.0, 0.0)) + Mean(float(mean.total), float(mean.count))
        return {name: metrics.value(mean) for name, mean in sums.items()}


class MaskedWords:
    """The most likely of `pieces` at masked positions of one text; a model may have more rows than its tokenizer."""

    def __init__(self, config: ModelConfig, guesses: int, pieces: int) -> None:
        def compute(model: Model, batch: dict[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
            hidden = model.encode(batch["tokens"], batch["segments"])
            probabilities = jax.nn.softmax(model.guess(hidden, batch["slots"])[0, :, :pieces])
            best, ids = jax.lax.top_k(probabilities, guesses)
            return ids, best

        self.forward = Forward(config, compute)

    def __call__(self, params: Any, tokens: np.ndarray, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Piece ids and probabilities, each [masks, guesses], of int32 tokens [T] at the positions `masks`."""
        length, slots = width_for(len(tokens)), width_for(len(masks))
        padded = np.pad(tokens, (0, length - len(tokens)))[None]
        batch = {"tokens": padded, "segments": (padded > 0).astype(np.int32)}
        batch["slots"] = np.pad(masks, (0, slots - len(masks)))[None].astype(np.int32)
        ids, probabilities = self.forward(params, batch)
        return ids[: len(masks)], probabilities[: len(masks)]
