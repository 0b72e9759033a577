"""Training on labelled examples, as finetuning, pruning and distillation share it."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import optax

from lsp import LspError
from lsp import recipe as recipes
from lsp.data import batches, tasks, text
from lsp.data.tokenizer import Tokenizer
from lsp.model.config import ModelConfig
from lsp.train.clock import Clock
from lsp.train.evaluate import Classifier
from lsp.train.loop import Plan
from lsp.train.objectives import Objective

Columns = tuple[tuple[str, ...], str]  # names or numbers of the text columns, and of the label column


class Files(NamedTuple):
    """What to train on and what to measure on, and the columns to read, of both."""

    train: Path
    dev: Path
    columns: Columns = ((), "")

    def digests(self) -> dict[str, str]:
        """What the files held when a run began."""
        return {"train": text.digest([str(self.train)]), "dev": text.digest([str(self.dev)])}


@dataclass(frozen=True)
class Sets:
    """Encoded examples to train on and to measure on, over the same label names."""

    train: batches.Examples
    dev: batches.Examples
    names: tuple[str, ...]


def read(path: Path, columns: Columns, words: Tokenizer, length: int, names: tuple[str, ...]) -> batches.Examples:
    """Examples of a file whose labels are `names`; cut to `length` tokens. Raises LspError (exit 3)."""
    table = tasks.read(path, text_columns=columns[0], label_column=columns[1], labels=names)
    return batches.Examples(table, words, length)


def read_sets(
    files: Files,
    words: Tokenizer,
    length: int,
    progress: Any,
    names: tuple[str, ...] | None = None,
) -> Sets:
    """Both files. The label names come from the training file unless given. Raises LspError (exit 3)."""
    texts, label = files.columns
    table = tasks.read(files.train, text_columns=texts, label_column=label, labels=names)
    examples = batches.Examples(table, words, length)
    if examples.cut:
        progress.warn(f"{examples.cut} of {len(examples)} training examples are cut to {length} tokens")
    return Sets(examples, read(files.dev, files.columns, words, length, table.names), table.names)


def plan(
    config: ModelConfig,
    params: Any,
    objective: Objective,
    sets: Sets,
    recipe: recipes.Finetune | recipes.Prune | recipes.Distill,
    clock: Clock,
    transform: optax.GradientTransformation | None = None,
    teacher: ModelConfig | None = None,
) -> Plan:
    """A plan over the sets. Raises LspError (exit 2)."""
    train = counted(recipe.train, len(sets.train))
    if train.batch_start:
        raise LspError("train.batch_start is for pretraining.", hint="Leave it out.")
    dataset = batches.labelled(sets.train, batch_size=train.batch_size, seed=train.seed)
    classifier = Classifier(config)
    return Plan(
        config=config,
        params=params,
        objective=objective,
        batches=lambda first, last: batches.read_ahead(dataset, first, last),
        evaluate=lambda params: classifier.score(params, sets.dev).metrics,
        train=train,
        mesh=recipe.mesh,
        clock=clock,
        transform=transform,
        teacher=teacher,
        rows=batches.example_numbers(sets.train, batch_size=train.batch_size, seed=train.seed),
        decode=sets.train.decode,
    )


def counted(train: recipes.Train, examples: int) -> recipes.Train:
    """The recipe with `steps` worked out from `epochs` where it is 0."""
    per_epoch = math.ceil(examples / train.batch_size)
    return train if train.steps else dataclasses.replace(train, steps=max(1, round(train.epochs * per_epoch)))
