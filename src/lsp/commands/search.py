"""`lsp compress search`: chains of compress stages on this machine, until one meets a goal."""

import dataclasses
import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, NamedTuple

from lsp import SETUP, Exit, LspError, chart, checkpoint, console, directory, picture, report
from lsp import recipe as recipes
from lsp.compress import measure, search, vocabulary
from lsp.compress.search import Goal, Shape, Tried
from lsp.data.examples import Examples
from lsp.deploy import apart, parts
from lsp.model.weightonly import any_quantized
from lsp.train import labelled
from lsp.train.compare import FIRST
from lsp.train.evaluate import Classifier, Scores
from lsp.train.options import Options

CANDIDATES = "candidates"  # each stage of each chain, a run
CHAIN = "chain.toml"  # the recipe of the chain that was taken
PICTURE = "pareto.png"
ROWS = 16  # of the drawing in a terminal
MOST = 2000  # examples that speed is measured on
MEASURED = ("points_lost", "speedup", "bytes")  # what a table has of each model that was tried


class Stages(NamedTuple):
    """The commands that a chain is made of: `run` of each."""

    vocabulary: Callable[[Path, Path, recipes.Prune, labelled.Files, Options], dict[str, Any]]
    structure: Callable[[Path, Path, recipes.Prune, labelled.Files, Options, Path | None], dict[str, Any]]
    quantize: Callable[[Path, Path, recipes.Quantize, Path, labelled.Columns, Options, Path | None], dict[str, Any]]


def run(
    start: Path, out: Path, recipe: recipes.Search, files: labelled.Files, goal: Goal, options: Options, stages: Stages
) -> dict[str, Any]:
    """Writes the best model to `out`; every model that was tried stays in `out`/candidates. Raises LspError (exit 1)
    naming the closest where none meets the goal. `options.budget` is when to begin nothing more, in seconds."""
    inputs = files.digests()
    inputs["from"] = directory.identity(directory.read(start))
    with directory.claim(
        out, command="compress search", recipe=recipes.dump(recipe), inputs=inputs, overwrite=options.overwrite
    ) as held:
        if held.complete:
            return _still(held, goal)
        base = checkpoint.open(start).expect("classes")
        _check(base, recipe.chain)
        files = files._replace(names=base.labels)
        trial = _Trial(base, out / CANDIDATES, recipe, files, options, stages)
        tried = [trial.given()] if recipe.chain.depth else list(search.chains(trial, goal))
        taken = search.best(tried, goal)
        front = search.front(tried)
        every = [_row(one, goal) | {"best": one in front, "taken": one == taken} for one in tried]
        _chart(out, every, options.progress)
        why = f"none of {len(tried)} models meets the goal; the closest is {taken.run}"
        _refuse(taken, goal, why, trial.hint(taken, goal))
        model = checkpoint.open(Path(taken.run))
        directory.write_atomically(out / CHAIN, _chain(recipe, taken, model))
        first, last = trial.before(), trial.scored(model)
        beside = measure.beside(held.path, base, trial.examples(base), first, last)
        return checkpoint.finish(
            held,
            model,
            stage="search",
            step=model.manifest["step"],
            metrics=last.metrics,
            compression=model.manifest["compression"],
            parents=[inputs["from"]],
            result={
                "before": base.size() | first.summary(),
                "after": last.summary() | {"speedup": taken.speedup, "points_lost": taken.drop},
                "paired": beside,
                "tried": len(tried),
                "front": [_row(one, goal) for one in front],
            },
        )


def _kept(path: Path, model: checkpoint.Checkpoint, metric: str) -> dict[str, Any] | None:
    """What was measured of this very model, or None: what is damaged is measured again."""
    try:
        found = json.loads(path.read_bytes())
        numbers = found["speedup"], found["metrics"][metric]
        whole = found["self"] == model.manifest["self"] and all(isinstance(each, float) for each in numbers)
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    return found if whole else None


def _check(base: checkpoint.Checkpoint, chain: recipes.Chain) -> None:
    """Raises LspError (exit 2) where a chain can't begin with this model."""
    if chain.int8 != "none" and any_quantized(base.params):
        raise LspError(
            f"{base.path} is quantised already, and a search ends with that.",
            hint="Start from the float run that it was made of, or add --set chain.int8=none.",
        )
    sizes = ("depth", chain.depth, len(base.config.layers)), ("channels", chain.channels, base.config.width)
    for key, asked, there in sizes:
        if asked > there:
            raise LspError(f"chain.{key} = {asked}, and the model has {there}.", hint="Give fewer.")
    structure = (chain.depth or len(base.config.layers), chain.channels, chain.speedup, chain.shape)
    if base.config.preset == "bilstm" and structure != (len(base.config.layers), 0, 1.0, ""):
        raise LspError(
            "chain.depth, channels, speedup and shape are of layers with heads and units, and an LSTM has none.",
            hint="Leave them out, or distil it to a smaller one: lsp compress distill.",
        )


def _still(held: directory.Run, goal: Goal) -> dict[str, Any]:
    """The result of a search that is complete, if what it took meets this goal too. Else it says which of those that it
    tried does: a search for one goal serves others."""
    result = held.result()
    after = result["after"]
    taken = Tried(str(held.path), None, False, after["points_lost"], after["speedup"], result["bytes"])
    others = [Tried(row["run"], None, False, *(row[key] for key in MEASURED)) for row in result["front"]]
    closest = search.best(others, goal)
    hint = "Give another --out, or --overwrite."
    if not goal.missed(closest):
        there = held.path / CANDIDATES / Path(closest.run).name
        hint = (
            f"{there if there.exists() else closest.run}, which it tried, meets this one: {closest.drop:+.2f} points "
            f"lost, {closest.speedup:.2f} times as fast, {console.size(closest.bytes)}. Or give another --out."
        )
    _refuse(taken, goal, f"{held.path} is complete, for another goal", hint)
    return result


def _refuse(taken: Tried, goal: Goal, why: str, hint: str) -> None:
    """Raises LspError (exit 1) where the goal is missed."""
    if goal.missed(taken):
        raise LspError(
            f"Missed: {why}. It loses {taken.drop:.2f} points, is {taken.speedup:.2f} times as fast and has "
            f"{console.size(taken.bytes)}.",
            hint=hint,
            code=Exit.NO,
        )


class _Trial:
    """Makes chains out of one model and measures them beside it. A chain that is there already is not made again."""

    def __init__(
        self,
        base: checkpoint.Checkpoint,
        place: Path,
        recipe: recipes.Search,
        files: labelled.Files,
        options: Options,
        stages: Stages,
    ) -> None:
        self.base, self.place, self.recipe, self.files, self.stages = base, place, recipe, files, stages
        self.options = options._replace(budget=0.0, track=(), overwrite=False)  # of `out` all was removed before
        self.ends = time.monotonic() + options.budget if options.budget else float("inf")
        self.undecided = recipe.chain.int8 == "auto"
        self.int8: recipes.Int8Kind = "static" if recipe.chain.int8 == "auto" else recipe.chain.int8
        self.pieces = recipe.chain.pieces
        self.scores: Scores | None = None
        self.late = False  # whether time was what ended it
        self.last = self.stage = 0.0  # seconds that the last chain with training took, and the last stage of it
        self.aims: list[Shape] = []  # of those with training

    def over(self, seconds: float = 0.0) -> bool:
        """Whether the time is up, or will be in so many seconds."""
        self.late = time.monotonic() + seconds > self.ends
        return self.late

    def hint(self, taken: Tried, goal: Goal) -> str:
        """What may help where nothing meets the goal, and the model that misses it least is `taken`."""
        chain = self.recipe.chain
        ways = ["ask for less"]
        if (self.late or self.over()) and not chain.depth:
            ways.append("give more --budget")
        if taken.drop > goal.drop:
            ways.append("train longer (train.epochs)")
            ways += ["keep all pieces (chain.vocabulary=false)"] if chain.vocabulary else []
            ways += ["stay float (chain.int8=none)"] if chain.int8 != "none" else []
        else:
            ways += ["keep fewer pieces (chain.pieces)"] if goal.size and not self.pieces else []
            ways.append("distil to a narrower model first")
        said = ", ".join(ways[:-1]) + f" or {ways[-1]}"
        return f"{said[0].upper()}{said[1:]}; all that was tried is in candidates/."

    def before(self) -> Scores:
        """What all begin with, measured once."""
        self.scores = self.scores or self.scored(self.base)
        return self.scores

    def scored(self, model: checkpoint.Checkpoint) -> Scores:
        """A model on the dev file."""
        return Classifier(model.config).score(model.params, self.examples(model))

    def given(self) -> Tried:
        """The chain that the recipe spells out."""
        chain, train = self.recipe.chain, self.recipe.train
        whole = self.base.config.preset == "bilstm"  # which has no heads and units to remove
        shape = None if whole else Shape(chain.depth, chain.speedup, channels=chain.channels)
        return self.tried(shape, bool(train.epochs or train.steps))

    def recovered(self, shape: Shape | None) -> Tried | None:
        """A structure with training, as `reached`; or None where one was aimed at the same before."""
        if shape is None or any(search.near(shape, aim) for aim in self.aims):
            return None
        self.aims.append(shape)
        began = time.monotonic()
        found = self.reached(shape, trained=True)
        self.last = time.monotonic() - began
        return found

    def reached(self, shape: Shape, trained: bool) -> Tried | None:
        """The same as `tried`, or None where a structure can't be as fast as it is to be, which is said."""
        try:
            return self.tried(shape, trained)
        except LspError as refused:
            if refused.code != Exit.NO:
                raise
            self.options.progress.say(refused.message)
            return None

    def tried(self, shape: Shape | None, trained: bool) -> Tried:
        """One chain, made and measured."""
        run, name = self.base.path, "plain" + self._words()
        if self.recipe.chain.vocabulary:
            run = self._fewer_pieces(run)
        if shape is not None:
            *half, run = self._pruned(run, shape, trained)
            name = run.name.removesuffix(f"-for-{self.int8}")
            shape = dataclasses.replace(shape, through=_spelt(checkpoint.open(half[0])) if half else "")
        if self.int8 != "none":
            run = self._quantized(run, name, self.int8)
        return self._measured(run, shape, trained)

    def common(self) -> int:
        """How many pieces most of the training examples' tokens are."""
        how = labelled.Reading.of(self.base)
        train = labelled.read(self.files.train, self.files.columns, self.base.labels, how)
        return vocabulary.commonest(vocabulary.counted(train, self.base.config.vocab_size), search.COMMON)

    def _words(self) -> str:
        """What names say of the pieces that stay, where they are not all that the training examples have."""
        return f"-{self.pieces}-pieces" if self.pieces else ""

    def _fewer_pieces(self, start: Path) -> Path:
        out = self.place / ("pieces" + self._words().removesuffix("-pieces"))
        stage = self._stage(recipes.Pruning(what="vocabulary", pieces=self.pieces), trained=False)
        self.options.progress.say(f"— {out.name}")
        self.stages.vocabulary(start, out, stage, self.files, self.options)
        return out

    def _pruned(self, start: Path, shape: Shape, trained: bool) -> list[Path]:
        """The run without what the shape does not have, and before it the one half-way there, where that is far."""
        chain = self.recipe.chain
        # What is pruned for one kind of int8 is another run than what is for the other.
        kind = "" if self.int8 == "none" else f"-for-{self.int8}"
        name = f"{shape.depth}-layers" + (f"-{shape.channels}-wide" if shape.channels else "") + self._words()
        fast = f"{name}-{shape.speedup:g}x"
        asked = recipes.Pruning(
            "structure",
            depth=shape.depth,
            channels=shape.channels,
            speedup=shape.speedup,
            hidden=chain.hidden if trained else 0.0,
            int8=self.int8,
        )
        if not trained or not (chain.through or (shape.speedup > search.STEP and not chain.shape)):
            asked = dataclasses.replace(asked, shape=shape.spelt or chain.shape)
            end = "" if not trained else "-as-found-trained" if shape.spelt else "-trained"
            return [self._made(start, fast + end + kind, asked, trained)]
        half = dataclasses.replace(asked, speedup=search.STEP, shape=chain.through)
        first = self._made(start, f"{name}-half-way-trained{kind}", half, trained)
        rest = dataclasses.replace(asked, depth=0, channels=0, shape=chain.shape)
        return [first, self._made(first, f"{fast}-trained{kind}", rest, trained, start)]

    def _made(self, start: Path, name: str, asked: recipes.Pruning, trained: bool, teacher: Path | None = None) -> Path:
        out, stage = self.place / name, self._stage(asked, trained)
        self.options.progress.say(f"— {name}")
        began = time.monotonic()
        self.stages.structure(start, out, stage, self.files, self.options, teacher)
        self.stage = time.monotonic() - began
        return out

    def _stage(self, asked: recipes.Pruning, trained: bool) -> recipes.Prune:
        ours = self.recipe
        train = ours.train if trained else dataclasses.replace(ours.train, epochs=0.0, steps=0)
        return recipes.Prune(asked, ours.head, ours.data, train, ours.mesh)

    def _quantized(self, start: Path, name: str, kind: Literal["dynamic", "static"]) -> Path:
        out, files = self.place / f"{name}-{kind}", self.files
        stage = recipes.Quantize(recipes.Quantization(kind))
        train = files.train if stage.quantize.calibrates else None
        self.stages.quantize(start, out, stage, files.dev, files.columns, self.options, train)
        return out

    def _measured(self, run: Path, shape: Shape | None, trained: bool) -> Tried:
        """From disk where it was measured before, so that a search that goes on decides as it did."""
        kept = self.place / f"{run.name}.json"
        model, metric = checkpoint.open(run), FIRST[self.base.config.problem]
        found = _kept(kept, model, metric)
        if found is None:
            texts = apart.Texts(str(self.files.dev), self.files.columns, self.recipe.data.sequence_length, MOST)
            speed = apart.speedup(run, self.base.path, texts)
            found = {"self": model.manifest["self"], "speedup": speed, "metrics": self.scored(model).metrics}
            self.place.mkdir(exist_ok=True)
            directory.write_atomically(kept, json.dumps(found) + "\n")
        drop = 100 * (self.before().metrics[metric] - found["metrics"][metric])
        shape = shape and dataclasses.replace(shape, spelt=_spelt(model))
        encoder = next(part.bytes for part in parts.of_run(model) if part.part == "encoder")
        told = drop, found["speedup"], model.size()["bytes"], self.int8, encoder, self.pieces
        tried = Tried(str(run), shape, trained, *told)
        self.options.progress.say(
            f"{run.name}: {drop:+.2f} points lost, {tried.speedup:.2f} times as fast, {console.size(tried.bytes)}"
        )
        return tried

    def examples(self, model: checkpoint.Checkpoint) -> Examples:
        """The dev file as the model reads it."""
        how = labelled.Reading.of(model, self.recipe.data.sequence_length)
        return labelled.read(self.files.dev, self.files.columns, self.base.labels, how)


def _chart(out: Path, tried: list[dict[str, Any]], progress: console.Progress) -> None:
    """Writes what was tried as a table and as a picture, which is drawn on stderr too."""
    directory.write_atomically(out / "pareto.json", json.dumps(tried, indent=1) + "\n")
    dots = [dot._replace(name=console.safe(dot.name)) for dot in report.dots(tried)]
    if len(dots) > 1:
        columns = max(40, min(shutil.get_terminal_size().columns, 100))
        progress.show(chart.scatter(dots, report.AXES, columns, ROWS, console.colour(sys.stderr)))
    try:
        drawn = picture.scatter(dots, report.AREAS, report.AXES, "png")
    except ImportError:
        progress.say(f"no {PICTURE} without matplotlib: {SETUP} plots, in lsp's own folder")
    else:
        directory.write_atomically(out / PICTURE, drawn)


def _row(one: Tried, goal: Goal) -> dict[str, Any]:
    """A line of a table of what was tried."""
    return {
        "run": one.run,
        "points_lost": one.drop,
        "speedup": one.speedup,
        "bytes": one.bytes,
        "meets": not goal.missed(one),
    }


def _spelt(model: checkpoint.Checkpoint) -> str:
    """What each layer has, as `prune.shape` says it."""
    return " ".join(f"{layer.heads}+{layer.feedforward}" for layer in model.config.layers)


def _chain(recipe: recipes.Search, taken: Tried, model: checkpoint.Checkpoint) -> str:
    """The recipe with the chain spelt out, down to the heads and units of each layer: nothing is measured or chosen."""
    kept = taken.shape or Shape(0, 1.0)
    chain = dataclasses.replace(
        recipe.chain,
        pieces=taken.pieces,
        depth=len(model.config.layers),
        channels=kept.channels,
        speedup=1.0,
        shape=kept.spelt,
        through=kept.through,
        int8=taken.int8,
    )
    train = recipe.train if taken.trained else dataclasses.replace(recipe.train, epochs=0.0, steps=0)
    return recipes.dump(dataclasses.replace(recipe, chain=chain, train=train))
