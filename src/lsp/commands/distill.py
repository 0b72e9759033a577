"""`lsp compress distill`: a smaller student that learns the teacher's answers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from lsp import LspError, checkpoint, directory
from lsp import recipe as recipes
from lsp.compress import augment, distill, inside
from lsp.compress.quantize import dequantize
from lsp.compress.teacher import answers
from lsp.data.batches import Batch
from lsp.data.examples import Examples
from lsp.model.config import ModelConfig
from lsp.model.encoder import initialise
from lsp.train import labelled, trackers
from lsp.train.clock import Clock
from lsp.train.evaluate import Classifier
from lsp.train.loop import fit
from lsp.train.objectives import Objective
from lsp.train.options import Options

TOKENS, ROWS = 1 << 13, 32  # of the training examples by whose states layers are matched, and examples of a batch


def run(
    start: Path,
    out: Path,
    recipe: recipes.Distill,
    files: labelled.Files,
    options: Options,
    augmenter: Path | None = None,
) -> dict[str, Any]:
    """Writes the student to `out`, measured beside its teacher. The `augmenter` is a masked LM in the teacher's tokens,
    for `distill.augment`."""
    clock, progress = Clock(options.budget), options.progress
    if augmenter and not recipe.distill.augment:
        raise LspError("--augmenter has no copies to make.", hint="Say how many: --set distill.augment=4")
    inputs = files.digests()
    inputs["from"] = directory.identity(directory.read(start))
    if augmenter:
        inputs["augmenter"] = directory.identity(directory.read(augmenter))
    with directory.claim(
        out, command="compress distill", recipe=recipes.dump(recipe), inputs=inputs, overwrite=options.overwrite
    ) as held:
        if held.complete:
            return held.result()
        teacher = checkpoint.open(start).expect("classes")
        encoder = ModelConfig.from_recipe(recipe.model, teacher.config.vocab_size)
        problem, classes = teacher.config.problem, teacher.config.classes
        config = encoder.classifier(classes, recipe.head.pooling, recipe.head.dropout, problem)
        inner = bool(recipe.distill.hidden or recipe.distill.relations)
        inside.check(config, teacher.config, recipe.distill.relations, recipe.distill.relation_layer)
        proposer = checkpoint.open(augmenter).expect("words") if augmenter else None
        readers = [config, teacher.config]
        if proposer:
            readers.append(augment.expect_same_tokens(proposer, teacher).config)
        length = min(recipe.data.sequence_length, *(each.max_length for each in readers))
        how = labelled.Reading(teacher.tokenizer, length, problem)
        sets = labelled.read_sets(files._replace(names=teacher.labels), how, progress)
        before = teacher.size() | Classifier(teacher.config).score(teacher.params, sets.dev).summary()
        params = initialise(config, recipe.train.seed)
        if recipe.distill.start == "teacher":
            params, copied = distill.student(params, teacher.params, (config, teacher.config))
            progress.say(f"from the teacher: {', '.join(copied) or 'nothing, the shapes differ'}")
        seed, count = recipe.train.seed, recipe.distill.augment
        parts = [sets.train]
        if count:
            parts.append(augment.copies(sets.train, teacher, proposer, seed, count, progress))
        for part in parts:
            part.wanted = answers(teacher, part, progress)
        sets = replace(sets, train=Examples.joined(parts))
        objective = Objective(distill.match_teacher(recipe.distill.temperature, recipe.distill.hard, problem))
        if inner:
            objective, params = _inside((config, params), teacher, sets.train, recipe, progress)
        plan = labelled.plan(config, params, objective, sets, recipe, clock)
        plan = replace(plan, teacher=teacher.config if inner else None)
        with trackers.opened(options.track, held.path, progress) as followers:
            fitted = fit(plan, held.path, progress, followers)
        params = objective.whole(fitted.params, None)
        after = Classifier(config).score(params, sets.dev).summary()
        return checkpoint.finish(
            held,
            checkpoint.Model(config, params, teacher.tokenizer, teacher.labels),
            stage="distill",
            step=fitted.step,
            metrics=after["metrics"],
            compression=[*teacher.manifest["compression"], {"stage": "distill"}],
            parents=[inputs[name] for name in ("from", "augmenter") if name in inputs],
            result=fitted.summary() | {"before": before, "after": after},
        )


def _inside(
    student: tuple[ModelConfig, Any],
    teacher: checkpoint.Checkpoint,
    examples: Examples,
    recipe: recipes.Distill,
    progress: Any,
) -> tuple[Objective, Any]:
    """The objective that looks inside of the teacher, and what it trains: the student and the maps to the teacher."""
    wanted, theirs = recipe.distill, (teacher.config, dequantize(teacher.params))
    judge = distill.answered(wanted.temperature, wanted.hard, teacher.config.problem)
    related = (wanted.relation_layer or len(teacher.config.layers)) - 1
    layers: tuple[int, ...] = ()
    maps: dict[str, Any] = {}
    if wanted.hidden:
        batches = _sample(examples, recipe.train.seed)
        mine, others = inside.states(*student, batches), inside.states(*theirs, batches)
        layers, fitted = inside.fitted(mine, others, wanted.match == "nearest")
        maps = {inside.MAPS: fitted}
        progress.say(f"layers are to be like the teacher's {', '.join(str(layer + 1) for layer in layers)}")
    wish = inside.Wish(wanted.hidden, wanted.relations, layers, related)
    return inside.objective(judge, theirs, wish), student[1] | maps


def _sample(examples: Examples, seed: int) -> list[Batch]:
    """Random examples until there are enough tokens, one a row."""
    rows = np.random.default_rng(seed).permutation(len(examples))
    rows = rows[: int(np.searchsorted(examples.lengths[rows].cumsum(), TOKENS)) + 1]
    return [examples.batch(rows[at : at + ROWS], ROWS) for at in range(0, len(rows), ROWS)]
