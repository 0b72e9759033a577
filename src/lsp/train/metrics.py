"""Numbers about a model: sums that are divided once, and the metrics of a classifier, in NumPy."""

from dataclasses import dataclass

import jax
import numpy as np

from lsp.train.confusion import Confusion

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


def calibration_error(logits_NC: np.ndarray, labels_N: np.ndarray) -> float:
    """How far the probability of a guess is from the share of such guesses that are right: the mean distance over 15
    equal bins of probability, weighted by their examples (Guo et al., 2017)."""
    sure_N, right_N = probabilities(logits_NC).max(1), logits_NC.argmax(1) == labels_N
    bin_N = np.minimum((sure_N * BINS).astype(int), BINS - 1)
    distance = np.bincount(bin_N, right_N, BINS) - np.bincount(bin_N, sure_N, BINS)
    return float(np.abs(distance).sum() / len(labels_N))
