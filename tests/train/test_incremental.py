"""Old classes stay: the head's columns, the old self's answers, and a few examples."""

from collections import Counter

import jax
import numpy as np
import pytest
from flax import nnx
from scipy import special

from lsp.data.tasks import Table
from lsp.model.config import ModelConfig
from lsp.model.encoder import graphdef, initialise
from lsp.train import incremental


def test_a_head_grows_by_columns() -> None:
    old = {"kernel": np.ones((4, 2), np.float32), "bias": np.ones(2, np.float32)}
    fresh = {"kernel": np.zeros((4, 3), np.float32), "bias": np.zeros(3, np.float32)}
    made = incremental.grown(fresh, old)
    assert made["kernel"].tolist() == [[1, 1, 0]] * 4 and made["bias"].tolist() == [1, 1, 0]


def test_replay_makes_old_classes_as_frequent_as_new_ones() -> None:
    old = Table([(f"old {n}",) for n in range(300)], [n % 3 for n in range(300)], ("a", "b", "c"))
    new = Table([(f"new {n}",) for n in range(90)], [3] * 60 + [4] * 30, ("a", "b", "c", "d", "e"), columns=("body",))
    both, apart = incremental.with_replay(new, old, 0.08, seed=1)
    # 8 old examples a class: 6 to train on, 2 apart; as many new ones of each class apart.
    assert Counter(apart.labels) == {0: 2, 1: 2, 2: 2, 3: 2, 4: 2} and both.names == apart.names == new.names
    assert both.columns == apart.columns == ("body",)
    assert not {*both.texts} & {*apart.texts} and {*new.texts} <= {*both.texts} | {*apart.texts}
    again = Counter(text for text in both.texts if text[0].startswith("old"))
    assert len(again) == 18 and len({*again.values()}) == 1
    counts = Counter(both.labels)
    assert counts[0] == counts[1] == counts[2] == 42 and counts[3] + counts[4] == 86  # 43 on average
    named = {text: label for table in (old, new) for text, label in zip(table.texts, table.labels, strict=True)}
    assert all(named[text] == label for t in (both, apart) for text, label in zip(t.texts, t.labels, strict=True))
    assert incremental.with_replay(new, old, 0.08, seed=1) == (both, apart)
    assert incremental.with_replay(new, old, 0.08, seed=2) != (both, apart)
    few, none = incremental.with_replay(new, old, 1e-9, seed=1)
    assert {*few.labels} == {0, 1, 2, 3, 4} and not none.texts
    every, none = incremental.with_replay(new, old, 0.08, seed=1, apart=0)
    assert len({*every.texts}) == 90 + 24 and not none.texts


def test_the_shift_balances_old_and_new() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 4, 400)
    logits = 3 * np.eye(4)[labels] + random.normal(size=(400, 4))
    logits[:, 2:] += 5  # too readily new

    def right(by: float) -> float:
        moved = logits - by * (np.arange(4) >= 2)
        hits = moved.argmax(1) == labels
        return float(hits[labels < 2].mean() + hits[labels >= 2].mean())

    found = incremental.shift(logits, labels, 2)
    assert found == pytest.approx(5, abs=1)
    assert right(found) == pytest.approx(max(right(by) for by in np.linspace(-10, 20, 3001)), abs=1e-9)
    assert incremental.shift(logits[labels < 2], labels[labels < 2], 2) == 0
    # Where more of the old ones must be right, the best of the cuts that keep so many; else as many as can be.
    old, most = labels < 2, (logits[labels < 2, :2].argmax(1) == labels[labels < 2]).mean()

    def kept(by: float) -> float:
        return float(((logits - by * (np.arange(4) >= 2)).argmax(1) == labels)[old].mean())

    least = (kept(found) + most) / 2
    strict = incremental.shift(logits, labels, 2, least)
    expected = max(right(by) for by in np.linspace(4, 7, 20001) if kept(by) >= least)
    assert strict > found and kept(strict) >= least and right(strict) == pytest.approx(expected, abs=1e-9)
    assert kept(incremental.shift(logits, labels, 2, 1.0)) == most
    # Examples of one margin go together: six old ones lie where three new ones do.
    same = np.array([[0.0, -1.0, 1.0, -1.0]] * 9 + [[0.0, -1.0, 3.0, -1.0]] * 3)
    assert incremental.shift(same, np.array([2] * 3 + [0] * 6 + [2] * 3), 2) == pytest.approx(2.0)


def test_the_loss_adds_the_divergence_from_the_old_self(config: ModelConfig, examples: dict[str, jax.Array]) -> None:
    old, new = config.classifier(2, "cls", 0.0), config.classifier(3, "cls", 0.0)
    frozen, params = (jax.tree.map(lambda leaf: 6 * leaf, initialise(c, n)) for n, c in enumerate((old, new)))
    inputs = examples["tokens"], examples["segments"], examples["types"]
    wanted, found = (
        np.asarray(nnx.merge(graphdef(c), p).classify(*inputs), np.float64) for c, p in ((old, frozen), (new, params))
    )
    p, q = (special.log_softmax(logits[:, :2] / 2, axis=1) for logits in (wanted, found))
    apart = 4 * (np.exp(p) * (p - q)).sum(1)
    cross = -special.log_softmax(found, axis=1)[np.arange(4), np.asarray(examples["labels"])]
    mean, metrics = incremental.remembering(old, 0.5)(nnx.merge(graphdef(new), params), frozen, examples, None)
    assert float(mean.total / mean.count) == pytest.approx((cross + 0.5 * apart)[:3].mean(), rel=1e-4)
    assert float(metrics["drift"].total) == pytest.approx(apart[:3].sum(), rel=1e-3)
