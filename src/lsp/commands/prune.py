"""`lsp compress prune` of weights: zeros in the encoder's matrices, with training that recovers what they cost."""

import dataclasses
from pathlib import Path
from typing import Any

from lsp import checkpoint, directory
from lsp import recipe as recipes
from lsp.compress import measure, prune
from lsp.compress.quantize import dequantize, quantize
from lsp.compress.recover import Recovery
from lsp.compress.teacher import answers
from lsp.model.int8 import present
from lsp.train import labelled
from lsp.train.clock import Clock
from lsp.train.evaluate import Classifier
from lsp.train.options import Options


def run(
    start: Path,
    out: Path,
    recipe: recipes.Prune,
    files: labelled.Files,
    options: Options,
) -> dict[str, Any]:
    """Writes the sparse model to `out`. A model that came in int8 trains in fp32 and leaves in int8 again."""
    clock, progress = Clock(options.budget), options.progress
    inputs = files.digests()
    inputs["from"] = directory.identity(directory.read(start))
    with directory.claim(
        out, command="compress prune", recipe=recipes.dump(recipe), inputs=inputs, overwrite=options.overwrite
    ) as held:
        if held.complete:
            return held.result()
        base = checkpoint.open(start).expect("classes")
        config = dataclasses.replace(base.config, dropout=recipe.head.dropout)
        length = min(recipe.data.sequence_length, config.max_length)
        how = labelled.Reading(base.tokenizer, length, config.problem)
        sets = labelled.read_sets(files._replace(names=base.labels), how, progress)
        classifier = Classifier(config)
        first = classifier.score(base.params, sets.dev)
        sets.train.wanted = answers(base, sets.train, progress)
        recovery = Recovery(sets, recipe, held.path, clock, options)
        fitted = recovery.fit(config, dequantize(base.params), prune.gradual(recipe.prune, recovery.steps))
        params = quantize(fitted.params) if present(base.params) else fitted.params
        last = classifier.score(params, sets.dev)
        before, after = base.size() | first.summary(), last.summary() | prune.footprint(params)
        beside = measure.beside(held.path, base, sets.dev, first, last)
        return checkpoint.finish(
            held,
            checkpoint.Model(config, params, base.tokenizer, base.labels),
            stage="prune",
            step=fitted.step,
            metrics=after["metrics"],
            compression=[*base.manifest["compression"], {"stage": "prune", "sparsity": after["sparsity"]}],
            parents=[inputs["from"]],
            result=fitted.summary() | {"before": before, "after": after, "paired": beside},
        )
