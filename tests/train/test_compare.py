"""Trials beside each other, against scipy's tests."""

import numpy as np
import pytest
from scipy import stats

from lsp import recipe
from lsp.train import compare
from lsp.trials import Trial


def outcome(rate: float, seed: int, accuracy: float, good: list[float], diverged: int | None = None) -> compare.Outcome:
    trial = Trial(recipe.Finetune(train=recipe.Train(seed=seed)), {"train.learning_rate": rate})
    return compare.Outcome(trial, {"accuracy": accuracy, "loss": 1 - accuracy}, np.array(good), diverged)


def test_flips_are_mcnemar_for_answers_that_are_right_or_wrong() -> None:
    differences = np.array([1.0] * 18 + [-1.0] * 6 + [0.0] * 200)
    exact = stats.binomtest(18, 24).pvalue
    assert compare.sign_flips(differences) == pytest.approx(exact, abs=0.005)
    assert compare.sign_flips(np.zeros(9)) == 1.0


def test_flips_are_a_permutation_test_for_numbers() -> None:
    away = np.random.default_rng(0).normal(0.4, 1.0, 12)
    exact = stats.permutation_test((away,), np.mean, permutation_type="samples", n_resamples=np.inf).pvalue
    assert compare.sign_flips(away) == pytest.approx(exact, abs=0.015)


def test_settings_by_their_mean_with_spread_and_test() -> None:
    found = [
        outcome(1e-4, 0, 0.5, [1, 1, 0, 0]),
        outcome(1e-4, 1, 0.7, [1, 0, 0, 0]),
        outcome(1e-3, 0, 0.9, [1, 1, 1, 1]),
        outcome(1e-3, 1, 0.8, [1, 1, 1, 0]),
    ]
    first, second = compare.settings(found, "accuracy")
    assert first["train.learning_rate"] == 1e-3 and "p" not in first and first["seeds"] == 2
    assert second["mean_accuracy"] == pytest.approx(0.6)
    assert second["deviation"] == pytest.approx(np.std([0.5, 0.7], ddof=1))
    assert (second["lowest"], second["highest"]) == (0.5, 0.7)
    # The differences of the means are 0, 1/2, 1, 1/2: of 8 ways to flip them two are as far from 0 as the sum.
    assert second["p"] == pytest.approx(2 / 8, abs=0.02)
    assert compare.settings(found[:1], "accuracy")[0]["deviation"] is None
    assert compare.settings(found, "loss")[0]["train.learning_rate"] == 1e-3
    bad = outcome(1.0, 0, np.nan, [0, 0, 0, 0], 3)
    last = compare.settings([bad, *found, outcome(1e-4, 2, np.nan, [0, 0, 0, 0], 9)], "accuracy")
    assert last[2] == {"train.learning_rate": 1.0, "seeds": 0, "diverged": 1}
    assert last[1] == {**second, "diverged": 1} and bad.row() == bad.trial.named() | {"diverged_at_step": 3}


def test_the_best_is_one_that_did_not_diverge() -> None:
    found = [outcome(1e-3, 0, 0.9, [1.0], 7), outcome(1e-4, 0, 0.6, [0.0]), outcome(1e-4, 1, 0.6, [0.0])]
    assert compare.best(found, "accuracy") == 1
    assert compare.best(found[:1], "accuracy") == 0
    assert compare.best([outcome(1, 0, 0.2, [0.0]), outcome(1, 1, 0.4, [0.0])], "loss") == 1


def test_goodness_of_each_problem() -> None:
    logits = np.array([[1.0, 2.0], [3.0, 0.0], [-1.0, 4.0]], np.float32)
    assert compare.goodness("single_label", logits, np.array([1, 1, 1])).tolist() == [1, 0, 1]
    marks = np.array([[1, 1], [1, 1], [0, 1]], np.float32)
    assert compare.goodness("multi_label", logits, marks).tolist() == [1, 0, 1]
    assert compare.goodness("regression", logits[:, :1], np.array([1.5, 3.0, 0.0])).tolist() == [-0.25, 0, -1]
