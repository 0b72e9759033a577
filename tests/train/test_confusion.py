"""Metrics of a classifier against scikit-learn's definitions, written out over the examples, and against scipy."""

import math

import numpy as np
import pytest
from scipy import stats

from lsp.train.confusion import Confusion
from lsp.train.metrics import calibration_error


def examples(classes: int, number: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, number)
    guesses = np.where(rng.random(number) < 0.7, labels, rng.integers(0, classes, number))
    return labels, guesses


@pytest.mark.parametrize("classes", [2, 3, 7])
def test_metrics_are_those_of_the_examples_one_by_one(classes: int) -> None:
    labels, guesses = examples(classes)
    found = Confusion.of(labels, guesses, classes).metrics()
    pairs = list(zip(labels.tolist(), guesses.tolist(), strict=True))
    assert found["accuracy"] == pytest.approx(sum(a == b for a, b in pairs) / len(pairs))
    f1s = []
    for c in range(classes):
        hits = sum(a == b == c for a, b in pairs)
        precision = hits / sum(b == c for _, b in pairs)
        recall = hits / sum(a == c for a, _ in pairs)
        f1s.append(2 * precision * recall / (precision + recall))
    assert found["f1"] == pytest.approx(f1s[1] if classes == 2 else np.mean(f1s))
    # Gorodkin: the correlation of both as rows of zeros with a one, covariances added over classes.
    a, b = np.eye(classes)[labels], np.eye(classes)[guesses]
    covariance = [[np.cov(x.T, y.T, bias=True)[:classes, classes:].trace() for y in (a, b)] for x in (a, b)]
    assert found["matthews"] == pytest.approx(covariance[0][1] / math.sqrt(covariance[0][0] * covariance[1][1]))
    if classes == 2:
        assert found["matthews"] == pytest.approx(stats.pearsonr(labels, guesses).statistic)


def test_a_class_that_is_never_guessed_counts_as_nothing_and_never_as_an_error() -> None:
    counted = Confusion.of(np.array([0, 0, 1, 2]), np.array([0, 0, 0, 0]), 3)
    assert counted.metrics() == {"accuracy": 0.5, "f1": pytest.approx(2 * 2 / (2 + 4) / 3), "matthews": 0.0}
    rows = counted.by_class(["a", "b", "c"])
    assert [row["examples"] for row in rows] == [2, 1, 1]
    assert [row["precision"] for row in rows] == [0.5, 0, 0] and [row["recall"] for row in rows] == [1, 0, 0]
    assert [row["mostly_taken_for"] for row in rows] == [None, "a", "a"]


def test_a_perfect_classifier_has_all_of_each_metric() -> None:
    for seed in range(50):
        labels = np.random.default_rng(seed).integers(0, 2, 5 + seed)
        labels[:2] = 0, 1
        assert set(Confusion.of(labels, labels, 2).metrics().values()) == {1.0}


def test_what_a_class_is_mostly_taken_for_is_its_most_frequent_error() -> None:
    labels, guesses = np.array([0] * 6), np.array([0, 0, 0, 1, 2, 2])
    assert Confusion.of(labels, guesses, 3).by_class(["a", "b", "c"])[0]["mostly_taken_for"] == "c"


def test_the_matrix_counts_labels_down_and_guesses_across() -> None:
    labels, guesses = examples(4)
    wanted = np.zeros((4, 4), int)
    np.add.at(wanted, (labels, guesses), 1)
    np.testing.assert_array_equal(Confusion.of(labels, guesses, 4).matrix(), wanted)


def test_intervals_are_those_of_scipys_bootstrap() -> None:
    labels, guesses = examples(2, 300)
    found = Confusion.of(labels, guesses, 2).intervals(seed=1)
    right = (labels == guesses).astype(float)
    wanted = stats.bootstrap((right,), np.mean, method="percentile", n_resamples=4000, rng=np.random.default_rng(2))
    np.testing.assert_allclose(found["accuracy"], [*wanted.confidence_interval], atol=0.01)

    def f1(a: np.ndarray, b: np.ndarray) -> float:
        return 2 * (a * b).sum() / (a.sum() + b.sum())

    data = (labels.astype(float), guesses.astype(float))
    again = stats.bootstrap(
        data, f1, paired=True, vectorized=False, method="percentile", n_resamples=1000, rng=np.random.default_rng(3)
    )
    np.testing.assert_allclose(found["f1"], [*again.confidence_interval], atol=0.015)
    assert Confusion.of(labels, guesses, 2).intervals(seed=1) == found


def test_the_calibration_error_is_the_mean_distance_of_its_bins() -> None:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(500, 3)) * 2, rng.integers(0, 3, 500)
    sure = np.exp(logits).max(1) / np.exp(logits).sum(1)
    wanted = 0.0
    for low in np.arange(15) / 15:
        inside = (sure >= low) & (sure < low + 1 / 15)
        if inside.any():
            right = (logits.argmax(1) == labels)[inside].mean()
            wanted += abs(right - sure[inside].mean()) * inside.mean()
    assert calibration_error(logits, labels) == pytest.approx(wanted)
    certain = np.array([[100.0, 0.0]] * 4)
    assert calibration_error(certain, np.array([0, 0, 0, 1])) == pytest.approx(0.25)
