"""`lsp compress distill`: a smaller student that learns the teacher's answers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lsp import checkpoint, directory
from lsp import recipe as recipes
from lsp.compress import distill
from lsp.data import text
from lsp.model.config import ModelConfig
from lsp.model.encoder import graphdef, initialise
from lsp.train import labelled, trackers
from lsp.train.clock import Clock
from lsp.train.evaluate import Classifier
from lsp.train.loop import fit
from lsp.train.objectives import Objective


def run(
    start: Path,
    out: Path,
    recipe: recipes.Distill,
    train: Path,
    dev: Path,
    columns: labelled.Columns,
    *,
    budget: float = 0.0,
    track: Sequence[str] = (),
    overwrite: bool,
    progress: Any,
) -> dict[str, Any]:
    """Writes the student to `out`, measured beside its teacher."""
    clock = Clock(budget)
    inputs = {"train": text.digest([str(train)]), "dev": text.digest([str(dev)])}
    inputs["from"] = directory.identity(directory.read(start))
    with directory.claim(
        out, command="compress distill", recipe=recipes.dump(recipe), inputs=inputs, overwrite=overwrite
    ) as held:
        if held.complete:
            return held.result()
        teacher = checkpoint.open(start).expect("classes")
        encoder = ModelConfig.from_recipe(recipe.model, teacher.config.vocab_size)
        config = encoder.classifier(len(teacher.labels), recipe.head.pooling, recipe.head.dropout)
        length = min(recipe.data.sequence_length, config.max_length, teacher.config.max_length)
        sets = labelled.read_sets(train, dev, columns, teacher.tokenizer, length, progress, teacher.labels)
        steps = labelled.counted(recipe.train, len(sets.train))
        before = teacher.size() | Classifier(teacher.config).score(teacher.params, sets.dev).summary()
        params = initialise(config, steps.seed)
        if recipe.distill.start == "teacher":
            params, copied = distill.student(params, teacher.params, (config, teacher.config))
            progress.say(f"from the teacher: {', '.join(copied) or 'nothing, the shapes differ'}")
        loss = distill.match_teacher(graphdef(teacher.config), recipe.distill.temperature, recipe.distill.hard)
        objective = Objective(loss, teacher.params)
        plan = labelled.plan(config, params, objective, sets, steps, recipe.mesh, clock, teacher=teacher.config)
        with trackers.opened(track, held.path, progress) as followers:
            fitted = fit(plan, held.path, progress, followers)
        after = Classifier(config).score(fitted.params, sets.dev).summary()
        return checkpoint.finish(
            held,
            stage="distill",
            config=config,
            params=fitted.params,
            tokenizer=teacher.tokenizer,
            step=fitted.step,
            metrics=after["metrics"],
            labels=teacher.labels,
            compression=[*teacher.manifest["compression"], {"stage": "distill"}],
            parents=[inputs["from"]],
            result=fitted.summary() | {"before": before, "after": after},
        )
