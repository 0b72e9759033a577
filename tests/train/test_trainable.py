"""What is trained and what is not: gradients against those of the whole model, and LoRA against matrices by hand."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lsp import LspError, recipe
from lsp.model.config import ModelConfig
from lsp.model.encoder import graphdef, initialise
from lsp.model.int8 import matmul
from lsp.model.lowrank import LowRank
from lsp.train import optimizer, trainable
from lsp.train.objectives import Objective, classification
from lsp.train.step import Signals, begin, make_train_step, make_update

TRAIN = recipe.Train(steps=10, learning_rate=1e-2, warmup=0.0, weight_decay=0.1)
Leaves = dict[str, Any]


@pytest.fixture
def small(config: ModelConfig, examples: dict[str, jax.Array]) -> tuple[ModelConfig, Any, dict[str, jax.Array]]:
    config = config.classifier(3, "cls", 0.0)
    return config, jax.device_get(initialise(config, 0)), examples


def named(tree: Any) -> Leaves:
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in jax.tree.leaves_with_path(tree)
    }


def gradients(config: ModelConfig, objective: Objective, trained: Any, batch: Any) -> Any:
    def loss(trained: Any) -> Any:
        model = nnx.merge(graphdef(config), objective.whole(trained, objective.frozen))
        found = objective.loss(model, objective.frozen, batch, None)[0]
        return found.total / found.count

    return jax.jit(jax.grad(loss))(trained)


def test_what_is_below_is_not_trained_and_the_rest_as_ever(small: Any) -> None:
    config, params, batch = small
    trained, rest = trainable.split(params, recipe.Adapt(freeze=1), 0)
    jax.tree.map(np.testing.assert_array_equal, trainable.merged(trained, rest), params)
    assert {name.split(".")[0] for name in named(rest)} == {"embeddings", "layers"}
    assert not any(name.startswith(("embeddings", "layers.0.")) for name in named(trained))
    plain = named(gradients(config, Objective(classification), params, batch))
    held = named(gradients(config, trainable.partly(Objective(classification), rest, 1.0), trained, batch))
    assert held
    for name, value in held.items():
        np.testing.assert_allclose(value, plain[name], atol=1e-6, err_msg=name)


def test_lora_has_the_gradients_of_its_product(small: Any) -> None:
    """With respect to A and B, from the gradient of the matrix W + s·AB in one piece: s·G·Bᵀ and s·Aᵀ·G."""
    config, params, batch = small
    trained, rest = trainable.split(params, recipe.Adapt(lora_rank=2), 0)
    random = np.random.default_rng(0)
    trained = jax.tree.map(lambda leaf: leaf + random.normal(0, 0.1, leaf.shape).astype(np.float32), trained)
    whole = named(gradients(config, Objective(classification), trainable.merged(trained, rest, 2.0), batch))
    found = named(gradients(config, trainable.partly(Objective(classification), rest, 2.0), trained, batch))
    values, checked = named(trained), 0
    for name, gradient in found.items():
        if name.endswith(".kernel.a"):
            matrix = name.removesuffix(".a")
            a, b, wanted = values[name], values[matrix + ".b"], np.asarray(whole[matrix], np.float64)
            np.testing.assert_allclose(gradient, 2.0 * wanted @ b.T, atol=2e-6, err_msg=name)
            np.testing.assert_allclose(found[matrix + ".b"], 2.0 * a.T @ wanted, atol=2e-6, err_msg=name)
            checked += 1
        elif not name.endswith(".b"):
            np.testing.assert_allclose(gradient, whole[name], atol=2e-6, err_msg=name)
    assert checked == 2 * len([name for name in named(params) if name.startswith("layers.0.") and "kernel" in name])


def test_lora_begins_with_the_model_as_it_is(small: Any) -> None:
    _, params, _ = small
    trained, rest = trainable.split(params, recipe.Adapt(lora_rank=2), 3)
    jax.tree.map(np.testing.assert_array_equal, trainable.merged(trained, rest, 8.0), params)
    assert named(trained).keys() >= {"classifier.kernel", "pooler.kernel", "layers.0.attention.qkv.kernel.a"}
    other, _ = trainable.split(params, recipe.Adapt(lora_rank=2), 4)
    kernel = trained["layers"][0]["attention"]["qkv"]["kernel"]
    assert (kernel["a"] != other["layers"][0]["attention"]["qkv"]["kernel"]["a"]).all()
    above, _ = trainable.split(params, recipe.Adapt(lora_rank=2, freeze=1), 3)
    assert [*above["layers"]] == [1]


def test_a_product_with_low_rank_is_that_of_the_merged_matrix() -> None:
    random = np.random.default_rng(0)
    x, base, a, b = (random.normal(size=size).astype(np.float32) for size in ((3, 5, 8), (8, 6), (8, 2), (2, 6)))
    weight = LowRank(base, a, b, 0.5)
    expected = x.astype(np.float64) @ (base + 0.5 * (a.astype(np.float64) @ b))
    np.testing.assert_allclose(jax.jit(matmul)(x, weight), expected, atol=1e-5)
    np.testing.assert_allclose(x @ weight.merged(), expected, atol=1e-5)
    assert matmul(x.astype(jnp.bfloat16), weight).dtype == jnp.bfloat16


@pytest.mark.parametrize("change", [recipe.Adapt(freeze=2), recipe.Adapt(lora_rank=2)])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_leaves_the_rest_alone(small: Any, change: recipe.Adapt, precision: str) -> None:
    config, params, batch = small
    trained, rest = trainable.split(params, change, 0)
    before = jax.tree.map(np.copy, rest)
    objective = trainable.partly(Objective(classification), rest, 4.0)
    update = make_update(graphdef(config), objective, optimizer.make(TRAIN), precision=precision)
    step, state = make_train_step(update), begin(update, trained)
    for index in range(2):
        state, metrics = step(state, objective.frozen, batch, np.int32(index), Signals(0.0))
        assert metrics["ok"]
    jax.tree.map(np.testing.assert_array_equal, rest, before)
    moved = named(state.params)
    assert moved.keys() == named(trained).keys()
    assert all((moved[name] != leaf).any() for name, leaf in named(trained).items() if "kernel" in name)
    made = named(trainable.merged(state.params, rest, 4.0))
    if change.lora_rank:
        for name, leaf in named(params).items():
            if name.startswith("layers") and name.endswith("kernel"):
                away = np.asarray(made[name], np.float64) - leaf
                assert np.linalg.matrix_rank(away, tol=1e-5) == 2, name


def test_what_cannot_be_split_is_said(small: Any) -> None:
    _, params, _ = small
    for change, says in (
        (recipe.Adapt(lora_rank=2, freeze=2), "leaves nothing"),
        (recipe.Adapt(lora_rank=2, reinitialise=1), "leaves nothing"),
        (recipe.Adapt(lora_rank=400), "lora_rank = 400"),
    ):
        with pytest.raises(LspError, match=says):
            trainable.split(params, change, 0)
