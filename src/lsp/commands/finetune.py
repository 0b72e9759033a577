"""`lsp finetune`: a classifier on an encoder, or from random weights; or the best of several."""

import hashlib
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lsp import LspError, checkpoint, directory
from lsp import recipe as recipes
from lsp.compress.quantize import dequantize
from lsp.data.tokenizer import Tokenizer
from lsp.deploy import huggingface
from lsp.model import cost
from lsp.train import compare, labelled, memory
from lsp.train.classifier import Start, Trained, train
from lsp.train.clock import Clock
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
            parents=[inputs["from"]] if begin.base else [],
            result=chosen.made,
        )


def _choose(
    begin: Start, files: labelled.Files, trials: Sequence[Trial], path: Path, options: Options, metric: str
) -> Trained:
    """The best of several trials. Those that can be are one program; programs run one after another, each in a folder
    of its own, and share the budget."""
    groups = [part for group in alike(trials) for part in _fitting(group, begin)]
    options = options._replace(budget=options.budget / len(groups))
    found: list[tuple[Trained, Path]] = []
    for number, group in enumerate(groups):
        place = path / "train" / f"{number:02d}" if len(groups) > 1 else path
        place.mkdir(parents=True, exist_ok=True)
        options.progress.say(f"training {_listed(group)} ({number + 1} of {len(groups)})")
        found += [(each, place) for each in train(begin, files, group, place, Clock(options.budget), options)]
    outcomes = [each.outcome for each, _ in found if each.outcome]
    chosen, place = found[compare.best(outcomes, metric)]
    assert chosen.outcome is not None
    if place != path:
        shutil.copyfile(place / "metrics.jsonl", path / "metrics.jsonl")
    for outcome in outcomes:
        if outcome.diverged:
            options.progress.warn(f"{_listed([outcome.trial])} diverged at step {outcome.diverged}")
    told = {
        "chosen": chosen.outcome.trial.named(),
        "chosen_by": metric,
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
    return Start(base.tokenizer, base, dequantize(base.params))
