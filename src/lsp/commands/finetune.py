"""`lsp finetune`: a classifier on an encoder, or from random weights."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lsp import LspError, checkpoint, directory
from lsp import recipe as recipes
from lsp.compress.quantize import dequantize
from lsp.data import text
from lsp.data.tokenizer import Tokenizer
from lsp.model.config import ModelConfig
from lsp.model.encoder import initialise
from lsp.train import labelled, trackers
from lsp.train.clock import Clock
from lsp.train.loop import fit
from lsp.train.objectives import Objective, classification

SCRATCH = "scratch"


def run(
    start: str,
    train: Path,
    dev: Path,
    out: Path,
    recipe: recipes.Finetune,
    columns: labelled.Columns,
    tokenizer: Path | None,
    *,
    budget: float = 0.0,
    track: Sequence[str] = (),
    overwrite: bool,
    progress: Any,
) -> dict[str, Any]:
    """Trains on `train`, measures on `dev`, writes a classifier to `out` and returns its result."""
    clock = Clock(budget)
    inputs = {"train": text.digest([str(train)]), "dev": text.digest([str(dev)])}
    inputs["from"] = SCRATCH if start == SCRATCH else directory.identity(directory.read(Path(start)))
    with directory.claim(
        out, command="finetune", recipe=recipes.dump(recipe), inputs=inputs, overwrite=overwrite
    ) as held:
        if held.complete:
            return held.result()
        base = None if start == SCRATCH else checkpoint.open(Path(start))
        words = base.tokenizer if base else _tokenizer(tokenizer)
        encoder = base.config if base else ModelConfig.from_recipe(recipe.model, words.size)
        length = min(recipe.data.sequence_length, encoder.max_length)
        sets = labelled.read_sets(train, dev, columns, words, length, progress)
        config = encoder.classifier(len(sets.names), recipe.head.pooling, recipe.head.dropout)
        steps = labelled.counted(recipe.train, len(sets.train))
        params = initialise(config, steps.seed)
        if base is not None:
            # The old classifier goes on only if it spoke of the same labels.
            kept = {part for part in base.params if part != "classifier" or base.labels == sets.names}
            params |= {part: tree for part, tree in dequantize(base.params).items() if part in params and part in kept}
        objective = Objective(classification)
        plan = labelled.plan(config, params, objective, sets, steps, recipe.mesh, clock)
        with trackers.opened(track, held.path, progress) as followers:
            fitted = fit(plan, held.path, progress, followers)
        return checkpoint.finish(
            held,
            stage="finetune",
            config=config,
            params=fitted.params,
            tokenizer=words,
            step=fitted.step,
            metrics=fitted.metrics,
            labels=sets.names,
            parents=[inputs["from"]] if base else [],
            result=fitted.summary(),
        )


def _tokenizer(place: Path | None) -> Tokenizer:
    if place is None:
        raise LspError(
            "--from scratch has no tokenizer.", hint="Add --tokenizer DIR: prepared data or any run has one."
        )
    return Tokenizer.load(place)
