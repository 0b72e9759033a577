"""A classifier that learns new classes, or from new examples, and does not forget the old ones: its head grows, it goes
on answering for the old classes as it did (learning without forgetting: Li and Hoiem, 2016), it sees a few old examples
again, and by others it is judged how much to prefer the old (bias correction: Wu et al., 2019).

Dimensions: B rows, D width, C classes.
"""

from typing import Any

import jax
import numpy as np
from flax import nnx

from lsp.data.tasks import Table
from lsp.model.config import ModelConfig
from lsp.model.encoder import Model, graphdef
from lsp.train.metrics import Mean
from lsp.train.objectives import JUDGES, Batch, Loss, divergence

TEMPERATURE = 2.0  # as in the paper
APART = 0.25  # of the old examples that are replayed, those to judge by where there are no others
Tree = dict[str, Any]


def grown(fresh: Tree, old: Tree) -> Tree:
    """A classifier layer with the columns of `old` [D, C] before those that are new in `fresh`."""
    return {name: np.concatenate([old[name], fresh[name][..., old[name].shape[-1] :]], axis=-1) for name in fresh}


def with_replay(new: Table, old: Table, share: float, seed: int, apart: float = APART) -> tuple[Table, Table]:
    """The new examples and a `share` of the old ones, the same each time, repeated until an old class comes as often as
    a new one. Of that share a part `apart` is in the second table instead, with as many new examples of each class, to
    find `shift` by.

    At least one example of each old class is trained on; the second table is empty where there are too few."""
    random = np.random.default_rng(seed)
    old_rows, new_rows = (_by_class(table, random) for table in (old, new))
    drawn = {label: rows[: max(1, round(share * len(rows)))] for label, rows in old_rows.items()}
    back = {label: rows[: int(len(rows) * apart)] for label, rows in drawn.items()}
    size = min(map(len, back.values()))
    beside = {label: rows[:size] for label, rows in new_rows.items() if len(rows) > 2 * size}
    kept = [row for label, rows in drawn.items() for row in rows[len(back[label]) :]]
    left = np.setdiff1d(np.arange(len(new.texts)), [row for rows in beside.values() for row in rows]).tolist()
    times = max(1, round(len(left) * len(drawn) / len(new_rows) / len(kept)))
    trained = _joined(new.some(left), *[old.some(kept)] * times)
    judged = [old.some(rows) for rows in back.values()] + [new.some(rows) for rows in beside.values()]
    return trained, _joined(new.some([]), *judged)


def _by_class(table: Table, random: np.random.Generator) -> dict[str, list[int]]:
    """The rows of each class, shuffled."""
    found: dict[str, list[int]] = {}
    for row in random.permutation(len(table.texts)).tolist():
        found.setdefault(str(table.labels[row]), []).append(row)
    return found


def _joined(first: Table, *others: Table) -> Table:
    """All rows; the columns are those of the first."""
    texts, labels = list(first.texts), list(first.labels)
    for other in others:
        texts += other.texts
        labels += other.labels
    return Table(texts, labels, first.names, columns=first.columns)


def shift(logits_NC: np.ndarray, labels_N: np.ndarray, old: int, least: float = 0.0) -> float:
    """What to take from the logits of the classes behind the first `old`, so that old and new examples, each side
    counted as much as the other, are right as often as can be while a share `least` of the old ones is, or as many as
    can be: a classifier that saw few old examples says too readily that something is new. 0 where one side is missing.
    """
    new_N = labels_N >= old
    if new_N.all() or not new_N.any():
        return 0.0
    # An example is right if its side wins, and it is the right one of its side.
    margin_N = logits_NC[:, old:].max(1) - logits_NC[:, :old].max(1)
    best_N = np.where(new_N, old + logits_NC[:, old:].argmax(1), logits_NC[:, :old].argmax(1))
    weight_N = (best_N == labels_N) / np.where(new_N, new_N.sum(), (~new_N).sum())
    order = np.argsort(margin_N, kind="stable")
    cuts = margin_N[order]
    between = np.concatenate([[cuts[0] - 1], (cuts[1:] + cuts[:-1]) / 2, [cuts[-1] + 1]])
    # Below a cut all is answered as old, above it as new.
    below_old, below_new = (np.concatenate([[0.0], np.cumsum((weight_N * side)[order])]) for side in (~new_N, new_N))
    right = below_old + below_new[-1] - below_new
    right[below_old < min(least, below_old[-1]) - 1e-9] = -1
    right[1:-1][cuts[1:] == cuts[:-1]] = -1  # no cut parts examples of the same margin
    best = np.flatnonzero(np.isclose(right, right.max()))
    return float(between[best[len(best) // 2]])


def remembering(old: ModelConfig, strength: float) -> Loss:
    """The loss for the labels, and `strength` times the divergence from what the old self, `frozen`, answers for its
    classes."""
    structure, problem = graphdef(old), old.problem

    def remember(model: Model, frozen: Any, batch: Batch, key: jax.Array | None) -> tuple[Mean, dict[str, Mean]]:
        inputs = batch["tokens"], batch["segments"], batch["types"]
        wanted_BC = jax.lax.stop_gradient(nnx.merge(structure, frozen).classify(*inputs))
        logits_BC, weights_B = model.classify(*inputs, key=key), batch["weights"]
        mean, metrics = JUDGES[problem](logits_BC, batch["labels"], weights_B)
        apart_B = divergence(problem, wanted_BC, logits_BC[:, : old.classes], TEMPERATURE)
        kept = Mean((apart_B * weights_B).sum(), weights_B.sum())
        return Mean(mean.total + strength * kept.total, mean.count), metrics | {"drift": kept}

    return remember
