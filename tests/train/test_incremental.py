"""Old classes stay: the head's columns, the old self's answers, and a few examples."""

from collections import Counter

import jax
import jax.numpy as jnp
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
    new = Table([(f"new {n}",) for n in range(90)], [3] * 60 + [4] * 30, ("a", "b", "c", "d", "e"))
    both = incremental.with_replay(new, old, 0.05, seed=1)
    assert both.texts[:90] == new.texts and both.labels[:90] == new.labels and both.names == new.names
    again = Counter(zip(both.texts[90:], both.labels[90:], strict=True))
    assert len(again) == 15 and len({*again.values()}) == 1
    assert Counter(both.labels[90:]) == {0: 45, 1: 45, 2: 45}  # a new class has 45 on average
    assert all(old.labels[int(text[0].split()[1])] == label for text, label in again)
    assert incremental.with_replay(new, old, 0.05, seed=1) == both
    assert incremental.with_replay(new, old, 0.05, seed=2) != both
    assert {*incremental.with_replay(new, old, 1e-9, seed=1).labels} == {0, 1, 2, 3, 4}


def test_the_loss_adds_the_divergence_from_the_old_self(config: ModelConfig) -> None:
    old, new = config.classifier(2, "cls", 0.0), config.classifier(3, "cls", 0.0)
    frozen, params = (jax.tree.map(lambda leaf: 6 * leaf, initialise(c, n)) for n, c in enumerate((old, new)))
    random = np.random.default_rng(0)
    batch = {
        "tokens": jnp.asarray(random.integers(5, 300, (4, 9)), jnp.int32),
        "segments": jnp.ones((4, 9), jnp.int32),
        "types": jnp.zeros((4, 9), jnp.int32),
        "labels": jnp.asarray([0, 1, 2, 1], jnp.int32),
        "weights": jnp.asarray([1, 1, 1, 0], jnp.float32),
    }
    inputs = batch["tokens"], batch["segments"], batch["types"]
    wanted, found = (
        np.asarray(nnx.merge(graphdef(c), p).classify(*inputs), np.float64) for c, p in ((old, frozen), (new, params))
    )
    p, q = (special.log_softmax(logits[:, :2] / 2, axis=1) for logits in (wanted, found))
    apart = 4 * (np.exp(p) * (p - q)).sum(1)
    cross = -special.log_softmax(found, axis=1)[np.arange(4), np.asarray(batch["labels"])]
    mean, metrics = incremental.remembering(old, 0.5)(nnx.merge(graphdef(new), params), frozen, batch, None)
    assert float(mean.total / mean.count) == pytest.approx((cross + 0.5 * apart)[:3].mean(), rel=1e-4)
    assert float(metrics["drift"].total) == pytest.approx(apart[:3].sum(), rel=1e-3)
