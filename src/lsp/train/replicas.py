"""Delayed synchronisation: copies of the model that train on rows of their own without talking, and meet every so many
steps (local SGD, Stich, 2019; DiLoCo, Douillard et al., 2023).

At a meeting the mean of the copies, taken off the merged model, is a gradient for an outer optimizer: plain averaging,
or Nesterov momentum as in DiLoCo. Every copy goes on from the merged model with its own inner optimizer state.

The state of the copies is an optimizer's state like any other: the step, the loop and the checkpoint see the merged
parameters and need not know. In between nothing crosses but a loss, a norm and a flag.

Dimensions: R replicas; a leading axis R is split over the mesh axis `replica`.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.sharding import PartitionSpec as P

from lsp import LspError
from lsp import recipe as recipes
from lsp.train.metrics import Mean
from lsp.train.step import Update


class Delayed(NamedTuple):
    """int32 steps so far, each copy's parameters and inner optimizer state [R, …], and the outer optimizer's state."""

    steps: jax.Array
    local: tuple[Any, Any]
    outer: Any


def check(recipe: recipes.Replicas, train: recipes.Train) -> None:
    """Raises LspError (exit 2) for a run that would end between two meetings, or asks for what copies can't do."""
    if recipe.count == 1:
        return
    if train.steps % recipe.every:
        raise LspError(
            f"train.steps = {train.steps} is no multiple of replicas.every = {recipe.every}: the last steps would be "
            "lost, for only merged weights are kept.",
            hint=f"Use --set train.steps={-(-train.steps // recipe.every) * recipe.every}.",
        )
    if train.average or train.on_divergence != "stop":
        key = "train.average" if train.average else "train.on_divergence"
        raise LspError(f"{key} does not go together with replicas.count.", hint=f"Leave {key} at its default.")


def delayed(update: Update, recipe: recipes.Replicas, mesh: jax.sharding.Mesh) -> Update:
    """`update` by `recipe.count` copies. Each takes its share of a batch's rows; the mesh's `replica` axis must divide
    their number. One copy is `update` itself."""
    if recipe.count == 1:
        return update
    copies, here = recipe.count, recipe.count // mesh.shape["replica"]
    momentum = {"momentum": recipe.momentum, "nesterov": True} if recipe.outer == "nesterov" else {}
    outer = optax.sgd(recipe.rate if momentum else 1.0, **momentum)

    def init(params: Any) -> Delayed:
        spread = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (copies, *leaf.shape)), (params, update.init(params)))
        return Delayed(jnp.int32(0), spread, outer.init(params))

    def local(copy: Any, frozen: Any, batch: Any, key: jax.Array, progress: jax.Array) -> Any:
        """One step of the copies of one device, whose axis is `here` long. No collective is in it."""
        first = jax.lax.axis_index("replica") * here
        done = [
            update.update(*at(copy, i), frozen, at(batch, i), jax.random.fold_in(key, first + i), progress)
            for i in range(here)
        ]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *done)

    mapped = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(P("replica"), P(), P("replica"), P(), P()),
        out_specs=P("replica"),
        axis_names={"replica"},
        check_vma=False,
    )

    def merge(params: Any, copies_of: Any, state: Any) -> tuple[Any, Any, Any]:
        away = jax.tree.map(lambda whole, copy: whole - copy.mean(0), params, copies_of)
        updates, state = outer.update(away, state, params)
        params = optax.apply_updates(params, updates)
        return params, jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (copies, *leaf.shape)), params), state

    def step(
        params: Any, opt_state: Delayed, frozen: Any, batch: Any, key: jax.Array, progress: jax.Array
    ) -> tuple[Any, Delayed, dict[str, Mean], jax.Array]:
        rows = jax.tree.map(lambda x: x.reshape(copies, -1, *x.shape[1:]), batch)
        moved, inner, metrics, norms = mapped(opt_state.local, frozen, rows, key, progress)
        steps = opt_state.steps + 1
        params, moved, state = jax.lax.cond(
            steps % recipe.every == 0, merge, lambda *unchanged: unchanged, params, moved, opt_state.outer
        )
        return params, Delayed(steps, (moved, inner), state), jax.tree.map(lambda x: x.sum(0), metrics), norms.mean()

    return Update(init, step)


def at(tree: Any, index: int) -> Any:
    """Element `index` of every leaf's first axis."""
    return jax.tree.map(lambda leaf: leaf[index], tree)
