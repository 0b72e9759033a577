"""`lsp evaluate`: metrics of a classifier on a file, and gates on them."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lsp import LspError, checkpoint, directory, manifest, nearest
from lsp.data import tasks
from lsp.data.examples import Examples
from lsp.deploy import exported
from lsp.recipe import Problem
from lsp.train import answers, labelled, metrics
from lsp.train.confusion import Confusion
from lsp.train.evaluate import Classifier, Scores

MOST_CROSSED = 20  # classes of a confusion matrix that is shown
MOST_GROUPS, SMALLEST_GROUP = 50, 30  # of a slice: groups that are shown, and examples of one that is judged
STREAMS = ("-", "/dev/stdout", "/dev/stderr")
LABEL = "label \\ guess"


def run(
    start: Path,
    data: Sequence[Path],
    columns: labelled.Columns,
    gates: list[str],
    progress: Any,
    errors: Path | None = None,
    slices: Sequence[str] = (),
) -> dict[str, Any]:
    """Metrics with 95 % intervals, speed, what became of each class, and for each gate whether it holds.

    All of that is of the first file; the metrics of the others stand beside its, under the ends of their names. The
    examples that are labelled wrongly go to `errors`, a JSON object a line, those first that the model was most sure
    of. For each group of examples that have the same in a column of `slices` there are metrics too. Raises LspError
    (exit 2) when there is a file of another kind already.
    """
    wanted = [_gate(gate) for gate in gates]
    if errors is not None:
        _refuse(errors)
    how, names, score = _opened(start)
    sets = ["", *(f"{other.name.partition('.')[0].rpartition('_')[2]}_" for other in data[1:])]
    _refuse_unknown(wanted, [prefix + name for prefix in sets for name in metrics.names(how.problem)])
    table = labelled.read_table(data[0], columns, names, how, slices)
    labelled.remark(table, data[0], progress)
    examples = how.examples(table)
    progress.say(f"evaluating {len(examples)} examples")
    scores = score(examples).expect_numbers(str(start))
    found = dict(scores.metrics)
    for other, prefix in zip(data[1:], sets[1:], strict=True):
        also = score(labelled.read(other, columns, names, how)).expect_numbers(str(start))
        found |= {prefix + name: value for name, value in also.metrics.items()}
    problem, logits, labels = how.problem, scores.logits, examples.labels
    if errors is not None:
        lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in wrong(table, problem, logits, labels)]
        put(errors, "".join(lines))
    result: dict[str, Any] = {
        "command": "evaluate",
        "from": str(start),
        "data": str(data[0]),
        "status": "complete",
        "metrics": found,
        "intervals": metrics.intervals(problem, logits, labels),
        "examples": len(examples),
        "examples_per_second": scores.examples_per_second,
    }
    if problem == "single_label":
        counted = Confusion.of(labels, logits.argmax(1), len(names))
        result["calibration_error"] = metrics.calibration_error(logits, labels)
        result |= {"classes": counted.by_class(names), "confusion": _crossed(counted, names)}
    elif problem == "multi_label":
        result["classes"] = metrics.by_class(logits, labels, names)
    if slices:
        result["slices"] = [
            row for name in slices for row in _sliced(name, table.groups[name], problem, logits, labels)
        ]
        for row in result["slices"]:
            if row["behind"]:
                progress.warn(f"{row['slice']} falls behind: {row['metric']} {row['value']:.3f} of {row['examples']}")
    return result | {"gates": [_judged(name, minimum, found) for name, minimum in wanted]}


def _opened(start: Path) -> tuple[labelled.Reading, tuple[str, ...], Callable[[Examples], Scores]]:
    """How a classifier reads examples, the names of its classes, and what measures it: a run, or what was exported."""
    if exported.holds(start):
        model = exported.open(start)
        how = labelled.Reading(model.tokenizer, model.max_length, model.problem, known=model.columns)
        return how, model.labels, model.score
    base = checkpoint.open(start).expect("classes")
    return labelled.Reading.of(base), base.labels, partial(Classifier(base.config).score, base.params)


def put(path: Path, lines: str) -> None:
    """Writes a file, whole or not at all; or into what is none: a pipe, or /dev/stdout, whatever is behind that."""
    if str(path) in STREAMS:
        print(lines, end="", flush=True, file=sys.stderr if path.name == "stderr" else sys.stdout)
    elif path.exists() and not path.is_file():
        path.write_text(lines, encoding="utf-8")
    else:
        directory.write_atomically(path, lines)


def _sliced(
    column: str, cells: Sequence[str], problem: Problem, logits: np.ndarray, labels: np.ndarray
) -> Iterator[dict[str, Any]]:
    """A row for each of the largest groups, and for those of the others that fall behind. One of 30 examples or more
    falls behind where all of its 95 % interval is under what holds for all examples; of fewer the bootstrap knows too
    little."""
    names = sorted({*cells})  # not by np.unique, whose every cell takes the memory of the longest
    places = {name: index for index, name in enumerate(names)}
    place = np.array([places[cell] for cell in cells])
    counts = np.bincount(place)
    whole = metrics.measured(problem, logits, labels)
    metric = next(iter(whole))  # the one that people ask for first
    for rank, group in enumerate(np.argsort(-counts, kind="stable")):
        if rank >= MOST_GROUPS and counts[group] < SMALLEST_GROUP:
            break
        rows = place == group
        value: float | None = metrics.measured(problem, logits[rows], labels[rows])[metric]
        low = high = behind = None
        if problem == "regression" and not (np.ptp(logits[rows]) and np.ptp(labels[rows])):
            value = None  # what does not vary has no correlation
        elif counts[group] >= SMALLEST_GROUP:
            low, high = metrics.intervals(problem, logits[rows], labels[rows])[metric]
            behind = bool(high < whole[metric])
        if rank >= MOST_GROUPS and not behind:
            continue
        yield {
            "slice": f"{column} = {names[group]}",
            "examples": int(counts[group]),
            "metric": metric,
            "value": value,
            "low": low,
            "high": high,
            "behind": behind,
        }


def wrong(table: tasks.Table, problem: Problem, logits_NC: np.ndarray, labels: np.ndarray) -> list[dict[str, Any]]:
    """The rows whose guess is not their label, by falling probability of the guess; of numbers, by falling distance."""
    rows = []
    for row, guess in enumerate(answers.of(problem, table.names, logits_NC)):
        label = _named(problem, table.names, labels[row])
        if guess["label"] == label:
            continue
        text = table.texts[row][0] if len(table.texts[row]) == 1 else list(table.texts[row])
        sure = abs(guess["label"] - label) if problem == "regression" else guess["probability"]
        missed = {"label": label, "guess": guess["label"]}
        missed |= {} if problem == "regression" else {"probability": sure}
        rows.append((sure, missed | {"row": row + 1, "text": text}))
    return [row for _, row in sorted(rows, key=lambda each: -each[0])]


def _named(problem: Problem, names: Sequence[str], label: Any) -> Any:
    if problem == "regression":
        return round(float(label), 6)
    return names[label] if problem == "single_label" else [names[c] for c in np.flatnonzero(label).tolist()]


def _refuse(errors: Path) -> None:
    """Raises LspError (exit 2) where the errors would go into a sealed run, or in the place of what is none of ours."""
    if str(errors) in STREAMS:
        return
    manifest.unsealed(errors, "--errors")
    if (errors.is_file() or errors.is_dir()) and not _holds_errors(errors):
        raise LspError(f"--errors {errors} is there already, and something else.", hint="Give another name.")


def _holds_errors(path: Path) -> bool:
    """Whether a file is what an earlier call wrote."""
    try:
        with path.open(encoding="utf-8") as file:
            first = file.readline()
        return not first or {"label", "guess", "row", "text"} == json.loads(first).keys() - {"probability"}
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


def _refuse_unknown(wanted: Sequence[tuple[str, float]], known: Sequence[str]) -> None:
    """Raises LspError (exit 2) for a gate on no metric of these, on a loss, or on more than a metric can be."""
    judged = [name for name in known if not name.endswith("loss")]
    for name, least in wanted:
        if name not in judged:
            why = "a loss is better where it is lower" if name in known else "no such metric"
            hint = f"There are: {', '.join(judged)}."
            raise LspError(f"--min {name}: {why}.{'' if name in known else nearest(name, judged)}", hint=hint)
        if not least <= 1:
            raise LspError(f"--min {name}={least:g}: {name} is 1 at most.", hint=f"Write it as in --min {name}=0.9.")


def _judged(name: str, minimum: float, found: dict[str, float]) -> dict[str, Any]:
    return {"metric": name, "min": minimum, "value": found[name], "passed": found[name] >= minimum}
