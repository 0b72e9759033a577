"""`lsp evaluate`: metrics of a checkpoint on a file, and gates on them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lsp import LspError, checkpoint, directory, nearest
from lsp.data import batches, tasks
from lsp.train import labelled, metrics
from lsp.train.confusion import Confusion
from lsp.train.evaluate import Classifier

MOST_CROSSED = 20  # classes of a confusion matrix that is shown
LABEL = "label \\ guess"


def run(
    start: Path,
    data: Path,
    columns: labelled.Columns,
    gates: list[str],
    progress: Any,
    errors: Path | None = None,
) -> dict[str, Any]:
    """Metrics with 95 % intervals, speed, what became of each class, and for each gate whether it holds.

    The examples that are labelled wrongly go to `errors`, a JSON object a line, those first that the model was most
    sure of. Raises LspError (exit 2) when there is a file of another kind already.
    """
    wanted = [_gate(gate) for gate in gates]
    if errors is not None and errors.exists() and not _holds_errors(errors):
        raise LspError(f"--errors {errors} is there already, and something else.", hint="Give another name.")
    base = checkpoint.open(start).expect("classes")
    table = tasks.read(data, text_columns=columns[0], label_column=columns[1], labels=base.labels)
    examples = batches.Examples(table, base.tokenizer, base.config.max_length)
    progress.say(f"evaluating {len(examples)} examples")
    scores = Classifier(base.config).score(base.params, examples)
    counted = Confusion.of(examples.labels, scores.logits.argmax(1), len(base.labels))
    if errors is not None:
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in wrong(table, scores.logits)]
        directory.write_atomically(errors, "".join(lines))
    return {
        "command": "evaluate",
        "from": str(start),
        "data": str(data),
        "status": "complete",
        "metrics": scores.metrics,
        "intervals": counted.intervals(),
        "calibration_error": metrics.calibration_error(scores.logits, examples.labels),
        "examples": len(examples),
        "examples_per_second": scores.examples_per_second,
        "classes": counted.by_class(base.labels),
        "confusion": _crossed(counted, base.labels),
        "gates": [_judged(name, minimum, scores.metrics) for name, minimum in wanted],
    }


def wrong(table: tasks.Table, logits_NC: np.ndarray) -> list[dict[str, Any]]:
    """The rows whose guess is not their label, by falling probability of the guess."""
    sure_N = metrics.probabilities(logits_NC).max(1)
    guesses_N, labels_N = logits_NC.argmax(1), np.asarray(table.labels)
    missed = np.flatnonzero(guesses_N != labels_N)
    return [
        {
            "label": table.names[labels_N[row]],
            "guess": table.names[guesses_N[row]],
            "probability": round(float(sure_N[row]), 6),
            "row": int(row) + 1,
            "text": table.texts[row][0] if len(table.texts[row]) == 1 else list(table.texts[row]),
        }
        for row in missed[np.argsort(-sure_N[missed], kind="stable")]
    ]


def _holds_errors(path: Path) -> bool:
    """Whether a file is what an earlier call wrote."""
    try:
        with path.open(encoding="utf-8") as file:
            first = file.readline()
        return not first or {"label", "guess", "probability", "row", "text"} == json.loads(first).keys()
    except (OSError, ValueError, AttributeError):
        return False


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


def _judged(name: str, minimum: float, found: dict[str, float]) -> dict[str, Any]:
    if name not in found:
        raise LspError(f"--min {name}: no such metric.{nearest(name, found)}", hint=f"There are: {', '.join(found)}.")
    return {"metric": name, "min": minimum, "value": found[name], "passed": found[name] >= minimum}
