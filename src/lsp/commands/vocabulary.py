"""`lsp compress prune` of the vocabulary: pieces that the examples do not use leave tokenizer and embeddings."""

import dataclasses
from pathlib import Path
from typing import Any

from lsp import checkpoint, directory
from lsp import recipe as recipes
from lsp.compress import measure, vocabulary
from lsp.compress.quantize import dequantize, quantize
from lsp.compress.recover import Recovery
from lsp.compress.teacher import answers
from lsp.model.int8 import present
from lsp.train import labelled
from lsp.train.clock import Clock
from lsp.train.evaluate import Classifier
from lsp.train.options import Options


def run(start: Path, out: Path, recipe: recipes.Prune, files: labelled.Files, options: Options) -> dict[str, Any]:
    """Writes the model with fewer pieces to `out`. It trains only where pieces go that the examples have."""
    clock, progress = Clock(options.budget), options.progress
    inputs = files.digests()
    inputs["from"] = directory.identity(directory.read(start))
    with directory.claim(
        out, command="compress prune", recipe=recipes.dump(recipe), inputs=inputs, overwrite=options.overwrite
    ) as held:
        if held.complete:
            return held.result()
        base = checkpoint.open(start).expect("classes")
        files = files._replace(names=base.labels)
        length = min(recipe.data.sequence_length, base.config.max_length)
        how = labelled.Reading(base.tokenizer, length, base.config.problem)
        sets = labelled.read_sets(files, how, progress)
        config = dataclasses.replace(base.config, dropout=recipe.head.dropout)
        counts = vocabulary.counted(sets.train, config.vocab_size)
        whole = checkpoint.Model(config, base.params, base.tokenizer, base.labels)
        model, old = vocabulary.smaller(whole, counts, recipe.prune.pieces)
        fewer = labelled.read_sets(files, how._replace(words=model.tokenizer), progress)
        report = vocabulary.coverage(sets.dev, fewer.dev, old)
        progress.say(
            f"{base.tokenizer.size:,} pieces become {model.tokenizer.size:,}, and {report['covered']:.2%} of the dev "
            f"file's are among them; {report['unknown']:.2f} % are [UNK], before {report['unknown_before']:.2f} %"
        )
        first = Classifier(base.config).score(base.params, sets.dev)
        made: dict[str, Any] = {"step": 0}
        recovery = Recovery(fewer, recipe, held.path, clock, options)
        if recipe.prune.pieces and recovery.steps:
            fewer.train.wanted = answers(base, sets.train, progress)  # the teacher reads its own tokens
            fitted = recovery.fit(model.config, dequantize(model.params))
            params = quantize(fitted.params) if present(base.params) else fitted.params
            model, made = model._replace(params=params), made | fitted.summary()
        last = Classifier(model.config).score(model.params, fewer.dev)
        before, after = base.size() | first.summary(), last.summary() | {"vocabulary": report}
        beside = measure.beside(held.path, base, sets.dev, first, last)
        applied = {"stage": "prune", "pieces": model.tokenizer.size}
        return checkpoint.finish(
            held,
            model,
            stage="prune",
            step=made["step"],
            metrics=after["metrics"],
            compression=[*base.manifest["compression"], applied],
            parents=[inputs["from"]],
            result=made | {"metrics": after["metrics"], "before": before, "after": after, "paired": beside},
        )
