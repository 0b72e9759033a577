"""`lsp report`: one page that says what became of a model on its way from text to the run, and what each stage cost."""

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from lsp import LspError, checkpoint, curves, directory, lineage, manifest, page, report
from lsp.deploy import parts
from lsp.lineage import Stage
from lsp.train.compare import FIRST

SHOWN = 20  # flipped rows of a stage


def run(
    given: Sequence[Path], out: Path | None, limits: report.Limits, overwrite: bool, progress: Any
) -> dict[str, Any]:
    """Writes the page, by default beside the first run under its name, and returns what it holds.

    Folders in `given` that are no runs are places to look for parents in. Raises LspError: 2 where there is another
    file already, the page would go into a run, or a limit is of what was not measured; 4 for a damaged run.
    """
    runs = [path for path in given if (path / "manifest.json").exists() or (path / "run.json").exists()]
    if not runs:
        raise LspError(f"{given[0]} is no run, and holds no manifest.json.", hint="Name a run first, then folders.")
    target = out or runs[0].resolve().with_name(f"{runs[0].resolve().name}.html")
    refuse(target)
    first = {"command": "report", "run": str(runs[0]), "out": str(target), "status": "complete"}
    stages = lineage.traced(runs, [path for path in given if path not in runs])
    result = first | gathered(stages, lineage.opened(runs[0]).identity, limits)
    for row in result["stages"]:
        for parent in row["missing"]:
            progress.warn(f"a parent of {row['name']} was not found ({parent[:12]}): name the folder that holds it")
    body = page.page(report.TITLE, report.body(result))
    if target.exists() and target.read_text(encoding="utf-8", errors="replace") == body:
        return result | {"status": "already complete"}
    if target.exists() and not overwrite:
        hint = "Give another --out, or add --overwrite."
        if all(gate["passed"] for gate in result["gates"]):
            raise LspError(f"{target} is there already.", hint=hint)
        progress.warn(f"{target} is there already, and is kept. {hint}")  # what was missed counts for more
        return result | {"status": "kept"}
    directory.write_atomically(target, body)
    return result


def gathered(stages: Sequence[Stage], given: str, limits: report.Limits) -> dict[str, Any]:
    """What the page tells of the stages; the limits are for the one that is `given` by its hash."""
    names = lineage.names(stages)
    rows = [_row(stage, names) for stage in stages]
    _timed(rows)
    return {
        "name": names[given],
        "gates": report.gates(next(row for row in rows if row["identity"] == given), limits),
        "stages": rows,
        "in_all": report.in_all(rows),
        "parts": [part for stage in stages for part in _parts(stage, names[stage.identity])],
        "curves": [curve for stage in stages for curve in _curves(stage, names[stage.identity])],
        "flips": [row for stage in stages for row in _flips(stage, names[stage.identity])],
        "search": [row for stage in stages for row in _tried(stage, names[stage.identity])],
        "again": list(dict.fromkeys(line for stage in stages for line in lineage.again(stage, names))),
    }


def refuse(target: Path) -> None:
    """Raises LspError (exit 2) where the page would go into a sealed run, or in the place of what is no report."""
    manifest.unsealed(target, "--out")
    if target.exists() and not page.ours(target, report.TITLE):
        raise LspError(f"--out {target} is there already, and something else.", hint="Give another name.")


def _row(stage: Stage, names: dict[str, str]) -> dict[str, Any]:
    """A stage in one line: what it is, how large, how good, and what it lost and gained beside its parent."""
    found, result = stage.manifest, stage.result
    before, after = result.get("before", {}), result.get("after", {})
    paired = result.get("paired", {})
    metric = paired.get("metric") or _main(stage)
    value = found.get("metrics", {}).get(metric)
    lost = paired.get("points_lost")
    if lost is None and value is not None and metric in before.get("metrics", {}) and metric != "loss":
        lost = 100 * (before["metrics"][metric] - value)
    inputs = stage.asked.get("inputs", {})
    text = inputs.get("text") or inputs.get("data") or ""
    rates = [each.get("examples_per_second") for each in (before, after)]
    return {
        "name": names[stage.identity],
        "run": str(stage.path),
        "stage": found.get("stage"),
        "identity": stage.identity,
        "parents": [names[parent] for parent in stage.parents if parent in names],
        "missing": lineage.missing(stage, names),
        "text": text if text not in names else "",
        "steps": found.get("step") if "metrics.jsonl" in found["files"] else 0,
        "parameters": result.get("parameters"),
        "bytes": result.get("bytes"),
        "metric": metric if value is not None else None,
        "value": value,
        "points_lost": lost,
        "interval": paired.get("interval"),
        "p": paired.get("p"),
        "flips": paired.get("flips"),
        "examples": paired.get("examples"),
        "rate_before": rates[0],
        "examples_per_second": rates[1],
        "speedup": after.get("speedup"),
        "changed": lineage.changed(stage),
        "inputs": inputs,
        "recipe": stage.recipe,
    }


def _timed(rows: list[dict[str, Any]]) -> None:
    """A classifier that was made without timing it was timed beside its child."""
    for row in rows:
        if row["examples_per_second"] is None:
            children = (child for child in rows if row["name"] in child["parents"] and child["rate_before"])
            row["examples_per_second"] = next((child["rate_before"] for child in children), None)


def _parts(stage: Stage, name: str) -> Iterator[dict[str, Any]]:
    """What of a model's bytes is its vocabulary, its encoder, …; of an export its tokenizer, where that is apart."""
    if "model" in stage.manifest:
        found = parts.of_run(checkpoint.open(stage.path))
    elif "exported" in stage.manifest:
        found = parts.of_export(stage.path)
    else:
        return
    yield from ({"name": name} | part._asdict() for part in found)


def _main(stage: Stage) -> str:
    """The metric that counts: of a classifier that of its problem, of an encoder its loss."""
    model = stage.manifest.get("model", {})
    return FIRST[model["problem"]] if model.get("head") == "classes" else "loss"


def _curves(stage: Stage, name: str) -> Iterator[dict[str, Any]]:
    """Loss, and what two evaluations or more found, of a stage that trained. What is never finite is left out."""
    if not stage.file("metrics.jsonl"):
        return
    for metric in dict.fromkeys(("loss", f"dev_{_main(stage)}")):
        with suppress(LspError):
            curve = curves.curve(stage.path, name, metric, "step")
            if metric == "loss" or (metric != "dev_loss" and len(curve.held_out) > 1):
                yield {"metric": metric} | curve._asdict()


def _flips(stage: Stage, name: str) -> Iterator[dict[str, Any]]:
    lines = (stage.file("flips.jsonl") or b"").decode("utf-8", "replace").split("\n")
    yield from ({"name": name} | json.loads(line) for line in lines[:SHOWN] if line)


def _tried(stage: Stage, name: str) -> Iterator[dict[str, Any]]:
    """The models that a search tried, as it left them."""
    yield from ({"name": name} | row for row in json.loads(stage.file("pareto.json") or b"[]"))
