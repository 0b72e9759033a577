"""A mesh of devices with axes replica, data, fsdp and tensor, and arrays placed on it by model/sharding.py's tables."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lsp import Exit, LspError
from lsp import recipe as recipes
from lsp.model import sharding


def make(recipe: recipes.Mesh, devices: Sequence[jax.Device] | None = None, replicas: int = 1) -> Mesh:
    """The mesh over all devices; `replicas` copies of the model are spread over as many groups of them as divide both.

    Raises LspError (exit 5) when the sizes do not multiply to their number.
    """
    devices = jax.devices() if devices is None else devices
    groups = math.gcd(replicas, len(devices) // (recipe.fsdp * recipe.tensor * max(1, recipe.data)) or 1)
    known = groups * recipe.fsdp * recipe.tensor
    data = len(devices) // known if recipe.data == -1 else recipe.data
    if data * known != len(devices):
        raise LspError(
            f"mesh.data × mesh.fsdp × mesh.tensor = {data} × {recipe.fsdp} × {recipe.tensor} "
            f"does not make the {len(devices)} devices of this machine.",
            hint="Leave mesh.data at -1 and choose fsdp and tensor so that their product divides the devices.",
            code=Exit.MACHINE,
        )
    grid = np.asarray(devices).reshape(groups, data, recipe.fsdp, recipe.tensor)
    return Mesh(grid, ("replica", "data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 4)


def place(tree: Any, mesh: Mesh) -> Any:
    """A NamedSharding for each leaf of a tree of arrays or shapes."""

    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, sharding.parameter(path, leaf.shape, mesh)), tree
    )


def send(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """A host batch on the devices, its rows split; each process sends those of its own devices."""
    return spread(batch, dict.fromkeys(batch, rows(mesh)))


def rows(mesh: Mesh) -> NamedSharding:
    """Rows split over copies of the model, data and fsdp."""
    return NamedSharding(mesh, P(("replica", *sharding.ROWS)))


def spread(tree: Any, places: Any) -> Any:
    """Host arrays that every process has whole, placed by a tree of shardings."""

    def one(leaf: Any, place: NamedSharding) -> jax.Array:
        if place.is_fully_addressable:
            return jax.device_put(leaf, place)
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, place, lambda index: host[index])

    return jax.tree.map(one, tree, places)


def each(values: Any, mesh: Mesh) -> Any:
    """A tree of numbers, of which every process may have others, as float32 [devices]: one for each device."""
    own = np.ones(len(mesh.local_devices), np.float32)
    return jax.tree.map(lambda value: jax.make_array_from_process_local_data(everywhere(mesh), own * value), values)


def everywhere(mesh: Mesh) -> NamedSharding:
    """One element of an array on each device."""
    return NamedSharding(mesh, P(mesh.axis_names))


def gathered(tree: Any) -> Any:
    """The tree's arrays, whole, as NumPy in every process."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    from jax.experimental.multihost_utils import process_allgather

    return process_allgather(tree, tiled=True)


def check_batch(batch_size: int, accumulate: int, mesh: Mesh, replicas: int = 1) -> None:
    """Raises LspError (exit 2) unless the batch splits evenly over copies of the model, micro-batches and devices."""
    parts = replicas * accumulate * mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % parts:
        what = "copies × micro-batches × devices" if replicas > 1 else "micro-batches × devices"
        raise LspError(
            f"train.batch_size = {batch_size} can't be split over {parts} ({what}).",
            hint=f"Use a multiple of {parts}, such as {-(-batch_size // parts) * parts}.",
        )
