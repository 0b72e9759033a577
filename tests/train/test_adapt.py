"""Losses made of losses: against the same thing by hand."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy import special

from lsp import LspError, recipe
from lsp.model.config import ModelConfig
from lsp.model.encoder import graphdef, initialise
from lsp.train import adapt
from lsp.train.objectives import classification, divergence


@pytest.fixture
def small(config: ModelConfig, examples: dict[str, jax.Array]) -> tuple[ModelConfig, Any, dict[str, jax.Array]]:
    config = config.classifier(3, "cls", 0.0)
    return config, initialise(config, 0), examples


def mean(config: ModelConfig, loss: Any, params: Any, batch: Any, key: Any = None) -> Any:
    found = loss(nnx.merge(graphdef(config), params), None, batch, key)[0]
    return found.total / found.count


def test_fgm_moves_the_table_along_the_gradient(small: Any) -> None:
    config, params, batch = small
    loss = adapt.loss("single_label", recipe.Adapt(fgm=0.5))
    found = jax.jit(lambda params: mean(config, loss, params, batch))(params)

    @jax.jit
    def at(table: jax.Array) -> jax.Array:
        moved = params | {"embeddings": params["embeddings"] | {"tokens": {"table": table}}}
        return mean(config, classification, moved, batch)

    table = params["embeddings"]["tokens"]["table"]
    slope = jax.jit(jax.grad(at))(table)
    moved = at(table + 0.5 * slope / jnp.sqrt(jnp.square(slope).sum()))
    assert float(found) == pytest.approx(float(at(table) + moved) / 2, rel=1e-5)
    assert moved > at(table)


def test_r_drop_is_the_plain_loss_without_dropout_and_more_with_it(small: Any) -> None:
    config, params, batch = small
    loss = adapt.loss("single_label", recipe.Adapt(r_drop=2.0))
    plain = float(mean(config, classification, params, batch))
    assert float(mean(config, loss, params, batch)) == pytest.approx(plain, rel=1e-5)
    config, key = config.classifier(3, "cls", 0.5), jax.random.key(0)
    inputs = batch["tokens"], batch["segments"], batch["types"]
    model = nnx.merge(graphdef(config), params)
    one, other = (np.asarray(model.classify(*inputs, key=each), np.float64) for each in jax.random.split(key))
    logs = [special.log_softmax(logits, axis=1) for logits in (one, other)]
    apart = sum((np.exp(p) * (p - q)).sum(1) for p, q in (logs, logs[::-1])) / 2
    cross = -sum(log[np.arange(4), batch["labels"]] for log in logs) / 2
    expected = ((cross + 2.0 * apart) * np.asarray(batch["weights"])).sum() / 3
    assert float(mean(config, loss, params, batch, key)) == pytest.approx(float(expected), rel=1e-4)


def test_divergence_of_several_classes_is_that_of_each() -> None:
    random = np.random.default_rng(0)
    wanted, found = random.normal(size=(2, 5, 3)).astype(np.float32)
    p, q = special.expit(wanted / 2.0), special.expit(found / 2.0)
    expected = 4 * (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))).mean(1)
    np.testing.assert_allclose(divergence("multi_label", wanted, found, 2.0), expected, rtol=1e-4)
    np.testing.assert_allclose(divergence("regression", wanted[:, :1], found[:, :1]), (wanted - found)[:, 0] ** 2)


def test_the_top_begins_anew(config: ModelConfig) -> None:
    old, new = initialise(config, 0), initialise(config, 1)
    made = adapt.fresh(old, new, recipe.Adapt(freeze=1, reinitialise=1))
    assert made["layers"][0] is old["layers"][0] and made["layers"][1] is new["layers"][1]
    assert made["embeddings"] is old["embeddings"]
    for wrong, says in ((recipe.Adapt(freeze=3), "has 2 layers"), (recipe.Adapt(1, 2), "the same layers")):
        with pytest.raises(LspError, match=says):
            adapt.fresh(old, new, wrong)
