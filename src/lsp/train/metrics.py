"""Numbers about a model: sums that are divided once, and the metrics of a classifier, in NumPy."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from lsp.recipe import Problem
from lsp.train.confusion import COVERED, RESAMPLES, Confusion

BINS = 15  # of a calibration error


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Mean:
    """A sum and what it counts, kept apart until the end so that masks and micro-batches cannot skew the mean."""

    total: jax.Array | float
    count: jax.Array | float

    def __add__(self, other: "Mean") -> "Mean":
        return Mean(self.total + other.total, self.count + other.count)


def value(mean: Mean) -> float:
    """The quotient; NaN where nothing was counted."""
    total, count = float(mean.total), float(mean.count)
    return total / count if count else float("nan")


def probabilities(logits_NC: np.ndarray) -> np.ndarray:
    """Softmax, float64 [N, C]."""
    powers_NC = np.exp(logits_NC.astype(np.float64) - logits_NC.max(1, keepdims=True))
    return powers_NC / powers_NC.sum(1, keepdims=True)


def classification(logits_NC: np.ndarray, labels_N: np.ndarray) -> dict[str, float]:
    """Accuracy, F1 and Matthews' correlation as `Confusion.metrics` has them, and cross-entropy in nats."""
    shifted_NC = logits_NC.astype(np.float64) - logits_NC.max(1, keepdims=True)
    log_probability_NC = shifted_NC - np.log(np.exp(shifted_NC).sum(1, keepdims=True))
    counted = Confusion.of(labels_N, logits_NC.argmax(1), logits_NC.shape[1])
    return counted.metrics() | {"loss": float(-log_probability_NC[np.arange(len(labels_N)), labels_N].mean())}


def sigmoid(logits: np.ndarray) -> np.ndarray:
    """float64, of any shape."""
    return 0.5 * (1 + np.tanh(0.5 * logits.astype(np.float64)))


def by_class(logits_NC: np.ndarray, marks_NC: np.ndarray, names: Sequence[str]) -> list[dict[str, Any]]:
    """A row for each class that an example may have or not: examples, precision, recall, F1."""
    each = zip((logits_NC > 0).T, (marks_NC > 0.5).T, names, strict=True)
    rows = [Confusion.of(marks, guesses, 2).by_class(("", name))[1] for guesses, marks, name in each]
    return [{key: value for key, value in row.items() if key != "mostly_taken_for"} for row in rows]


def multi_label(logits_NC: np.ndarray, marks_NC: np.ndarray) -> dict[str, float]:
    """Of examples with several classes: accuracy (every class right), F1 over all marks together and as the mean over
    classes, and cross-entropy in nats, the mean over examples and classes. A class is there where its logit is > 0."""
    logits, marks = logits_NC.astype(np.float64), marks_NC > 0.5
    loss = float((np.logaddexp(0, logits) - logits * marks).mean())
    return _of_sums(_summed(logits_NC, marks_NC).sum(0, dtype=np.float64), len(logits)) | {"loss": loss}


def _summed(logits_NC: np.ndarray, marks_NC: np.ndarray) -> np.ndarray:
    """What the metrics of examples with several classes, but for the loss, are functions of the sums of: float32
    [N, 1 + 2·C], whether an example is all right; its marks that are right, by class; and guesses and marks together.
    Float32 sums of fewer than 2^24 are exact."""
    guesses, marks = logits_NC > 0, marks_NC > 0.5
    columns = (guesses == marks).all(1, keepdims=True), guesses & marks, guesses.astype(np.int8) + marks
    return np.concatenate(columns, 1, dtype=np.float32)


def _of_sums(sums_F: np.ndarray, examples: int) -> dict[str, float]:
    right, (both_C, sum_C) = float(sums_F[0]), np.split(sums_F[1:].astype(np.float64), 2)
    f1_C = np.divide(2 * both_C, sum_C, out=np.zeros(len(sum_C)), where=sum_C > 0)
    f1 = float(2 * both_C.sum()) / max(1.0, float(sum_C.sum()))
    return {"accuracy": right / examples, "f1": f1, "macro_f1": float(f1_C.mean())}


def regression(values_N: np.ndarray, numbers_N: np.ndarray) -> dict[str, float]:
    """Pearson's and Spearman's correlation (0 where one side does not vary) and the mean squared error, the loss."""
    values, numbers = values_N.astype(np.float64), numbers_N.astype(np.float64)
    return {
        "pearson": correlation(values, numbers),
        "spearman": correlation(ranks(values), ranks(numbers)),
        "loss": float(np.square(values - numbers).mean()),
    }


def correlation(one_N: np.ndarray, other_N: np.ndarray) -> float:
    """Pearson's."""
    one, other = one_N - one_N.mean(), other_N - other_N.mean()
    spread = float(np.sqrt(one @ one) * np.sqrt(other @ other))
    return float(one @ other) / spread if spread else 0.0


def ranks(values_N: np.ndarray) -> np.ndarray:
    """Places from 1 in rising order, float64 [N]; equal values share the mean of theirs."""
    _, place_N, counts = np.unique(values_N, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[place_N]


def measured(problem: Problem, logits_NC: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The metrics of a problem."""
    if problem == "regression":
        return regression(logits_NC[:, 0], labels)
    return multi_label(logits_NC, labels) if problem == "multi_label" else classification(logits_NC, labels)


def names(problem: Problem) -> list[str]:
    """What the metrics of a problem are called."""
    none = np.zeros((1, 2))
    return [*measured(problem, none, none if problem == "multi_label" else np.zeros(1, np.int64))]


def intervals(problem: Problem, logits_NC: np.ndarray, labels: np.ndarray, seed: int = 0) -> dict[str, list[float]]:
    """95 % intervals of the metrics, but for the loss, by the bootstrap (Efron, 1979): see `Confusion.intervals`."""
    if problem == "single_label":
        return Confusion.of(labels, logits_NC.argmax(1), logits_NC.shape[1]).intervals(seed)
    measure, random, size = resampled(problem, logits_NC, labels), np.random.default_rng(seed), len(labels)
    drawn = [measure(random.integers(0, size, size)) for _ in range(RESAMPLES)]
    tails = [(1 - COVERED) / 2, (1 + COVERED) / 2]
    names = [name for name in drawn[0] if name != "loss"]
    return {name: np.quantile([each[name] for each in drawn], tails).tolist() for name in names}


def resampled(problem: Problem, logits_NC: np.ndarray, labels: np.ndarray) -> Callable[[np.ndarray], dict[str, float]]:
    """The metrics of a draw of examples, given by their numbers, int [n], which may repeat. Of several classes without
    the loss: the others are functions of sums, for which it is enough to know how often each example came."""
    if problem != "multi_label":
        return lambda rows: measured(problem, logits_NC[rows], labels[rows])
    each_NF = _summed(logits_NC, labels)
    return lambda rows: _of_sums(np.bincount(rows, minlength=len(labels)).astype(np.float32) @ each_NF, len(rows))


def temperature(logits_NC: np.ndarray, labels_N: np.ndarray) -> float:
    """What logits are to be divided by for the smallest cross-entropy (Guo et al., 2017), from 1/20 to 20. It is convex
    in the inverse, so that the section that holds the smallest value can be cut by the golden ratio."""
    low, high, golden = 0.05, 20.0, (5**0.5 - 1) / 2

    def loss(inverse: float) -> float:
        return classification(logits_NC.astype(np.float64) * inverse, labels_N)["loss"]

    for _ in range(60):
        one, other = high - golden * (high - low), low + golden * (high - low)
        low, high = (low, other) if loss(one) < loss(other) else (one, high)
    return 2 / (low + high)


def calibration_error(logits_NC: np.ndarray, labels_N: np.ndarray) -> float:
    """How far the probability of a guess is from the share of such guesses that are right: the mean distance over 15
    equal bins of probability, weighted by their examples (Guo et al., 2017)."""
    sure_N, right_N = probabilities(logits_NC).max(1), logits_NC.argmax(1) == labels_N
    bin_N = np.minimum((sure_N * BINS).astype(int), BINS - 1)
    distance = np.bincount(bin_N, right_N, BINS) - np.bincount(bin_N, sure_N, BINS)
    return float(np.abs(distance).sum() / len(labels_N))
