"""`lsp finetune`: a classifier on an encoder or from random weights, the best of several, or one for each GLUE task."""

import hashlib
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np

from lsp import LspError, checkpoint, directory
from lsp import recipe as recipes
from lsp.compress.prune import keep_zeros, pruned
from lsp.data import glue
from lsp.data.tokenizer import Tokenizer
from lsp.deploy import huggingface
from lsp.model import cost
from lsp.model.weightonly import dequantize
from lsp.train import compare, labelled, memory, watch
from lsp.train.classifier import Start, Trained, check, train
from lsp.train.clock import Clock
from lsp.train.evaluate import Classifier, Scores
from lsp.train.options import Options
from lsp.trials import Trial, alike

SCRATCH = "scratch"


def run(
    start: str,
    out: Path,
    recipe: recipes.Finetune,
    files: labelled.Files,
    tokenizer: Path | None,
    options: Options,
    trials: Sequence[Trial] = (),
    metric: str = "",
) -> dict[str, Any]:
    """Trains on one file, measures on the other, writes a classifier to `out` and returns its result.

    Of several `trials` of the recipe the best on the dev file by `train.best`, else by `metric`, is written, and the
    result tells of all.
    """
    clock = Clock(options.budget)
    if len(trials) == 1:
        recipe = trials[0].recipe
    inputs = files.digests() | {"from": _identity(start)}
    if start == SCRATCH and tokenizer is not None:
        inputs["tokenizer"] = hashlib.sha256(Tokenizer.load(tokenizer).model).hexdigest()
    if len(trials) > 1:
        # Short, for a person who is told of a difference; what they are is in the result.
        digest = hashlib.sha256("; ".join(str(trial.named()) for trial in trials).encode()).hexdigest()
        inputs["trials"] = f"{len(trials)} ({digest[:6]})"
    with directory.claim(
        out, command="finetune", recipe=recipes.dump(recipe), inputs=inputs, overwrite=options.overwrite
    ) as held:
        if held.complete:
            return held.result()
        begin = _begin(start, tokenizer, options.progress)
        if begin.transform and recipe.adapt.lora_rank:
            options.progress.warn("LoRA adds to every weight: what was pruned does not stay zero")
        if len(trials) > 1:
            metric = recipe.train.best or metric or compare.FIRST[recipe.head.problem]
            chosen = _choose(begin, files, trials, held.path, options, metric)
        else:
            chosen = train(begin, files, trials or [Trial(recipe, {})], held.path, clock, options)[0]
        return checkpoint.finish(
            held,
            chosen.model,
            stage="finetune",
            step=chosen.made["step"],
            metrics=chosen.made["metrics"],
            compression=begin.base.manifest["compression"] if isinstance(begin.base, checkpoint.Checkpoint) else [],
            parents=[inputs["from"]] if begin.base else [],
            result=chosen.made,
        )


def _choose(
    begin: Start, files: labelled.Files, trials: Sequence[Trial], path: Path, options: Options, metric: str
) -> Trained:
    """The best of several trials. Those that can be are one program; programs run one after another, each in a folder
    of its own, and share the budget."""
    for trial in trials:
        check(begin, trial.recipe)
    groups = [part for group in alike(trials) for part in _fitting(group, begin)]
    options = options._replace(budget=options.budget / len(groups))
    found: list[tuple[Trained, Path]] = []
    lost: list[compare.Outcome] = []
    for number, group in enumerate(groups):
        place = path / "train" / f"{number:02d}" if len(groups) > 1 else path
        place.mkdir(parents=True, exist_ok=True)
        options.progress.say(f"training {_listed(group)} ({number + 1} of {len(groups)})")
        try:
            trained = train(begin, files, group, place, Clock(options.budget), options, compared=True)
        except watch.Diverged as error:
            lost += [compare.Outcome(trial, {}, np.zeros(0), error.step) for trial in group]
            if len(lost) == len(trials):
                raise
        else:
            found += [(each, place) for each in trained]
    kept = [each.outcome for each, _ in found if each.outcome]
    chosen, place = found[compare.best(kept, metric)]
    assert chosen.outcome is not None
    outcomes = sorted([*kept, *lost], key=lambda outcome: trials.index(outcome.trial))
    if place != path:
        shutil.copyfile(place / "metrics.jsonl", path / "metrics.jsonl")
        for events in path.glob("train/[0-9]*/tensorboard"):  # else they would go with what is not needed any more
            shutil.copytree(events, path / "tensorboard" / events.parent.name, dirs_exist_ok=True)
    for outcome in outcomes:
        if outcome.diverged:
            options.progress.warn(f"{_listed([outcome.trial])} diverged at step {outcome.diverged}")
    told = {
        "chosen": chosen.outcome.trial.named(),
        "chosen_by": metric,
        "p_of": compare.TESTED[chosen.model.config.problem],
        "settings": compare.settings(outcomes, metric),
        "trials": [outcome.row() for outcome in outcomes],
    }
    return chosen._replace(made=chosen.made | told)


def _listed(trials: Sequence[Trial]) -> str:
    """`seed 0, train.learning_rate 1e-05 and 5 more`."""
    first = ", ".join(f"{name} {value}" for name, value in trials[0].named().items())
    return first + (f" and {len(trials) - 1} more" if len(trials) > 1 else "")


def _fitting(trials: Sequence[Trial], begin: Start) -> list[Sequence[Trial]]:
    """The trials in parts whose parameters, gradients and two moments fill half of the memory at most."""
    each = 4 * 4 * cost.parameters(begin.encoder(trials[0].recipe))
    count = max(1, memory.usable() // 2 // each)
    return [trials[at : at + count] for at in range(0, len(trials), count)]


def _identity(start: str) -> str:
    if start == SCRATCH:
        return SCRATCH
    place = Path(start)
    return huggingface.digest(place) if huggingface.recognised(place) else directory.identity(directory.read(place))


def _begin(start: str, tokenizer: Path | None, progress: Any) -> Start:
    """A run, a published checkpoint, or nothing but a tokenizer. Raises LspError."""
    if start == SCRATCH:
        if tokenizer is None:
            raise LspError(
                "--from scratch has no tokenizer.", hint="Add --tokenizer DIR: prepared data or any run has one."
            )
        return Start(Tokenizer.load(tokenizer))
    base: checkpoint.Checkpoint | checkpoint.Model
    if huggingface.recognised(Path(start)):
        taken = huggingface.read(Path(start))
        if remark := taken.remark():
            progress.warn(f"{start}: {remark}")
        base = taken.model
    else:
        base = checkpoint.open(Path(start))
    sparse = isinstance(base, checkpoint.Checkpoint) and pruned(base.manifest)
    return Start(base.tokenizer, base, dequantize(base.params), keep_zeros() if sparse else None)


def run_suite(
    start: str,
    data: Path,
    out: Path,
    recipe: recipes.Finetune,
    tokenizer: Path | None,
    options: Options,
    trials: Callable[[recipes.Finetune], Sequence[Trial]],
) -> dict[str, Any]:
    """`--task glue`: trains on each task's folder under `data` into a run of its own under `out`; those that are
    complete stay as they are. A score is the mean of the task's metrics, as in GLUE, and of several seeds the mean of
    theirs. Each has an even share of the budget."""
    folders = glue.folders(data)
    plans = {name: replace(recipe, head=replace(recipe.head, problem=glue.TASKS[name].problem)) for name in folders}
    begin = _begin(start, tokenizer, options.progress)
    for plan in plans.values():
        for trial in trials(plan):
            check(begin, trial.recipe)
    options = options._replace(budget=options.budget / max(1, len(folders)))
    rows: list[dict[str, Any]] = []
    statuses: set[str] = set()
    for number, (name, folder) in enumerate(folders.items()):
        options.progress.say(f"{name} ({number + 1} of {len(folders)})")
        task, plan = glue.TASKS[name], plans[name]
        columns, dev = (task.texts, task.label), [glue.split(folder, each) for each in task.dev]
        files = labelled.Files(glue.split(folder, "train"), dev[0], columns, task.names or None)
        made = run(start, out / name, plan, files, tokenizer, options, trials(plan), task.metrics[0])
        scores = _scores(made, task)
        row = {"task": name, "score": mean(scores)}
        if len(scores) > 1:
            row |= {"seeds": len(scores), "deviation": stdev(scores)}
        rows.append(row | {metric: made["metrics"][metric] for metric in task.metrics})
        statuses.add(made["status"])
        for other in dev[1:]:
            score = _score(out / name, other, columns, recipe.data.sequence_length).metrics[task.metrics[0]]
            rows.append({"task": other.name.partition(".")[0].replace("dev", name), "score": score})
    missing = [name for name in glue.TASKS if name not in folders]
    if missing:
        options.progress.warn(f"no folder for {', '.join(missing)}: the average is not GLUE's")
    return {
        "command": "finetune",
        "out": str(out),
        "status": "already complete" if statuses == {"already complete"} else "complete",
        "average": mean(row["score"] for row in rows),
        "missing": missing,
        "tasks": rows,
    }


def _scores(made: dict[str, Any], task: glue.Task) -> list[float]:
    """Of the run, or of each seed of the setting that was chosen."""
    chosen = {name: value for name, value in made.get("chosen", {}).items() if name != "seed"}
    same = [row for row in made.get("trials", []) if chosen.items() <= row.items() and "diverged_at_step" not in row]
    return [mean(row[metric] for metric in task.metrics) for row in same or [made["metrics"]]]


def _score(path: Path, file: Path, columns: labelled.Columns, length: int) -> Scores:
    """Of a finished run on another file, cut to `length` as the one in training is."""
    base = checkpoint.open(path)
    how = labelled.Reading.of(base, length)
    return Classifier(base.config).score(base.params, labelled.read(file, columns, base.labels, how))
