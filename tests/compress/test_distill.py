"""Distillation: the loss against NumPy, and what a student takes over from its teacher."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lsp import recipe
from lsp.compress import distill
from lsp.compress.quantize import quantize
from lsp.model.config import Layer, ModelConfig
from lsp.model.encoder import graphdef
from lsp.train.metrics import value

Draw = Callable[[ModelConfig, int], dict]
ROWS, TOKENS = 4, 10
TEACHER = ModelConfig("bert", 300, 16, (Layer(2, 8, 24),) * 4, 32).classifier(3, "mean", 0.1)
TINY = dataclasses.replace(TEACHER, layers=TEACHER.layers[:1])
SHORT = dataclasses.replace(TEACHER, layers=TEACHER.layers[:2])


def batch() -> dict[str, jax.Array]:
    return {
        "tokens": jnp.asarray(np.random.default_rng(0).integers(5, 300, (ROWS, TOKENS)), jnp.int32),
        "segments": jnp.ones((ROWS, TOKENS), jnp.int32),
        "types": jnp.zeros((ROWS, TOKENS), jnp.int32),
        "labels": jnp.array([0, 1, 2, 1], jnp.int32),
        "weights": jnp.array([1.0, 1.0, 1.0, 0.0]),
        "known": jnp.ones(ROWS),
    }


def log_softmax(x: np.ndarray) -> np.ndarray:
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def test_the_loss_is_hintons_and_padding_rows_weigh_nothing(draw: Draw) -> None:
    student = dataclasses.replace(TEACHER, preset="modern", layers=TEACHER.layers[:1], dropout=0.0)
    own, frozen = draw(student, 0), draw(TEACHER, 1)

    @jax.jit
    def run(own: dict, frozen: dict, batch: dict) -> tuple:
        models = nnx.merge(graphdef(student), own), nnx.merge(graphdef(TEACHER), frozen)
        logits = [model.classify(batch["tokens"], batch["segments"], batch["types"]) for model in models]
        batch = batch | {"wanted": logits[1]}
        return [distill.match_teacher(2.0, hard)(models[0], None, batch, None) for hard in (0.0, 0.3, 1.0)], logits

    losses, logits = run(own, frozen, batch())
    found, wanted = (np.asarray(each, np.float64) for each in logits)
    p, q = log_softmax(wanted / 2), log_softmax(found / 2)
    soft = 4 * (np.exp(p) * (p - q)).sum(-1)
    labels = np.asarray(batch()["labels"])
    cross_entropy = -log_softmax(found)[np.arange(ROWS), labels]
    assert soft[:3].mean() > 0.01
    for hard, (mean, metrics) in zip((0.0, 0.3, 1.0), losses, strict=True):
        assert float(mean.count) == 3
        np.testing.assert_allclose(value(mean), ((1 - hard) * soft + hard * cross_entropy)[:3].mean(), rtol=1e-4)
        np.testing.assert_allclose(value(metrics["accuracy"]), (found.argmax(-1) == labels)[:3].mean(), rtol=1e-6)
        agreement = (found.argmax(-1) == wanted.argmax(-1))[:3].mean()
        np.testing.assert_allclose(value(metrics["agreement"]), agreement, rtol=1e-6)


def test_made_up_texts_learn_from_the_teacher_alone(draw: Draw) -> None:
    model = nnx.merge(graphdef(TINY), draw(TINY, 0))

    @jax.jit
    def run(given: dict) -> tuple[jax.Array, jax.Array, jax.Array]:
        mean, metrics = distill.match_teacher(2.0, 0.4)(model, None, given, None)
        return mean.total, mean.count, metrics["accuracy"].count

    given = batch() | {"wanted": jnp.asarray(np.random.default_rng(1).standard_normal((ROWS, 3)), jnp.float32)}
    none, some = jnp.zeros(ROWS), jnp.array([1.0, 0.0, 1.0, 1.0])
    wrong = {"labels": (given["labels"] + 1) % 3}
    assert run(given | {"known": none}) == run(given | wrong | {"known": none}) != run(given)
    total, count, judged = run(given | {"known": some})
    assert count == 3 and judged == 2
    second = {"weights": jnp.array([0.0, 1.0, 0.0, 0.0])}
    parts = run(given | second | {"known": none})[0], run(given | {"weights": jnp.array([1.0, 0.0, 1.0, 0.0])})[0]
    np.testing.assert_allclose(total, sum(parts), rtol=1e-5)


def test_a_student_learns_what_a_teacher_says(draw: Draw) -> None:
    given = batch()
    teacher = nnx.merge(graphdef(TINY), draw(TINY, 1))
    given["wanted"] = teacher.classify(given["tokens"], given["segments"], given["types"])
    loss = distill.match_teacher(2.0, 0.0)

    @jax.jit
    def step(params: dict, given: dict, key: jax.Array) -> tuple[jax.Array, dict]:
        def mean(params: dict) -> jax.Array:
            found, _ = loss(nnx.merge(graphdef(TINY), params), None, given, key)
            return found.total / found.count

        number, grads = jax.value_and_grad(mean)(params)
        return number, jax.tree.map(lambda w, g: w - 0.1 * g, params, grads)

    params, losses = draw(TINY, 2), []
    for number in range(30):
        found, params = step(params, given, jax.random.key(number))
        losses.append(float(found))
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])


def test_a_copy_of_the_teacher_has_nothing_to_learn(draw: Draw) -> None:
    @jax.jit
    def run(params: dict) -> tuple:
        model, given = nnx.merge(graphdef(SHORT), params), batch()
        given["wanted"] = model.classify(given["tokens"], given["segments"], given["types"])
        return distill.match_teacher(3.0, 0.0)(model, None, given, None)

    mean, metrics = run(draw(SHORT, 1))
    assert abs(value(mean)) < 1e-6 and value(metrics["agreement"]) == 1


def test_a_shallow_student_takes_evenly_spaced_layers(draw: Draw) -> None:
    fresh, teacher = draw(SHORT, 0), draw(TEACHER, 1)
    made, copied = distill.student(fresh, teacher)
    for own, origin in ((0, 0), (1, 3)):
        jax.tree.map(np.testing.assert_array_equal, made["layers"][own], teacher["layers"][origin])
    for name in ("embeddings", "pooler", "classifier"):
        jax.tree.map(np.testing.assert_array_equal, made[name], teacher[name])
    assert "embeddings.tokens" in copied and "layers.1.attention ← layers.3" in copied and "classifier" in copied
    assert jax.tree.structure(made) == jax.tree.structure(fresh)
    # Training donates the student; the teacher must outlive that.
    jax.jit(lambda tree: jax.tree.map(lambda w: w + 1, tree), donate_argnums=0)(made)
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(teacher))


def test_twelve_layers_give_six_the_ones_of_distilbert(draw: Draw) -> None:
    deep = dataclasses.replace(TEACHER, layers=TEACHER.layers[:1] * 12)
    half = dataclasses.replace(TEACHER, layers=TEACHER.layers[:1] * 6)
    _, copied = distill.student(draw(half, 0), draw(deep, 1))
    origins = [int(name.rpartition(".")[2]) for name in copied if "attention" in name]
    assert origins == [0, 2, 4, 7, 9, 11]


def test_another_width_shares_the_main_directions_of_the_words_alone(draw: Draw) -> None:
    fresh = draw(dataclasses.replace(TEACHER, width=8, layers=(Layer(2, 4, 24),)), 0)
    teacher = draw(TEACHER, 1)
    made, copied = distill.student(fresh, teacher)
    assert copied == ["embeddings.tokens in its 8 main directions"]
    table = np.asarray(teacher["embeddings"]["tokens"]["table"], np.float64)
    left, sizes, _ = np.linalg.svd(table - table.mean(0), full_matrices=False)
    own = np.asarray(made["embeddings"]["tokens"].pop("table"), np.float64)
    best = left[:, :8] * sizes[:8]  # but for the directions' signs, which products of rows do not have
    np.testing.assert_allclose(own @ own.T, best @ best.T, atol=1e-5 * sizes[0] ** 2)
    del fresh["embeddings"]["tokens"]["table"]
    jax.tree.map(np.testing.assert_array_equal, made, fresh)


def test_a_wider_student_starts_fresh(draw: Draw) -> None:
    fresh = draw(dataclasses.replace(TEACHER, width=24, layers=(Layer(2, 12, 32),)), 0)
    made, copied = distill.student(fresh, draw(TEACHER, 1))
    assert copied == []
    jax.tree.map(np.testing.assert_array_equal, made, fresh)


def test_an_lstm_starts_with_the_words_of_a_transformer(draw: Draw) -> None:
    for width, words in ((16, "embeddings.tokens"), (8, "embeddings.tokens in its 8 main directions")):
        lstm = ModelConfig.from_recipe(recipe.Model(preset="bilstm", width=width, layers=1, heads=1), 300)
        config = lstm.classifier(3, "mean", 0.1)
        made, copied = distill.student(draw(config, 0), draw(TEACHER, 1), (config, TEACHER))
        assert words in copied and not any(name.startswith("layers") for name in copied)
        logits = nnx.merge(graphdef(config), made).classify(*(batch()[name] for name in ("tokens", "segments")))
        assert np.isfinite(logits).all()


def test_blocks_of_another_shape_start_fresh_alone(draw: Draw) -> None:
    config = dataclasses.replace(TEACHER, layers=(Layer(2, 8, 32),)).classifier(5, "mean", 0.0)
    _, copied = distill.student(draw(config, 0), draw(TEACHER, 1))
    assert "layers.0.attention ← layers.0" in copied
    assert not any("feedforward" in name or name == "classifier" for name in copied)


def test_the_same_shape_cut_into_other_heads_is_not_copied(draw: Draw) -> None:
    config = dataclasses.replace(TEACHER, layers=(Layer(1, 16, 24),))
    _, copied = distill.student(draw(config, 0), draw(TEACHER, 1), (config, TEACHER))
    assert "layers.0.feedforward ← layers.0" in copied and not any("attention" in name for name in copied)


def test_an_int8_teacher_gives_floats(draw: Draw) -> None:
    teacher = jax.device_get(quantize(draw(TEACHER, 1)))
    made, copied = distill.student(draw(TEACHER, 0), teacher)
    assert len(copied) > 8
    assert all(isinstance(leaf, jax.Array) and leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(made))
    table = teacher["embeddings"]["tokens"]["table"].dequantize()
    np.testing.assert_array_equal(made["embeddings"]["tokens"]["table"], table)


def test_another_preset_still_shares_its_embeddings(draw: Draw) -> None:
    other = ModelConfig("modern", 300, 16, TEACHER.layers, 32).classifier(3, "mean", 0.1)
    _, copied = distill.student(draw(other, 0), draw(TEACHER, 1))
    assert sorted(copied) == ["classifier", "embeddings.tokens"]
