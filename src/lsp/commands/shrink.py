"""`lsp compress prune` of structure: heads and feed-forward units removed, what is left fitted, then trained."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from lsp import LspError, checkpoint, directory
from lsp import recipe as recipes
from lsp.compress import latency, measure, structure
from lsp.compress.depth import with_layers
from lsp.compress.quantize import dequantize, quantize
from lsp.compress.recover import Recovery
from lsp.compress.refit import refit
from lsp.compress.shrink import shrink
from lsp.compress.teacher import answers
from lsp.data.batches import Batch
from lsp.data.examples import Examples
from lsp.model.int8 import present
from lsp.train import labelled
from lsp.train.clock import Clock
from lsp.train.evaluate import Classifier
from lsp.train.options import Options

RECORD = "structure.json"  # what stays, so that a run that goes on does not choose anew
ROWS = 32  # examples of a batch that matrices are fitted on
TOKENS = 1 << 15  # that they are fitted on, about


def run(start: Path, out: Path, recipe: recipes.Prune, files: labelled.Files, options: Options) -> dict[str, Any]:
    """Writes the smaller model to `out`. One that came in int8 is measured in int8, and leaves so."""
    clock, progress = Clock(options.budget), options.progress
    inputs = files.digests()
    inputs["from"] = directory.identity(directory.read(start))
    with directory.claim(
        out, command="compress prune", recipe=recipes.dump(recipe), inputs=inputs, overwrite=options.overwrite
    ) as held:
        if held.complete:
            return held.result()
        base = checkpoint.open(start).expect("classes")
        if base.config.preset == "bilstm":
            raise LspError("An LSTM has no heads and units to remove.", hint="Distil it to a narrower one.")
        length = min(recipe.data.sequence_length, base.config.max_length)
        how = labelled.Reading(base.tokenizer, length, base.config.problem)
        sets = labelled.read_sets(files._replace(names=base.labels), how, progress)
        whole = dataclasses.replace(base.config, dropout=recipe.head.dropout), dequantize(base.params)
        leaves = quantize if present(base.params) else _unchanged
        used, batch = quantize if recipe.prune.int8 else leaves, latency.typical(sets.dev)
        asked = recipe.prune
        wish = structure.Wish(asked.speedup, asked.depth, asked.shape, batch, used)
        rows = np.random.default_rng(recipe.train.seed).permutation(len(sets.train))[: asked.sample]
        config, params = _smaller(whole, sets.train, rows, wish, held.path / RECORD, progress)
        first = Classifier(base.config).score(base.params, sets.dev)
        classifier = Classifier(config)
        made: dict[str, Any] = {"step": 0, "untrained": classifier.score(leaves(params), sets.dev).metrics}
        recovery = Recovery(sets, recipe, held.path, clock, options)
        if recovery.steps:
            sets.train.wanted = answers(base, sets.train, progress)
            fitted = recovery.fit(config, params)
            params, made = fitted.params, made | fitted.summary()
        params = leaves(params)
        last = classifier.score(params, sets.dev)
        before, after = base.size() | first.summary(), last.summary()
        beside = measure.beside(held.path, base, sets.dev, first, last)
        after["speedup"] = wish.faster((base.config, base.params), (config, params))
        return checkpoint.finish(
            held,
            checkpoint.Model(config, params, base.tokenizer, base.labels),
            stage="prune",
            step=made["step"],
            metrics=after["metrics"],
            compression=[*base.manifest["compression"], {"stage": "prune", "speedup": after["speedup"]}],
            parents=[inputs["from"]],
            result=made | {"metrics": after["metrics"], "before": before, "after": after, "paired": beside},
        )


def _smaller(
    whole: structure.Model, examples: Examples, rows: np.ndarray, wish: structure.Wish, record: Path, progress: Any
) -> structure.Model:
    """The model without what was chosen, now or by the run that goes on, and the rest of it fitted."""
    chosen = _recorded(record)
    if chosen is None:
        chosen = structure.choose(whole, examples, rows, wish, progress)
        _record(record, chosen)
    shallow = with_layers(whole, chosen.layers)
    config, params = shrink(*shallow, chosen.kept)
    progress.say(f"{chosen.speedup:.2f} times as fast with {_told(config)}")
    if config != shallow[0]:
        with progress.task("fitting what stays", 2 * len(config.layers)) as task:
            params = refit(shallow, (config, params), _batches(examples, rows), task.update)
    return config, params


def _unchanged(params: Any) -> Any:
    return params


def _batches(examples: Examples, rows: np.ndarray) -> list[Batch]:
    """The examples in `rows`, those of like length together, until there are enough tokens."""
    enough = int(np.searchsorted(examples.lengths[rows].cumsum(), TOKENS)) + 1
    rows = rows[:enough]
    rows = rows[np.argsort(examples.lengths[rows], kind="stable")]
    return [examples.batch(rows[at : at + ROWS], ROWS) for at in range(0, len(rows), ROWS)]


def _told(config: Any) -> str:
    """The heads and units of each layer, in short."""
    return ", ".join(f"{layer.heads}+{layer.feedforward}" for layer in config.layers) + " heads+units"


def _record(path: Path, chosen: structure.Chosen) -> None:
    kept = [{"layer": n, "block": block, "kept": parts.tolist()} for (n, block), parts in chosen.kept.items()]
    record = {"speedup": chosen.speedup, "layers": chosen.layers, "blocks": kept}
    directory.write_atomically(path, json.dumps(record) + "\n")


def _recorded(path: Path) -> structure.Chosen | None:
    if not path.exists():
        return None
    found = json.loads(path.read_text())
    kept = {(each["layer"], each["block"]): np.array(each["kept"], np.int64) for each in found["blocks"]}
    return structure.Chosen(found["layers"], kept, found["speedup"])
