"""`lsp predict`: labels and probabilities of a classifier, or an encoder's guesses for each [MASK], row by row."""

import itertools
import json
import queue
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import jax
import numpy as np

from lsp import Exit, LspError, checkpoint, console
from lsp.data import tasks
from lsp.data.examples import Examples
from lsp.data.tokenizer import CLS, MASK, SEP, Tokenizer
from lsp.deploy import exported, faster
from lsp.recipe import Problem
from lsp.train import answers, labelled
from lsp.train.evaluate import Classifier, MaskedWords

CHUNK = 256  # rows that are answered together
GUESSES = 5
Row = dict[str, Any]
Read = tuple[tuple[str, ...], dict[str, Any]]  # the texts of a row, and its other columns


class Output(NamedTuple):
    """Where rows go, and in which form; `top` counts the classes, or words, whose probability is told."""

    file: TextIO
    as_json: bool
    top: int = 0


def run(start: Path, source: str, columns: labelled.Columns, output: Output, progress: Any) -> None:
    """Writes one line for each row of `source`, in order, holding few rows at a time; what is on stdin is answered as
    it comes."""
    answer, known = _answer(start, output, progress)
    line: Callable[[Row, Row], str] = _json if output.as_json else _Tsv(progress).line
    rows, done = tasks.stream(source, columns[0], known), 0
    with progress.task("predicting", None) as task:
        chunks = iter(lambda: list(itertools.islice(rows, CHUNK)), [])
        for chunk in _as_they_come(rows) if source == "-" else chunks:
            for row, (_, others) in zip(answer([texts for texts, _ in chunk]), chunk, strict=True):
                output.file.write(line(row, others) + "\n")
            output.file.flush()
            done += len(chunk)
            task.update(done)


def _as_they_come(rows: Iterator[Read]) -> Iterator[list[Read]]:
    """Rows that are there, at least one and `CHUNK` at most, while others are read."""
    ready: queue.Queue[Read | BaseException | None] = queue.Queue(4 * CHUNK)

    def read() -> None:
        try:
            for row in rows:
                ready.put(row)
            ready.put(None)
        except BaseException as error:
            ready.put(error)

    threading.Thread(target=read, daemon=True).start()
    chunk: list[Read] = []
    while True:
        row = ready.get()
        if isinstance(row, tuple):
            chunk.append(row)
        if chunk and (len(chunk) == CHUNK or ready.empty() or not isinstance(row, tuple)):
            yield chunk
            chunk = []
        if isinstance(row, BaseException):
            raise row
        if row is None:
            return


def _answer(start: Path, output: Output, progress: Any) -> tuple[Any, tuple[str, ...]]:
    """What makes rows of texts, by a run or by what was exported of one, and the columns that it was trained on."""
    if exported.holds(start):
        model = exported.open(start)
        kept = _Classes(model.tokenizer, model.labels, model.problem, model.max_length, model.logits)
        return _labels(kept, output), model.columns
    base = checkpoint.open(start).expect("classes", "words")
    if base.config.head == "words":
        return _words(base, output.top or GUESSES), ()
    choice = faster.choose(base)
    if choice.why:
        progress.say(choice.why)
    logits = partial(Classifier(base.config).logits, jax.device_put(choice.params))
    kept = _Classes(base.tokenizer, base.labels, base.config.problem, base.config.max_length, logits)
    return _labels(kept, output), base.columns


class _Classes(NamedTuple):
    """A classifier, whatever runs it."""

    tokenizer: Tokenizer
    names: tuple[str, ...]
    problem: Problem
    max_length: int
    logits: Callable[[Examples], np.ndarray]


def _labels(model: _Classes, output: Output) -> Any:
    if output.top and (model.problem == "regression" or not output.as_json):
        found = "numbers have no classes" if model.problem == "regression" else "a row has the likeliest label alone"
        hint = "Leave it out." if model.problem == "regression" else "Add --json, or leave it out."
        raise LspError(f"--top-k is for the probabilities of classes, and {found}.", hint=hint)

    def answer(texts: list[tuple[str, ...]]) -> Iterator[Row]:
        examples = Examples(tasks.Table(texts, [], model.names), model.tokenizer, model.max_length)
        found = answers.of(model.problem, model.names, model.logits(examples), output.top)
        for row, text, cut in zip(found, texts, examples.too_long, strict=True):
            yield row | {"text": text[0] if len(text) == 1 else list(text)} | ({"truncated": True} if cut else {})

    return answer


def _words(base: checkpoint.Checkpoint, top: int) -> Any:
    words, params = base.tokenizer, jax.device_put(base.params)
    guesser = MaskedWords(base.config, min(top, words.size), words.size)

    def behind(part: str, ids: list[int]) -> list[int]:
        """The pieces behind a mask. Where no space is there, SentencePiece has put one before them."""
        return ids[1:] if not part[:1].isspace() and words.pieces(ids[:1]) == ["▁"] else ids

    def encode(text: str) -> tuple[np.ndarray, bool]:
        """The tokens, and whether the text has more than the encoder takes."""
        parts = [part.rstrip() for part in text.split("[MASK]")]
        if len(parts) == 1:
            raise LspError(
                f"No [MASK] to guess in: {text[:80]!r}",
                hint="An encoder guesses masked words: echo 'The capital is [MASK].' | lsp predict --from RUN",
                code=Exit.DATA,
            )
        first, *others = zip(parts, words.encode(parts), strict=True)
        pieces = [*first[1], *itertools.chain.from_iterable([MASK, *behind(*each)] for each in others)]
        tokens = np.array([CLS, *pieces, SEP], np.int32)
        return tokens[: base.config.max_length], len(tokens) > base.config.max_length

    def answer(texts: list[tuple[str, ...]]) -> Iterator[Row]:
        for text in (" ".join(columns) for columns in texts):
            tokens, cut = encode(text)
            ids, probabilities = guesser(params, tokens, np.flatnonzero(tokens == MASK))
            yield {
                "guesses": [
                    {piece: round(float(p), 6) for piece, p in zip(words.pieces(row.tolist()), ps, strict=True)}
                    for row, ps in zip(ids, probabilities, strict=True)
                ],
                "text": text,
            } | ({"truncated": True} if cut else {})

    return answer


def _json(row: Row, others: Row) -> str:
    return json.dumps(console.plain(row | ({"columns": others} if others else {})), ensure_ascii=False)


class _Tsv:
    """Label, probability, text, other columns; or for each mask its guesses. Several labels have commas between them.
    Tabs and line ends inside a cell become spaces. The other columns are those of the first row, in its order: records
    may have their own."""

    def __init__(self, progress: Any) -> None:
        self.progress = progress
        self.fields: list[str] | None = None
        self.told = False

    def line(self, row: Row, others: Row) -> str:
        if self.fields is None:
            self.fields = list(others)
        if not self.told and (new := [name for name in others if name not in self.fields]):
            self.progress.warn(f"fields that the first record has not are left out, {new[0]} first; --json keeps them")
            self.told = True
        if "label" in row:
            label = row["label"]
            cells = [",".join(label) if isinstance(label, list) else str(label)]
            cells += [f"{row['probability']:.4f}"] if "probability" in row else []
        else:
            cells = [" | ".join(" ".join(f"{piece}:{p:.3f}" for piece, p in mask.items()) for mask in row["guesses"])]
        cells += [row["text"]] if isinstance(row["text"], str) else row["text"]
        kept = [others.get(name, "") for name in self.fields]
        cells += [each if isinstance(each, str) else json.dumps(each, ensure_ascii=False) for each in kept]
        return "\t".join(map(_cell, cells))


def _cell(text: str) -> str:
    return " ".join(text.splitlines()).replace("\t", " ")
