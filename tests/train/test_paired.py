"""Two models on the same examples, against scipy and hand arithmetic."""

import numpy as np
import pytest
from scipy import stats

from lsp.train import paired
from lsp.train.paired import Pair


def logits(guesses: list[int], classes: int = 3, sure: float = 2.0) -> np.ndarray:
    """Of models that guess so, each as sure as the other."""
    return np.eye(classes, dtype=np.float32)[guesses] * np.float32(sure)


@pytest.fixture
def pair() -> Pair:
    """400 examples of two models that are right 9 and 8 times in 10 and often agree."""
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, 400)
    before = np.where(random.random(400) < 0.9, labels, (labels + 1) % 3)
    after = np.where(random.random(400) < 0.12, (before + 1) % 3, before)
    return Pair("single_label", logits(before.tolist()), logits(after.tolist()), labels)


@pytest.mark.parametrize(("lost", "won"), [(0, 0), (1, 0), (0, 6), (7, 7), (18, 6), (3, 21), (900, 1100)])
def test_mcnemar_is_the_exact_binomial_test(lost: int, won: int) -> None:
    expected = stats.binomtest(lost, lost + won).pvalue if lost + won else 1.0
    assert paired.mcnemar(lost, won) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_of_very_many_changes_is_a_number() -> None:
    assert paired.mcnemar(20_100, 19_900) == pytest.approx(stats.binomtest(20_100, 40_000).pvalue, rel=1e-6)


def test_points_flips_and_p_by_hand() -> None:
    labels = np.array([0, 0, 1, 1, 2, 2, 0, 1])
    before, after = logits([0, 0, 1, 0, 2, 1, 1, 1]), logits([0, 1, 2, 1, 2, 0, 1, 1])
    found = paired.compared(Pair("single_label", before, after, labels))
    assert found["points_lost"] == pytest.approx(100 * (5 - 4) / 8)
    assert found["flips"] == {"right_to_wrong": 2, "wrong_to_right": 1, "wrong_to_wrong": 1}
    assert found["p"] == pytest.approx(1.0) and found["examples"] == 8 and found["metric"] == "accuracy"


def test_the_interval_is_the_bootstraps_and_scipys(pair: Pair) -> None:
    found = paired.compared(pair)
    right = [(each.argmax(1) == pair.labels).astype(float) for each in (pair.before_NC, pair.after_NC)]
    assert found["points_lost"] == pytest.approx(100 * (right[0].mean() - right[1].mean()))
    slow = stats.bootstrap((right[0] - right[1],), np.mean, method="percentile", n_resamples=4000, rng=1)
    low, high = slow.confidence_interval
    np.testing.assert_allclose(found["interval"], [100 * low, 100 * high], atol=0.5)
    changed = int((right[0] > right[1]).sum()), int((right[0] < right[1]).sum())
    assert found["p"] == pytest.approx(stats.binomtest(changed[0], sum(changed)).pvalue)
    assert paired.compared(pair) == found, "the same pair, the same draws"


def test_an_interval_of_pairs_is_narrower_than_one_of_strangers(pair: Pair) -> None:
    low, high = paired.compared(pair)["interval"]
    one, other = ((each.argmax(1) == pair.labels).astype(float) for each in (pair.before_NC, pair.after_NC))
    alone = stats.bootstrap((one, other), _apart, method="percentile", n_resamples=1000, rng=0)
    strangers = alone.confidence_interval
    assert high - low < 100 * (strangers.high - strangers.low)


def _apart(one: np.ndarray, other: np.ndarray, axis: int) -> np.ndarray:
    return one.mean(axis) - other.mean(axis)


def test_a_model_beside_itself_has_lost_nothing(pair: Pair) -> None:
    found = paired.compared(pair._replace(after_NC=pair.before_NC))
    assert (found["points_lost"], found["interval"], found["p"]) == (0.0, [0.0, 0.0], 1.0)
    assert sum(found["flips"].values()) == 0
    assert paired.flips(pair._replace(after_NC=pair.before_NC), "abc", [("",)] * 400) == []


def test_of_numbers_the_correlation_is_compared_and_no_label_flips() -> None:
    random = np.random.default_rng(0)
    numbers = random.normal(size=200)
    close, far = (numbers[:, None] + random.normal(size=(200, 1)) * noise for noise in (0.1, 1.0))
    pair = Pair("regression", close, far, numbers)
    found = paired.compared(pair)
    pearson = [stats.pearsonr(each[:, 0], numbers).statistic for each in (close, far)]
    assert found["points_lost"] == pytest.approx(100 * (pearson[0] - pearson[1])) and found["p"] < 0.01
    assert 0 < found["interval"][0] < found["points_lost"] < found["interval"][1]
    assert sum(found["flips"].values()) == 0 and paired.flips(pair, (), [("",)] * 200) == []


def test_of_several_classes_an_answer_is_right_when_all_of_it_is() -> None:
    labels = np.array([[1, 0], [1, 1], [0, 0], [0, 1]], np.float32)
    before = np.array([[3, -3], [3, 3], [-3, 3], [-3, -3]], np.float32)  # right, right, wrong, wrong
    after = np.array([[3, 3], [3, 3], [-3, -3], [3, -3]], np.float32)  # wrong, right, right, wrong otherwise
    pair = Pair("multi_label", before, after, labels)
    found = paired.compared(pair)
    assert found["flips"] == {"right_to_wrong": 1, "wrong_to_right": 1, "wrong_to_wrong": 1}
    # F1 over all marks: before 3 of 4 labels found with 1 too many; after 3 of 4 with 2 too many.
    assert found["metric"] == "f1" and found["points_lost"] == pytest.approx(100 * (6 / 8 - 6 / 9))
    rows = paired.flips(pair, ("a", "b"), [(name,) for name in "pqrs"])
    assert {row["text"]: (row["label"], row["before"], row["after"]) for row in rows} == {
        "p": (["a"], ["a"], ["a", "b"]),
        "r": ([], ["b"], []),
        "s": (["b"], [], ["a"]),
    }


def test_flipped_rows_are_those_that_changed_the_surest_first() -> None:
    labels = np.array([0, 1, 2, 0])
    before, after = logits([0, 0, 0, 1]), logits([1, 1, 1, 1]) * np.array([[1], [3], [2], [9]], np.float32)
    rows = paired.flips(Pair("single_label", before, after, labels), ("x", "y", "z"), [("p", "q")] * 3 + [("r",)])
    assert [(row["row"], row["before"], row["after"], row["direction"]) for row in rows] == [
        (2, "x", "y", "wrong to right"),
        (3, "x", "y", "wrong to wrong"),
        (1, "x", "y", "right to wrong"),
    ]
    assert rows[0]["text"] == ["p", "q"] and rows[0]["label"] == "y"
    assert rows[2]["probability_after"] == pytest.approx(np.exp(2) / (np.exp(2) + 2), abs=1e-6)
    assert rows[2]["probability_before"] == pytest.approx(np.exp(2) / (np.exp(2) + 2), abs=1e-6)


def test_no_more_than_a_thousand_flips_are_kept() -> None:
    pair = Pair("single_label", logits([0] * 1200), logits([1] * 1200), np.zeros(1200, np.int64))
    assert len(paired.flips(pair, "abc", [("",)] * 1200)) == 1000
