"""Structured pruning against slow plain versions: gates by finite differences, the knapsack by trying all, removal by
closing gates, least squares by NumPy's."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lsp import Exit, LspError
from lsp.compress import depth, importance, latency, structure
from lsp.compress.importance import EXIT, Block
from lsp.compress.latency import Option, allot
from lsp.compress.refit import DAMPING, refit, solved
from lsp.compress.shrink import shrink
from lsp.console import Progress
from lsp.data.examples import Examples
from lsp.data.tasks import Table
from lsp.data.tokenizer import SEP
from lsp.model.config import Layer, ModelConfig
from lsp.model.encoder import graphdef

Draw = Callable[[ModelConfig, int], dict]
CLASSES = 3


class Letters:
    """A tokenizer of letters."""

    between = (SEP,)
    size = 300

    def encode_arrays(self, texts: Any) -> list[np.ndarray]:
        return [np.array([ord(c) % 290 + 5 for c in text], np.int32) for text in texts]

    def decode(self, ids: Any) -> str:
        return " ".join(map(str, ids))


@pytest.fixture(params=["bert", "modern"])
def model(request: pytest.FixtureRequest, draw: Draw) -> tuple[ModelConfig, dict]:
    config = ModelConfig(request.param, 300, 16, (Layer(2, 8, 24), Layer(3, 4, 32)), max_length=32)
    config = config.classifier(CLASSES, "cls" if request.param == "bert" else "mean", 0.0)
    return config, draw(config, 0)


@pytest.fixture
def examples() -> Examples:
    random = np.random.default_rng(0)
    texts = [("".join(random.choice(list("abcdefgh"), random.integers(3, 14))),) for _ in range(40)]
    labels = random.integers(0, CLASSES, len(texts)).tolist()
    return Examples(Table(texts, labels, ("a", "b", "c")), Letters(), 16)


def loss(config: ModelConfig, params: Any, examples: Examples, row: int) -> float:
    """Of one example, in nats."""
    from flax import nnx

    batch = examples.batch(np.array([row]), 1)
    logits = nnx.merge(graphdef(config), params).classify(batch["tokens"], batch["segments"], batch["types"])
    return float(-jax.nn.log_softmax(logits)[0, batch["labels"][0]])


def scaled(config: ModelConfig, params: Any, block: Block, part: int, by: float) -> Any:
    """`params` with one head or unit, as its rows of the matrix behind it, `by` times as loud."""
    number, name = block
    size = config.layers[number].head_size if name == "attention" else 1
    matrix = np.array(params["layers"][number][name][EXIT[name]]["kernel"])
    matrix[part * size : (part + 1) * size] *= by
    layer = params["layers"][number]
    linear = layer[name][EXIT[name]] | {"kernel": jnp.asarray(matrix)}
    return params | {"layers": params["layers"] | {number: layer | {name: layer[name] | {EXIT[name]: linear}}}}


def test_the_fisher_information_is_that_of_finite_differences(model: Any, examples: Examples) -> None:
    config, params = model
    rows, step = np.arange(6), 1e-2
    heard: list[int] = []
    found = importance.fisher(config, params, examples, rows, heard.append)
    assert heard == [6]
    for block in ((0, "attention"), (1, "feedforward")):
        parts = min(4, importance.sizes(config)[block])
        slopes = np.array(
            [
                [
                    sum(
                        sign * loss(config, scaled(config, params, block, part, 1 + sign * step), examples, row)
                        for sign in (1, -1)
                    )
                    / (2 * step)
                    for part in range(parts)
                ]
                for row in rows.tolist()
            ]
        )
        expected = slopes.T @ slopes
        assert found[block][:parts, :parts] == pytest.approx(expected, rel=0.05, abs=0.02 * expected.max())


def test_parts_that_cost_least_go_first_and_costs_are_those_of_all_that_are_gone() -> None:
    random = np.random.default_rng(0)
    slopes = random.standard_normal((50, 6))
    fisher = slopes.T @ slopes
    removed, costs = importance.order(fisher)
    assert sorted(removed.tolist()) == list(range(6))
    for count in range(7):
        gone = removed[:count]
        assert costs[count] == pytest.approx(0.5 * fisher[np.ix_(gone, gone)].sum(), abs=1e-9)
    assert removed[0] == np.diag(fisher).argmin()
    pairs = [0.5 * fisher[np.ix_([removed[0], other], [removed[0], other])].sum() for other in removed[1:]]
    assert costs[2] == pytest.approx(min(pairs))


def test_a_sparse_matrix_is_fitted_where_it_is_not_zero() -> None:
    random = np.random.default_rng(0)
    x_ML, y_MK = random.standard_normal((80, 6)), random.standard_normal((80, 4))
    there = random.random((6, 4)) < 0.5
    nothing = np.zeros((3, 3))
    np.testing.assert_array_equal(solved(nothing, np.zeros((3, 2)), np.ones((3, 2), bool)), np.zeros((3, 2)))
    found = solved(x_ML.T @ x_ML, x_ML.T @ y_MK, there)
    damping = np.sqrt(DAMPING * np.square(x_ML).sum(0).mean())
    for column in range(4):
        rows = np.flatnonzero(there[:, column])
        columns = np.concatenate([x_ML[:, rows], damping * np.eye(len(rows))])
        wanted = np.linalg.lstsq(columns, np.append(y_MK[:, column], np.zeros(len(rows))), rcond=None)[0]
        np.testing.assert_allclose(found[rows, column], wanted, rtol=1e-6)
        assert not found[~there[:, column], column].any()


def test_two_parts_that_make_up_for_each_other_go_together() -> None:
    """Each alone costs 4; both together nothing, since what one takes the other gives."""
    fisher = np.array([[8.0, -8.0, 0.0], [-8.0, 8.0, 0.0], [0.0, 0.0, 6.0]])
    removed, costs = importance.order(fisher)
    assert removed.tolist() == [2, 0, 1]
    assert costs.tolist() == [0, 3, 7, 3]


def test_the_knapsack_is_the_best_of_all_ways() -> None:
    random = np.random.default_rng(1)
    for _ in range(5):
        choices = {
            (number, "attention"): [Option(n, float(random.random()), float(random.random())) for n in range(1, 5)]
            for number in range(4)
        }
        saving = 1.7
        ways = [
            (sum(option.cost for option in way), [option.kept for option in way])
            for way in itertools.product(*choices.values())
            if sum(option.saved for option in way) >= saving
        ]
        found = allot(choices, saving)
        assert found is not None
        by_kept = {block: {option.kept: option for option in each} for block, each in choices.items()}
        assert sum(by_kept[block][kept].saved for block, kept in found.items()) >= saving
        cost = sum(by_kept[block][kept].cost for block, kept in found.items())
        assert cost == pytest.approx(min(ways)[0], rel=0.01), "the grid rounds savings down by a four-thousandth"
    assert allot(choices, 4.1) is None


def test_removed_parts_are_those_whose_gates_are_closed(model: Any, examples: Examples) -> None:
    config, params = model
    kept = {
        block: np.delete(np.arange(size), [1] if block[1] == "attention" else [0, 5, 6])
        for block, size in importance.sizes(config).items()
    }
    small_config, small = shrink(config, params, kept)
    assert [(layer.heads, layer.feedforward) for layer in small_config.layers] == [(1, 21), (2, 29)]
    closed = params
    for block, size in importance.sizes(config).items():
        for part in set(range(size)) - set(kept[block].tolist()):
            closed = scaled(config, closed, block, part, 0.0)
    for row in range(5):
        assert loss(small_config, small, examples, row) == pytest.approx(loss(config, closed, examples, row), abs=1e-5)


def test_what_stays_is_fitted_by_least_squares(model: Any, examples: Examples, monkeypatch: Any) -> None:
    """Without damping the first block's new matrix leaves as little as the one that NumPy finds, on the tokens that are
    there."""
    monkeypatch.setattr("lsp.compress.refit.DAMPING", 1e-7)
    config, params = model
    kept = {block: np.arange(size) for block, size in importance.sizes(config).items()}
    kept[0, "attention"] = np.array([1])
    small = shrink(config, params, kept)
    batches = [examples.batch(np.arange(at, at + 10), 10) for at in range(0, 40, 10)]
    heard: list[int] = []
    fitted = refit((config, params), small, batches, heard.append)
    assert heard == [1, 2, 3, 4]
    from flax import nnx

    from lsp.model import attention

    inputs, wanted = [], []
    for batch in batches:
        whole = nnx.merge(graphdef(config), params)
        positions = attention.positions(jnp.asarray(batch["segments"]))
        x = whole.embed(batch["tokens"], positions, batch["types"])
        layer = whole.layers[0]
        read = layer.before(layer.attention, x)
        heads = layer.attention.gather(read, jnp.asarray(batch["segments"]), whole.turns(positions)[0])
        there = batch["segments"] > 0
        wanted.append(np.asarray(layer.attention.out(heads))[there])
        inputs.append(np.asarray(heads)[there][:, 8:])
    a, y = np.concatenate(inputs).astype(np.float64), np.concatenate(wanted).astype(np.float64)
    if config.bias:
        a = np.concatenate([a, np.ones((len(a), 1))], axis=1)
    expected = np.linalg.lstsq(a, y, rcond=None)[0]
    new = fitted["layers"][0]["attention"]["out"]
    solution = np.concatenate([new["kernel"], new["bias"][None]]) if config.bias else np.asarray(new["kernel"])
    left, least = (np.square(a @ each - y).sum() for each in (solution, expected))
    assert least < 0.9 * np.square(y).sum()
    assert left == pytest.approx(least, rel=1e-5)


def test_fitting_brings_the_small_model_nearer_and_leaves_a_whole_one_alone(model: Any, examples: Examples) -> None:
    config, params = model
    batches = [examples.batch(np.arange(at, at + 10), 10) for at in range(0, 40, 10)]
    everything = {block: np.arange(size) for block, size in importance.sizes(config).items()}
    same = refit((config, params), shrink(config, params, everything), batches, lambda _: None)
    for old, new in zip(jax.tree.leaves(params), jax.tree.leaves(same), strict=True):
        assert np.asarray(new) == pytest.approx(np.asarray(old), abs=1e-4)
    some = {block: each[: max(1, 2 * len(each) // 3)] for block, each in everything.items()}
    small_config, small = shrink(config, params, some)
    fitted = refit((config, params), (small_config, small), batches, lambda _: None)

    def apart(small: Any) -> float:
        from flax import nnx

        total = 0.0
        for batch in batches:
            arrays = (batch["tokens"], batch["segments"], batch["types"])
            one = nnx.merge(graphdef(config), params).classify(*arrays)
            other = nnx.merge(graphdef(small_config), small).classify(*arrays)
            total += float(jnp.square(one - other).sum())
        return total

    assert apart(fitted) < 0.7 * apart(small)


def test_counts_end_with_all_and_are_whole_vectors() -> None:
    assert latency.counts(3, "attention") == [1, 2, 3]
    assert latency.counts(1536, "feedforward") == list(range(96, 1537, 96))
    assert latency.counts(40, "feedforward") == [16, 32, 40]


def test_the_layer_goes_without_which_answers_change_least(draw: Draw, examples: Examples) -> None:
    config = ModelConfig("bert", 300, 16, (Layer(2, 8, 24),) * 4, max_length=32).classifier(CLASSES, "cls", 0.0)
    params = draw(config, 0)
    for name in ("attention", "feedforward"):  # the third layer hardly says anything
        linear = params["layers"][2][name][EXIT[name]]
        linear["kernel"] = linear["kernel"] * 1e-3
    batches = [examples.batch(np.arange(at, at + 20), 20) for at in (0, 20)]
    heard: list[int] = []
    assert depth.shallower((config, params), 3, batches, heard.append) == [0, 1, 3]
    assert heard == [1]
    small, kept = depth.with_layers((config, params), [0, 1, 3])
    assert len(small.layers) == 3 and kept["layers"][2] is params["layers"][3]


def test_the_first_layer_of_modern_stays(draw: Draw, examples: Examples) -> None:
    config = ModelConfig("modern", 300, 16, (Layer(2, 8, 24),) * 3, max_length=32).classifier(CLASSES, "mean", 0.0)
    params = draw(config, 0)
    for name in ("attention", "feedforward"):
        linear = params["layers"][0][name][EXIT[name]]
        linear["kernel"] = linear["kernel"] * 1e-3
    kept = depth.shallower((config, params), 1, [examples.batch(np.arange(20), 20)], lambda _: None)
    assert kept == [0]


def slow(config: ModelConfig) -> float:
    """The seconds of a model, made up: a layer with one head is far faster than one with two is by half."""
    shapes = [(layer.heads, layer.feedforward) for layer in config.layers]
    return float(sum(20 + (50 if heads == 1 else 150 * heads) + units / 2 for heads, units in shapes))


@pytest.fixture
def narrower(draw: Draw, monkeypatch: Any) -> Callable[..., float]:
    """The speed of the structure that is chosen for a speed, beside a model of so many times as many layers, by `slow`
    and a table of single blocks that is wrong."""
    config = ModelConfig("bert", 300, 16, (Layer(8, 2, 64),) * 6, max_length=32).classifier(CLASSES, "cls", 0.0)
    random = np.random.default_rng(0)
    orders = {
        block: (np.arange(size), np.concatenate([[0], np.cumsum(np.sort(random.random(size)) * (1 + block[0]))]))
        for block, size in importance.sizes(config).items()
    }

    def saved(config: ModelConfig, *_: Any) -> dict[Block, dict[int, float]]:
        price = {"attention": 100.0, "feedforward": 0.5}
        return {
            block: {n: price[block[1]] * (size - n) for n in latency.counts(size, block[1])}
            for block, size in importance.sizes(config).items()
        }

    monkeypatch.setattr(latency, "saved", saved)
    monkeypatch.setattr(latency, "seconds", lambda models, _: {name: slow(one) for name, (one, _) in models.items()})
    model = (config, draw(config, 0))

    def found(asked: float, times: int = 1) -> float:
        whole = replace(config, layers=config.layers * times), {}
        wish = structure.Wish(whole, asked, 0, 0, "", {}, dict)
        return structure._narrower(model, orders, wish, Progress(quiet=True))[1]

    return found


def test_a_structure_is_as_fast_as_wished_where_speed_goes_in_leaps(narrower: Callable[..., float]) -> None:
    """A layer with one head is far faster than the table of single blocks says; what is chosen is hardly too fast."""
    assert 2.8 <= narrower(2.8) <= 2.8 * structure.NEAR


def test_a_structure_is_measured_beside_the_whole_model(narrower: Callable[..., float]) -> None:
    """Which may be larger than the one it is made of: one that was pruned half-way."""
    assert narrower(5.6, 2) == pytest.approx(2 * narrower(2.8))


def test_what_a_clock_can_hardly_tell_from_the_wish_is_taken(narrower: Callable[..., float]) -> None:
    most = (20 + 150 * 8 + 64 / 2) / (20 + 50 + 16 / 2)  # one head and sixteen units in each layer
    assert narrower(most * 1.02) == pytest.approx(most)
    with pytest.raises(LspError, match=f"{most:.2f} times as fast on this machine, not") as refused:
        narrower(most * 1.05)
    assert refused.value.code == Exit.NO
