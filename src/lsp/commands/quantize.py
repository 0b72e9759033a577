"""`lsp compress quantize`: int8 on disk, in memory and in the matmul."""

from pathlib import Path
from typing import Any

from lsp import checkpoint, directory
from lsp import recipe as recipes
from lsp.compress import measure
from lsp.compress.quantize import quantize
from lsp.data import text
from lsp.train import labelled
from lsp.train.evaluate import Classifier


def run(
    start: Path,
    out: Path,
    recipe: recipes.Quantize,
    dev: Path | None,
    columns: labelled.Columns,
    overwrite: bool,
    progress: Any,
) -> dict[str, Any]:
    """Writes the int8 model to `out`; with `dev`, measures both."""
    inputs = {"from": directory.identity(directory.read(start)), "dev": text.digest([str(dev)]) if dev else ""}
    with directory.claim(
        out, command="compress quantize", recipe=recipes.dump(recipe), inputs=inputs, overwrite=overwrite
    ) as held:
        if held.complete:
            return held.result()
        base = checkpoint.open(start)
        params = quantize(base.params)
        before: dict[str, Any] = base.size()
        result: dict[str, Any] = {"before": before, "after": {}}
        if dev is not None:
            how = labelled.Reading(base.tokenizer, base.config.max_length, base.config.problem)
            examples = labelled.read(dev, columns, base.labels, how)
            classifier = Classifier(base.config)
            progress.say("measuring before and after")
            scores, after = classifier.score(base.params, examples), classifier.score(params, examples)
            result = {"before": before | scores.summary(), "after": after.summary()}
            result["paired"] = measure.beside(held.path, base, examples, scores, after)
        return checkpoint.finish(
            held,
            checkpoint.Model(base.config, params, base.tokenizer, base.labels),
            stage="quantize",
            step=base.manifest["step"],
            metrics=result["after"].get("metrics", {}),
            compression=[*base.manifest["compression"], {"stage": "quantize", "bits": 8}],
            parents=[inputs["from"]],
            result=result,
        )
