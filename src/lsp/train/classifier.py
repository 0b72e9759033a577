"""A classifier from examples, or several in one program: put together from a recipe, trained and measured."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from lsp import LspError, checkpoint
from lsp import recipe as recipes
from lsp.data import classes
from lsp.data.batches import read_ahead
from lsp.data.examples import Examples
from lsp.data.tokenizer import Tokenizer
from lsp.model.config import ModelConfig
from lsp.model.encoder import initialise
from lsp.train import adapt, best, compare, incremental, labelled, metrics, privacy, trackers, trainable
from lsp.train.clock import Clock
from lsp.train.evaluate import Classifier
from lsp.train.loop import Fitted, Plan, fit
from lsp.train.objectives import Objective
from lsp.train.options import Options
from lsp.train.replicas import at
from lsp.train.step import Variant
from lsp.trials import Trial


class Start(NamedTuple):
    """What a classifier begins with: a tokenizer and, unless all of it is to be random, a run or a published checkpoint
    and its parameters as floats. `transform` is chained after the optimizer."""

    words: Tokenizer
    base: checkpoint.Checkpoint | checkpoint.Model | None = None
    params: Any = None
    transform: optax.GradientTransformation | None = None

    def labels(self) -> tuple[str, ...]:
        """The classes that it knows."""
        return tuple(self.base.labels) if self.base else ()

    def encoder(self, recipe: recipes.Finetune) -> ModelConfig:
        return self.base.config if self.base else ModelConfig.from_recipe(recipe.model, self.words.size)


class Trained(NamedTuple):
    """A finished classifier and what its result says; of a trial among others the outcome too."""

    model: checkpoint.Model
    made: dict[str, Any]
    outcome: compare.Outcome | None = None


def train(
    start: Start,
    files: labelled.Files,
    trials: Sequence[Trial],
    path: Path,
    clock: Clock,
    options: Options,
    compared: bool = False,
) -> list[Trained]:
    """A classifier for each trial, in one program: they differ in seed and learning rate alone. Steps and metrics on
    the way go to `path`. If they are to be `compared`, with each other or with those of other programs, each has an
    outcome. Raises LspError (exit 2 or 3, and as `loop.fit`)."""
    privacy.check(trials[0].recipe, compared)
    shared = _Shared(start, files, trials[0].recipe, options.progress)
    plan = shared.plan(trials, clock, path)
    with trackers.opened(options.track, path, options.progress) as followers:
        fitted = fit(plan, path, options.progress, followers)
    if plan.variants:
        return [shared.variant(trial, fitted, number) for number, trial in enumerate(trials)]
    made = fitted.summary()
    if plan.objective.private:
        made |= privacy.report(trials[0].recipe, len(shared.sets.train), fitted.step)
    done = shared.finished(fitted.params, made)
    return [shared.judged(trials[0], done) if compared else done]


class _Shared:
    """What trials of one program have in common: the examples, the shape of the classifier, and what is not trained."""

    def __init__(self, start: Start, files: labelled.Files, recipe: recipes.Finetune, progress: Any) -> None:
        self.start, self.recipe = start, recipe
        check(start, recipe)
        head, change, encoder = recipe.head, recipe.adapt, start.encoder(recipe)
        self.progress = progress
        self.grows = start.base if change.grow else None
        self.files = files._replace(names=tuple(self.grows.labels)) if self.grows else files
        length = min(recipe.data.sequence_length, encoder.max_length)
        self.how = labelled.Reading(start.words, length, head.problem, change.grow, order=start.labels())
        self.sets = labelled.read_sets(self.files, self.how, progress, change.replay, recipe.train.seed)
        labelled.weigh(self.sets.train, head)
        self.config = encoder.classifier(max(1, len(self.sets.names)), head.pooling, head.dropout, head.problem)
        if start.labels() and not (self.goes_on() or self.grows):
            progress.say(f"a new classifier: that of --from answers {classes.shown(start.labels())}")
        self.scale = change.lora_alpha / max(1, change.lora_rank)
        self.rest: Any = {}
        self.classifier = Classifier(self.config)

    def plan(self, trials: Sequence[Trial], clock: Clock, path: Path) -> Plan:
        """What to train. The rest of the model, where not all is trained, is the same for all trials."""
        start, recipe = self.start, self.recipe
        begun, self.rest = self._begin(recipe.train.seed)
        objective = trainable.partly(_objective(start, recipe), self.rest, self.scale)
        plan = labelled.plan(self.config, begun, objective, self.sets, recipe, clock)
        plan = replace(plan, transform=start.transform)
        if self.grows:
            plan = replace(plan, teacher=self.grows.config)
        if objective.private:
            secret = privacy.secret(path / "train")
            dataset = privacy.drawn(self.sets.train, plan.train, secret, begun)
            return replace(plan, batches=partial(read_ahead, dataset), rows=None, secret=secret)
        if len(trials) == 1:
            return plan
        variants = tuple(Variant(trial.recipe.train.seed, trial.recipe.train.learning_rate) for trial in trials)
        every = [begun, *(self._begin(variant.seed)[0] for variant in variants[1:])]
        return replace(
            plan,
            params=jax.tree.map(lambda *leaves: np.stack(leaves), *every),
            batches=labelled.training(self.sets.train, plan.train, [variant.seed for variant in variants]),
            evaluate=lambda params: _mean([plan.evaluate(at(params, number)) for number in range(len(variants))]),
            rows=None,
            variants=variants,
        )

    def finished(self, trained: Any, made: dict[str, Any]) -> Trained:
        """The classifier, balanced and calibrated where the recipe asks for that."""
        params = jax.device_get(trainable.merged(trained, self.rest, self.scale))
        sets, head = self.sets, self.recipe.head
        model = checkpoint.Model(self.config, params, self.start.words, sets.names, sets.columns)
        found: dict[str, float] = {}
        if self.grows and self.sets.balance is not None and head.problem == "single_label":
            model, found["shift"] = self._balanced(model, self.grows, self.sets.balance)
        if head.calibrate:
            model, found["temperature"] = self._calibrated(model)
        if found:
            made = made | {"metrics": self.classifier.score(model.params, self.sets.dev).metrics} | found
        return Trained(model, made | self._remembered(model))

    def variant(self, trial: Trial, fitted: Fitted, number: int) -> Trained:
        """The same of one of several variants, measured by itself."""
        made, reached = fitted.summary(), int(fitted.reached[number])
        diverged = reached + 1 if reached < made["step"] else None
        return self.judged(trial, self.finished(at(fitted.params, number), made), diverged)

    def judged(self, trial: Trial, done: Trained, diverged: int | None = None) -> Trained:
        """A finished classifier with its outcome."""
        scores, labels = self.classifier.score(done.model.params, self.sets.dev), self.sets.dev.labels
        good = compare.goodness(self.config.problem, scores.logits, labels)
        outcome = compare.Outcome(trial, scores.metrics, good, diverged)
        return done._replace(made=done.made | {"metrics": scores.metrics}, outcome=outcome)

    def goes_on(self) -> bool:
        """Whether the classifier of the start answers what is asked."""
        base = self.start.base
        return base is not None and (tuple(base.labels), base.config.problem) == (self.sets.names, self.config.problem)

    def _begin(self, seed: int) -> tuple[Any, Any]:
        """What is trained, and the rest: new parameters with those of the start where they fit. Its classifier goes on
        if it spoke of the same labels, or of the first of them where it is to grow."""
        base, old, change, config = self.start.base, self.start.params, self.recipe.adapt, self.config
        params = fresh = initialise(config, seed)
        if base is not None:
            on = self.goes_on()
            kept = {part: tree for part, tree in old.items() if part in fresh and (part != "classifier" or on)}
            if change.grow and not on:
                kept["classifier"] = incremental.grown(fresh["classifier"], old["classifier"])
            params = adapt.fresh(fresh | kept, fresh, change)
        return trainable.split(params, change, seed)

    def _balanced(
        self, model: checkpoint.Model, before: checkpoint.Checkpoint | checkpoint.Model, by: Examples
    ) -> tuple[checkpoint.Model, float]:
        """The classifier with its new classes so hard to get that the old ones lose no more than they may, `by`
        examples that it was not trained on."""
        head, old = model.params["classifier"], before.config.classes
        known = by.some(np.flatnonzero(by.labels < old))
        right_N = Classifier(before.config).logits(before.params, known).argmax(1) == known.labels
        least = right_N.sum() / max(1, len(known)) - self.recipe.adapt.lose / 100
        found = incremental.shift(self.classifier.logits(model.params, by), by.labels, old, least)
        bias = np.asarray(head["bias"]) - found * (np.arange(len(head["bias"])) >= old).astype(np.float32)
        return model._replace(params=model.params | {"classifier": head | {"bias": bias.astype(np.float32)}}), found

    def _calibrated(self, model: checkpoint.Model) -> tuple[checkpoint.Model, float]:
        """The classifier divided by the temperature that fits the dev file. Guesses stay as they are."""
        logits, labels = self.classifier.logits(model.params, self.sets.dev), self.sets.dev.labels
        if (logits.argmax(1) == labels).all():  # the likeliest temperature is 0
            self.progress.warn("not calibrated: without a wrong dev example nothing says how sure an answer may be")
            return model, 1.0
        found = metrics.temperature(logits, labels)
        divided = {name: leaf / np.float32(found) for name, leaf in model.params["classifier"].items()}
        return model._replace(params=model.params | {"classifier": divided}), found

    def _remembered(self, model: checkpoint.Model) -> dict[str, Any]:
        """With --old-dev what classifier and old self make of old examples."""
        if self.files.old_dev is None or self.grows is None:
            return {}
        found = {}
        for name, each in (("before", self.grows), ("after", model)):
            how = self.how._replace(grow=False)
            examples = labelled.read(self.files.old_dev, self.files.columns, tuple(each.labels), how)
            found[name] = Classifier(each.config).score(each.params, examples).metrics
        return {"old": found}


def _mean(found: Sequence[dict[str, float]]) -> dict[str, float]:
    """The mean metrics of those that did not diverge, or of all if all did."""
    sound = [metrics for metrics in found if np.isfinite(metrics["loss"])] or found
    return {name: float(np.mean([metrics[name] for metrics in sound])) for name in found[0]}


def check(start: Start, recipe: recipes.Finetune) -> None:
    """Raises LspError (exit 2) for changes that have nothing to change, or do not go together, and for a metric that is
    none."""
    base, head, change = start.base, recipe.head, recipe.adapt
    if recipe.train.best:
        best.known(recipe.train.best, metrics.names(head.problem))
    if base is not None and change.lora_rank:
        trainable.check(start.params, change.lora_rank)
    if head.calibrate and head.problem != "single_label":
        raise LspError(f"head.calibrate does not go together with {head.problem}.", hint="Leave it out.")
    for key in ("freeze", "lora_rank"):
        if base is None and getattr(change, key):
            raise LspError(f"adapt.{key} would keep random weights: --from is scratch.", hint="Leave it out.")
    if not change.grow:
        return
    if base is None or base.config.head != "classes" or base.config.problem == "regression":
        raise LspError("adapt.grow is for a classifier that is there, with classes.", hint="Give its run as --from.")
    if base.config.problem != head.problem:
        raise LspError(
            f"head.problem = {head.problem}, and the classifier's is {base.config.problem}.",
            hint=f"Use --set head.problem={base.config.problem}.",
        )
    if change.r_drop:
        raise LspError("adapt.r_drop does not go together with adapt.grow.", hint="Leave one of them out.")


def _objective(start: Start, recipe: recipes.Finetune) -> Objective:
    """The labels, and where a classifier grows what its old self answers."""
    if start.base is None or not recipe.adapt.grow:
        private = recipe.privacy if recipe.privacy.noise else None
        return Objective(adapt.loss(recipe.head.problem, recipe.adapt), private=private)
    remember = incremental.remembering(start.base.config, recipe.adapt.remember)
    return Objective(adapt.moved(remember, recipe.adapt), start.base.params)
