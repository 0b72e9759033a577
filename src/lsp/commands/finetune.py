"""`lsp finetune`: a classifier on an encoder, or from random weights."""

from pathlib import Path
from typing import Any

from lsp import LspError, checkpoint, directory
from lsp import recipe as recipes
from lsp.compress.quantize import dequantize
from lsp.data.tokenizer import Tokenizer
from lsp.deploy import huggingface
from lsp.model.config import ModelConfig
from lsp.model.encoder import initialise
from lsp.train import adapt, labelled, trackers
from lsp.train.clock import Clock
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
        length = min(recipe.data.sequence_length, encoder.max_length)
        sets = labelled.read_sets(files, labelled.Reading(words, length, recipe.head.problem), progress)
        head = recipe.head
        labelled.weigh(sets.train, head)
        config = encoder.classifier(max(1, len(sets.names)), head.pooling, head.dropout, head.problem)
        params = untrained = initialise(config, recipe.train.seed)
        if base is not None:
            # The old classifier goes on only if it spoke of the same labels.
            same = tuple(base.labels) == sets.names and base.config.problem == head.problem
            kept = {part for part in base.params if part != "classifier" or same}
            params |= {part: tree for part, tree in dequantize(base.params).items() if part in params and part in kept}
        params = adapt.fresh(params, untrained, recipe.adapt)
        objective = Objective(adapt.loss(head.problem, recipe.adapt))
        after = adapt.still(recipe.adapt.freeze) if recipe.adapt.freeze else None
        plan = labelled.plan(config, params, objective, sets, recipe, clock, after)
        with trackers.opened(options.track, held.path, progress) as followers:
            fitted = fit(plan, held.path, progress, followers)
        return checkpoint.finish(
            held,
            checkpoint.Model(config, fitted.params, words, sets.names),
            stage="finetune",
            step=fitted.step,
            metrics=fitted.metrics,
            parents=[inputs["from"]] if base else [],
            result=fitted.summary(),
        )


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
    model, extra = huggingface.read(Path(start))
    if extra:
        progress.warn(f"{start}: {len(extra)} tensors are no part of the model: {huggingface.listed(extra)}")
    return model


def _tokenizer(place: Path | None) -> Tokenizer:
    if place is None:
        raise LspError(
            "--from scratch has no tokenizer.", hint="Add --tokenizer DIR: prepared data or any run has one."
        )
    return Tokenizer.load(place)
