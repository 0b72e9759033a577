"""What is split over which axis of the mesh: a table for parameters, and with them the optimizer's moments, and a table
for the activations between them.

The axes are data, fsdp and tensor. Rows are split over data × fsdp. `tensor` splits the matrices of a layer by heads or
by feed-forward units, so that it needs one sum over devices after `out` and one after `down` (Shoeybi et al., 2019).
`fsdp` splits what is left of a parameter where it is kept; the parameter is gathered where it is used, and its gradient
summed and split again (Rajbhandari et al., 2020).
"""

import itertools
import operator
import re
from collections.abc import Set
from functools import partial
from typing import Any

import jax
from jax.sharding import PartitionSpec as P

# A parameter's place by the end of its path; the optimizer's moments carry the same path and so the same place. What is
# not named here is small and stays whole: positions, the head's dense layer, norms, the biases that follow a sum.
PARAMETERS = (
    (r"(qkv|up|gate)\.kernel", P("fsdp", "tensor")),
    (r"(out|down)\.kernel", P(("tensor", "fsdp"))),
    (r"(qkv|up)\.bias", P("tensor")),
    (r"tokens\.table", P(("tensor", "fsdp"))),
    (r"words\.bias", P("tensor")),
)
# Copies of the model that train apart lie in the optimizer's state, along a first axis of their own.
COPIES = "opt_state.local."
# Activations by the suffix of their names: B rows, T tokens, D width, K slots, V vocabulary.
ROWS = ("data", "fsdp")
SPLIT = (*ROWS, "tensor")  # the axes that a model's own work is split over
EACH = "each"  # what `jax.vmap` calls its axis where it runs several models, or a model for each example
HEADS = P(ROWS, "tensor")  # of what attention reads and writes, by rows and heads
ACTIVATIONS = {"BTD": P(ROWS), "BKD": P(ROWS), "BKV": P(ROWS, None, "tensor")}


def parameter(path: Any, shape: tuple[int, ...], mesh: Any, *, gathered: bool = False) -> P:
    """The split of a parameter (or a moment of it, its int8 values, what LoRA adds to, what is rounded in training) by
    its path in the tree, where it is kept or, `gathered`, used."""
    name = ".".join(str(getattr(part, "key", getattr(part, "name", getattr(part, "idx", part)))) for part in path)
    axes = next((axes for pattern, axes in PARAMETERS if re.search(pattern + r"(\.q|\.base|\.w)?$", name)), P())
    if COPIES in name:
        return P("replica", *even(axes, shape[1:], mesh))
    return even(axes, shape, mesh, {"fsdp"} if gathered else set())


def even(axes: P, shape: tuple[int, ...], mesh: Any, without: Set[str] = frozenset()) -> P:
    """For each dimension the first of its axes that cut it evenly; one that can't be cut (a pruned width) is whole."""

    def fitting(names: Any, size: int) -> tuple[str, ...]:
        names = (names,) if isinstance(names, str) else names or ()
        counts = itertools.accumulate((mesh.shape[name] for name in names), operator.mul)
        fit = itertools.takewhile(lambda pair: size % pair[1] == 0, zip(names, counts, strict=True))
        return tuple(name for name, _ in fit if name not in without)

    return P(*(fitting(names, size) for names, size in zip(axes, shape, strict=False)))


def hold(x: jax.Array, kind: str) -> jax.Array:
    """`x` split as ACTIVATIONS says of its `kind`. Without a mesh, or on one device, `x` as it is."""
    mesh = jax.sharding.get_abstract_mesh()
    return x if mesh.size <= 1 else jax.lax.with_sharding_constraint(x, even(ACTIVATIONS[kind], x.shape, mesh))


def gather(params: Any) -> Any:
    """Parameters as they are used, whole over fsdp; their gradients come back as the parameters are kept."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.size <= 1 or mesh.shape["fsdp"] == 1:
        return params

    def whole(path: Any, leaf: jax.Array) -> jax.Array:
        return _gather(leaf, parameter(path, leaf.shape, mesh), parameter(path, leaf.shape, mesh, gathered=True))

    return jax.tree_util.tree_map_with_path(whole, params)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather(leaf: jax.Array, kept: P, used: P) -> jax.Array:
    return jax.lax.with_sharding_constraint(leaf, used)


_gather.defvjp(
    lambda leaf, kept, used: (_gather(leaf, kept, used), None),
    lambda kept, used, _, gradient: (jax.lax.with_sharding_constraint(gradient, kept),),
)
