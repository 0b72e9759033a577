"""`lsp plot`: a metric of one or several runs as curves on one chart."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lsp import Exit, LspError, chart, console, curves, directory, manifest

ROWS = 20  # of the drawing in a terminal


def run(
    runs: Sequence[Path], metric: str, axis: str, log: bool, smooth: int, out: Path | None
) -> tuple[dict[str, Any], list[str]]:
    """The result, with the points of every curve, and chart and table as lines for a person; `out` gets a picture.

    `smooth` is the number of logged lines that a point is the mean of, made odd; 0 chooses by the longest curve.
    """
    if out is not None:
        manifest.unsealed(out, "--out")
    runs = list({path.resolve(): path for path in runs}.values())
    if len(runs) > len(chart.LETTERS):
        raise LspError(f"{len(runs)} runs are too many for one chart.", hint=f"Plot {len(chart.LETTERS)} at most.")
    found = [
        curves.curve(path, console.safe(name), metric, axis)
        for path, name in zip(runs, curves.names(runs), strict=True)
    ]
    if log:
        found = [_positive(path, curve) for path, curve in zip(runs, found, strict=True)]
    width = smooth | 1 if smooth else curves.smoothing(found)
    drawing = chart.Chart(found, console.safe(metric), axis, width, log)
    if out is not None:
        from lsp import picture

        directory.write_atomically(out, picture.draw(drawing, out.suffix[1:].lower()))
    result: dict[str, Any] = {
        "command": "plot",
        "metric": metric,
        "x": axis,
        "smoothing": width,
        "scale": "log" if log else "linear",
    }
    if out is not None:
        result["out"] = str(out)
    result["runs"] = [_described(path, curve, axis) for path, curve in zip(runs, found, strict=True)]
    terminal = shutil.get_terminal_size()
    lines = chart.draw(drawing, max(40, min(terminal.columns, 120)), ROWS, console.colour())
    return result, [*lines, "", *_table(result)]


def _described(path: Path, curve: curves.Curve, axis: str) -> dict[str, Any]:
    """A run of the result: how far it went, and its points as they were logged."""
    return {
        "run": str(path),
        "name": curve.name,
        "status": "complete" if (path / "manifest.json").exists() else "unfinished",
        axis: max(x for x, _ in curve.logged + curve.held_out),
        "logged": curve.logged,
        "held_out": curve.held_out,
    }


def _table(result: dict[str, Any]) -> list[str]:
    """For a person: each run's last numbers, as logged, in place of its points."""
    axis = result["x"]
    rows = [
        {
            "run": each["run"],
            "status": each["status"],
            axis: each[axis],
            "last": each["logged"][-1][1] if each["logged"] else None,
            "held out": each["held_out"][-1][1] if each["held_out"] else None,
        }
        for each in result["runs"]
    ]
    return console.table(rows)


def _positive(path: Path, curve: curves.Curve) -> curves.Curve:
    """What a logarithmic scale has room for. Raises LspError (exit 2) when that is nothing."""
    kept = curve._replace(
        logged=[point for point in curve.logged if point[1] > 0],
        held_out=[point for point in curve.held_out if point[1] > 0],
    )
    if not kept.logged and not kept.held_out:
        raise LspError(f"{path} has no value above 0 to draw on a log scale.", hint="Leave out --log.", code=Exit.USAGE)
    return kept
