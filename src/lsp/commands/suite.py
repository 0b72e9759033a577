"""`lsp finetune --task glue`: a classifier for every task of GLUE that is there, in one table."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from lsp import recipe as recipes
from lsp.commands import evaluate, finetune
from lsp.data import glue
from lsp.train.labelled import Files
from lsp.train.options import Options
from lsp.trials import Trial


def run(
    start: str,
    data: Path,
    out: Path,
    recipe: recipes.Finetune,
    tokenizer: Path | None,
    options: Options,
    trials: Callable[[recipes.Finetune], Sequence[Trial]],
) -> dict[str, Any]:
    """Trains on each task's folder under `data` into a run of its own under `out`; those that are complete stay as they
    are. A score is the mean of the task's metrics, as in GLUE, and of several seeds the mean of theirs."""
    folders = glue.folders(data)
    rows: list[dict[str, Any]] = []
    for number, (name, folder) in enumerate(folders.items()):
        options.progress.say(f"{name} ({number + 1} of {len(folders)})")
        task = glue.TASKS[name]
        plan = replace(recipe, head=replace(recipe.head, problem=task.problem))
        columns, dev = (task.texts, task.label), [glue.split(folder, each) for each in task.dev]
        files = Files(glue.split(folder, "train"), dev[0], columns, task.names or None)
        made = finetune.run(start, out / name, plan, files, tokenizer, options, trials(plan), task.metrics[0])
        scores = _scores(made, task)
        row = {"task": name, "score": mean(scores)}
        if len(scores) > 1:
            row |= {"seeds": len(scores), "deviation": stdev(scores)}
        rows.append(row | {metric: made["metrics"][metric] for metric in task.metrics})
        for other in dev[1:]:
            found = evaluate.run(out / name, [other], columns, [], options.progress)["metrics"]
            rows.append({"task": other.name.partition(".")[0].replace("dev", name), "score": found[task.metrics[0]]})
    missing = [name for name in glue.TASKS if name not in folders]
    if missing:
        options.progress.warn(f"no folder for {', '.join(missing)}: the average is not GLUE's")
    return {
        "command": "finetune",
        "out": str(out),
        "status": "complete",
        "average": mean(row["score"] for row in rows),
        "missing": missing,
        "tasks": rows,
    }


def _scores(made: dict[str, Any], task: glue.Task) -> list[float]:
    """Of the run, or of each seed of the setting that was chosen."""
    chosen = {name: value for name, value in made.get("chosen", {}).items() if name != "seed"}
    same = [row for row in made.get("trials", []) if chosen.items() <= row.items() and "diverged_at_step" not in row]
    return [mean(row[metric] for metric in task.metrics) for row in same or [made["metrics"]]]
