"""`lsp evaluate`: metrics of a checkpoint on a file, and gates on them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lsp import LspError, checkpoint, nearest
from lsp.train import labelled
from lsp.train.confusion import Confusion
from lsp.train.evaluate import Classifier

MOST_CROSSED = 20  # classes of a confusion matrix that is shown
LABEL = "label \\ guess"


def run(start: Path, data: Path, columns: labelled.Columns, gates: list[str], progress: Any) -> dict[str, Any]:
    """Metrics with 95 % intervals, speed, what became of each class, and for each gate whether it holds."""
    wanted = [_gate(gate) for gate in gates]
    base = checkpoint.open(start).expect("classes")
    examples = labelled.read(data, columns, base.tokenizer, base.config.max_length, base.labels)
    progress.say(f"evaluating {len(examples)} examples")
    scores = Classifier(base.config).score(base.params, examples)
    counted = Confusion.of(examples.labels, scores.logits.argmax(1), len(base.labels))
    return {
        "command": "evaluate",
        "from": str(start),
        "data": str(data),
        "status": "complete",
        "metrics": scores.metrics,
        "intervals": counted.intervals(),
        "examples": len(examples),
        "examples_per_second": scores.examples_per_second,
        "classes": counted.by_class(base.labels),
        "confusion": _crossed(counted, base.labels),
        "gates": [_judged(name, minimum, scores.metrics) for name, minimum in wanted],
    }


def _crossed(counted: Confusion, names: Sequence[str]) -> list[dict[str, Any]]:
    """The confusion matrix as rows of a table, while it is small enough to read."""
    if len(names) > MOST_CROSSED:
        return []
    rows = counted.matrix().tolist()
    return [{LABEL: name} | dict(zip(names, row, strict=True)) for name, row in zip(names, rows, strict=True)]


def _gate(text: str) -> tuple[str, float]:
    name, _, number = text.partition("=")
    try:
        return name, float(number)
    except ValueError:
        raise LspError(f"--min {text} is not metric=number.", hint="For example --min accuracy=0.9.") from None


def _judged(name: str, minimum: float, metrics: dict[str, float]) -> dict[str, Any]:
    if name not in metrics:
        raise LspError(
            f"--min {name}: no such metric.{nearest(name, metrics)}", hint=f"There are: {', '.join(metrics)}."
        )
    return {"metric": name, "min": minimum, "value": metrics[name], "passed": metrics[name] >= minimum}
