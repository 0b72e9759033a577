"""What is learnt inside of a teacher: the losses against NumPy, and the match of layers against all there are."""

import dataclasses
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.special import log_softmax

from lsp import LspError
from lsp.compress import distill, inside
from lsp.model.config import Layer, ModelConfig
from lsp.model.encoder import graphdef
from lsp.recipe import Distillation

Draw = Callable[[ModelConfig, int], dict]
TEACHER = ModelConfig("bert", 300, 16, (Layer(2, 8, 24),) * 3, 32).classifier(3, "cls", 0.0)
STUDENT = ModelConfig("modern", 300, 24, (Layer(3, 8, 24),) * 2, 32).classifier(3, "mean", 0.0)
LENGTHS = (9, 5, 1)


def batch() -> dict[str, jax.Array]:
    there = np.arange(9) < np.array(LENGTHS)[:, None]
    tokens = np.random.default_rng(0).integers(5, 300, there.shape) * there
    return {
        "tokens": jnp.asarray(tokens, jnp.int32),
        "segments": jnp.asarray(there, jnp.int32),
        "types": jnp.zeros(there.shape, jnp.int32),
        "labels": jnp.array([0, 1, 2], jnp.int32),
        "weights": jnp.array([1.0, 1.0, 0.0]),
        "known": jnp.ones(3),
        "wanted": jnp.asarray(np.random.default_rng(1).standard_normal((3, 3)), jnp.float32),
    }


def test_the_loss_adds_what_is_missed_inside_to_the_answers(draw: Draw) -> None:
    random = np.random.default_rng(2)
    maps = {n: {"kernel": random.standard_normal((24, 16)), "bias": random.standard_normal(16)} for n in (0, 1)}
    trained = draw(STUDENT, 0) | {inside.MAPS: jax.tree.map(jnp.float32, maps)}
    judge = distill.answered(2.0, 0.3)
    wish = inside.Wish(0.5, 2.0, (0, 2), 1)
    objective = inside.objective(judge, (TEACHER, draw(TEACHER, 1)), wish)

    @jax.jit
    def run(trained: dict, frozen: dict, given: dict) -> tuple:
        model = nnx.merge(graphdef(STUDENT), objective.whole(trained, frozen))
        inputs = given["tokens"], given["segments"], given["types"]
        plain, _ = judge(model.classify(*inputs), given)
        whole, metrics = objective.loss(model, objective.beside(trained, frozen), given, None)
        other = nnx.merge(graphdef(TEACHER), frozen)
        return whole, metrics, plain, model.states(*inputs), other.states(*inputs)

    whole, metrics, plain, mine, theirs = jax.device_get(run(trained, objective.frozen, batch()))
    shares = []
    for number, layer in ((0, 0), (1, 2)):
        away = mine[number + 1] @ maps[number]["kernel"] + maps[number]["bias"] - theirs[layer + 1]
        share = np.square(away).sum(-1) / np.square(theirs[layer + 1]).sum(-1)
        shares.append(sum(share[row, :length].mean() for row, length in enumerate(LENGTHS[:2])))
    np.testing.assert_allclose(metrics["hidden"].total, np.mean(shares), rtol=1e-4)
    assert metrics["relations"].total > 1e-4
    expected = plain.total + 0.5 * metrics["hidden"].total + 2.0 * metrics["relations"].total
    np.testing.assert_allclose(whole.total, expected, rtol=1e-5)
    assert whole.count == plain.count == 2


def test_relations_are_minilms_and_padding_has_none() -> None:
    random = np.random.default_rng(0)
    mine, theirs = ([random.standard_normal((3, 9, n)).astype(np.float32) for _ in range(3)] for n in (24, 32))
    of = (np.arange(9) < np.array(LENGTHS)[:, None]).astype(np.int32)
    found = jax.jit(inside.unrelated)(mine, theirs, of)
    assert inside.relation_heads(24, 32) == 2
    for row, length in enumerate(LENGTHS):
        parts = []
        for own, other in zip(mine, theirs, strict=True):
            for head in range(2):
                cuts = own[row, :length, 12 * head :][:, :12], other[row, :length, 16 * head :][:, :16]
                q, p = (log_softmax(x @ x.T / x.shape[1] ** 0.5, axis=1) for x in cuts)
                parts.append((np.exp(p) * (p - q)).sum(1).mean())
        np.testing.assert_allclose(found[row], np.mean(parts), rtol=1e-3, atol=1e-6)
    assert not np.allclose(found[:2], 0)
    np.testing.assert_allclose(inside.unrelated(theirs, theirs, of), 0, atol=1e-6)
    # Two texts in a row are as two rows: the mean over their tokens.
    joined, cut = (
        inside.unrelated(*([x[:1, :9] for x in each] for each in (mine, theirs)), segments)
        for segments in (np.array([[1] * 4 + [2] * 5], np.int32), np.array([[1] * 4 + [0] * 5], np.int32))
    )
    rest = inside.unrelated(*([x[:1, 4:9] for x in each] for each in (mine, theirs)), np.ones((1, 5), np.int32))
    np.testing.assert_allclose(joined, (4 * cut + 5 * rest) / 9, rtol=1e-4)


@pytest.mark.parametrize(("one", "other", "heads"), [(384, 768, 48), (128, 384, 16), (24, 32, 2), (30, 77, 1)])
def test_relation_heads_divide_both_widths(one: int, other: int, heads: int) -> None:
    assert inside.relation_heads(one, other) == heads


def test_layers_in_order_are_the_best_of_all_choices() -> None:
    random = np.random.default_rng(0)
    for rows, columns in ((1, 4), (2, 2), (3, 6), (4, 7)):
        costs = random.random((rows, columns))
        choices = [[*path, columns - 1] for path in itertools.combinations(range(columns - 1), rows - 1)]
        best = min(choices, key=lambda path: costs[range(rows), path].sum())
        assert inside.in_order(costs) == best


def test_a_layer_finds_the_one_it_was_made_of() -> None:
    random = np.random.default_rng(0)
    theirs = [random.standard_normal((400, 6)).astype(np.float32) for _ in range(5)]
    mine = [theirs[1] @ random.standard_normal((6, 9)) + 1, theirs[3] @ random.standard_normal((6, 8)), theirs[4]]
    layers, maps = inside.fitted([x.astype(np.float32) for x in mine], theirs, nearest=True)
    assert layers == (1, 3, 4)
    for number, layer in enumerate(layers):
        found = mine[number] @ maps[number]["kernel"] + maps[number]["bias"]
        assert np.square(found - theirs[layer]).mean() < 0.01 * np.square(theirs[layer]).mean()
    assert inside.fitted(mine, theirs, nearest=False)[0] == (0, 2, 4)
    assert inside.fitted(mine[:1], theirs, nearest=True)[0] == inside.fitted(mine[:1], theirs, nearest=False)[0] == (4,)
    assert inside.fitted(mine, theirs[:2], nearest=True)[0] == (0, 0, 1)


def test_states_are_those_of_the_tokens_that_are_there(draw: Draw) -> None:
    given = {name: np.asarray(array) for name, array in batch().items()}
    found = inside.states(TEACHER, draw(TEACHER, 1), [given, given])
    assert [x.shape for x in found] == [(2 * sum(LENGTHS), 16)] * 3
    model = nnx.merge(graphdef(TEACHER), draw(TEACHER, 1))
    last = np.asarray(jax.jit(model.encode)(given["tokens"], given["segments"], given["types"]))
    np.testing.assert_allclose(found[-1][: LENGTHS[0]], last[0], atol=1e-5)


def test_an_lstm_has_no_relations() -> None:
    lstm = dataclasses.replace(TEACHER, preset="bilstm")
    with pytest.raises(LspError, match="no queries"):
        inside.check(lstm, TEACHER, Distillation(relations=1.0))
    with pytest.raises(LspError, match="has 3 layers"):
        inside.check(STUDENT, TEACHER, Distillation(relations=1.0, relation_layer=4))
    inside.check(lstm, TEACHER, Distillation(hidden=1.0))
