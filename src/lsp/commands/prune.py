"""`lsp compress prune`: zeros in the encoder's matrices, with training that recovers what they cost."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lsp import checkpoint, directory
from lsp import recipe as recipes
from lsp.compress import prune
from lsp.compress.quantize import dequantize, quantize
from lsp.data import text
from lsp.model.int8 import present
from lsp.train import labelled, trackers
from lsp.train.clock import Clock
from lsp.train.evaluate import Classifier
from lsp.train.loop import fit
from lsp.train.objectives import Objective, classification


def run(
    start: Path,
    out: Path,
    recipe: recipes.Prune,
    train: Path,
    dev: Path,
    columns: labelled.Columns,
    *,
    budget: float = 0.0,
    track: Sequence[str] = (),
    overwrite: bool,
    progress: Any,
) -> dict[str, Any]:
    """Writes the sparse model to `out`. A model that came in int8 trains in fp32 and leaves in int8 again."""
    clock = Clock(budget)
    inputs = {"train": text.digest([str(train)]), "dev": text.digest([str(dev)])}
    inputs["from"] = directory.identity(directory.read(start))
    with directory.claim(
        out, command="compress prune", recipe=recipes.dump(recipe), inputs=inputs, overwrite=overwrite
    ) as held:
        if held.complete:
            return held.result()
        base = checkpoint.open(start).expect("classes")
        config = base.config.classifier(len(base.labels), base.config.pooling, recipe.head.dropout)
        sets = labelled.read_sets(
            train, dev, columns, base.tokenizer, recipe.data.sequence_length, progress, base.labels
        )
        steps = labelled.counted(recipe.train, len(sets.train))
        classifier = Classifier(config)
        before = base.size() | classifier.score(base.params, sets.dev).summary()
        plan = labelled.plan(
            config,
            dequantize(base.params),
            Objective(classification),
            sets,
            steps,
            recipe.mesh,
            clock,
            prune.gradual(recipe.prune, steps.steps),
        )
        with trackers.opened(track, held.path, progress) as followers:
            fitted = fit(plan, held.path, progress, followers)
        params = quantize(fitted.params) if present(base.params) else fitted.params
        after = classifier.score(params, sets.dev).summary() | {"sparsity": prune.sparsity(params)}
        return checkpoint.finish(
            held,
            stage="prune",
            config=config,
            params=params,
            tokenizer=base.tokenizer,
            step=fitted.step,
            metrics=after["metrics"],
            labels=base.labels,
            compression=[*base.manifest["compression"], {"stage": "prune", "sparsity": after["sparsity"]}],
            parents=[inputs["from"]],
            result=fitted.summary() | {"before": before, "after": after},
        )
