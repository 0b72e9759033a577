"""Distillation of what happens inside a teacher, beside its answers: the states behind its layers, through a linear map
that is trained with the student and dropped in the end (TinyBERT: Jiao et al., 2020), and how its tokens relate to one
another (MiniLMv2: Wang et al., 2021). The teacher runs in every step, which costs a forward pass of it.

Dimensions: B rows, T tokens, M tokens of a sample, D width, E the teacher's width, R relation heads, S size of one.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from lsp import LspError, interrupt
from lsp.compress.distill import Judge, Tree, evenly
from lsp.data.batches import Batch as HostBatch
from lsp.data.examples import Examples
from lsp.model.attention import BLOCKED
from lsp.model.config import ModelConfig
from lsp.model.encoder import EncoderLayer, Model, average, graphdef
from lsp.recipe import Distillation, GeneralDistillation
from lsp.train.metrics import Mean
from lsp.train.objectives import Batch, Loss, Objective

MAPS = "maps"  # beside the student's parts, among what is trained
DAMPING = 1e-3  # of the maps' least squares, as a share of the mean square of what is mapped
TOKENS, ROWS = 1 << 13, 32  # by whose states layers are matched, and examples of a batch of them
SMALLEST = 8  # numbers of a relation head, at least


class Wish(NamedTuple):
    """What is learnt besides answers: the weights of states and of relations, and which of the teacher's layers each of
    the student's is to be like, and of which the relations are."""

    hidden: float
    relations: float
    layers: tuple[int, ...]
    related: int


class Beside(NamedTuple):
    """What the loss reads besides the student."""

    teacher: Tree
    maps: Tree


def prepared(
    judge: Judge,
    student: tuple[ModelConfig, Tree],
    teacher: tuple[ModelConfig, Tree],
    recipe: Distillation,
    batches: Sequence[HostBatch],
) -> tuple[Objective, Tree, tuple[int, ...]]:
    """The objective for a student and a teacher of floats, what is trained beside the student, and which of the
    teacher's layers its layers are to be like, if any: both by what the two make of a `sample`."""
    layers: tuple[int, ...] = ()
    maps: Tree = {}
    if recipe.hidden:
        mine, theirs = states(*student, batches), states(*teacher, batches)
        layers, first = fitted(mine, theirs, recipe.match == "nearest")
        maps = {MAPS: first}
    related = (recipe.relation_layer or len(teacher[0].layers)) - 1
    wish = Wish(recipe.hidden, recipe.relations, layers, related)
    return objective(judge, teacher, wish), maps, layers


def objective(judge: Judge, teacher: tuple[ModelConfig, Tree], wish: Wish) -> Objective:
    """The answers' loss and that of `wish`, for parameters that hold `maps` as `fitted` gives them. In the end, `whole`
    leaves the student alone."""
    return Objective(match_inside(judge, teacher[0], wish), teacher[1], _without_maps, _beside)


def _without_maps(trained: Tree, frozen: Any) -> Tree:
    return {part: tree for part, tree in trained.items() if part != MAPS}


def _beside(trained: Tree, frozen: Tree) -> Beside:
    return Beside(frozen, trained.get(MAPS, {}))


def match_inside(judge: Judge, teacher: ModelConfig, wish: Wish) -> Loss:
    """The loss of the answers, plus `wish.hidden` times the mean of `unlike` over the layers, plus `wish.relations`
    times `unrelated`. Metrics besides the answers': `hidden` and `relations`, where they weigh anything."""
    structure = graphdef(teacher)

    def loss(model: Model, beside: Beside, batch: Batch, key: jax.Array | None) -> tuple[Mean, dict[str, Mean]]:
        keys = (None, None) if key is None else jax.random.split(key)
        inputs = batch["tokens"], batch["segments"], batch["types"]
        other = nnx.merge(structure, beside.teacher)
        mine, theirs = model.states(*inputs, key=keys[0]), other.states(*inputs)
        of_BT, weights_B = inputs[1] > 0, batch["weights"]
        last_BTD = model.norm(mine[-1])
        one = model.config.pooling == "cls"
        pooled_BD = last_BTD[:, 0] if one else average(last_BTD, of_BT[..., None])[:, 0]
        total, metrics = judge(model.decide(pooled_BD, keys[1]), batch)
        found: dict[str, jax.Array] = {}
        if wish.hidden:
            pairs = zip(mine[1:], beside.maps.values(), wish.layers, strict=True)
            found["hidden"] = jnp.stack(
                [unlike(_mapped(x, ways), theirs[1 + layer], of_BT) for x, ways, layer in pairs]
            ).mean(0)
        if wish.relations:
            own, others = projected(model, mine, -1, inputs[1]), projected(other, theirs, wish.related, inputs[1])
            found["relations"] = unrelated(own, others, inputs[1])
        for name, away_B in found.items():
            metrics[name] = Mean((away_B * weights_B).sum(), weights_B.sum())
            total = Mean(total.total + getattr(wish, name) * metrics[name].total, total.count)
        return total, metrics

    return loss


def _mapped(x_BTD: jax.Array, ways: Tree) -> jax.Array:
    return x_BTD.astype(jnp.float32) @ ways["kernel"] + ways["bias"]


def projected(model: Model, states: Sequence[jax.Array], number: int, segments_BT: jax.Array) -> list[jax.Array]:
    """Queries, keys and values of a layer, its heads side by side: [B, T, H·S] each."""
    layer, read_BTD = list(zip(model.layers, states, strict=False))[number]
    assert isinstance(layer, EncoderLayer)
    found = layer.attention.project(layer.before(layer.attention, read_BTD), segments_BT)
    return [x_BHTS.transpose(0, 2, 1, 3).reshape(*segments_BT.shape, -1) for x_BHTS in found]


def unlike(mine_BTE: jax.Array, theirs_BTE: jax.Array, of_BT: jax.Array) -> jax.Array:
    """float32 [B]: the squared error of a state as a share of the square of the teacher's, the mean over the tokens
    `of` a row. A share, since the states of some models are ten times as long as those of others."""
    theirs_BTE = theirs_BTE.astype(jnp.float32)
    away_BT, length_BT = (jnp.square(x).sum(-1) for x in (mine_BTE - theirs_BTE, theirs_BTE))
    return _mean(away_BT / (length_BT + 1e-6), of_BT)


def unrelated(mine: Sequence[jax.Array], theirs: Sequence[jax.Array], segments_BT: jax.Array) -> jax.Array:
    """float32 [B]: KL(teacher's relations ‖ student's), the mean over queries, keys and values, over relation heads and
    over the tokens of a row. A token's relations are a softmax over the tokens of its segment, of the products of their
    queries (or keys, or values), whose numbers are cut anew into as many heads as both models can have."""
    heads = relation_heads(mine[0].shape[-1], theirs[0].shape[-1])
    found = []
    for own, other in zip(mine, theirs, strict=True):
        q_BRTT, p_BRTT = (_relations(x, heads, segments_BT) for x in (own, other))
        found.append((jnp.exp(p_BRTT) * (p_BRTT - q_BRTT)).sum(-1).mean(1))
    return _mean(jnp.stack(found).mean(0), segments_BT > 0)


def _relations(x_BTN: jax.Array, heads: int, segments_BT: jax.Array) -> jax.Array:
    """Logarithms of relations [B, R, T, T], fp32."""
    x_BTRS = x_BTN.reshape(*x_BTN.shape[:2], heads, -1)
    scores_BRTT = jnp.einsum("btrs,burs->brtu", x_BTRS, x_BTRS, preferred_element_type=jnp.float32)
    scores_BRTT *= x_BTRS.shape[-1] ** -0.5
    meet_BTT = segments_BT[:, :, None] == segments_BT[:, None, :]
    return jax.nn.log_softmax(scores_BRTT + jnp.where(meet_BTT, 0.0, BLOCKED)[:, None])


def relation_heads(one: int, other: int) -> int:
    """The most heads that both widths can be cut into with no head of under `SMALLEST` numbers, or 1."""
    common = math.gcd(one, other)
    return max((r for r in range(1, common + 1) if common % r == 0 and min(one, other) // r >= SMALLEST), default=1)


def _mean(x_BT: jax.Array, of_BT: jax.Array) -> jax.Array:
    """float32 [B]: the mean over the tokens `of` a row, 0 where there are none."""
    return jnp.where(of_BT, x_BT, 0.0).sum(-1) / jnp.maximum(of_BT.sum(-1).astype(jnp.float32), 1.0)


def check(student: ModelConfig, teacher: ModelConfig, recipe: Distillation | GeneralDistillation) -> None:
    """Raises LspError (exit 2) where there are no relations to learn."""
    if recipe.relations and "bilstm" in (student.preset, teacher.preset):
        raise LspError(
            "An LSTM has no queries, keys and values: distill.relations does not go together with it.",
            hint="Leave it out.",
        )
    if recipe.relation_layer > len(teacher.layers):
        raise LspError(
            f"distill.relation_layer = {recipe.relation_layer}, and the teacher has {len(teacher.layers)} layers.",
            hint="Leave it out for the last.",
        )


def sample(examples: Examples, seed: int) -> list[HostBatch]:
    """Random examples until there are enough tokens, one a row."""
    rows = np.random.default_rng(seed).permutation(len(examples))
    rows = rows[: int(np.searchsorted(examples.lengths[rows].cumsum(), TOKENS)) + 1]
    return [examples.batch(rows[at : at + ROWS], ROWS) for at in range(0, len(rows), ROWS)]


def states(config: ModelConfig, params: Tree, batches: Sequence[HostBatch]) -> list[np.ndarray]:
    """Behind each layer the states of all tokens that are there, float32 [M, D], of one example a row."""
    structure = graphdef(config)

    @jax.jit
    def run(params: Tree, batch: HostBatch) -> list[jax.Array]:
        model = nnx.merge(structure, params)
        return model.states(batch["tokens"], batch["segments"], batch["types"])[1:]

    found = []
    for batch in batches:
        interrupt.check()
        found.append([np.asarray(x_BTD)[batch["segments"] > 0] for x_BTD in run(params, batch)])
    return [np.concatenate(parts) for parts in zip(*found, strict=True)]


def fitted(
    mine: Sequence[np.ndarray], theirs: Sequence[np.ndarray], nearest: bool
) -> tuple[tuple[int, ...], dict[int, dict[str, np.ndarray]]]:
    """Which of the teacher's layers each of the student's is matched with, and the linear maps to begin with: those of
    least squares, from states [M, D] of the student's layers to states [M, E] of the teacher's.

    Layers are evenly spaced, or those whose states the maps come `nearest` to, in order and none twice (as in CoFi: Xia
    et al., 2022, whose distances are measured anew in every step). The last is always matched with the last.
    """
    if len(mine) == 1:
        layers = [len(theirs) - 1]
    elif not nearest or len(mine) > len(theirs):
        layers = evenly(len(mine), len(theirs))
    else:
        layers = in_order(np.array([[_mapped_onto(x_MD, y_ME)[1] for y_ME in theirs] for x_MD in mine]))
    chosen = (_mapped_onto(x_MD, theirs[layer])[0] for x_MD, layer in zip(mine, layers, strict=True))
    return tuple(layers), {n: {"kernel": ways[:-1], "bias": ways[-1]} for n, ways in enumerate(chosen)}


def _mapped_onto(x_MD: np.ndarray, y_ME: np.ndarray) -> tuple[np.ndarray, float]:
    """The linear map of least squares, float32 [D + 1, E] with its bias last, and the share of y's square that it
    misses."""
    x_MN = np.pad(x_MD.astype(np.float64), ((0, 0), (0, 1)), constant_values=1.0)
    gram_NN = x_MN.T @ x_MN
    gram_NN += np.eye(len(gram_NN)) * DAMPING * np.trace(gram_NN) / len(gram_NN)
    ways_NE = np.linalg.solve(gram_NN, x_MN.T @ y_ME)
    return ways_NE.astype(np.float32), float(np.square(x_MN @ ways_NE - y_ME).sum() / np.square(y_ME).sum())


def in_order(costs: np.ndarray) -> list[int]:
    """Rising columns, one for each row, whose costs [rows, columns ≥ rows] have the least sum; the last is the last."""
    best, origins = costs[0], []
    for row in costs[1:]:
        before = np.minimum.accumulate(best)
        origins.append(np.array([int(best[: at + 1].argmin()) for at in range(len(best))]))
        best = row + np.concatenate([[np.inf], before[:-1]])
    path = [costs.shape[1] - 1]
    for origin in reversed(origins):
        path.append(int(origin[path[-1] - 1]))
    return path[::-1]
