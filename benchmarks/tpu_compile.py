"""Training steps and int8 answers compiled for TPU slices by the real TPU compiler, on a machine without a TPU.

    bash scripts/setup.sh tpu
    python benchmarks/tpu_compile.py                  # all, an hour on two cores
    python benchmarks/tpu_compile.py --only base.*2x4

Prints a JSON object a line: memory of a chip by kind, traffic a step by kind of collective, what the compiler warned of
and the seconds that it took. A line without warnings has no array that is gathered whole for want of a better way, and
no all-gather of anything but parameters.
"""

import argparse
import json
import math
import re
import time
from pathlib import Path
from typing import Any

from lsp.commands.plan import imitate

imitate(1)  # before jax is imported

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from flax import nnx  # noqa: E402
from jax.sharding import NamedSharding  # noqa: E402
from jax.sharding import PartitionSpec as P  # noqa: E402

from lsp import recipe as recipes  # noqa: E402
from lsp.model import sharding  # noqa: E402
from lsp.model.encoder import graphdef, shapes  # noqa: E402
from lsp.model.int8 import Int8  # noqa: E402
from lsp.train import forecast  # noqa: E402
from lsp.train import mesh as meshes  # noqa: E402
from lsp.train.collectives import by_kind, collectives  # noqa: E402

RECIPES = Path(__file__).parent.parent / "recipes" / "pretrain"
# What to compile, the slice, and the sizes of fsdp and tensor; data has the rest. On eight chips the large one needs
# 20 GB of each with its recipe's two micro-batches, so there it has four.
MORE_PARTS = ("large", "v5e:2x4")
CASES = (
    ("base", "v5e:2x4", 1, 1),
    ("base", "v5e:2x4", 2, 2),
    ("base", "v5e:16x16", 4, 1),
    ("base", "v6e:16x16", 16, 2),
    ("base", "v5p:4x4x4", 1, 2),
    ("large", "v5e:2x4", 8, 1),
    ("large", "v5e:16x16", 16, 2),
    ("large", "v6e:16x16", 2, 2),
    ("large", "v5p:4x4x4", 8, 2),
    ("int8", "v5e:2x4", 1, 1),
    ("int8", "v5e:16x16", 1, 1),
    ("int8", "v6e:16x16", 1, 1),
    ("int8", "v5p:4x4x4", 1, 2),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="regular expression for `what slice fsdp tensor`")
    only = parser.parse_args().only
    for what, topology, fsdp, tensor in CASES:
        if not re.search(only, f"{what} {topology} {fsdp} {tensor}"):
            continue
        changes = [f"mesh.fsdp={fsdp}", f"mesh.tensor={tensor}"]
        changes += ["train.accumulate=4"] if (what, topology) == MORE_PARTS else []
        recipe = recipes.load(recipes.Pretrain, RECIPES / f"{'base' if what == 'int8' else what}.toml", changes)
        chips = forecast.tpu_slice(topology)
        found = int8_answer(recipe, chips) if what == "int8" else training_step(recipe, chips)
        print(json.dumps({"what": what, "slice": topology} | found), flush=True)


def training_step(recipe: recipes.Pretrain, chips: Any) -> dict[str, Any]:
    step = forecast.compile_step(recipe, chips, math.inf)  # nothing computed twice
    return {
        "mesh": step.mesh,
        "memory": step.memory._asdict() | {"total": step.memory.total},
        "traffic": {row["collective"]: row["bytes"] for row in by_kind(step.collectives)},
        "warnings": step.warnings,
        "compile_seconds": round(step.compile_seconds),
    }


def int8_answer(recipe: recipes.Pretrain, chips: Any) -> dict[str, Any]:
    """The guesses of an int8 encoder in bf16 for a batch of the recipe's size."""
    mesh, config, length = meshes.make(recipe.mesh, chips), forecast.model(recipe), recipe.data.sequence_length

    def quantized(path: Any, leaf: jax.ShapeDtypeStruct) -> Any:
        if path[-1].key not in ("kernel", "table"):
            return jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16)
        axis = 1 if path[-1].key == "kernel" else 0
        channels = leaf.shape[axis]
        q, scale, colsum = (
            jax.ShapeDtypeStruct(shape, kind)
            for shape, kind in ((leaf.shape, jnp.int8), ((channels,), jnp.float32), ((channels,), jnp.int32))
        )
        return Int8(q, scale, colsum, axis)

    def on_mesh(tree: Any, places: Any) -> Any:
        return jax.tree.map(lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), tree, places)

    params = jax.tree_util.tree_map_with_path(quantized, shapes(config))
    params = on_mesh(params, meshes.place(params, mesh))
    rows = NamedSharding(mesh, P(sharding.ROWS))
    sizes = {"tokens": length, "segments": length, "slots": forecast.slots(recipe)}
    batch = {
        name: jax.ShapeDtypeStruct((recipe.train.batch_size, width), jnp.int32, sharding=rows)
        for name, width in sizes.items()
    }

    @jax.jit
    def answer(params: Any, batch: Any) -> jax.Array:
        model = nnx.merge(graphdef(config), params)
        return model.guess(model.encode(batch["tokens"], batch["segments"]), batch["slots"]).argmax(-1)

    with jax.set_mesh(mesh):
        began = time.monotonic()
        compiled = answer.lower(params, batch).compile()
        seconds = round(time.monotonic() - began)
    stats, program = compiled.memory_analysis(), compiled.as_text()
    kinds = [("arguments", stats.argument_size_in_bytes), ("temporaries", stats.temp_size_in_bytes)]
    memory = dict([*kinds, ("program", stats.generated_code_size_in_bytes)])
    return {
        "mesh": dict(mesh.shape),
        "memory": memory | {"total": sum(memory.values())},
        "traffic": {row["collective"]: row["bytes"] for row in by_kind(collectives(program, mesh.size))},
        "int8_products": len(re.findall(r"= s32\[[^\n]* (?:convolution|dot)\(", program)),
        "compile_seconds": seconds,
    }


if __name__ == "__main__":
    main()
