"""Where arrays live: a mesh of devices with axes data, fsdp and tensor, and one table that says what is split."""

import re
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from lsp import Exit, LspError
from lsp import recipe as recipes

# A parameter's place by the end of its path; the optimizer's moments carry the same path and so the same place.
# `tensor` splits a matrix by heads or by feed-forward units, so a layer needs one sum over devices, after `out`
# and `down` (Shoeybi et al., 2019); `fsdp` splits what is left, gathered when used (Rajbhandari et al., 2020).
# Heads and norms are small and stay whole: splitting the masked-LM head's dense layer over fsdp and tensor gave wrong
# gradients on a 2×2×2 mesh of CPU devices (jaxlib 0.10.2).
TABLE = (
    (r"(qkv|up|gate)\.kernel", P("fsdp", "tensor")),
    (r"(out|down)\.kernel", P("tensor", "fsdp")),
    (r"(qkv|up)\.bias", P("tensor")),
    (r"tokens\.table", P("tensor", "fsdp")),
    (r"(positions|types)\.table", P(None, "fsdp")),
)
ROWS = P(("data", "fsdp"))


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

    def sharding(path: Any, leaf: Any) -> NamedSharding:
        name = ".".join(str(getattr(part, "key", getattr(part, "name", getattr(part, "idx", part)))) for part in path)
        spec = next((spec for pattern, spec in TABLE if re.search(pattern + "$", name)), P())
        return NamedSharding(mesh, P(*(axis if fits(leaf, i, axis, mesh) else None for i, axis in enumerate(spec))))

    return jax.tree_util.tree_map_with_path(sharding, tree)


def fits(leaf: Any, dimension: int, axis: str | None, mesh: Mesh) -> bool:
    """Whether the dimension can be cut evenly; one that can't (a pruned width, say) is kept whole."""
    return axis is not None and dimension < len(leaf.shape) and leaf.shape[dimension] % mesh.shape[axis] == 0


def send(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """A host batch on the devices, its rows split over data and fsdp; each process sends those of its own devices."""
    return spread(batch, dict.fromkeys(batch, NamedSharding(mesh, ROWS)))


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
    place = NamedSharding(mesh, P(mesh.axis_names))
    own = np.ones(len(mesh.local_devices), np.float32)
    return jax.tree.map(lambda value: jax.make_array_from_process_local_data(place, own * value), values)


def gathered(tree: Any) -> Any:
    """The tree's arrays, whole, as NumPy in every process."""
    if jax.process_count() == 1:
        return jax.device_get(tree)
    from jax.experimental.multihost_utils import process_allgather

    return process_allgather(tree, tiled=True)


def check_batch(batch_size: int, accumulate: int, mesh: Mesh) -> None:
    """Raises LspError (exit 2) unless the batch splits evenly over micro-batches and devices."""
    parts = accumulate * mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % parts:
        raise LspError(
            f"train.batch_size = {batch_size} can't be split over {parts} (micro-batches × devices).",
            hint=f"Use a multiple of {parts}, such as {-(-batch_size // parts) * parts}.",
        )
