"""What is reached without a neural network: the most frequent label, and a bag of words.

Both learn from `(text, label)` pairs in a second or two, with NumPy alone, and give the same answer every time. A model
that doesn't beat them has learned nothing that counting words would not have told.
"""

import re
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

BUCKETS = 1 << 16  # features; words and pairs of neighbours are hashed into them
SMOOTHING = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # tried on held-out training pairs
HOLD_OUT = 5  # every fifth training pair chooses the smoothing
WORD = re.compile(r"\w+|[^\w\s]")


@dataclass(frozen=True)
class Bags:
    """N texts as sparse rows: text i has the features `buckets[starts[i]:starts[i + 1]]`, each once."""

    buckets: np.ndarray  # int64 [nonzeros]
    values: np.ndarray  # float64 [nonzeros]: log(1 + count), the vector of a text scaled to length 1
    starts: np.ndarray  # int64 [N + 1]

    def rows(self) -> np.ndarray:
        """int64 [nonzeros]: the text each entry belongs to."""
        return np.repeat(np.arange(len(self.starts) - 1), np.diff(self.starts))


@dataclass(frozen=True)
class NaiveBayes:
    labels: list[str]
    prior_C: np.ndarray  # log share of each label
    weights_VC: np.ndarray  # log probability of each feature under each label


def majority(train: Sequence[tuple[str, str]], dev: Sequence[tuple[str, str]]) -> float:
    """Accuracy on `dev` of always giving the most frequent label of `train`; the first by name among equals."""
    counts = Counter(label for _, label in train)
    frequent = min(counts, key=lambda label: (-counts[label], label))
    return sum(label == frequent for _, label in dev) / len(dev)


def bag_of_words(train: Sequence[tuple[str, str]], dev: Sequence[tuple[str, str]]) -> float:
    """Accuracy on `dev` of multinomial naive Bayes over words and pairs of words.

    `dev` decides nothing: the smoothing is the one that does best on every fifth training pair when trained on the
    others. (Logistic regression on the same features was tried on the demo's task: it took ten times as long and was
    not better.)
    """
    fitting = [pair for position, pair in enumerate(train) if position % HOLD_OUT]
    held_out = train[::HOLD_OUT]
    known, asked = bags(texts(fitting)), bags(texts(held_out))

    def held_out_accuracy(smoothing: float) -> float:
        return accuracy(predict(fit(known, names(fitting), smoothing), asked), names(held_out))

    model = fit(bags(texts(train)), names(train), max(SMOOTHING, key=held_out_accuracy))
    return accuracy(predict(model, bags(texts(dev))), names(dev))


def bags(texts: Sequence[str]) -> Bags:
    """Words and pairs of neighbouring words of each text, lower-cased, hashed, counted, weighed."""
    buckets: list[int] = []
    values: list[float] = []
    starts = [0]
    for text in texts:
        words = WORD.findall(text.lower())
        features = [*words, *map(" ".join, pairwise(words))]
        counts = Counter(zlib.crc32(feature.encode()) % BUCKETS for feature in features)
        weights = np.log1p(list(counts.values()))
        buckets += counts
        values += (weights / max(float(np.linalg.norm(weights)), 1e-9)).tolist()
        starts.append(len(buckets))
    return Bags(np.array(buckets, np.int64), np.array(values), np.array(starts))


def fit(known: Bags, labels: Sequence[str], smoothing: float) -> NaiveBayes:
    """log P(feature | label) is a feature's share of the label's total weight, `smoothing` added to every feature."""
    classes = sorted(set(labels))
    of_row = np.array([classes.index(label) for label in labels])
    of_entry = of_row[known.rows()]
    totals = np.bincount(known.buckets * len(classes) + of_entry, known.values, BUCKETS * len(classes))
    totals_VC = totals.reshape(BUCKETS, len(classes)) + smoothing
    prior_C = np.bincount(of_row, minlength=len(classes)) / len(labels)
    return NaiveBayes(classes, np.log(prior_C), np.log(totals_VC) - np.log(totals_VC.sum(0)))


def predict(model: NaiveBayes, asked: Bags) -> list[str]:
    """The most probable label of each text; the first by name among equals."""
    rows, count = asked.rows(), len(asked.starts) - 1
    scores = [np.bincount(rows, column[asked.buckets] * asked.values, count) for column in model.weights_VC.T]
    best = (np.stack(scores, 1) + model.prior_C).argmax(1)
    return [model.labels[i] for i in best]


def accuracy(given: Sequence[str], expected: Sequence[str]) -> float:
    return sum(a == b for a, b in zip(given, expected, strict=True)) / len(expected)


def texts(pairs: Sequence[tuple[str, str]]) -> list[str]:
    return [text for text, _ in pairs]


def names(pairs: Sequence[tuple[str, str]]) -> list[str]:
    return [label for _, label in pairs]
