"""The best evaluation is kept, whatever is killed and however often an evaluation is made."""

from pathlib import Path

import numpy as np
import pytest

from lsp import Exit, LspError
from lsp.train.best import Best

SCORES = [0.5, 0.7, 0.7, 0.6, 0.9, 0.8]


def offer(best: Best, number: int) -> None:
    """Evaluation `number`, ten steps after the one before; its weights say which it was."""
    best.offer(10 * number, {"accuracy": SCORES[number], "loss": -SCORES[number]}, {"w": np.float32([number])})


def test_the_first_of_the_best_is_kept_with_its_weights(tmp_path: Path) -> None:
    for metric in ("accuracy", "loss"):
        best = Best(tmp_path / metric, metric, 0)
        for number in range(6):
            offer(best, number)
        step, metrics, weights = best.finished(50)
        assert (step, metrics["accuracy"], weights["w"]) == (40, 0.9, [4.0])
        best.settled(50)
        assert [path.name for path in (tmp_path / metric).glob("best.0*")] == ["best.00000040"]


def test_a_run_ends_when_nothing_got_better_for_long_enough(tmp_path: Path) -> None:
    best = Best(tmp_path, "accuracy", 2)
    ended = []
    for number in range(4):
        offer(best, number)
        ended.append(best.over(10 * number))
    assert ended == [False, False, False, True]  # 0.7 again and 0.6 are no better than 0.7
    assert not Best(tmp_path, "accuracy", 0).over(30)


def test_a_resumed_run_decides_as_if_it_had_not_been_killed(tmp_path: Path) -> None:
    best = Best(tmp_path, "accuracy", 3)
    for number in range(5):
        offer(best, number)
    again = Best(tmp_path, "accuracy", 3)  # killed after step 40, goes on from step 10
    assert again.step(10) == 10 and not again.over(10)
    for number in range(2, 6):
        offer(again, number)
        assert not again.over(10 * number)
    step, _, weights = again.finished(50)
    assert step == 40 and weights["w"] == [4.0]


def test_an_evaluation_that_comes_out_worse_again_leaves_the_one_before(tmp_path: Path) -> None:
    """Where it is not made of the same bits: with a budget of time, or on a graphics card."""
    best = Best(tmp_path, "accuracy", 0)
    for step, score in ((10, 0.5), (20, 0.9)):
        best.offer(step, {"accuracy": score}, {"w": np.float32([step])})
        best.settled(min(step, 15))
    again = Best(tmp_path, "accuracy", 0)  # killed, goes on from step 15
    again.offer(20, {"accuracy": 0.4}, {"w": np.float32([21])})
    assert again.finished(20)[0] == 10 and again.finished(20)[2]["w"] == [10]
    again.offer(30, {"accuracy": 0.6}, {"w": np.float32([30])})
    again.settled(30)
    assert [path.name for path in tmp_path.glob("best.0*")] == ["best.00000030"]


def test_a_metric_that_is_none_is_said(tmp_path: Path) -> None:
    with pytest.raises(LspError, match="no such metric here") as error:
        offer(Best(tmp_path, "pearson", 0), 0)
    assert error.value.code == Exit.USAGE and "accuracy" in error.value.hint
    offer(Best(tmp_path, "", 0), 0)  # nothing is chosen
    assert not list(tmp_path.iterdir())
