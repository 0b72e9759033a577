"""`lsp predict`: labels and probabilities of a classifier, or an encoder's guesses for each [MASK], row by row."""

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import numpy as np

from lsp import Exit, LspError, checkpoint
from lsp.data import batches, tasks
from lsp.data.tokenizer import CLS, MASK, SEP
from lsp.train import labelled, metrics
from lsp.train.evaluate import Classifier, MaskedWords

CHUNK = 256  # rows read before the first is answered; inside, rows of like length share a batch
GUESSES = 5
Row = dict[str, Any]


def run(start: Path, source: str, columns: labelled.Columns, output: TextIO, as_json: bool, progress: Any) -> None:
    """Writes one line for each row of `source`, in order, holding `CHUNK` rows at a time."""
    base = checkpoint.open(start).expect("classes", "words")
    answer = _labels(base) if base.config.head == "classes" else _words(base)
    rows = tasks.stream(source, columns[0])
    with progress.task("predicting", None) as task:
        for done in itertools.count(0, CHUNK):
            texts = list(itertools.islice(rows, CHUNK))
            if not texts:
                break
            for row in answer(texts):
                output.write((json.dumps(row, ensure_ascii=False) if as_json else _tsv(row)) + "\n")
            output.flush()
            task.update(done + len(texts))


def _labels(base: checkpoint.Checkpoint) -> Any:
    classifier = Classifier(base.config)

    def answer(texts: list[tuple[str, ...]]) -> Iterator[Row]:
        examples = batches.Examples(tasks.Table(texts, [], base.labels), base.tokenizer, base.config.max_length)
        logits = classifier.logits(base.params, examples)
        for row, text in zip(metrics.probabilities(logits), texts, strict=True):
            best = int(row.argmax())
            probabilities = {name: round(float(value), 6) for name, value in zip(base.labels, row, strict=True)}
            yield {"label": base.labels[best], "probability": probabilities[base.labels[best]]} | {
                "probabilities": probabilities,
                "text": text[0] if len(text) == 1 else list(text),
            }

    return answer


def _words(base: checkpoint.Checkpoint) -> Any:
    guesser = MaskedWords(base.config, GUESSES)

    def encode(text: str) -> np.ndarray:
        parts = [part.rstrip() for part in text.split("[MASK]")]
        if len(parts) == 1:
            raise LspError(
                f"No [MASK] to guess in: {text[:80]!r}",
                hint="An encoder guesses masked words: echo 'The capital is [MASK].' | lsp predict --from RUN",
                code=Exit.DATA,
            )
        pieces = itertools.chain.from_iterable([MASK, *ids] for ids in base.tokenizer.encode(parts))
        return np.array([CLS, *itertools.islice(pieces, 1, None), SEP], np.int32)[: base.config.max_length]

    def answer(texts: list[tuple[str, ...]]) -> Iterator[Row]:
        for text in (" ".join(columns) for columns in texts):
            tokens = encode(text)
            ids, probabilities = guesser(base.params, tokens, np.flatnonzero(tokens == MASK))
            yield {
                "guesses": [
                    {
                        piece: round(float(p), 6)
                        for piece, p in zip(base.tokenizer.pieces(row.tolist()), ps, strict=True)
                    }
                    for row, ps in zip(ids, probabilities, strict=True)
                ],
                "text": text,
            }

    return answer


def _tsv(row: Row) -> str:
    """Label, probability, text; or for each mask its guesses. Tabs and line ends inside a text become spaces."""
    text = row["text"] if isinstance(row["text"], str) else "\t".join(row["text"])
    if "label" in row:
        return f"{_cell(row['label'])}\t{row['probability']:.4f}\t{text.replace(chr(10), ' ')}"
    guesses = " | ".join(" ".join(f"{piece}:{p:.3f}" for piece, p in mask.items()) for mask in row["guesses"])
    return f"{_cell(guesses)}\t{_cell(text)}"


def _cell(text: str) -> str:
    return " ".join(text.splitlines()).replace("\t", " ")
