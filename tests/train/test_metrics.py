"""Metrics against scipy, scikit-learn and the definitions written out."""

import numpy as np
import pytest
from scipy import optimize, special, stats
from sklearn import metrics as sk

from lsp.train import answers, metrics
from lsp.train.confusion import Confusion


def test_correlations_are_those_of_scipy() -> None:
    random = np.random.default_rng(0)
    numbers = random.integers(0, 6, 200).astype(np.float32)  # many equal ones
    values = (numbers + random.normal(0, 1, 200)).astype(np.float32).round(1)
    found = metrics.regression(values, numbers)
    assert found["pearson"] == pytest.approx(stats.pearsonr(values, numbers).statistic)
    assert found["spearman"] == pytest.approx(stats.spearmanr(values, numbers).statistic)
    assert found["loss"] == pytest.approx(np.mean((values.astype(np.float64) - numbers) ** 2))
    np.testing.assert_array_equal(metrics.ranks(values), stats.rankdata(values))
    assert metrics.regression(np.ones(5), numbers[:5])["pearson"] == 0


def test_several_classes_are_counted_mark_by_mark() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(size=(60, 4)).astype(np.float32)
    marks = (random.random((60, 4)) < 0.4).astype(np.float32)
    marks[:, 3] = 0  # a class that never is
    found = metrics.multi_label(logits, marks)
    hits, called, are = np.zeros(4), np.zeros(4), np.zeros(4)
    right = loss = 0.0
    for row in range(60):
        right += all((logits[row, c] > 0) == bool(marks[row, c]) for c in range(4))
        for c in range(4):
            chance = 1 / (1 + np.exp(-np.float64(logits[row, c])))
            loss -= np.log(chance if marks[row, c] else 1 - chance)
            hits[c] += logits[row, c] > 0 and marks[row, c]
            called[c] += logits[row, c] > 0
            are[c] += marks[row, c]
    assert found["accuracy"] == pytest.approx(right / 60)
    assert found["loss"] == pytest.approx(loss / 240)
    assert found["f1"] == pytest.approx(2 * hits.sum() / (called.sum() + are.sum()))
    assert found["macro_f1"] == pytest.approx((2 * hits / (called + are)).mean())
    rows = metrics.by_class(logits, marks, "abcd")
    assert [row["class"] for row in rows] == [*"abcd"]
    assert [row["examples"] for row in rows] == are.tolist()
    assert [row["precision"] for row in rows] == pytest.approx((hits / called).tolist())
    assert [row["recall"] for row in rows] == pytest.approx([*(hits[:3] / are[:3]), 0.0])


def test_the_temperature_gives_the_smallest_cross_entropy() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 500)
    logits = (4 * (np.eye(3)[labels] + random.normal(size=(500, 3)))).astype(np.float32)  # far too sure
    found = metrics.temperature(logits, labels)
    best = optimize.minimize_scalar(
        lambda t: metrics.classification(logits / t, labels)["loss"], bounds=(0.05, 20), method="bounded"
    )
    assert found == pytest.approx(best.x, rel=1e-3) and found > 2
    assert metrics.calibration_error(logits / found, labels) < metrics.calibration_error(logits, labels) / 2
    assert metrics.temperature(logits / found, labels) == pytest.approx(1, rel=1e-3)


@pytest.mark.parametrize("problem", ["multi_label", "regression"])
def test_intervals_cover_the_metric_and_shrink_with_examples(problem: metrics.Problem) -> None:
    random = np.random.default_rng(0)
    logits = random.normal(size=(400, 3)).astype(np.float32)
    noisy = logits + random.normal(size=logits.shape)
    labels = (noisy > 0).astype(np.float32) if problem == "multi_label" else noisy[:, 0].astype(np.float32)
    whole = metrics.measured(problem, logits, labels)
    wide, narrow = (metrics.intervals(problem, logits[:n], labels[:n]) for n in (50, 400))
    assert wide.keys() == narrow.keys() == whole.keys() - {"loss"}
    for name, (low, high) in narrow.items():
        assert low < whole[name] < high
        assert high - low < wide[name][1] - wide[name][0]


def test_near_ties_are_answered_as_they_are_counted() -> None:
    near = np.array([[0.0, 1e-6], [2e-7, 1e-7]], np.float32)
    assert [row["label"] for row in answers.of("single_label", ("a", "b"), near)] == ["b", "a"]
    (row,) = answers.of("multi_label", ("a", "b"), np.array([[1e-7, -1e-7]], np.float32))
    assert row["label"] == ["a"]


def test_the_names_of_metrics_are_those_that_are_measured() -> None:
    assert metrics.names("regression") == ["pearson", "spearman", "loss"]
    assert metrics.names("multi_label")[0] == "accuracy" and "matthews" in metrics.names("single_label")


def test_answers_are_labels_and_probabilities() -> None:
    logits = np.array([[2.0, 0.0, -1.0], [-1.0, -2.0, -3.0]], np.float32)
    first, _ = answers.of("single_label", "abc", logits)
    assert first["label"] == "a" and list(first["probabilities"]) == ["a", "b", "c"]
    assert first["probability"] == pytest.approx(np.exp(2) / (np.exp(2) + 1 + np.exp(-1)), abs=1e-6)
    (first, second) = answers.of("multi_label", "abc", logits, top=2)
    assert first["label"] == ["a"] and second["label"] == [] and list(first["probabilities"]) == ["a", "b"]
    assert first["probability"] == pytest.approx(1 / (1 + np.exp(-2)), abs=1e-6)
    assert list(answers.of("regression", (), logits[:, :1])) == [{"label": 2.0}, {"label": -1.0}]


@pytest.mark.parametrize("classes", [2, 5])
def test_one_class_is_scored_as_scikit_learn_does(classes: int) -> None:
    random = np.random.default_rng(classes)
    labels = random.integers(0, classes, 300)
    logits = (np.eye(classes)[labels] + random.normal(size=(300, classes))).astype(np.float32)
    guesses, found = logits.argmax(1), metrics.classification(logits, labels)
    average = "binary" if classes == 2 else "macro"
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(labels, guesses))
    assert found["f1"] == pytest.approx(sk.f1_score(labels, guesses, average=average))
    assert found["matthews"] == pytest.approx(sk.matthews_corrcoef(labels, guesses))
    assert found["loss"] == pytest.approx(sk.log_loss(labels, special.softmax(logits.astype(np.float64), 1)))
    counted = Confusion.of(labels, guesses, classes)
    table = np.zeros((classes, classes), int)
    table[counted.labels, counted.guesses] = counted.counts
    np.testing.assert_array_equal(table, sk.confusion_matrix(labels, guesses))
    rows = counted.by_class([f"class {number}" for number in range(classes)])
    expected = zip(*sk.precision_recall_fscore_support(labels, guesses), strict=True)
    for row, (precision, recall, f1, support) in zip(rows, expected, strict=True):
        assert [row[key] for key in ("precision", "recall", "f1", "examples")] == pytest.approx(
            [precision, recall, f1, support]
        )


def test_several_classes_are_scored_as_scikit_learn_does() -> None:
    random = np.random.default_rng(0)
    marks = (random.random((200, 4)) < 0.4).astype(np.float32)
    logits = (2 * marks - 1 + 1.5 * random.normal(size=marks.shape)).astype(np.float32)
    found, guesses = metrics.multi_label(logits, marks), logits > 0
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(marks, guesses))
    assert found["f1"] == pytest.approx(sk.f1_score(marks, guesses, average="micro"))
    assert found["macro_f1"] == pytest.approx(sk.f1_score(marks, guesses, average="macro"))


def test_the_metrics_of_drawn_examples_are_those_of_the_rows_themselves() -> None:
    """Several classes are counted by how often an example came; here each is laid out as often as it came."""
    random = np.random.default_rng(0)
    logits, marks = random.normal(size=(50, 4)).astype(np.float32), (random.random((50, 4)) < 0.3).astype(np.float32)
    of = metrics.resampled("multi_label", logits, marks)
    for size in (50, 7):
        rows = random.integers(0, 50, size)
        wanted = metrics.multi_label(logits[rows], marks[rows])
        assert of(rows) == pytest.approx({name: wanted[name] for name in ("accuracy", "f1", "macro_f1")}, rel=1e-12)
    numbers = random.normal(size=50)
    assert metrics.resampled("regression", logits[:, :1], numbers)(rows) == metrics.regression(
        logits[rows, 0], numbers[rows]
    )
