"""`lsp compress distill`: a smaller student that learns the teacher's answers."""

from pathlib import Path
from typing import Any

from lsp import checkpoint, directory
from lsp import recipe as recipes
from lsp.compress import distill, measure
from lsp.compress.teacher import answers
from lsp.model.config import ModelConfig
from lsp.model.encoder import initialise
from lsp.train import labelled, trackers
from lsp.train.clock import Clock
from lsp.train.evaluate import Classifier
from lsp.train.loop import fit
from lsp.train.objectives import Objective
from lsp.train.options import Options


def run(
    start: Path,
    out: Path,
    recipe: recipes.Distill,
    files: labelled.Files,
    options: Options,
) -> dict[str, Any]:
    """Writes the student to `out`, measured beside its teacher."""
    clock, progress = Clock(options.budget), options.progress
    inputs = files.digests()
    inputs["from"] = directory.identity(directory.read(start))
    with directory.claim(
        out, command="compress distill", recipe=recipes.dump(recipe), inputs=inputs, overwrite=options.overwrite
    ) as held:
        if held.complete:
            return held.result()
        teacher = checkpoint.open(start).expect("classes")
        encoder = ModelConfig.from_recipe(recipe.model, teacher.config.vocab_size)
        problem, classes = teacher.config.problem, teacher.config.classes
        config = encoder.classifier(classes, recipe.head.pooling, recipe.head.dropout, problem)
        length = min(recipe.data.sequence_length, config.max_length, teacher.config.max_length)
        how = labelled.Reading(teacher.tokenizer, length, problem)
        sets = labelled.read_sets(files._replace(names=teacher.labels), how, progress)
        first = Classifier(teacher.config).score(teacher.params, sets.dev)
        params = initialise(config, recipe.train.seed)
        if recipe.distill.start == "teacher":
            params, copied = distill.student(params, teacher.params, (config, teacher.config))
            progress.say(f"from the teacher: {', '.join(copied) or 'nothing, the shapes differ'}")
        sets.train.wanted = answers(teacher, sets.train, progress)
        objective = Objective(distill.match_teacher(recipe.distill.temperature, recipe.distill.hard, problem))
        plan = labelled.plan(config, params, objective, sets, recipe, clock)
        with trackers.opened(options.track, held.path, progress) as followers:
            fitted = fit(plan, held.path, progress, followers)
        last = Classifier(config).score(fitted.params, sets.dev)
        before, after = teacher.size() | first.summary(), last.summary()
        beside = measure.beside(held.path, teacher, sets.dev, first, last)
        return checkpoint.finish(
            held,
            checkpoint.Model(config, fitted.params, teacher.tokenizer, teacher.labels),
            stage="distill",
            step=fitted.step,
            metrics=after["metrics"],
            compression=[*teacher.manifest["compression"], {"stage": "distill"}],
            parents=[inputs["from"]],
            result=fitted.summary() | {"before": before, "after": after, "paired": beside},
        )
