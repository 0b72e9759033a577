"""An exported classifier, opened for use: one door for every runtime whose folders `lsp export` writes."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lsp import Exit, LspError, directory, interrupt
from lsp.data.batches import Batch
from lsp.data.examples import Examples, alone, sorted_by_length
from lsp.data.tokenizer import Tokenizer
from lsp.deploy.parity import Answer
from lsp.recipe import Problem
from lsp.train import metrics
from lsp.train.evaluate import Scores


@dataclass(frozen=True)
class Exported:
    """`answer` takes tokens and types int32 [B, T], 0 on padding, and gives logits fp32 [B, C]; `batches` are those
    that it is fast with."""

    path: Path
    manifest: dict[str, Any]
    tokenizer: Tokenizer
    labels: tuple[str, ...]
    columns: tuple[str, ...]  # what those of its texts were called in training
    problem: Problem
    max_length: int
    answer: Answer
    batches: Callable[[Examples], Iterator[tuple[np.ndarray, Batch]]]

    def logits(self, examples: Examples) -> np.ndarray:
        """fp32 [N, C], in the examples' order; each has a row of its own, whatever the batches."""
        return self._answered(examples)[0]

    def score(self, examples: Examples) -> Scores:
        """Metrics over all examples; needs their labels. A batch of a new shape, which a runtime has to prepare for, is
        answered once before the clock starts."""
        logits, seconds = self._answered(examples, prepared=True)
        return Scores(metrics.measured(self.problem, logits, examples.labels), logits, len(examples) / seconds)

    def _answered(self, examples: Examples, prepared: bool = False) -> tuple[np.ndarray, float]:
        order, found, seconds, seen = [], [], 0.0, set()
        for chosen, batch in self.batches(examples):
            interrupt.check()
            tokens_BT, types_BT = batch["tokens"], batch["types"]
            if prepared and tokens_BT.shape not in seen:
                self.answer(tokens_BT, types_BT)
                seen.add(tokens_BT.shape)
            began = time.perf_counter()
            answers_BC = self.answer(tokens_BT, types_BT)
            seconds += time.perf_counter() - began
            order.append(chosen)
            found.append(answers_BC[: len(chosen)])
        return np.concatenate(found)[np.argsort(np.concatenate(order))], seconds


def holds(path: Path) -> bool:
    """Whether a directory is an export that can be opened here, and no run. Raises LspError (exit 4) for neither."""
    return "exported" in directory.read(path, verify=False)


def open(path: Path) -> Exported:
    """The classifier in an export's folder, every byte confirmed. Raises LspError: 4 for a damaged one, 5 where a
    package that runs it is missing."""
    manifest = directory.read(path)
    kind = manifest["exported"]
    tokenizer = Tokenizer.load(path / "tokenizer" if kind == "stablehlo" else path)
    return Exported(
        path=path,
        manifest=manifest,
        tokenizer=tokenizer,
        labels=tuple(manifest["labels"]),
        columns=tuple(manifest.get("columns", ())),
        problem=manifest["problem"],
        max_length=manifest["max_length"],
        answer=_answerer(path, kind),
        batches=sorted_by_length if kind == "onnx" else alone,
    )


def _answerer(path: Path, kind: str) -> Answer:
    if kind == "stablehlo":
        from lsp.deploy import stablehlo

        return stablehlo.answerer(path)
    if kind == "onnx":
        from lsp.deploy import onnx

        return onnx.answerer(path)
    raise LspError(
        f"{path} is for {kind}, which this version of lsp does not open.", hint="Upgrade lsp.", code=Exit.ARTIFACT
    )
