"""What a classifier got right and wrong, counted once: accuracy, F1 and Matthews' correlation are functions of the
counts, and so is what they would be on other examples of the same kind.

Suffixes: N examples, M pairs of label and guess that occur, C classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

RESAMPLES = 1000
COVERED = 0.95  # of the resamples lie inside an interval


@dataclass(frozen=True)
class Confusion:
    """How often each label met each guess: int [M] labels, guesses and counts, of `classes` classes."""

    labels: np.ndarray
    guesses: np.ndarray
    counts: np.ndarray
    classes: int

    @classmethod
    def of(cls, labels_N: np.ndarray, guesses_N: np.ndarray, classes: int) -> "Confusion":
        cells, counts = np.unique(labels_N.astype(np.int64) * classes + guesses_N, return_counts=True)
        return cls(cells // classes, cells % classes, counts, classes)

    @property
    def total(self) -> int:
        return int(self.counts.sum())

    def sums(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """For each class how many examples are of it, are called it, and both; int [C] each."""
        same = self.labels == self.guesses
        return (
            self._by_class(self.labels, self.counts),
            self._by_class(self.guesses, self.counts),
            self._by_class(self.labels[same], self.counts[same]),
        )

    def metrics(self) -> dict[str, float]:
        """Accuracy; F1, of class 1 for two classes and else the mean over classes; and Matthews' correlation, for more
        than two classes as Gorodkin (2004) has it. Where a quotient is 0 / 0 it counts as 0."""
        are, called, both = (each.astype(np.float64) for each in self.sums())
        total, right = float(self.total), float(both.sum())
        f1_C = _quotient(2 * both, are + called)
        covariance = right * total - float(are @ called)
        spread = np.sqrt((total**2 - float(called @ called)) * (total**2 - float(are @ are)))
        return {
            "accuracy": right / total,
            "f1": float(f1_C[1]) if self.classes == 2 else float(f1_C.mean()),
            "matthews": covariance / float(spread) if spread else 0.0,
        }

    def by_class(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """A row a class: examples, precision, recall, F1, and what it is most often taken for, if anything."""
        are, called, both = self.sums()
        precision, recall, f1 = _quotient(both, called), _quotient(both, are), _quotient(2 * both, are + called)
        taken: list[str | None] = [None] * self.classes
        for cell in np.argsort(self.counts, kind="stable"):  # the most frequent last
            if self.labels[cell] != self.guesses[cell]:
                taken[self.labels[cell]] = names[self.guesses[cell]]
        return [
            {
                "class": names[c],
                "examples": int(are[c]),
                "precision": float(precision[c]),
                "recall": float(recall[c]),
                "f1": float(f1[c]),
                "mostly_taken_for": taken[c],
            }
            for c in range(self.classes)
        ]

    def intervals(self, seed: int = 0) -> dict[str, list[float]]:
        """Of each metric the bounds of a 95 % interval, by the bootstrap (Efron, 1979): as many examples are drawn
        again with replacement, a thousand times. The counts of such a draw are multinomial, so none is touched."""
        random, shares = np.random.default_rng(seed), self.counts / self.total
        drawn = [replace(self, counts=random.multinomial(self.total, shares)).metrics() for _ in range(RESAMPLES)]
        tails = [(1 - COVERED) / 2, (1 + COVERED) / 2]
        return {name: np.quantile([each[name] for each in drawn], tails).tolist() for name in drawn[0]}

    def matrix(self) -> np.ndarray:
        """int [C, C]: labels down, guesses across."""
        matrix = np.zeros((self.classes, self.classes), np.int64)
        matrix[self.labels, self.guesses] = self.counts
        return matrix

    def _by_class(self, classes_M: np.ndarray, counts_M: np.ndarray) -> np.ndarray:
        return np.bincount(classes_M, counts_M, self.classes).astype(np.int64)


def _quotient(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.zeros(len(above)), where=below > 0)
