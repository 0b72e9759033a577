"""A mesh of devices with axes data, fsdp and tensor, and arrays placed on it by the tables of model/sharding.py."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lsp import Exit, LspError
from lsp import recipe as recipes
from lsp.model import sharding


def make(recipe: recipes.Mesh, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh over all devices. Raises LspError (exit 5) when the sizes do not multiply to their number."""
    devices = jax.devices() if devices is None else devices
    known = recipe.fsdp * recipe.tensor
    data = len(devices) // known if recipe.data == -1 else recipe.data
    if data * known != len(devices):
        raise LspError(
            f"mesh.data × mesh.fsdp × mesh.tensor = {data} × {recipe.fsdp} × {recipe.tensor} "
            f"does not make the {len(devices)} devices of this machine.",
            hint="Leave mesh.data at -1 and choose fsdp and tensor so that their product divides the devices.",
            code=Exit.MACHINE,
        )
    grid = np.asarray(devices).reshape(data, recipe.fsdp, recipe.tensor)
    return Mesh(grid, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)


def place(tree: Any, mesh: Mesh) -> Any:
    """A NamedSharding for each leaf of a tree of arrays or shapes."""

    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: NamedSharding(mesh, sharding.parameter(path, leaf.shape, mesh)), tree
    )


def send(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """A host batch on the devices, its rows split over data and fsdp."""
    return jax.device_put(batch, NamedSharding(mesh, P(sharding.ROWS)))


def check_batch(batch_size: int, accumulate: int, mesh: Mesh) -> None:
    """Raises LspError (exit 2) unless the batch splits evenly over micro-batches and devices."""
    parts = accumulate * mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % parts:
        raise LspError(
            f"train.batch_size = {batch_size} can't be split over {parts} (micro-batches × devices).",
            hint=f"Use a multiple of {parts}, such as {-(-batch_size // parts) * parts}.",
        )
