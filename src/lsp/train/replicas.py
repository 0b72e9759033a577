"""Delayed synchronisation: copies of the model that train on rows of their own without talking, and meet every so many
steps (local SGD, Stich, 2019; DiLoCo, Douillard et al., 2023).

At a meeting the mean of the copies, taken off the merged model, is a gradient for an outer optimizer: plain averaging,
or Nesterov momentum as in DiLoCo. Every copy goes on from the merged model with its own inner optimizer state. In
federated averaging (McMahan et al., 2017) a copy is a client: it weighs as many examples as it has, and at the next
meeting another client takes its place, with a new state.

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
    if recipe.count == 1 and not recipe.clients:
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
    if recipe.count == 1 and not recipe.clients:
        return update
    copies, here = recipe.count, recipe.count // mesh.shape["replica"]
    momentum = {"momentum": recipe.momentum, "nesterov": True} if recipe.outer == "nesterov" else {}
    outer = optax.sgd(recipe.rate if momentum else 1.0, **momentum)

    def init(params: Any) -> Delayed:
        return Delayed(jnp.int32(0), spread((params, update.init(params))), outer.init(params))

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

    def spread(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (copies, *leaf.shape)), tree)

    def merge(params: Any, local: tuple[Any, Any], state: Any, examples: jax.Array) -> tuple[Any, Any, Any]:
        moved, inner = local
        shares = examples / examples.sum()
        away = jax.tree.map(lambda whole, copy: whole - jnp.tensordot(shares, copy, 1), params, moved)
        updates, state = outer.update(away, state, params)
        params = optax.apply_updates(params, updates)
        # A client leaves nothing behind: the next one begins afresh.
        return params, (spread(params), spread(update.init(params)) if recipe.clients else inner), state

    def step(
        params: Any, opt_state: Delayed, frozen: Any, batch: Any, key: jax.Array, progress: jax.Array
    ) -> tuple[Any, Delayed, dict[str, Mean], jax.Array]:
        rows = jax.tree.map(lambda x: x.reshape(copies, -1, *x.shape[1:]), batch)
        examples = rows.pop("examples")[:, 0] if recipe.clients else jnp.ones(copies)
        moved, inner, metrics, norms = mapped(opt_state.local, frozen, rows, key, progress)
        steps, local = opt_state.steps + 1, (moved, inner)
        params, local, state = jax.lax.cond(
            steps % recipe.every == 0,
            merge,
            lambda params, local, state, examples: (params, local, state),
            *(params, local, opt_state.outer, examples),
        )
        return params, Delayed(steps, local, state), jax.tree.map(lambda x: x.sum(0), metrics), norms.mean()

    return Update(init, step)


def traffic(recipe: recipes.Replicas, steps: int, parameters: int) -> dict[str, int]:
    """What one copy has sent in `steps` steps, and what it would have in as many with a gradient each: bytes of fp32
    sums over all copies, each of which passes 2·(R - 1) / R of them on (as in a ring of R)."""
    a_meeting = 4 * parameters * 2 * (recipe.count - 1) // recipe.count
    return {"sent_bytes": steps // recipe.every * a_meeting, "synchronous_bytes": steps * a_meeting}


def at(tree: Any, index: int) -> Any:
    """Element `index` of every leaf's first axis."""
    return jax.tree.map(lambda leaf: leaf[index], tree)
