"""Which parameters of a model are trained: those above a layer, and of the layers' matrices all or low-rank additions.

What is not trained has no gradient, no optimizer state and no decay: it enters the step beside the batch. A model's
parameters are split once, and put together again in the step (`whole`), to measure them and in the end (`merged`).
"""

from typing import Any, NamedTuple

import jax
import numpy as np

from lsp import LspError
from lsp import recipe as recipes
from lsp.model.encoder import Model
from lsp.model.lowrank import LowRank
from lsp.train.metrics import Mean
from lsp.train.objectives import Batch, Loss, Objective

Tree = Any
HEADS = ("pooler", "classifier")


class Apart(NamedTuple):
    """What a step reads and does not change: what the loss reads, such as a teacher, and the rest of the model."""

    teacher: Any
    rest: Tree


def split(params: Tree, adapt: recipes.Adapt, seed: int) -> tuple[Tree, Tree]:
    """`params` in two trees: what is trained, and the rest. In the place of a matrix that is in the rest there may be
    what is trained beside it. Raises LspError (exit 2)."""
    above = {index: layer for index, layer in params["layers"].items() if index >= adapt.freeze}
    if adapt.lora_rank:
        if adapt.reinitialise or not above:
            key = "adapt.reinitialise" if adapt.reinitialise else f"adapt.freeze = {adapt.freeze}"
            raise LspError(f"{key} leaves nothing to be added to by adapt.lora_rank.", hint="Leave one of them out.")
        heads = {part: params[part] for part in HEADS}
        check(params, adapt.lora_rank)
        trained = heads | {"layers": _additions(above, adapt.lora_rank, np.random.default_rng(seed))}
        return trained, {part: tree for part, tree in params.items() if part not in HEADS}
    if adapt.freeze:
        below = {index: layer for index, layer in params["layers"].items() if index < adapt.freeze}
        rest = {"embeddings": params["embeddings"], "layers": below}
        return {part: tree for part, tree in params.items() if part != "embeddings"} | {"layers": above}, rest
    return params, {}


def check(params: Tree, rank: int) -> None:
    """Raises LspError (exit 2) for a rank that saves nothing."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params["layers"]):
        if path[-1].key == "kernel" and rank >= min(leaf.shape):
            raise LspError(
                f"adapt.lora_rank = {rank}, and a matrix of the encoder is {leaf.shape[0]} × {leaf.shape[1]}.",
                hint="Give a rank far below both, 8 say.",
            )


def _additions(node: Tree, rank: int, random: np.random.Generator) -> Tree:
    """For each kernel in a tree [K, N] a random [K, R] and zeros [R, N]: together nothing, so that training begins with
    the model as it is."""
    found = {}
    for name, child in node.items():
        if name == "kernel":
            rows, columns = child.shape
            a = random.normal(0.0, rows**-0.5, (rows, rank)).astype(np.float32)
            found[name] = {"a": a, "b": np.zeros((rank, columns), np.float32)}
        elif isinstance(child, dict) and (inner := _additions(child, rank, random)):
            found[name] = inner
    return found


def whole(trained: Tree, rest: Tree, scale: float = 1.0) -> Tree:
    """The model's parameters; a matrix beside which something is trained is a `LowRank`."""
    if not isinstance(rest, dict):
        return LowRank(rest, trained["a"], trained["b"], scale)
    both = {name: whole(trained[name], rest[name], scale) for name in trained if name in rest}
    return rest | trained | both


def merged(trained: Tree, rest: Tree, scale: float = 1.0) -> Tree:
    """The same with every matrix in one piece."""

    def one(leaf: Any) -> Any:
        return leaf.merged() if isinstance(leaf, LowRank) else leaf

    return jax.tree.map(one, whole(trained, rest, scale), is_leaf=lambda leaf: isinstance(leaf, LowRank))


def partly(objective: Objective, rest: Tree, scale: float) -> Objective:
    """The objective for a model of which `rest` is not trained."""
    if not rest:
        return objective
    frozen = Apart(objective.frozen, rest)
    return objective._replace(
        loss=_beside(objective.loss), frozen=frozen, whole=lambda trained, apart: whole(trained, apart.rest, scale)
    )


def _beside(plain: Loss) -> Loss:
    def loss_of_a_part(
        model: Model, frozen: Apart, batch: Batch, key: jax.Array | None
    ) -> tuple[Mean, dict[str, Mean]]:
        return plain(model, frozen.teacher, batch, key)

    return loss_of_a_part
