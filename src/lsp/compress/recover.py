"""A stage of pruning from its claim to its result, and the training between that makes up for what went: the pruned
model learns to answer as the one it was."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import optax

from lsp import checkpoint, directory
from lsp import recipe as recipes
from lsp.checkpoint import Checkpoint, Model
from lsp.compress import lesson, measure
from lsp.compress.prune import keep_zeros, pruned
from lsp.compress.quantize import nearest, quantize
from lsp.model.config import ModelConfig
from lsp.model.int8 import present
from lsp.model.weightonly import any_weight_only, dequantize, is_quantized
from lsp.train import labelled, trackers
from lsp.train.clock import Clock
from lsp.train.evaluate import Classifier, Scores
from lsp.train.loop import Fitted, fit
from lsp.train.options import Options


def _lost(params: Any) -> str:
    """What of a quantised model pruning does not keep."""
    leaves = [leaf for leaf in jax.tree.leaves(params, is_leaf=is_quantized) if is_quantized(leaf)]
    if any_weight_only(params):
        return "weights that alone were quantised become float32"
    calibrated = any(leaf.factor is not None or leaf.limit is not None for leaf in leaves)
    return "what this model was calibrated by is lost" if calibrated else ""


def _uncalibrated(applied: dict[str, Any]) -> dict[str, Any]:
    """Of a stage of quantising what is left when the rest is lost."""
    return {name: value for name, value in applied.items() if name in ("stage", "bits", "float")}


@contextmanager
def claimed(
    runs: Mapping[str, Path], out: Path, recipe: recipes.Prune, files: labelled.Files, options: Options
) -> Iterator[directory.Run]:
    """`directory.claim` for a stage that prunes `runs["from"]`; others are what else it reads."""
    inputs = files.digests() | {name: directory.identity(directory.read(path)) for name, path in runs.items()}
    dumped = recipes.dump(recipe)
    with directory.claim(
        out, command="compress prune", recipe=dumped, inputs=inputs, overwrite=options.overwrite
    ) as held:
        yield held


class Stage(NamedTuple):
    """Pruning under way: where it goes, the classifier that it begins with, and how and which examples are read."""

    held: directory.Run
    base: Checkpoint
    how: labelled.Reading
    sets: labelled.Sets
    recipe: recipes.Prune
    clock: Clock
    options: Options

    @classmethod
    def begun(
        cls,
        held: directory.Run,
        start: Path,
        recipe: recipes.Prune,
        files: labelled.Files,
        options: Options,
    ) -> "Stage":
        """The stage with what it reads. Raises LspError: 4 for a damaged run, 2 for one that is no classifier, 3 for
        unusable examples."""
        clock = Clock(options.budget)
        base = checkpoint.open(start).expect("classes")
        how = labelled.Reading.of(base, recipe.data.sequence_length)
        sets = labelled.read_sets(files._replace(names=base.labels), how, options.progress)
        return cls(held, base, how, sets, recipe, clock, options)

    @property
    def config(self) -> ModelConfig:
        """That of the model, with the recipe's dropout."""
        return replace(self.base.config, dropout=self.recipe.head.dropout)

    @property
    def steps(self) -> int:
        """0 where there is to be no training."""
        return labelled.counted(self.recipe.train, len(self.sets.train)).steps

    def floats(self, params: Any) -> Any:
        """Float parameters to prune or to train. Warns of what `formed` will not give back."""
        if lost := _lost(params):
            self.options.progress.warn(f"what prunes knows rounding to the nearest int8 alone: {lost}")
        return dequantize(params)

    def formed(self, params: Any, layers: Sequence[int] = ()) -> Any:
        """Parameters as the stage writes them: int8 where the model came so. `layers` are the numbers that those of
        `params` had there, where some are gone."""
        before = self.base.params
        if not present(before):
            return params

        def made(name: str, w: Any, axis: int) -> Any:
            path = name.split(".")
            there = before
            for part in path:
                number = int(part) if part.isdecimal() else part
                there = there[layers[number] if layers and isinstance(number, int) else number]
            return nearest(name, w, axis) if is_quantized(there) else w

        return quantize(params, made)

    def fit(
        self,
        config: ModelConfig,
        params: Any,
        teacher: Checkpoint,
        transform: optax.GradientTransformation | None = None,
    ) -> Fitted:
        """`params`, floats, trained on what the `teacher` said of the examples; `transform` is chained after the
        optimizer. If it is None, weights that were pruned stay so. Raises as `loop.fit`."""
        asked, progress = self.recipe.prune, self.options.progress
        wish = recipes.Distillation(hard=asked.hard, hidden=asked.hidden, match="nearest")
        plan = lesson.plan((config, params), teacher, self.sets, wish, self.recipe, self.clock, progress)
        if transform is None and pruned(self.base.manifest):
            transform = keep_zeros()
        plan = replace(plan, transform=transform)
        with trackers.opened(self.options.track, self.held.path, progress) as followers:
            fitted = fit(plan, self.held.path, progress, followers)
        return replace(fitted, params=plan.objective.whole(fitted.params, None))

    def finished(
        self, model: Model, last: Scores, made: dict[str, Any], after: dict[str, Any], applied: dict[str, Any]
    ) -> dict[str, Any]:
        """The run sealed, and its result: what training `made`, and the model, that scores `last`, beside the one that
        it was. `after` is what else there is to say of it, `applied` what the manifest says was done."""
        before = self.base.manifest["compression"]
        if _lost(self.base.params) and not _lost(model.params):
            before = [_uncalibrated(each) if each["stage"] == "quantize" else each for each in before]
        first = Classifier(self.base.config).score(self.base.params, self.sets.dev)
        compared = {
            "metrics": last.metrics,
            "before": self.base.size() | first.summary(),
            "after": last.summary() | after,
            "paired": measure.beside(self.held.path, self.base, self.sets.dev, first, last),
        }
        return checkpoint.finish(
            self.held,
            model,
            stage="prune",
            step=made["step"],
            metrics=last.metrics,
            compression=[*before, {"stage": "prune"} | applied],
            parents=[self.held.inputs[name] for name in ("from", "teacher") if name in self.held.inputs],
            result=made | compared,
        )
