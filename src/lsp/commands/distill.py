"""`lsp compress distill`: a smaller student that learns the teacher's answers."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from lsp import LspError, checkpoint, directory
from lsp import recipe as recipes
from lsp.compress import augment, distill, inside, lesson, measure
from lsp.compress.teacher import answers
from lsp.data.examples import Examples
from lsp.model.config import ModelConfig
from lsp.model.encoder import initialise
from lsp.train import compare, labelled, paired, trackers
from lsp.train.clock import Clock
from lsp.train.evaluate import Classifier, Scores
from lsp.train.loop import Plan, fit
from lsp.train.objectives import LABELS, Objective
from lsp.train.options import Options


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
    _check(recipe, augmenter)
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
        proposer = augment.proposer(augmenter, teacher) if augmenter else None
        encoder = ModelConfig.from_recipe(recipe.model, teacher.config.vocab_size)
        problem, classes = teacher.config.problem, teacher.config.classes
        config = encoder.classifier(classes, recipe.head.pooling, recipe.head.dropout, problem)
        inside.check(config, teacher.config, recipe.distill)
        readers = [config, teacher.config, *([proposer.config] if proposer else [])]
        length = min(recipe.data.sequence_length, *(each.max_length for each in readers))
        how = labelled.Reading.of(teacher, length)
        sets = labelled.read_sets(files._replace(names=teacher.labels), how, progress)
        first = Classifier(teacher.config).score(teacher.params, sets.dev)
        params = initialise(config, recipe.train.seed)
        if recipe.distill.start == "teacher":
            params, copied = distill.student(params, teacher.params, (config, teacher.config))
            progress.say(f"from the teacher: {', '.join(copied) or 'nothing, the shapes differ'}")
        taught = replace(sets, train=_answered(teacher, proposer, sets.train, recipe, progress))
        params = jax.device_get(params)  # training donates what is on the device, and `compare` begins here again
        plan = lesson.plan((config, params), teacher, taught, recipe.distill, recipe, clock, progress)
        with trackers.opened(options.track, held.path, progress) as followers:
            fitted = fit(plan, held.path, progress, followers)
        student = plan.objective.whole(fitted.params, None)
        last, made = Classifier(config).score(student, sets.dev), fitted.summary()
        before, after = teacher.size() | first.summary(), last.summary()
        beside = measure.beside(held.path, teacher, sets.dev, first, last)
        if recipe.distill.compare:
            alone = replace(recipe, train=plan.train)  # as many steps, of texts that have labels
            plain = labelled.plan(config, params, Objective(LABELS[problem]), sets, alone, Clock(options.budget))
            made["plain"] = _compared(last, plain, sets.dev, held.path / "train" / "plain", progress)
        return checkpoint.finish(
            held,
            teacher.model._replace(config=config, params=student),
            stage="distill",
            step=fitted.step,
            metrics=after["metrics"],
            compression=[*teacher.manifest["compression"], {"stage": "distill"}],
            parents=[inputs[name] for name in ("from", "augmenter") if name in inputs],
            result=made | {"before": before, "after": after, "paired": beside},
        )


def _check(recipe: recipes.Distill, augmenter: Path | None) -> None:
    """Raises LspError (exit 2) for what nothing would read."""
    if augmenter and not recipe.distill.augment:
        raise LspError("--augmenter has no copies to make.", hint="Say how many: --set distill.augment=4")
    if recipe.model.dropout != recipes.Model().dropout:
        raise LspError(
            "model.dropout is for pretraining; a student that learns from a teacher has head.dropout.",
            hint=f"Write --set head.dropout={recipe.model.dropout:g}",
        )


def _answered(
    teacher: checkpoint.Checkpoint,
    proposer: checkpoint.Checkpoint | None,
    examples: Examples,
    recipe: recipes.Distill,
    progress: Any,
) -> Examples:
    """The examples and their copies, with what the teacher says of them."""
    parts = [examples]
    if count := recipe.distill.augment:
        parts.append(augment.copies(examples, teacher, proposer, recipe.train.seed, count, progress))
    for part in parts:
        part.wanted = answers(teacher, part, progress)
    return Examples.joined(parts)


def _compared(ours: Scores, plan: Plan, dev: Examples, place: Path, progress: Any) -> dict[str, Any]:
    """The metrics of the same student without a teacher, and `p` of the two being as good (`paired.compared`). Warns
    where the teacher's is not clearly better."""
    place.mkdir(parents=True, exist_ok=True)
    progress.say("training the same student on the labels alone")
    plain = Classifier(plan.config).score(fit(plan, place, progress).params, dev)
    problem = plan.config.problem
    beside = paired.compared(paired.Pair(problem, plain.logits, ours.logits, dev.labels))
    p, name = beside["p"], beside["metric"]
    if beside["points_lost"] >= 0 or p > compare.CHANCE:
        progress.warn(
            f"without a teacher the same student does as well: {name} {plain.metrics[name]:.4f}, and with it "
            f"{ours.metrics[name]:.4f} (p = {p:.2g})"
        )
    return {"metrics": plain.metrics, "p": p}
