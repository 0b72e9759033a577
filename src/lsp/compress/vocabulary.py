"""Vocabulary pruning: pieces that no example has leave the tokenizer and the embedding table (Yang et al., 2022,
"TextPruner"). Half of a small encoder's parameters are there."""

from dataclasses import replace
from typing import Any

import numpy as np

from lsp.checkpoint import Model
from lsp.data.examples import Examples
from lsp.data.subset import subset
from lsp.data.tokenizer import UNK
from lsp.model.int8 import Int8
from lsp.model.weightonly import WeightOnly


def counted(examples: Examples, size: int) -> np.ndarray:
    """How often each piece comes up, int64 [size]."""
    return np.bincount(np.concatenate(examples.tokens), minlength=size)


def commonest(counts: np.ndarray, share: float) -> int:
    """How many of the commonest pieces are a share of all that were `counted`."""
    running = np.cumsum(np.sort(counts)[::-1])
    return int(np.searchsorted(running, share * running[-1]) + 1)


def smaller(model: Model, counts: np.ndarray, pieces: int) -> tuple[Model, np.ndarray]:
    """The model with the pieces that were `counted`, or, unless that is 0, the `pieces` commonest of them, and those
    that `subset` keeps besides; and of each piece its old id, int32. Texts of kept pieces are answered as before, bit
    for bit."""
    wanted = counts[: model.tokenizer.size] > 0
    if pieces:
        wanted[np.argsort(-counts[: len(wanted)], kind="stable")[pieces:]] = False
    words, old = subset(model.tokenizer, wanted)
    embeddings = model.params["embeddings"]
    tokens = embeddings["tokens"] | {"table": _rows(embeddings["tokens"]["table"], old)}
    params = model.params | {"embeddings": embeddings | {"tokens": tokens}}
    config = replace(model.config, vocab_size=words.size)
    return model._replace(config=config, params=params, tokenizer=words), old


def _rows(table: Any, rows: np.ndarray) -> Any:
    if isinstance(table, Int8):
        q, scale = (np.asarray(part)[rows] for part in (table.q, table.scale))
        return Int8.stored(q, scale, table.axis, table.factor, table.limit)
    if isinstance(table, WeightOnly):
        return WeightOnly(np.asarray(table.q)[rows], np.asarray(table.scale)[rows], table.axis)
    return np.asarray(table)[rows]


def coverage(before: Examples, after: Examples, old: np.ndarray) -> dict[str, float]:
    """What fewer pieces do to texts: the share of their pieces that is left (`covered`), how many are [UNK], before and
    now, of a hundred, and how many times as many tokens there are."""
    first, second = (np.concatenate(examples.tokens) for examples in (before, after))
    return {
        "covered": float(np.isin(first, old).mean()),
        "unknown_before": 100 * float((first == UNK).mean()),
        "unknown": 100 * float((second == UNK).mean()),
        "tokens": len(second) / len(first),
    }
