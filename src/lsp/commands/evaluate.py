"""`lsp evaluate`: metrics of a checkpoint on a file, and gates on them."""

from pathlib import Path
from typing import Any

from lsp import LspError, checkpoint, nearest
from lsp.train import labelled
from lsp.train.evaluate import Classifier


def run(start: Path, data: Path, columns: labelled.Columns, gates: list[str], progress: Any) -> dict[str, Any]:
    """Metrics, speed, and for each gate whether it holds."""
    wanted = [_gate(gate) for gate in gates]
    base = checkpoint.open(start).expect("classes")
    examples = labelled.read(data, columns, base.tokenizer, base.config.max_length, base.labels)
    progress.say(f"evaluating {len(examples)} examples")
    scores = Classifier(base.config).score(base.params, examples)
    return {
        "command": "evaluate",
        "from": str(start),
        "data": str(data),
        "status": "complete",
        "metrics": scores.metrics,
        "examples": len(examples),
        "examples_per_second": scores.examples_per_second,
        "gates": [_judged(name, minimum, scores.metrics) for name, minimum in wanted],
    }


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
