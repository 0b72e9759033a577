"""Hidden width that is pruned, on models of which is known what they can do without."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flax import nnx

from lsp.compress import refit as refits
from lsp.compress import width
from lsp.compress.refit import refit
from lsp.data.examples import Examples
from lsp.model.config import Layer, ModelConfig
from lsp.model.encoder import graphdef

Draw = Callable[[ModelConfig, int], dict]
WIDTH = 12


@pytest.fixture(params=["bert", "modern"])
def config(request: pytest.FixtureRequest) -> ModelConfig:
    whole = ModelConfig(request.param, 300, WIDTH, (Layer(2, 8, 24), Layer(3, 4, 32)), max_length=32)
    return whole.classifier(3, "cls" if request.param == "bert" else "mean", 0.0)


def twice(params: Any, random: np.random.Generator) -> tuple[Any, np.ndarray, np.ndarray]:
    """Parameters of a model twice as wide that answers the same, its channels in disorder; and where those of the
    stream, and of the pooler, that are read have gone. Each channel has a copy, which leaves means and variances as
    they are, and which no matrix reads."""
    stream, pooled = random.permutation(2 * WIDTH), random.permutation(2 * WIDTH)

    def doubled(path: tuple, leaf: Any) -> Any:
        *_, block, name = path
        leaf = np.asarray(leaf)
        if block == "classifier":
            return np.concatenate([leaf, 0 * leaf])[np.argsort(pooled)] if name == "kernel" else leaf
        if block in ("qkv", "up", "gate") and name != "kernel":
            return leaf
        if block in ("qkv", "up", "gate"):
            return np.concatenate([leaf, 0 * leaf])[np.argsort(stream)]
        if path[0] == "pooler":
            if name == "kernel":
                leaf = np.concatenate([leaf, 0 * leaf])[np.argsort(stream)]
            return np.concatenate([leaf, leaf], -1)[..., np.argsort(pooled)]
        return np.concatenate([leaf, leaf], -1)[..., np.argsort(stream)]

    return width.mapped(doubled, params), np.sort(stream[:WIDTH]), np.sort(pooled[:WIDTH])


def answers(model: tuple[ModelConfig, Any], batch: Any) -> np.ndarray:
    merged = nnx.merge(graphdef(model[0]), model[1])
    return np.asarray(merged.classify(batch["tokens"], batch["segments"], batch["types"]))


def test_copies_that_nothing_reads_are_what_goes_and_answers_stay(
    config: ModelConfig, draw: Draw, invent: Callable[..., Examples]
) -> None:
    small, examples = draw(config, 0), invent(64)
    params, stream, pooled = twice(small, np.random.default_rng(1))
    wide = replace(config, width=2 * WIDTH), params
    rows = np.arange(64)
    batches = [examples.batch(rows[:32], 32), examples.batch(rows[32:], 32)]
    wanted = answers(wide, batches[0])
    np.testing.assert_allclose(wanted, answers((config, small), batches[0]), atol=1e-4)
    heard: list[int] = []
    kept = width.choose(wide, WIDTH, examples, rows, heard.append)
    np.testing.assert_array_equal(kept.stream, stream)
    np.testing.assert_array_equal(kept.pooled, pooled)
    assert heard == [32, 64]
    narrow = width.narrowed(wide, kept, examples, batches)
    assert narrow[0] == config
    np.testing.assert_allclose(answers(narrow, batches[0]), wanted, atol=1e-3)
    fitted = refit(wide, narrow, batches, lambda done: None, kept.stream)
    np.testing.assert_allclose(answers((config, fitted), batches[0]), wanted, atol=1e-3)


def test_what_stays_makes_up_for_what_goes_as_least_squares_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refits, "DAMPING", 0.0)
    random = np.random.default_rng(0)
    x_MD, w_DN = random.standard_normal((500, 6)) @ random.standard_normal((6, 6)), random.standard_normal((6, 3))
    stays = np.array([0, 2, 3, 5])
    made = width._without(w_DN, stays, x_MD.T @ x_MD)
    expected = np.linalg.lstsq(x_MD[:, stays], x_MD @ w_DN, rcond=None)[0]
    np.testing.assert_allclose(made[stays], expected, rtol=1e-4, atol=1e-5)
    w_DN[[2, 5], [0, 1]] = 0.0
    sparse = width._without(w_DN, stays, x_MD.T @ x_MD, sparse=True)
    for column, rows in enumerate(([0, 3, 5], [0, 2, 3], [0, 2, 3, 5])):
        expected = np.linalg.lstsq(x_MD[:, rows], x_MD @ w_DN[:, column], rcond=None)[0]
        np.testing.assert_allclose(sparse[rows, column], expected, rtol=1e-4, atol=1e-5)
    assert sparse[2, 0] == sparse[5, 1] == 0.0


@pytest.mark.parametrize("biased", [True, False])
def test_the_nearest_line_is_that_of_polyfit(biased: bool) -> None:
    random = np.random.default_rng(0)
    x = random.standard_normal((50, 2)) + 1
    y = 3 * x + random.standard_normal((50, 2)) - 2
    sums = np.array([np.full(2, 50.0), x.sum(0), y.sum(0), (x * x).sum(0), (x * y).sum(0)])
    slope, shift = width._line(sums, biased)
    for channel in range(2):
        columns = np.stack([x[:, channel], np.ones(50)], 1)[:, : 1 + biased]
        expected = np.linalg.lstsq(columns, y[:, channel], rcond=None)[0]
        np.testing.assert_allclose([slope[channel], shift[channel]], [*expected, 0.0][:2])


def test_a_narrower_model_answers_nearer_when_it_is_fitted(
    config: ModelConfig, draw: Draw, invent: Callable[..., Examples]
) -> None:
    whole, examples, rows = (config, draw(config, 0)), invent(96), np.arange(96)
    batches = [examples.batch(rows[at : at + 32], 32) for at in (0, 32, 64)]
    kept = width.Channels(np.arange(1, WIDTH), np.arange(WIDTH - 1))
    plain, narrow = width.cut(whole, kept), width.narrowed(whole, kept, examples, batches)
    fitted = narrow[0], refit(whole, narrow, batches, lambda done: None, kept.stream)
    away = [np.square(answers(each, batches[0]) - answers(whole, batches[0])).sum() for each in (plain, narrow, fitted)]
    assert away[2] < away[0] and away[1] < away[0], away
