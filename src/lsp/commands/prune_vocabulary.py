"""`lsp compress prune` of the vocabulary: pieces that the examples do not use leave tokenizer and embeddings."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from lsp import recipe as recipes
from lsp.compress import vocabulary
from lsp.compress.recover import Stage, claimed
from lsp.compress.teacher import answers
from lsp.data.examples import Examples
from lsp.train import labelled
from lsp.train.evaluate import Classifier
from lsp.train.options import Options


def run(start: Path, out: Path, recipe: recipes.Prune, files: labelled.Files, options: Options) -> dict[str, Any]:
    """Writes the model with fewer pieces to `out`. It trains only where pieces go that the examples have."""
    progress = options.progress
    with claimed({"from": start}, out, recipe, files, options) as held:
        if held.complete:
            return held.result()
        stage = Stage.begun(held, start, recipe, files, options)
        base, sets = stage.base, stage.sets

        def read(path: Path, how: labelled.Reading) -> Examples:
            return labelled.read(path, files.columns, base.labels, how)

        # Of whole texts, as far as the model reads them when it is used.
        all_of_it = stage.how._replace(length=base.config.max_length)
        counts = vocabulary.counted(read(files.train, all_of_it), base.config.vocab_size)
        whole = base.model._replace(config=stage.config)
        model, old = vocabulary.smaller(whole, counts, recipe.prune.pieces)
        how = stage.how._replace(words=model.tokenizer)
        dev = read(files.dev, how)
        report = vocabulary.coverage(sets.dev, dev, old)
        progress.say(
            f"{base.tokenizer.size:,} pieces become {model.tokenizer.size:,}, and {report['covered']:.2%} of the dev "
            f"file's are among them; {report['unknown']:.2f} % are [UNK], before {report['unknown_before']:.2f} %"
        )
        made: dict[str, Any] = {"step": 0}
        if stage.steps and counts[old].sum() < counts.sum():
            train = read(files.train, how)
            train.wanted = answers(base, sets.train, progress)  # the teacher reads its own tokens
            fewer = replace(sets, train=train, dev=dev)
            fitted = stage._replace(sets=fewer).fit(model.config, stage.floats(model.params), base)
            model, made = model._replace(params=stage.formed(fitted.params)), fitted.summary()
        last = Classifier(model.config).score(model.params, dev)
        return stage.finished(model, last, made, {"vocabulary": report}, {"pieces": model.tokenizer.size})
