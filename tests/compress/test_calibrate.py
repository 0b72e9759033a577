"""What reaches each matrix, against the same model put together by hand in NumPy, one example at a time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lsp.compress import calibrate
from lsp.data.examples import Examples
from lsp.model.bilstm import LSTMLayer
from lsp.model.blocks import Linear
from lsp.model.config import Layer, ModelConfig
from lsp.model.encoder import graphdef

Draw = Callable[[ModelConfig, int], dict]
Invent = Callable[..., Examples]


def inputs(config: ModelConfig, params: dict, some: Examples, monkeypatch: pytest.MonkeyPatch) -> dict[str, np.ndarray]:
    """Every input of every dense layer, [tokens, K], by running each example alone, without padding."""
    kept: dict[str, list[np.ndarray]] = {}
    seen: dict[str, jax.Array] = {}
    plain = Linear.__call__

    @jax.jit
    def alone(params: dict, row: jax.Array, types: jax.Array) -> dict[str, jax.Array]:
        model = nnx.merge(graphdef(config), params)
        names = {id(module): ".".join(map(str, path)) + ".kernel" for path, module in nnx.iter_graph(model)}

        def spied(self: Linear, x: jax.Array) -> jax.Array:
            seen[names[id(self)]] = x.reshape(-1, x.shape[-1])
            return plain(self, x)

        monkeypatch.setattr(Linear, "__call__", spied)
        model.classify(row, jnp.ones_like(row), types)
        monkeypatch.undo()
        return seen

    for number, tokens in enumerate(some.tokens):
        types = np.arange(len(tokens)) >= some.seconds[number]
        for name, x in alone(params, tokens[None], types[None].astype(np.int32)).items():
            kept.setdefault(name, []).append(np.asarray(x))
    return {name: np.concatenate(rows) for name, rows in kept.items()}


@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_sums_are_those_of_all_real_tokens_each_once(
    config: ModelConfig, draw: Draw, invent: Invent, pooling: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = config.classifier(3, pooling, 0.0)
    params, some = draw(config, 0), invent(5, lengths=(4, 9))
    wanted = inputs(config, params, some, monkeypatch)
    del wanted["classifier.kernel"]
    largest = calibrate.largest(config, params, some)
    products = calibrate.products(config, params, some)
    counts = calibrate.observe(config, params, some, lambda name, x, there: there.sum(), np.add)
    assert largest.keys() == products.keys() == counts.keys() == wanted.keys()
    tokens = int(some.lengths.sum())
    for name, x_MK in wanted.items():
        above = name == "pooler.kernel" or (pooling == "cls" and name.startswith("layers.1.") and "qkv" not in name)
        assert counts[name] == len(x_MK) == (5 if above else tokens), name
        np.testing.assert_allclose(largest[name], np.abs(x_MK).max(0), rtol=2e-3, atol=1e-5, err_msg=name)
        square = x_MK.T.astype(np.float64) @ x_MK
        np.testing.assert_allclose(products[name], square, atol=2e-3 * np.abs(square).max(), err_msg=name)
        assert products[name].dtype == np.float64


def test_sums_of_a_sample_are_those_of_its_parts(draw: Draw, invent: Invent) -> None:
    config = ModelConfig("modern", 300, 16, (Layer(2, 8, 24),), 32).classifier(3, "mean", 0.0)
    params, some = draw(config, 0), invent(400)
    together = calibrate.largest(config, params, some)
    apart = [calibrate.largest(config, params, some.some(np.array([i]))) for i in (0, 17)]
    both = calibrate.largest(config, params, some.some(np.array([17, 0])))
    for name in together:
        np.testing.assert_allclose(both[name], np.maximum(apart[0][name], apart[1][name]), rtol=1e-4, atol=1e-6)
        assert (together[name] >= both[name] * 0.999).all()


def test_an_lstm_shows_its_lower_products(draw: Draw, invent: Invent) -> None:
    config = ModelConfig("bilstm", 300, 16, (Layer(2, 8, 24),), 32).classifier(3, "mean", 0.0)
    found = calibrate.largest(config, draw(config, 0), invent(3))
    assert sorted(found) == ["layers.0.below.kernel", "pooler.kernel"]
    assert {name for name in calibrate.RECURRENT} <= vars(LSTMLayer(config, config.layers[0], True, nnx.Rngs(0))).keys()


def test_a_sample_is_drawn_once_and_keeps_what_belongs_together(invent: Invent) -> None:
    whole = invent(50)
    part = calibrate.sample(whole, 10, seed=3)
    places = [next(i for i, tokens in enumerate(whole.tokens) if tokens is own) for own in part.tokens]
    assert len(part) == 10 and places == sorted(set(places))
    np.testing.assert_array_equal(part.labels, whole.labels[places])
    np.testing.assert_array_equal(part.lengths, whole.lengths[places])
    assert [len(each) for each in part.tokens] == part.lengths.tolist()
    assert len(calibrate.sample(whole, 99)) == 50


def test_outliers_are_named_the_largest_first() -> None:
    quiet = np.linspace(0.5, 1.5, 11).astype(np.float32)
    loud = quiet.copy()
    loud[[2, 7]] = 9.0, 20.0
    loud[4] = 5.0
    rows = calibrate.outliers({"quiet": quiet, "loud": loud, "silent": np.zeros(8, np.float32)})
    assert [(row["kernel"], row["channels"]) for row in rows] == [("loud", [7, 2])]
    assert rows[0]["times"] == pytest.approx(20.0 / np.median(loud))
    half_dead = np.array([0, 0, 0, 0, 0, 1, 1, 9], np.float32)
    assert calibrate.outliers({"half dead": half_dead}) == [{"kernel": "half dead", "channels": [7], "times": 9.0}]


def test_a_planted_outlier_is_found_where_it_is(draw: Draw, invent: Invent) -> None:
    config = ModelConfig("bert", 300, 16, (Layer(2, 8, 24),) * 2, 32).classifier(3, "mean", 0.0)
    params = draw(config, 0)
    norm = params["layers"][0]["feedforward"]["norm"]
    params["layers"][0]["feedforward"]["norm"] = norm | {"bias": norm["bias"].at[5].set(60.0)}
    rows = calibrate.outliers(calibrate.largest(config, params, invent(4)))
    named = {row["kernel"]: row["channels"] for row in rows}
    assert named["layers.1.attention.qkv.kernel"] == [5]
    assert "layers.0.attention.qkv.kernel" not in named
