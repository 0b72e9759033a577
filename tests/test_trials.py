"""Which trainings --seeds and --sweep ask for, and which of them are one program."""

import dataclasses

import pytest

from lsp import LspError, recipe
from lsp.trials import alike, expand

BASE = recipe.Finetune(train=recipe.Train(seed=3, learning_rate=1e-3))


def test_every_combination_once_in_order() -> None:
    trials = expand(BASE, 2, ["train.learning_rate=1e-4, 2e-4", "head.dropout=0,0.5"])
    assert [trial.named() for trial in trials] == [
        {"seed": seed, "train.learning_rate": rate, "head.dropout": dropout}
        for rate in (1e-4, 2e-4)
        for dropout in (0.0, 0.5)
        for seed in (3, 4)
    ]
    assert [t.recipe.train.seed for t in trials] == [3, 4] * 4
    assert {t.recipe.train.steps for t in trials} == {BASE.train.steps}
    assert expand(BASE) == [(BASE, {})]


def test_one_program_for_what_differs_in_seed_and_rate_alone() -> None:
    trials = expand(BASE, 2, ["train.learning_rate=1e-4,2e-4", "head.dropout=0,0.5"])
    groups = alike(trials)
    assert [{trial.recipe.head.dropout for trial in group} for group in groups] == [{0.0}, {0.5}]
    assert [len(group) for group in groups] == [4, 4]
    assert len(alike(expand(BASE, 5, ["train.learning_rate=1e-4,2e-4"]))) == 1
    best = dataclasses.replace(BASE, train=dataclasses.replace(BASE.train, best="accuracy"))
    assert [len(group) for group in alike(expand(best, 3))] == [1, 1, 1], "each has a best step of its own"


@pytest.mark.parametrize(
    ("sweep", "says"),
    [
        ("train.learning_rate", "is not KEY=VALUE"),
        ("train.learning_rate=", "is not KEY=VALUE"),
        ("train.learning_rate=1e-4,", "is not KEY=VALUE"),
        ("train.learning_rate=1e-4,1e-4", "twice"),
        ("train.learning_rate=1e-4,0", "must be more than 0"),
        ("train.learningrate=1e-4,2e-4", "unknown key"),
        ("train=1,2", "is a section"),
        ("train.seed=1,2", "--seeds"),
    ],
)
def test_a_sweep_that_is_none_is_said(sweep: str, says: str) -> None:
    with pytest.raises(LspError, match=says):
        expand(BASE, 1, [sweep])
