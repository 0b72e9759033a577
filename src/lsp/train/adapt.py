"""Ways of finetuning that change what a model is trained for, losses made of losses, and where it begins.

`consistent` is R-Drop (Liang et al., 2021), `adversarial` is FGM (Miyato et al., 2017), and `fresh` forgets the top of
the encoder (Zhang et al., 2021).

Dimensions: B rows, C classes.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from lsp import LspError
from lsp import recipe as recipes
from lsp.model.encoder import Model
from lsp.train.metrics import Mean
from lsp.train.objectives import JUDGES, LABELS, Batch, Loss, divergence

Tree = Any


def loss(problem: recipes.Problem, adapt: recipes.Adapt) -> Loss:
    """The loss for labels of one kind, as the recipe wants it adapted."""
    return moved(consistent(problem, adapt.r_drop) if adapt.r_drop else LABELS[problem], adapt)


def moved(plain: Loss, adapt: recipes.Adapt) -> Loss:
    """A loss that is moved against the model, where the recipe asks for that."""
    return adversarial(plain, adapt.fgm) if adapt.fgm else plain


def consistent(problem: recipes.Problem, strength: float) -> Loss:
    """The mean of two passes with other dropout, and `strength` times half of how far the answers are from each other,
    there and back."""

    def r_drop(model: Model, frozen: Any, batch: Batch, key: jax.Array | None) -> tuple[Mean, dict[str, Mean]]:
        inputs = batch["tokens"], batch["segments"], batch["types"]
        keys = (None, None) if key is None else jax.random.split(key)
        one_BC, other_BC = (model.classify(*inputs, key=each) for each in keys)
        weights_B = batch["weights"]
        judged = [JUDGES[problem](logits_BC, batch["labels"], weights_B) for logits_BC in (one_BC, other_BC)]
        apart_B = (divergence(problem, one_BC, other_BC) + divergence(problem, other_BC, one_BC)) / 2
        total = (judged[0][0].total + judged[1][0].total) / 2 + strength * (apart_B * weights_B).sum()
        return Mean(total, weights_B.sum()), judged[0][1]

    return r_drop


def adversarial(plain: Loss, size: float) -> Loss:
    """The loss, and the loss where the table of token embeddings is moved by `size` in the direction that makes the
    loss larger fastest; half of each. Takes a pass and a gradient more."""

    def fgm(model: Model, frozen: Any, batch: Batch, key: jax.Array | None) -> tuple[Mean, dict[str, Mean]]:
        structure, params = nnx.split(model)

        def at(table: jax.Array) -> tuple[Any, tuple[Mean, dict[str, Mean]]]:
            moved = jax.tree_util.tree_map_with_path(lambda path, leaf: table if _is_table(path) else leaf, params)
            mean, metrics = plain(nnx.merge(structure, moved), frozen, batch, key)
            return mean.total, (mean, metrics)

        table = model.embeddings.tokens.table.get_value()
        slope, (clean, metrics) = jax.grad(at, has_aux=True)(table)
        slope = jax.lax.stop_gradient(slope.astype(jnp.float32))
        step = (size * slope / jnp.maximum(optax.tree.norm(slope), 1e-12)).astype(table.dtype)
        _, (moved, _) = at(table + step)
        return Mean((clean.total + moved.total) / 2, clean.count), metrics

    return fgm


def fresh(params: Tree, start: Tree, adapt: recipes.Adapt) -> Tree:
    """`params` with the highest `adapt.reinitialise` layers as `start` has them: new. Raises
    LspError (exit 2) for more layers than there are."""
    count = len(params["layers"])
    for key, wanted in (("freeze", adapt.freeze), ("reinitialise", adapt.reinitialise)):
        if wanted > count:
            raise LspError(f"adapt.{key} = {wanted}, and the encoder has {count} layers.", hint="Give fewer.")
    if adapt.freeze + adapt.reinitialise > count:
        raise LspError("adapt.freeze and adapt.reinitialise want the same layers.", hint="Give fewer of one of them.")
    top = range(count - adapt.reinitialise, count)
    return params | {"layers": params["layers"] | {layer: start["layers"][layer] for layer in top}}


def _keys(path: Any) -> list[Any]:
    return [getattr(part, "key", getattr(part, "name", None)) for part in path]


def _is_table(path: Any) -> bool:
    return _keys(path)[:3] == ["embeddings", "tokens", "table"]
