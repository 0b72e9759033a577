"""`lsp compress quantize`: int8 on disk, in memory and in the matmul; or weights alone in 8 or 4 bits."""

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

import jax

from lsp import LspError, checkpoint, console, directory
from lsp import recipe as recipes
from lsp.compress import calibrate, calibrated, measure, sensitivity, trained
from lsp.compress.prune import keep_zeros, pruned
from lsp.compress.quantize import Tree, quantizable, quantize
from lsp.compress.teacher import answers
from lsp.data import text
from lsp.data.examples import Examples
from lsp.model.weightonly import any_quantized, dequantize, is_quantized
from lsp.train import labelled, trackers
from lsp.train.clock import Clock
from lsp.train.compare import FIRST
from lsp.train.evaluate import Classifier
from lsp.train.loop import fit
from lsp.train.options import Options

FEW = 128  # examples on which parts are compared: the model answers them once for each part
SHOWN = 5  # parts that cost most


class Made(NamedTuple):
    """The quantised model, the float one that it was made of, and what training says of itself."""

    small: Tree
    floats: Tree
    summary: dict[str, Any]


def run(
    start: Path,
    out: Path,
    recipe: recipes.Quantize,
    dev: Path | None,
    columns: labelled.Columns,
    options: Options,
    train: Path | None = None,
) -> dict[str, Any]:
    """Writes the quantised model to `out`; `train` is the file to calibrate or to train with, where the recipe asks for
    one; `options.budget` and `options.track` are for training. With `dev` measures both models, and what each part of
    the model costs."""
    files = {"dev": dev} if train is None else {"dev": dev, "train": train}
    inputs = {"from": directory.identity(directory.read(start))}
    inputs |= {name: text.digest([str(path)]) if path else "" for name, path in files.items()}
    inputs |= labelled.spelt(columns)
    dumped, progress = recipes.dump(recipe), options.progress
    with directory.claim(
        out, command="compress quantize", recipe=dumped, inputs=inputs, overwrite=options.overwrite
    ) as held:
        if held.complete:
            return held.result()
        base = checkpoint.open(start).expect("classes") if dev or train else checkpoint.open(start)
        if not _open(base.params, recipe.quantize):
            raise LspError(f"{start} is quantised already.", hint="Start from the float run that it was made of.")
        if recipe.quantize.method == "trained":
            assert dev is not None and train is not None
            made = learnt(base, recipe, labelled.Files(train, dev, columns, base.labels), held.path, options)
        else:
            made = converted(base, recipe.quantize, train, columns, progress)
        params, kept = made.small, {}
        result: dict[str, Any] = {"before": base.size(), "after": {}, "gates": []}
        if dev is not None:
            examples = labelled.read(dev, columns, base.labels, labelled.Reading.of(base))
            found, measured = judged(base, made, examples, recipe.quantize, progress)
            params, first, last = found.params, found.before, found.after
            result = measured | {"before": base.size() | first.summary(), "after": last.summary()}
            result["paired"] = measure.beside(held.path, base, examples, first, last)
            kept = {"float": result["kept_float"]} if result["kept_float"] else {}
        # What training said at its end is of texts cut to its length, and of no part that stays float.
        metrics = result["after"].get("metrics", {})
        return checkpoint.finish(
            held,
            base.model._replace(params=params),
            stage="quantize",
            step=made.summary.get("step", base.manifest["step"]),
            metrics=metrics,
            compression=[*base.manifest["compression"], recipe.quantize.applied() | kept],
            parents=[inputs["from"]],
            result=made.summary | result | {"metrics": metrics},
        )


def _open(params: Tree, recipe: recipes.Quantization) -> bool:
    """Whether there is something to quantise: dynamic int8 takes what is float yet of a model in dynamic int8."""
    if not any_quantized(params):
        return True
    leaves = jax.tree_util.tree_leaves_with_path(params, is_leaf=is_quantized)
    left = any(quantizable(tuple(key.key for key in path)) and not is_quantized(leaf) for path, leaf in leaves)
    return left and recipe.applied() == recipes.Quantization().applied()


def converted(
    base: checkpoint.Checkpoint,
    recipe: recipes.Quantization,
    train: Path | None,
    columns: labelled.Columns,
    progress: Any,
) -> Made:
    """Without training, by a sample where the recipe asks for one."""
    sample = None
    if train is not None and recipe.calibrates:
        how = labelled.Reading.of(base)
        table = labelled.read_table(train, columns, base.labels, how)
        sample = how.examples(calibrate.sample(table, recipe.sample))
        progress.say(f"calibrating on {len(sample)} examples")
    elif train is not None:
        progress.say("--train is not read: nothing in [quantize] asks for it")
    if recipe.method == "weights":
        progress.say("weights alone are quantised: smaller, not faster")
    small = quantize(base.params, calibrated.maker(recipe, base.config, base.params, sample))
    return Made(small, base.params, {})


def learnt(
    base: checkpoint.Checkpoint, recipe: recipes.Quantize, files: labelled.Files, path: Path, options: Options
) -> Made:
    """With training: the model learns in int8 to answer as it did in float."""
    clock, progress = Clock(options.budget), options.progress
    config = dataclasses.replace(base.config, dropout=recipe.head.dropout)
    how = labelled.Reading.of(base, recipe.data.sequence_length)
    sets = labelled.read_sets(files, how, progress)
    floats = dequantize(base.params)
    sets.train.wanted = answers(base, sets.train, progress)
    objective = trained.objective(config.problem, recipe.quantize.hard)
    plan = labelled.plan(config, floats, objective, sets, recipe, clock)
    if pruned(base.manifest):
        plan = dataclasses.replace(plan, transform=keep_zeros())
    with trackers.opened(options.track, path, progress) as followers:
        fitted = fit(plan, path, progress, followers)
    return Made(quantize(fitted.params), fitted.params, fitted.summary())


def judged(
    base: checkpoint.Checkpoint, made: Made, examples: Examples, recipe: recipes.Quantization, progress: Any
) -> tuple[sensitivity.Within, dict[str, Any]]:
    """The quantised model that keeps its drop within `max_drop` percent points (any, if negative), and the result's
    account of it, with parts and outlier channels where they are asked for, or needed."""
    classifier, most = Classifier(base.config), recipe.max_drop
    rows: list[dict[str, Any]] = []
    account: dict[str, Any] = {}
    if recipe.sensitivity or most >= 0:
        few = calibrate.sample(examples, FEW)
        progress.say(f"what each part costs when it alone is quantised, on {len(few)} examples")
        with progress.task("parts", len(sensitivity.parts(made.floats, made.small))) as task:
            rows = sensitivity.sensitivity(classifier, made.floats, made.small, few, task.update)
        for line in console.table(rows[:SHOWN]) if rows else ():
            progress.say(line)
        account = {
            "sensitivity": rows,
            "outliers": calibrate.outliers(calibrate.largest(base.config, made.floats, few)),
        }
    progress.say("measuring before and after")
    before = classifier.score(base.params, examples)
    ranked = [row["part"] for row in rows]
    found = sensitivity.within(
        classifier, made.floats, made.small, examples, before, ranked, None if most < 0 else most
    )
    if found.kept:
        progress.say(f"float as before: {', '.join(found.kept)}")
    gates = []
    if most >= 0:
        metric, passed = FIRST[classifier.problem], found.points <= most
        gates = [{"metric": metric, "max_drop": most, "value": found.points, "passed": passed}]
    return found, account | {"kept_float": found.kept, "gates": gates}
