"""What the lines of `metrics.jsonl` say of one metric, as curves to draw. Standard library only."""

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lsp import Exit, LspError, nearest

AXES = ("step", "tokens", "seconds")  # what a line can be drawn over; everything else in it is a metric
Points = list[tuple[float, float]]
SMOOTH_FROM = 80  # lines; a curve of fewer is drawn as it is


class Curve(NamedTuple):
    """One run's metric: the logged means, in order, and what evaluations on held-out data found."""

    name: str
    logged: Points
    held_out: Points

    def last(self) -> float:
        """Where the curve ends."""
        return (self.logged or self.held_out)[-1][1]


def read(run: Path) -> list[dict[str, Any]]:
    """The lines of RUN/metrics.jsonl, also while a process is writing them. Raises LspError (exit 4)."""
    if not run.is_dir():
        raise LspError(f"{run} is a file; a run is a directory.", code=Exit.ARTIFACT)
    try:
        lines = (run / "metrics.jsonl").read_bytes().split(b"\n")
    except FileNotFoundError:
        if (run / "run.json").exists():
            message, hint = f"{run} has no metrics.jsonl: it has not trained anything.", "Plot a run that trains."
        else:
            message, hint = f"{run} is not a run: it has no metrics.jsonl.", "Give a directory that lsp trained in."
        raise LspError(message, hint=hint, code=Exit.ARTIFACT) from None
    rows = []
    for number, line in enumerate(lines[:-1], 1):  # what follows the last line feed is not finished
        try:
            row = json.loads(line)
            whole = isinstance(row, dict) and type(row["step"]) is int
        except (ValueError, KeyError, RecursionError):
            whole = False
        if not whole:
            hint = f"lsp verify {run} says whether the rest is as it was written."
            raise LspError(f"{run}/metrics.jsonl, line {number}, is damaged.", hint=hint, code=Exit.ARTIFACT)
        rows.append(row)
    if not rows:
        hint = "The first line comes after train.log_every steps."
        raise LspError(f"{run}/metrics.jsonl is empty: nothing has been logged yet.", hint=hint, code=Exit.ARTIFACT)
    return rows


def curve(run: Path, name: str, metric: str, axis: str) -> Curve:
    """The metric over `axis`. `loss` brings `dev_loss` as held-out points; `dev_loss` is those alone.

    Raises LspError: 4 for what `read` refuses, 2 for a metric that the run does not have, with the nearest that it has.
    """
    rows = read(run)
    logged, held_out = _points(rows, axis, metric), _points(rows, axis, f"dev_{metric}")
    if metric.startswith("dev_"):
        logged, held_out = [], logged
    if not logged and not held_out:
        if not _points(rows, axis, "step"):
            raise LspError(
                f"{run} can't be drawn over {axis}: its lines don't have it.",
                hint="Use --x step, or train it with this version of lsp.",
            )
        metrics = [name for name in dict.fromkeys(itertools.chain(*rows)) if name not in AXES]
        hint = f"It has {', '.join(metrics)}."
        raise LspError(f"{run} has no metric {metric!r}.{nearest(metric, metrics)}", hint=hint)
    return Curve(name, logged, held_out)


def _points(rows: list[dict[str, Any]], axis: str, metric: str) -> Points:
    """(axis, metric) of each line that has both as finite numbers; of equal places the last."""
    found = {row[axis]: row[metric] for row in rows if _is_number(row.get(axis)) and _is_number(row.get(metric))}
    return sorted(found.items())


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def smoothing(curves: Sequence[Curve]) -> int:
    """How many neighbouring points to draw the means of, by the longest curve; an odd number."""
    longest = max(len(curve.logged) for curve in curves)
    return (1 if longest < SMOOTH_FROM else longest // 40) | 1


def smooth(points: Points, width: int) -> Points:
    """Means over `width` neighbouring points: at the start, which is steep, over fewer, as many on each side; at the
    end, where runs are compared, over those before."""
    total = [0.0, *itertools.accumulate(y for _, y in points)]
    smoothed = []
    for i, (x, _) in enumerate(points):
        before = min(width // 2, i)
        after = min(before, len(points) - 1 - i)
        smoothed.append((x, (total[i + after + 1] - total[i - before]) / (before + 1 + after)))
    return smoothed


def names(runs: Sequence[Path]) -> list[str]:
    """The runs by their directories' names, with as many of the folders above as tell them apart."""
    parts = [run.absolute().parts for run in runs]
    chosen = []
    for own in parts:
        others = [other for other in parts if other != own]
        count = next((n for n in range(1, len(own)) if all(own[-n:] != other[-n:] for other in others)), len(own))
        chosen.append("/".join(own[-count:]))
    return chosen


def shorten(name: str, width: int) -> str:
    """`name` in at most `width` characters, its middle left out: what tells runs apart is at the ends."""
    half = (width - 1) // 2
    return name if len(name) <= width else f"{name[: width - 1 - half]}…{name[-half:]}"
