"""`lsp finetune`: a classifier on an encoder, or from random weights."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lsp import LspError, checkpoint, directory
from lsp import recipe as recipes
from lsp.compress.quantize import dequantize
from lsp.data import batches
from lsp.data.tokenizer import Tokenizer
from lsp.deploy import huggingface
from lsp.model.config import ModelConfig
from lsp.model.encoder import initialise
from lsp.train import adapt, incremental, labelled, metrics, trackers
from lsp.train.clock import Clock
from lsp.train.evaluate import Classifier
from lsp.train.loop import fit
from lsp.train.objectives import Objective
from lsp.train.options import Options

SCRATCH = "scratch"


def run(
    start: str,
    out: Path,
    recipe: recipes.Finetune,
    files: labelled.Files,
    tokenizer: Path | None,
    options: Options,
) -> dict[str, Any]:
    """Trains on one file, measures on the other, writes a classifier to `out` and returns its result."""
    clock, progress = Clock(options.budget), options.progress
    inputs = files.digests() | {"from": _identity(start)}
    with directory.claim(
        out, command="finetune", recipe=recipes.dump(recipe), inputs=inputs, overwrite=options.overwrite
    ) as held:
        if held.complete:
            return held.result()
        base = _base(start, progress)
        words = base.tokenizer if base else _tokenizer(tokenizer)
        encoder = base.config if base else ModelConfig.from_recipe(recipe.model, words.size)
        head, change = recipe.head, recipe.adapt
        if change.grow:
            files = _growing(base, recipe, files)
        how = labelled.Reading(words, min(recipe.data.sequence_length, encoder.max_length), head.problem, change.grow)
        sets = labelled.read_sets(files, how, progress, change.replay, recipe.train.seed)
        labelled.weigh(sets.train, head)
        config = encoder.classifier(max(1, len(sets.names)), head.pooling, head.dropout, head.problem)
        params = initialise(config, recipe.train.seed)
        if base is not None:
            params = adapt.fresh(_begun(params, config, sets.names, base, change.grow), params, change)
        after = adapt.still(change.freeze) if change.freeze else None
        plan = labelled.plan(config, params, _objective(base, recipe), sets, recipe, clock, after)
        if change.grow and base is not None:
            plan = dataclasses.replace(plan, teacher=base.config)
        with trackers.opened(options.track, held.path, progress) as followers:
            fitted = fit(plan, held.path, progress, followers)
        model, made = checkpoint.Model(config, fitted.params, words, sets.names), fitted.summary()
        if change.grow and base is not None and sets.apart is not None and head.problem == "single_label":
            model, measured = _balanced(model, base.config.classes, sets)
            made |= measured
        if head.calibrate:
            model, measured = _calibrated(model, sets.dev)
            made |= measured
        return checkpoint.finish(
            held,
            model,
            stage="finetune",
            step=fitted.step,
            metrics=made["metrics"],
            parents=[inputs["from"]] if base else [],
            result=made | _remembered(base, model, files, how),
        )


def _growing(
    base: checkpoint.Checkpoint | checkpoint.Model | None, recipe: recipes.Finetune, files: labelled.Files
) -> labelled.Files:
    """The files, with the classes that are known already. Raises LspError (exit 2) where nothing can grow."""
    if base is None or base.config.head != "classes" or base.config.problem == "regression":
        raise LspError("adapt.grow is for a classifier that is there, with classes.", hint="Give its run as --from.")
    if base.config.problem != recipe.head.problem:
        raise LspError(
            f"head.problem = {recipe.head.problem}, and the classifier's is {base.config.problem}.",
            hint=f"Use --set head.problem={base.config.problem}.",
        )
    if recipe.adapt.r_drop:
        raise LspError("adapt.r_drop does not go together with adapt.grow.", hint="Leave one of them out.")
    return files._replace(names=tuple(base.labels))


def _objective(base: checkpoint.Checkpoint | checkpoint.Model | None, recipe: recipes.Finetune) -> Objective:
    """The labels, and where a classifier grows what its old self answers."""
    if base is None or not recipe.adapt.grow:
        return Objective(adapt.loss(recipe.head.problem, recipe.adapt))
    remember = incremental.remembering(base.config, recipe.adapt.remember)
    return Objective(adapt.held(remember, recipe.adapt), base.params)


def _begun(
    fresh: Any,
    config: ModelConfig,
    names: Sequence[str],
    base: checkpoint.Checkpoint | checkpoint.Model,
    grow: bool,
) -> Any:
    """New parameters with those of `base` where they fit. Its classifier goes on if it spoke of the same labels, or of
    the first of them where it is to grow."""
    old = dequantize(base.params)
    same = tuple(base.labels) == tuple(names) and base.config.problem == config.problem
    kept = {part: tree for part, tree in old.items() if part in fresh and (part != "classifier" or same)}
    if grow and not same:
        kept["classifier"] = incremental.grown(fresh["classifier"], old["classifier"])
    return fresh | kept


def _balanced(model: checkpoint.Model, old: int, sets: labelled.Sets) -> tuple[checkpoint.Model, dict[str, Any]]:
    """The classifier with its new classes as hard to get as its old ones, by examples it was not trained on."""
    assert sets.apart is not None
    classifier, head = Classifier(model.config), model.params["classifier"]
    found = incremental.shift(classifier.logits(model.params, sets.apart), sets.apart.labels, old)
    bias = np.asarray(head["bias"]) - found * (np.arange(len(head["bias"])) >= old).astype(np.float32)
    model = model._replace(params=model.params | {"classifier": head | {"bias": bias.astype(np.float32)}})
    return model, {"metrics": classifier.score(model.params, sets.dev).metrics, "shift": found}


def _calibrated(model: checkpoint.Model, dev: batches.Examples) -> tuple[checkpoint.Model, dict[str, Any]]:
    """The classifier divided by the temperature that fits `dev`, and its metrics. Guesses stay as they are. Raises
    LspError (exit 2) where an example has no single class."""
    if model.config.problem != "single_label":
        raise LspError(f"head.calibrate does not go together with {model.config.problem}.", hint="Leave it out.")
    classifier = Classifier(model.config)
    found = metrics.temperature(classifier.logits(model.params, dev), dev.labels)
    divided = {name: leaf / np.float32(found) for name, leaf in model.params["classifier"].items()}
    model = model._replace(params=model.params | {"classifier": divided})
    return model, {"metrics": classifier.score(model.params, dev).metrics, "temperature": found}


def _remembered(
    base: checkpoint.Checkpoint | checkpoint.Model | None,
    model: checkpoint.Model,
    files: labelled.Files,
    how: labelled.Reading,
) -> dict[str, Any]:
    """With --old-dev what classifier and old self make of old examples."""
    if files.old_dev is None or base is None:
        return {}
    found = {}
    for name, each in (("before", base), ("after", model)):
        examples = labelled.read(files.old_dev, files.columns, tuple(each.labels), how._replace(grow=False))
        found[name] = Classifier(each.config).score(each.params, examples).metrics
    return {"old": found}


def _identity(start: str) -> str:
    if start == SCRATCH:
        return SCRATCH
    place = Path(start)
    return huggingface.digest(place) if huggingface.recognised(place) else directory.identity(directory.read(place))


def _base(start: str, progress: Any) -> checkpoint.Checkpoint | checkpoint.Model | None:
    """What the classifier begins with: a run, a published checkpoint, or nothing."""
    if start == SCRATCH:
        return None
    if not huggingface.recognised(Path(start)):
        return checkpoint.open(Path(start))
    taken = huggingface.read(Path(start))
    if remark := taken.remark():
        progress.warn(f"{start}: {remark}")
    return taken.model


def _tokenizer(place: Path | None) -> Tokenizer:
    if place is None:
        raise LspError(
            "--from scratch has no tokenizer.", hint="Add --tokenizer DIR: prepared data or any run has one."
        )
    return Tokenizer.load(place)
