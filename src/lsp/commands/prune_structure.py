"""`lsp compress prune` of structure: layers, hidden width, heads and feed-forward units removed, what is left fitted,
then trained."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lsp import Exit, LspError, checkpoint, directory, timing
from lsp import recipe as recipes
from lsp.compress import latency, structure, width
from lsp.compress.depth import with_layers
from lsp.compress.importance import sizes
from lsp.compress.prune import pruned
from lsp.compress.quantize import limited, nearest, quantize
from lsp.compress.recover import Stage, claimed
from lsp.compress.refit import refit
from lsp.compress.shrink import shrink
from lsp.compress.teacher import answers
from lsp.data.batches import Batch
from lsp.data.examples import Examples
from lsp.model.config import ModelConfig
from lsp.model.int8 import present
from lsp.model.weightonly import dequantize
from lsp.train import labelled
from lsp.train.evaluate import Classifier
from lsp.train.options import Options

RECORD = "structure.json"  # what stays, so that a run that goes on does not choose anew
ROWS = 32  # examples of a batch that matrices are fitted on
TOKENS = 1 << 15  # that they are fitted on, about


def run(
    start: Path,
    out: Path,
    recipe: recipes.Prune,
    files: labelled.Files,
    options: Options,
    teacher: Path | None = None,
) -> dict[str, Any]:
    """Writes the smaller model to `out`. One that came in int8 is measured in int8, and leaves so. It is to be so many
    times as fast as `teacher`, a run with the same tokenizer, and in training learns to answer as that; where it is
    None, as itself before."""
    runs = {"from": start} | ({"teacher": teacher} if teacher else {})
    with claimed(runs, out, recipe, files, options) as held:
        if held.complete:
            return held.result()
        stage = Stage.begun(held, start, recipe, files, options)
        base, sets, asked = stage.base, stage.sets, recipe.prune
        if base.config.preset == "bilstm":
            raise LspError("An LSTM has no heads and units to remove.", hint="Distil it to a narrower one.")
        if asked.int8 != "none" and present(base.params):
            raise LspError(
                f"prune.int8 is for a float model that is quantised afterwards, and {start} is in int8.",
                hint="Leave it out: what comes in int8 is timed in int8, and leaves so.",
            )
        knowing = checkpoint.open(teacher) if teacher else base
        used: Any = partial(quantize, make=limited if asked.int8 == "static" else nearest)
        whole = stage.config, stage.floats(base.params)
        wish = structure.Wish(
            (knowing.config, dequantize(knowing.params)) if teacher else whole,
            asked.speedup,
            asked.depth,
            asked.channels,
            asked.shape,
            latency.typical(sets.dev, base.config.width),
            used if asked.int8 != "none" else quantize if present(base.params) else dict,
        )
        rows = np.random.default_rng(recipe.train.seed).permutation(len(sets.train))[: asked.sample]
        sparse = pruned(base.manifest)
        (config, params), layers = _smaller(whole, sparse, sets.train, rows, wish, held.path / RECORD, options.progress)
        classifier = Classifier(config)
        untrained = classifier.score(stage.formed(params, layers), sets.dev)
        made: dict[str, Any] = {"step": 0, "untrained": untrained.metrics}
        if stage.steps:
            sets.train.wanted = answers(knowing, sets.train, options.progress)
            fitted = stage.fit(config, params, knowing)
            params, made = fitted.params, made | fitted.summary()
        params = stage.formed(params, layers)
        last = classifier.score(params, sets.dev)
        speed = {"speedup": wish._replace(whole=(base.config, base.params)).faster((config, params))}
        again = wish.faster((config, dequantize(params))) if teacher else speed["speedup"]
        if not asked.shape and again < (1 - timing.NOISE) * asked.speedup:
            options.progress.warn(f"measured again it is {again:.2f} times as fast, not {asked.speedup:g}")
        return stage.finished(base.model._replace(config=config, params=params), last, made, speed, speed)


def _smaller(
    whole: structure.Model,
    sparse: bool,
    examples: Examples,
    rows: np.ndarray,
    wish: structure.Wish,
    record: Path,
    progress: Any,
) -> tuple[structure.Model, list[int]]:
    """The model without what was chosen, now or by the run that goes on, and the rest of it fitted; and which layers
    those are."""
    chosen = _recorded(record, whole[0])
    if chosen is None:
        chosen = structure.choose(whole, examples, rows, wish, progress)
        _record(record, chosen)
    shallow, batches, stream = with_layers(whole, chosen.layers), _batches(examples, rows), None
    narrow = shallow
    if chosen.channels is not None:
        stream = chosen.channels.stream
        narrow = width.narrowed(shallow, chosen.channels, examples.some(rows), batches, sparse)
    config, params = shrink(*narrow, chosen.kept)
    progress.say(f"{chosen.speedup:.2f} times as fast with {_told(config, shallow[0].width)}")
    if config != shallow[0]:
        with progress.task("fitting what stays", 2 * len(config.layers)) as task:
            params = refit(shallow, (config, params), batches, task.update, stream, sparse)
    return (config, params), chosen.layers


def _batches(examples: Examples, rows: np.ndarray) -> list[Batch]:
    """The examples in `rows`, those of like length together, until there are enough tokens."""
    enough = int(np.searchsorted(examples.lengths[rows].cumsum(), TOKENS)) + 1
    rows = rows[:enough]
    rows = rows[np.argsort(examples.lengths[rows], kind="stable")]
    return [examples.batch(rows[at : at + ROWS], ROWS) for at in range(0, len(rows), ROWS)]


def _told(config: ModelConfig, before: int) -> str:
    """The heads and units of each layer, and how wide they are if that was `before` more, in short."""
    layers = ", ".join(f"{layer.heads}+{layer.feedforward}" for layer in config.layers) + " heads+units"
    return layers + (f", {config.width} channels wide" if config.width < before else "")


def _record(path: Path, chosen: structure.Chosen) -> None:
    kept = [{"layer": n, "block": block, "kept": parts.tolist()} for (n, block), parts in chosen.kept.items()]
    record: dict[str, Any] = {"speedup": chosen.speedup, "layers": chosen.layers, "blocks": kept}
    if chosen.channels is not None:
        record["channels"] = {name: each.tolist() for name, each in chosen.channels._asdict().items()}
    directory.write_atomically(path, json.dumps(record) + "\n")


def _recorded(path: Path, config: ModelConfig) -> structure.Chosen | None:
    """What was chosen before, of a model of this shape. Raises LspError (exit 4) where that can't be."""
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_bytes())
        kept = {(each["layer"], each["block"]): np.array(each["kept"], np.int64) for each in found["blocks"]}
        wide = {name: np.array(each, np.int64) for name, each in found.get("channels", {}).items()}
        chosen = structure.Chosen(found["layers"], kept, found["speedup"], width.Channels(**wide) if wide else None)
        there = sizes(replace(config, layers=tuple(config.layers[number] for number in chosen.layers)))
        whole = kept.keys() == there.keys() and all({*kept[each].tolist()} <= {*range(there[each])} for each in there)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise LspError(f"{path} is damaged.", hint="Add --overwrite to start this run over.", code=Exit.ARTIFACT)
    return chosen
