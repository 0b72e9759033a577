"""`lsp compress quantize`: int8 on disk, in memory and in the matmul."""

from pathlib import Path
from typing import Any

from lsp import checkpoint, console, directory
from lsp import recipe as recipes
from lsp.compress import calibrate, calibrated, sensitivity
from lsp.compress.quantize import Tree, quantize
from lsp.data import text
from lsp.data.examples import Examples
from lsp.train import labelled
from lsp.train.evaluate import Classifier

FEW = 300  # examples on which parts are compared
SHOWN = 5  # parts that cost most


def run(
    start: Path,
    out: Path,
    recipe: recipes.Quantize,
    dev: Path | None,
    columns: labelled.Columns,
    overwrite: bool,
    progress: Any,
    train: Path | None = None,
) -> dict[str, Any]:
    """Writes the int8 model to `out`; `train` is the file to calibrate with, where the recipe needs one. With `dev`
    measures both, and what each part of the model costs."""
    inputs = {"from": directory.identity(directory.read(start)), "dev": text.digest([str(dev)]) if dev else ""}
    if train is not None:
        inputs["train"] = text.digest([str(train)])
    with directory.claim(
        out, command="compress quantize", recipe=recipes.dump(recipe), inputs=inputs, overwrite=overwrite
    ) as held:
        if held.complete:
            return held.result()
        base = checkpoint.open(start)
        how = labelled.Reading(base.tokenizer, base.config.max_length, base.config.problem)
        sample = None
        if train is not None and recipe.quantize.calibrates:
            base.expect("classes")
            table = labelled.read_table(train, columns, base.labels, how)
            sample = calibrate.sample(how.examples(table), recipe.quantize.sample)
            progress.say(f"calibrating on {len(sample)} examples")
        params = quantize(base.params, calibrated.maker(recipe.quantize, base.config, base.params, sample))
        result: dict[str, Any] = {"before": base.size(), "after": {}, "gates": []}
        kept: list[str] = []
        if recipe.quantize.method == "weights":
            progress.say("weights alone are quantised: smaller, not faster")
        if dev is not None:
            base.expect("classes")
            examples = labelled.read(dev, columns, base.labels, how)
            found, measured = judged(base, params, examples, recipe.quantize.max_drop, progress)
            params, kept = found.params, found.kept
            result = measured | {"before": result["before"] | measured["before"]}
        applied = recipe.quantize.applied() | ({"float": kept} if kept else {})
        return checkpoint.finish(
            held,
            checkpoint.Model(base.config, params, base.tokenizer, base.labels),
            stage="quantize",
            step=base.manifest["step"],
            metrics=result["after"].get("metrics", {}),
            compression=[*base.manifest["compression"], applied],
            parents=[inputs["from"]],
            result=result,
        )


def judged(
    base: checkpoint.Checkpoint, small: Tree, examples: Examples, most: float, progress: Any
) -> tuple[sensitivity.Within, dict[str, Any]]:
    """The quantised model that keeps its drop within `most` percent points (any, if negative), and the result's account
    of it: before, after, parts and outlier channels."""
    classifier = Classifier(base.config)
    few = calibrate.sample(examples, FEW)
    progress.say(f"what each part costs when it alone is quantised, on {len(few)} examples")
    rows = sensitivity.sensitivity(classifier, base.params, small, few)
    for line in console.table(rows[:SHOWN]) if rows else ():
        progress.say(line)
    loud = calibrate.outliers(calibrate.largest(base.config, base.params, few))
    progress.say("measuring before and after")
    before = classifier.score(base.params, examples)
    limit = None if most < 0 else most
    ranked = [row["part"] for row in rows]
    found = sensitivity.within(classifier, base.params, small, examples, before, ranked, limit)
    if found.kept:
        progress.say(f"float as before: {', '.join(found.kept)}")
    gates = []
    if limit is not None:
        points = found.drop["points"]
        gates = [{"metric": found.drop["metric"], "max_drop": most, "value": points, "passed": points <= most}]
    return found, {
        "before": before.summary(),
        "after": found.scores.summary() | {"drop": found.drop},
        "kept_float": found.kept,
        "sensitivity": rows,
        "outliers": loud,
        "gates": gates,
    }
