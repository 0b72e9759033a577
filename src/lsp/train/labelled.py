"""Training on labelled examples, as finetuning, pruning and distillation share it."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lsp import LspError
from lsp import recipe as recipes
from lsp.checkpoint import Checkpoint
from lsp.data import batches, tasks, text
from lsp.data.examples import Examples, example_numbers, in_batches
from lsp.data.tokenizer import Tokenizer
from lsp.model.config import ModelConfig
from lsp.train import best, incremental, metrics
from lsp.train.clock import Clock
from lsp.train.evaluate import Classifier
from lsp.train.loop import Plan
from lsp.train.objectives import Objective

MANY = 1000  # steps from which less padding is worth more shapes to compile for

Columns = tuple[tuple[str, ...], str]  # names or numbers of the text columns, and of the label column


class Files(NamedTuple):
    """What to train on and what to measure on, and the columns to read, of both."""

    train: Path
    dev: Path
    columns: Columns = ((), "")
    names: tuple[str, ...] | None = None  # the classes, where they are not to be learnt from the training file
    old: Path | None = None  # examples of what a classifier knows already, to train on again
    old_dev: Path | None = None  # and to measure on

    def digests(self) -> dict[str, str]:
        """What the files held when a run began, and what of them was to be read."""
        given = {"train": self.train, "dev": self.dev, "old": self.old, "old_dev": self.old_dev}
        found = {name: text.digest([str(path)]) for name, path in given.items() if path} | spelt(self.columns)
        return found | ({"classes": ",".join(self.names)} if self.names else {})


def spelt(columns: Columns) -> dict[str, str]:
    """The columns among the inputs of a run; nothing where the usual ones are meant."""
    return {"columns": f"{'+'.join(columns[0])}→{columns[1]}"} if columns != ((), "") else {}


@dataclass(frozen=True)
class Sets:
    """Encoded examples to train on and to measure on, over the same label names."""

    train: Examples
    dev: Examples
    names: tuple[str, ...]
    columns: tuple[str, ...] = ()  # what those of the texts are called
    balance: Examples | None = None  # of old and new classes, not trained on: by them a classifier that grew is judged


class Reading(NamedTuple):
    """How examples are read: with which tokenizer, cut to how many tokens, and what a label is."""

    words: Tokenizer
    length: int
    problem: recipes.Problem = "single_label"
    grow: bool = False  # classes that are not among the names follow them
    known: tuple[str, ...] = ()  # columns of texts that a classifier was trained on
    order: tuple[str, ...] = ()  # of the classes, where a file has these

    @classmethod
    def of(cls, base: Checkpoint, length: int | None = None) -> "Reading":
        """As a classifier reads, cut to `length` tokens where that is less than it takes."""
        most = base.config.max_length
        return cls(base.tokenizer, min(length or most, most), base.config.problem, known=base.columns)

    def examples(self, table: tasks.Table) -> Examples:
        return Examples(table, self.words, self.length, self.problem)


def read_table(
    path: Path, columns: Columns, names: tuple[str, ...] | None, how: Reading, slices: Sequence[str] = ()
) -> tasks.Table:
    """A file whose labels are `names`, or its own where that is None. Raises LspError (exit 3)."""
    return tasks.read(
        path,
        text_columns=columns[0],
        label_column=columns[1],
        labels=names,
        problem=how.problem,
        slices=slices,
        grow=how.grow,
        known=how.known,
    )


def remark(table: tasks.Table, path: Path, progress: Any) -> None:
    """Warns of lines of a table that were passed by."""
    if table.passed:
        progress.warn(f"{table.passed} lines of {path} end early and are passed by, as is usual for QQP")


def read(path: Path, columns: Columns, names: tuple[str, ...] | None, how: Reading) -> Examples:
    """The examples of such a file."""
    return how.examples(read_table(path, columns, names, how))


def read_sets(files: Files, how: Reading, progress: Any, replay: float = 0.0, seed: int = 0) -> Sets:
    """Both files, and a share `replay` of the old examples among those to train on. Raises LspError (exit 3)."""
    table, balance = read_table(files.train, files.columns, files.names, how), None
    if files.names is None and table.names != how.order and set(table.names) == set(how.order):
        table = read_table(files.train, files.columns, how.order, how)
    remark(table, files.train, progress)
    how = how._replace(grow=False)  # new classes are those that there are examples of to train on
    if files.old and replay:
        before = read_table(files.old, files.columns, files.names, how)
        # Kept apart to balance old and new classes by, where that can be done.
        apart = 0.0 if files.old_dev or how.problem != "single_label" else incremental.APART
        table, judged = incremental.with_replay(table, before, replay, seed, apart)
        progress.say(f"training on {len(table.texts):,} examples, old ones among them as often as new ones")
        balance = how.examples(judged) if judged.texts else None
    examples = how.examples(table)
    if examples.cut:
        progress.warn(f"{examples.cut} of {len(examples)} training examples are cut to {how.length} tokens")
    dev = read(files.dev, files.columns, table.names, how)
    if dev.cut:
        cut = f"{dev.cut} of {len(dev)} dev examples are cut to {how.length} tokens"
        progress.warn(f"{cut}; lsp evaluate reads all that the model can")
    if files.old_dev:
        balance = Examples.joined([dev, read(files.old_dev, files.columns, table.names, how)])
    return Sets(examples, dev, table.names, table.columns, balance)


def weigh(examples: Examples, head: recipes.NewHead) -> None:
    """Makes every class weigh as much as any other, where the recipe asks for that; the mean example weighs 1. Raises
    LspError (exit 2) where examples have no single class."""
    if head.class_weights == "none":
        return
    if head.problem != "single_label":
        raise LspError(f"head.class_weights does not go together with {head.problem}.", hint="Leave it out.")
    _, place, counts = np.unique(examples.labels, return_inverse=True, return_counts=True)
    examples.weights = (len(examples) / (len(counts) * counts))[place].astype(np.float32)


def plan(
    config: ModelConfig,
    params: Any,
    objective: Objective,
    sets: Sets,
    recipe: recipes.Finetune | recipes.Prune | recipes.Distill | recipes.Quantize,
    clock: Clock,
) -> Plan:
    """A plan over the sets. Raises LspError (exit 2)."""
    train = counted(recipe.train, len(sets.train))
    if not train.steps:
        raise LspError("train.steps and train.epochs are 0: that trains nothing.", hint="Leave out train.epochs.")
    if train.batch_start:
        raise LspError("train.batch_start is for pretraining.", hint="Leave it out.")
    if train.best:
        best.known(train.best, metrics.names(config.problem))
    classifier = Classifier(config)
    return Plan(
        config=config,
        params=params,
        objective=objective,
        batches=training(sets.train, train, [train.seed]),
        evaluate=lambda params: classifier.score(objective.whole(params, objective.frozen), sets.dev).metrics,
        train=train,
        mesh=recipe.mesh,
        clock=clock,
        rows=example_numbers(sets.train, batch_size=train.batch_size, seed=train.seed),
        decode=sets.train.decode,
    )


def training(
    examples: Examples, train: recipes.Train, seeds: Sequence[int]
) -> Callable[[int, int], Iterator[dict[str, np.ndarray]]]:
    """The batches of steps, for one seed or for several at once (`examples.in_batches`)."""
    dataset = in_batches(examples, batch_size=train.batch_size, seeds=seeds, fine=train.steps >= MANY)
    return lambda first, last: batches.read_ahead(dataset, first, last)


def counted(train: recipes.Train, examples: int) -> recipes.Train:
    """The recipe with `steps` worked out from `epochs` where it is 0; none where both are."""
    per_epoch = math.ceil(examples / train.batch_size)
    least = int(train.epochs > 0)
    return train if train.steps else dataclasses.replace(train, steps=max(least, round(train.epochs * per_epoch)))
