import dataclasses
import math
from functools import partial
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lsp import LspError, processor, recipe
from lsp.model import attention, cost
from lsp.model.blocks import inverse_root
from lsp.model.config import ModelConfig
from lsp.model.encoder import Model, add_bias, compiler_options, drop, graphdef, initialise, shapes
from lsp.model.int8 import quantize_array
from lsp.model.sharding import EACH


def build(config: ModelConfig) -> Model:
    return nnx.merge(graphdef(config), initialise(config, 0))


def test_packed_neighbours_cannot_see_each_other(config: ModelConfig):
    model, rng = build(config), np.random.default_rng(0)
    first, second = rng.integers(5, 300, (1, 7)), rng.integers(5, 300, (1, 9))
    packed = jnp.asarray(np.concatenate([first, second, np.zeros((1, 4), int)], axis=1), jnp.int32)
    segments = jnp.asarray([[1] * 7 + [2] * 9 + [0] * 4], jnp.int32)
    encode = jax.jit(model.encode)
    together = encode(packed, segments)
    for tokens, at in ((first, slice(0, 7)), (second, slice(7, 16))):
        alone = encode(jnp.asarray(tokens, jnp.int32), jnp.ones(tokens.shape, jnp.int32))
        np.testing.assert_allclose(together[:, at], alone, atol=2e-5)


def test_a_prediction_does_not_depend_on_batch_or_padding(config: ModelConfig):
    model, rng = build(config.classifier(3, "mean", 0.0)), np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(5, 300, (4, 10)), jnp.int32)
    segments = jnp.ones((4, 10), jnp.int32)
    classify = jax.jit(model.classify)
    batch = classify(jnp.pad(tokens, ((0, 0), (0, 6))), jnp.pad(segments, ((0, 0), (0, 6))))
    for row in range(4):
        np.testing.assert_allclose(batch[row], classify(tokens[row : row + 1], segments[:1])[0], atol=1e-5)


def test_positions_restart_at_each_segment():
    segments = np.random.default_rng(0).integers(1, 3, (5, 20)).astype(np.int32)
    found = attention.positions(jnp.asarray(segments))
    for row, line in enumerate(segments):
        position = 0
        for column, segment in enumerate(line):
            position = position + 1 if column and segment == line[column - 1] else 0
            assert found[row, column] == position


def test_attention_is_the_textbook_formula():
    rng = np.random.default_rng(0)
    q, k, v = rng.standard_normal((3, 1, 2, 6, 4)).astype(np.float32)
    segments = np.array([[1, 1, 1, 2, 2, 2]], np.int32)
    found = attention.attend(jnp.asarray(q), jnp.asarray(k), jnp.asarray(v), jnp.asarray(segments))
    for head in range(2):
        for token in range(6):
            seen = [other for other in range(6) if segments[0, other] == segments[0, token]]
            scores = np.array([math.exp(q[0, head, token] @ k[0, head, other] / 2) for other in seen])
            expected = sum(score * v[0, head, other] for score, other in zip(scores, seen, strict=True)) / scores.sum()
            np.testing.assert_allclose(found[0, head, token], expected, rtol=1e-5)


@pytest.mark.parametrize("window", [0, 3])
def test_the_fused_kernel_is_asked_for_the_same(window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """cuDNN's, for which jax's own stands in: the same layout, scale, segments and window."""
    real, asked = jax.nn.dot_product_attention, []

    def cudnn(*args: Any, implementation: str, **options: Any) -> jax.Array:
        asked.append((implementation, args[0].dtype))
        with jax.numpy_dtype_promotion("standard"):
            return real(*args, implementation="xla", **options)

    keys = jax.random.split(jax.random.key(0), 3)
    q, k, v = (jax.random.normal(key, (2, 3, 12, 8), jnp.bfloat16) for key in keys)
    segments = jnp.asarray([[1] * 5 + [2] * 4 + [0] * 3, [1] * 12], jnp.int32)
    monkeypatch.setattr(jax.nn, "dot_product_attention", cudnn)
    want = attention.attend(q, k, v, segments, window)
    assert not asked
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax, "__version_info__", (0, 11, 2))
    card = SimpleNamespace(compute_capability="9.0")
    monkeypatch.setattr(jax, "local_devices", lambda: [card])
    found = attention.attend(q, k, v, segments, window)
    assert asked == [("cudnn", jnp.bfloat16)]
    np.testing.assert_allclose(found.astype(jnp.float32), want.astype(jnp.float32), atol=0.02)
    # What it does not take: float32, an odd length, another size of head, a few queries of many; other cards.
    attention.attend(*(x.astype(jnp.float32) for x in (q, k, v)), segments)
    attention.attend(*(x[:, :, :11] for x in (q, k, v)), segments[:, :11])
    attention.attend(*(x[..., :4] for x in (q, k, v)), segments)
    attention.attend(q[:, :, :2], k, v, segments, 0, jnp.zeros((2, 2), jnp.int32))
    for name in ("7.5", "gfx942", None):
        card.compute_capability = name
        attention.attend(q, k, v, segments)
    card.compute_capability = "9.0"
    one = partial(attention.attend, segments_BT=segments)
    jax.vmap(one, axis_name=EACH)(*(x[None] for x in (q, k, v)))  # several models at once
    assert len(asked) == 1


def test_rotary_scores_depend_on_distance_only():
    rng = np.random.default_rng(0)
    q, k = (jnp.asarray(rng.standard_normal((1, 1, 1, 8)), jnp.float32) for _ in range(2))

    def score(at_q: int, at_k: int) -> float:
        turns = [attention.rotary(jnp.asarray([[at]], jnp.int32), 8, 10_000.0) for at in (at_q, at_k)]
        return float((attention.rotate(q, *turns[0]) * attention.rotate(k, *turns[1])).sum())

    assert score(3, 1) == pytest.approx(score(12, 10), rel=1e-4)
    assert score(3, 1) != pytest.approx(score(3, 2), rel=1e-4)


def test_the_pieces_of_a_cut_row_are_rows_of_their_own(config: ModelConfig):
    rng = np.random.default_rng(0)
    tokens = jnp.asarray(rng.integers(5, 300, (2, 24)), jnp.int32)
    segments = jnp.asarray(np.repeat(rng.integers(1, 9, (2, 8)), 3, axis=1), jnp.int32)
    model = nnx.merge(graphdef(config), initialise(config, 0))
    cut = model.encode(tokens, segments.reshape(2, 3, 8))
    apart = model.encode(tokens.reshape(6, 8), segments.reshape(6, 8))
    np.testing.assert_allclose(cut.reshape(6, 8, -1), apart, atol=1e-5)
    assert np.abs(cut - model.encode(tokens, segments)).max() > 1e-3


def test_bert_base_has_the_published_number_of_parameters():
    config = ModelConfig.from_recipe(recipe.Model(preset="bert", layers=12, width=768, heads=12), 30_522)
    parts = cost.by_part(config.classifier(2, "cls", 0.1))
    assert parts["embeddings"] + parts["layers"] + parts["pooler"] == 109_482_240


def test_parameters_and_flops_agree_with_hand_arithmetic(config: ModelConfig):
    width, vocabulary, bert = 16, 300, config.preset == "bert"
    heads, inner = (2 * 8, 1 * 8), (24, 40)
    kernels = sum(width * 4 * h + (2 if bert else 3) * width * f for h, f in zip(heads, inner, strict=True))
    biases = sum(3 * h + width + f + width for h, f in zip(heads, inner, strict=True)) if bert else 0
    norms = (1 + 2 * 2) * 2 * width if bert else (1 + 2 * 2 - 1 + 1) * width  # the first layer of `modern` has one
    tables = (vocabulary + (32 + 2 if bert else 0)) * width
    head = width * width + (3 if bert else 1) * width + vocabulary
    assert cost.parameters(config) == kernels + biases + norms + tables + head
    length, slots = 10, 3
    products = length * kernels + 2 * length * length * sum(heads) + slots * (width * width + width * vocabulary)
    assert cost.forward_flops(config, [length], slots) == 2 * products
    near = dataclasses.replace(config, layers=(dataclasses.replace(config.layers[0], window=3), config.layers[1]))
    unseen = sum(abs(one - other) > 3 for one in range(length) for other in range(length))
    assert cost.forward_flops(near, [length], slots) == 2 * (products - 2 * unseen * heads[0])


def test_needed_flops_leave_out_padding_neighbours_and_unused_slots(config: ModelConfig):
    segments = np.array([[1, 1, 1, 2, 2, 2, 2, 0], [1, 1, 2, 3, 3, 0, 0, 0]], np.int32)
    weights = np.array([[1, 1, 0], [1, 0, 0]], np.float32)
    batch = {"tokens": segments, "segments": segments, "weights": weights, "slots": np.zeros((2, 3), np.int32)}
    assert cost.needed_flops(config, batch) == cost.forward_flops(config, [3, 4, 2, 1, 2], 3, 2)
    cut = batch | {"segments": segments.reshape(2, 2, 4)}
    assert cost.needed_flops(config, cut) == cost.forward_flops(config, [3, 1, 3, 2, 1, 1, 1], 3, 2)
    labelled = {"tokens": segments, "segments": segments > 0, "weights": np.array([1, 0], np.float32)}
    assert cost.needed_flops(config, labelled) == cost.forward_flops(config, [7, 5], 0, 1)
    teacher = dataclasses.replace(config, layers=config.layers[:1])
    needed = 3 * cost.needed_flops(config, batch) + cost.needed_flops(teacher, batch)
    assert cost.training_flops(config, batch, teacher) == needed


def test_abstract_shapes_are_the_real_ones(config: ModelConfig):
    real, abstract = initialise(config, 0), shapes(config)
    assert jax.tree.map(lambda a: (a.shape, a.dtype), real) == jax.tree.map(lambda a: (a.shape, a.dtype), abstract)


def test_bf16_is_the_same_model_within_its_precision(config: ModelConfig):
    tokens = jnp.asarray(np.random.default_rng(0).integers(5, 300, (2, 12)), jnp.int32)
    params = initialise(config, 0)
    half = nnx.merge(graphdef(config), jax.tree.map(lambda p: p.astype(jnp.bfloat16), params))
    hidden = half.encode(tokens, jnp.ones_like(tokens))
    assert hidden.dtype == jnp.bfloat16
    exact = build(config).encode(tokens, jnp.ones_like(tokens))
    assert float(jnp.abs(hidden.astype(jnp.float32) - exact).mean()) < 0.02


def test_dropout_drops_its_share_and_keeps_the_mean():
    x = jnp.ones((100, 1001))
    y = drop(x, 0.1, jax.random.key(0))
    assert float((y == 0).mean()) == pytest.approx(0.1, abs=0.003)
    assert float(y.mean()) == pytest.approx(1.0, abs=0.004)
    assert drop(x, 0.1, None) is x


def test_dropout_is_independent_of_place_and_key():
    kept = [np.asarray(drop(jnp.ones((64, 128, 32)), 0.5, jax.random.key(seed))) > 0 for seed in range(3)]
    pairs = [(kept[0], other) for other in kept[1:]]
    for axis in range(3):
        for distance in (1, 2, 8, 16):
            pairs.append((kept[0], np.roll(kept[0], distance, axis)))
    # Of n pairs of coins half agree, give or take 0.5 / sqrt(n): 0.001 here.
    assert [float((a == b).mean()) for a, b in pairs] == pytest.approx([0.5] * len(pairs), abs=0.004)
    for axis in range(3):  # no row, column or plane is luckier than chance
        others = tuple(other for other in range(3) if other != axis)
        size = kept[0].size // kept[0].shape[axis]
        assert np.abs(kept[0].mean(others) - 0.5).max() < 5 * 0.5 / math.sqrt(size)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_gradient_of_a_bias_is_the_sum_over_all_rows(dtype: str):
    rng = np.random.default_rng(0)
    y, bias, slope = (jnp.asarray(rng.standard_normal(shape), dtype) for shape in ((3, 8, 40), 40, (3, 8, 40)))
    found, pull = jax.vjp(add_bias, y, bias)
    np.testing.assert_array_equal(found, y + bias)
    dy, dbias = pull(slope)
    assert found.dtype == dy.dtype == dbias.dtype == dtype
    np.testing.assert_array_equal(dy, slope)
    expected = np.asarray(slope, np.float64).sum((0, 1))
    np.testing.assert_allclose(
        np.asarray(dbias, np.float64), expected, rtol=2e-2 if dtype == "bfloat16" else 1e-5, atol=1e-5
    )


def test_an_inverse_root_is_right_and_the_same_however_many_there_are():
    x = (10 ** np.random.default_rng(0).uniform(-12, 12, 512)).astype(np.float32)
    options = {"xla_cpu_prefer_vector_width": 512} if jax.default_backend() == "cpu" else None
    program = jax.jit(inverse_root, compiler_options=options)
    found, expected = program(x), x.astype(np.float64) ** -0.5
    np.testing.assert_allclose(found, expected, rtol=2e-7)
    np.testing.assert_allclose(jax.vmap(jax.grad(inverse_root))(x), -0.5 * expected**3, rtol=1e-6)
    for count in (1, 7, 16, 17, 32, 63, 64, 200):
        np.testing.assert_array_equal(program(x[:count]), found[:count], err_msg=str(count))


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize("known", ["avx512f avx512_vnni", "avx2 avx_vnni", ""])
def test_whole_registers_are_for_int8_on_processors_that_multiply_in_them(
    known: str, backend: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(processor, "features", lambda: known)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    w = np.ones((4, 3), np.float32)
    wide = compiler_options({"a": w, "b": quantize_array(w, 1)}).get("xla_cpu_prefer_vector_width")
    assert wide == (512 if "avx512" in known and backend == "cpu" else None)
    assert "xla_cpu_prefer_vector_width" not in compiler_options({"a": w})


def test_heads_that_do_not_divide_the_width_are_refused_with_ones_that_do():
    with pytest.raises(LspError, match="can't be split") as caught:
        ModelConfig.from_recipe(recipe.Model(width=100, heads=3), 300)
    assert "1, 2, 4, 5" in caught.value.hint


def test_a_config_comes_back_from_its_table(config: ModelConfig):
    assert ModelConfig.from_dict(config.to_dict()) == config
    for damage in ({"preset": "gpt"}, {"width": -1}, {"layers": [1]}, {"extra": 1}, {"vocab_size": 2**40}):
        with pytest.raises(LspError) as caught:
            ModelConfig.from_dict(config.to_dict() | damage)
        assert caught.value.code == 4


@pytest.mark.parametrize("preset", ["bert", "modern", "bilstm"])
@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_examples_that_share_a_row_are_answered_as_alone(preset: Any, pooling: Any) -> None:
    plan = recipe.Model(preset=preset, layers=2, width=16, heads=2, max_length=16)
    config = ModelConfig.from_recipe(plan, 300).classifier(3, pooling, 0.0)
    model = nnx.merge(graphdef(config), initialise(config, 0))
    random, lengths = np.random.default_rng(0), [[5, 3, 7], [9, 6]]
    tokens, segments, types = (np.zeros((2, 16), np.int32) for _ in range(3))
    for row, held in enumerate(lengths):
        ends = np.cumsum(held)
        for place, (start, end) in enumerate(zip(ends - held, ends, strict=True), 1):
            tokens[row, start:end], segments[row, start:end] = random.integers(5, 300, end - start), place
            types[row, start + 2 : end] = 1
    classify = jax.jit(model.classify, static_argnames="shared")
    answer = classify(tokens, segments, types, shared=4)
    assert answer.shape == (2, 4, 3)
    for row, held in enumerate(lengths):
        for place in range(len(held)):
            here = segments[row] == place + 1
            one = tokens[row][here][None], np.ones((1, here.sum()), np.int32), types[row][here][None]
            np.testing.assert_allclose(answer[row, place], classify(*one)[0], atol=2e-5)


@pytest.mark.parametrize("preset", ["bert", "modern"])
def test_a_last_layer_that_makes_one_token_is_that_of_all_tokens(preset: Any) -> None:
    """The first token's state and its gradients, from hidden states of all of them."""
    config = ModelConfig.from_recipe(recipe.Model(preset=preset, layers=2, width=16, heads=2, max_length=16), 300)
    config = dataclasses.replace(config, layers=tuple(dataclasses.replace(each, window=3) for each in config.layers))
    params, tokens = initialise(config, 0), np.random.default_rng(0).integers(5, 300, (3, 9)).astype(np.int32)
    segments, at = np.ones((3, 9), np.int32), np.array([[0, 4], [8, 2], [0, 0]], np.int32)

    weights = np.random.default_rng(1).normal(size=(3, 2, 16)).astype(np.float32)

    def weighted(params: Any, alone: bool) -> jax.Array:
        model = nnx.merge(graphdef(config), params)
        if alone:
            return (weights * model.encode(tokens, segments, at_BQ=at)).sum()
        states = model.encode(tokens, segments)
        return (weights * jnp.take_along_axis(states, at[..., None], axis=1)).sum()

    both = jax.jit(jax.value_and_grad(weighted), static_argnums=1)
    found, expected = (both(params, alone) for alone in (True, False))
    jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5), found, expected)
