"""`lsp compress prune` of weights: zeros in the encoder's matrices, with training that recovers what they cost."""

from pathlib import Path
from typing import Any

from lsp import recipe as recipes
from lsp.compress import prune
from lsp.compress.recover import Stage, claimed
from lsp.compress.teacher import answers
from lsp.train import labelled
from lsp.train.evaluate import Classifier
from lsp.train.options import Options


def run(start: Path, out: Path, recipe: recipes.Prune, files: labelled.Files, options: Options) -> dict[str, Any]:
    """Writes the sparse model to `out`. A model that came in int8 trains in fp32 and leaves in int8 again."""
    with claimed({"from": start}, out, recipe, files, options) as held:
        if held.complete:
            return held.result()
        stage = Stage.begun(held, start, recipe, files, options)
        base, sets = stage.base, stage.sets
        if not recipe.prune.pattern and (there := prune.sparsity(base.params)) >= recipe.prune.sparsity:
            options.progress.warn(f"{there:.0%} of these weights are zero already, so that prune.sparsity takes none")
        sets.train.wanted = answers(base, sets.train, options.progress)
        fitted = stage.fit(stage.config, stage.floats(base.params), base, prune.gradual(recipe.prune, stage.steps))
        params = stage.formed(fitted.params)
        last, account = Classifier(stage.config).score(params, sets.dev), prune.footprint(params)
        model = base.model._replace(config=stage.config, params=params)
        return stage.finished(model, last, fitted.summary(), account, {"sparsity": account["sparsity"]})
