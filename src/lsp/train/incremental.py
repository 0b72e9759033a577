"""A classifier that learns new classes, or from new examples, and does not forget the old ones: its head grows, it goes
on answering for the old classes as it did (learning without forgetting: Li and Hoiem, 2016), and it sees a few old
examples again.

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
Tree = dict[str, Any]


def grown(fresh: Tree, old: Tree) -> Tree:
    """A classifier layer with the columns of `old` [D, C] before those that are new in `fresh`."""
    return {name: np.concatenate([old[name], fresh[name][..., old[name].shape[-1] :]], axis=-1) for name in fresh}


def with_replay(new: Table, old: Table, share: float, seed: int) -> Table:
    """The new examples and a `share` of the old ones, the same each time, repeated until an old class comes as often as
    a new one. At least one example of each old class is among them."""
    by_class: dict[Any, list[int]] = {}
    for row in np.random.default_rng(seed).permutation(len(old.texts)).tolist():
        by_class.setdefault(str(old.labels[row]), []).append(row)
    rows = [row for held in by_class.values() for row in held[: max(1, round(share * len(held)))]]
    classes = max(1, len({str(label) for label in new.labels}))
    times = max(1, round(len(new.texts) * len(by_class) / classes / len(rows)))
    texts, labels = [old.texts[row] for row in rows], [old.labels[row] for row in rows]
    return Table(new.texts + times * texts, new.labels + times * labels, new.names, new.groups)


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
