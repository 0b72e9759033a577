"""What each part of a classifier costs when it alone is quantised, and which parts stay float so that a budget holds.

A part is a layer's attention or feed-forward block (of a `bilstm` the layer), the embedding tables together, or a head.

Dimensions: N examples, C classes.
"""

import functools
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lsp.compress.quantize import Path, Tree, mapped
from lsp.data.examples import Examples
from lsp.model.int8 import Matrix, matmul, take
from lsp.train.evaluate import Classifier, Scores
from lsp.train.objectives import divergence
from lsp.train.paired import Pair


@functools.partial(jax.tree_util.register_dataclass, data_fields=("w", "small", "on"), meta_fields=())
@dataclass(frozen=True)
class Either(Matrix):
    """A matrix and a smaller one of the same shape; the scalar bool `on` says which makes the products: so one compiled
    program serves for every choice of parts."""

    w: Any
    small: Any
    on: Any

    def product(self, x: jax.Array, transpose: bool) -> jax.Array:
        def by(w: Any) -> Callable[[jax.Array], jax.Array]:
            return lambda x: matmul(x, w, transpose=transpose)

        return jax.lax.cond(self.on, by(self.small), by(self.w), x)

    def rows(self, ids: jax.Array) -> jax.Array:
        return jax.lax.cond(self.on, lambda ids: take(self.small, ids), lambda ids: take(self.w, ids), ids)


def part(path: Path) -> str:
    """The name of the part that a matrix belongs to, as in `layers.0.attention`."""
    return ".".join(map(str, path[:-2] or path[:1]))


def parts(params: Tree, small: Tree) -> list[str]:
    """The parts that differ between a model and its quantised form, from the bottom up."""
    found: dict[str, None] = {}

    def leaf(path: Path, w: Any) -> Any:
        if _at(small, path) is not w:
            found.setdefault(part(path))

    mapped(leaf, params)
    return list(found)


def mixed(params: Tree, small: Tree, kept: Set[str]) -> Tree:
    """The quantised model with the parts `kept` as they were."""
    return mapped(lambda path, w: w if part(path) in kept else _at(small, path), params)


def sensitivity(
    classifier: Classifier,
    params: Tree,
    small: Tree,
    examples: Examples,
    done: Callable[[int], None] = lambda number: None,
) -> list[dict[str, Any]]:
    """A row for each part, the most harmful first: with it alone quantised, by how many percent points the main metric
    falls, and how far the answers are from those of the model as it was, in the mean (`objectives.divergence`: nats of
    KL for classes). They are ordered by the latter, which tells more apart on few examples. `done` hears how many are
    measured."""
    problem = classifier.problem
    names = parts(params, small)

    def logits(on: Set[str]) -> np.ndarray:
        def leaf(path: Path, w: Any) -> Any:
            other = _at(small, path)
            return w if other is w else Either(w, other, np.bool_(part(path) in on))

        return classifier.logits(mapped(leaf, params), examples)

    before_NC = logits(frozenset())
    rows = []
    for number, name in enumerate(names, 1):
        after_NC = logits({name})
        away = float(divergence(problem, jnp.asarray(before_NC), jnp.asarray(after_NC)).mean())
        rows.append(
            {
                "part": name,
                "points_lost": 100 * Pair(problem, before_NC, after_NC, examples.labels).lost(),
                "divergence": away,
            }
        )
        done(number)
    return sorted(rows, key=lambda row: -row["divergence"])


class Within(NamedTuple):
    """The smallest model found: parameters, the parts that stayed float, what it scores and what the model that it came
    from did, and the percent points of the main metric between them."""

    params: Tree
    kept: list[str]
    before: Scores
    after: Scores
    points: float


def within(
    classifier: Classifier,
    params: Tree,
    small: Tree,
    examples: Examples,
    before: Scores,
    ranked: Sequence[str],
    most: float | None,
) -> Within:
    """The quantised model with as few of the `ranked` parts float as keep its drop of the main metric within `most`
    percent points: one after the other goes back, and all is measured again (as in NNCF's accuracy-aware loop). With
    None, or where nothing would be left to quantise, all are quantised.
    """

    def tried(kept: list[str]) -> Within:
        mixture = mixed(params, small, set(kept))
        scores = classifier.score(mixture, examples)
        pair = Pair(classifier.problem, before.logits, scores.logits, examples.labels)
        return Within(mixture, kept, before, scores, 100 * pair.lost())

    whole = found = tried([])
    for count in range(1, len(ranked)):
        if most is None or found.points <= most:
            return found
        found = tried(list(ranked[:count]))
    return found if most is None or found.points <= most else whole


def _at(tree: Tree, path: Path) -> Any:
    return functools.reduce(lambda node, name: node[name], path, tree)
