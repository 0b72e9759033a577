"""What a training step will take, found by compiling the real one for devices that need not be there: shapes only,
nothing allocated."""

import math
import os
import re
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from time import monotonic
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding

from lsp import LspError, lacking
from lsp import recipe as recipes
from lsp.data.masking import slots_for
from lsp.model import cost, sharding
from lsp.model.config import ModelConfig
from lsp.model.encoder import shapes
from lsp.train import memory
from lsp.train import mesh as meshes
from lsp.train.accelerators import Accelerator, Time, roofline
from lsp.train.collectives import Collective, collectives
from lsp.train.compiled import build, check, policies, program
from lsp.train.objectives import Objective, pretraining
from lsp.train.step import Signals, TrainState, Update, begin

# What XLA's partitioner says when it finds no better way from one split to another.
REMATERIALISED = "Involuntary full rematerialization"


class Step(NamedTuple):
    """A compiled step: what it takes on one device, the sizes of the mesh, what crosses between devices, bytes of a
    checkpoint to go on from, what went wrong with the sharding, in sentences, and the policy of `train.remat`. A step
    that is too large for the TPU that it was compiled for has no collectives: its compiler stops there."""

    memory: memory.Memory
    mesh: dict[str, int]
    collectives: list[Collective]
    checkpoint: int
    warnings: list[str]
    compile_seconds: float
    remat: recipes.Remat


def tpu_slice(topology: str) -> Sequence[Any]:
    """Descriptions of the chips of a slice such as `v5e:16x16`, for the compiler in libtpu, which needs no TPU.

    Raises LspError: exit 5 without libtpu, 2 when it knows no such slice.
    """
    try:
        import libtpu  # noqa: F401
    except ImportError:
        raise lacking("The TPU compiler is missing: it comes with libtpu, in the extra `tpu`.", "tpu") from None
    from jax.experimental import topologies

    # What libtpu would ask a TPU's host for, and that it need not be alone: it opens no TPU.
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-8")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    except Exception as error:
        first = str(error).splitlines()[0][:200]
        raise LspError(
            f"The TPU compiler does not know {topology}: {first}", hint="As in v5e:16x16, v5p:4x4x4."
        ) from None


def model(recipe: recipes.Pretrain) -> ModelConfig:
    """Before there is data, the vocabulary has the size that the recipe asks for."""
    return ModelConfig.from_recipe(recipe.model, recipe.data.vocab_size).paired(recipe.data.next_sentence)


def compile_step(recipe: recipes.Pretrain, devices: Sequence[Any], room: float, *, here: bool = False) -> Step:
    """The step that `lsp pretrain` would run on these devices of `room` bytes each; `here` when they are this machine's
    processor and not stand-ins for others, so that what the process needs is theirs too. Raises LspError (exit 2 or 5)
    when batch or mesh do not fit them, and what XLA raises when memory does not suffice."""
    for remat in policies(recipe.train.remat):
        step = _compiled(recipe, devices, remat, here)
        if step.memory.total <= room:
            break
    return step


def _compiled(recipe: recipes.Pretrain, devices: Sequence[Any], remat: recipes.Remat, here: bool) -> Step:
    mesh = meshes.make(recipe.mesh, devices, recipe.replicas.count)
    check(recipe.train, recipe.replicas, mesh)
    config = model(recipe)
    with jax.set_mesh(mesh):
        objective = Objective(pretraining(config))
        update, train_step = build(config, objective, recipe.train, recipe.replicas, mesh, remat)
        state, batch = _state(config, update, mesh), _batch(recipe, mesh)
        began, before = monotonic(), memory.resident()
        with _said() as said:
            said_by_each = jax.ShapeDtypeStruct((mesh.size,), jnp.float32, sharding=meshes.everywhere(mesh))
            signals = Signals(said_by_each, said_by_each)
            lowered = train_step.lower(state, None, batch, jax.ShapeDtypeStruct((), jnp.int32), signals)
            try:
                compiled = program(lowered, remat, mesh)
            except jax.errors.JaxRuntimeError as error:
                taken, found = _too_large(str(error), state, batch), []
            else:
                taken, found = memory.of(compiled, state, batch), collectives(compiled.as_text(), mesh.size)
                if here:
                    jax.jit(partial(begin, update)).lower(shapes(config)).compile()  # it is compiled too
                    grown = max(0, memory.resident() - before)
                    taken = taken._replace(program=grown, start=memory.size(state.params))
        took = monotonic() - began
    checkpoint = sum(leaf.dtype.itemsize * leaf.size for leaf in jax.tree.leaves(state))
    warnings = [*_rematerialised(said), *_gathered(found, state.params, mesh)]
    return Step(taken, dict(mesh.shape), found, checkpoint, warnings, took, remat)


def slots(recipe: recipes.Pretrain) -> int:
    """Masked positions that a row has room for, where the mask rate is highest."""
    return slots_for(max(recipe.data.mask_rate, recipe.data.mask_rate_end), recipe.data.sequence_length)


def flops(recipe: recipes.Pretrain) -> int:
    """FLOPs of a step over all devices, of needed work only: nothing computed again, nothing but products."""
    length = recipe.data.sequence_length
    row = cost.forward_flops(model(recipe), [length], slots(recipe))
    return 3 * row * recipe.train.batch_size


def time(recipe: recipes.Pretrain, step: Step, devices: int, accelerator: Accelerator, mfu: float) -> Time:
    """A step by a roofline."""
    sent = sum(each.bytes for each in step.collectives)
    # Of the forward pass, a third of the step, what is computed again; `dots` leaves out products with weights.
    again = {"none": 0.0, "dots": _attention(recipe), "full": 1.0}[step.remat] / 3
    return roofline(accelerator, recipe.train, (1 + again) * flops(recipe) / devices, step.memory, sent, mfu)


def _attention(recipe: recipes.Pretrain) -> float:
    """The share of the forward pass that is products of tokens with tokens."""
    config, length = model(recipe), recipe.data.sequence_length
    return cost.attention_flops(config, [length]) / cost.forward_flops(config, [length], slots(recipe))


def _state(config: ModelConfig, update: Update, mesh: Mesh) -> TrainState:
    state = jax.eval_shape(partial(begin, update), shapes(config))
    places = meshes.place(state, mesh)
    return jax.tree.map(lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), state, places)


def _batch(recipe: recipes.Pretrain, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """What `data/batches.pretraining` makes, as shapes."""
    rows, length, room = recipe.train.batch_size, recipe.data.sequence_length, slots(recipe)
    shapes: dict[str, tuple[int, ...]] = {"tokens": (rows, length), "segments": (rows, length)}
    shapes |= {"slots": (rows, room), "targets": (rows, room), "weights": (rows, room)}
    if recipe.data.next_sentence:
        shapes |= {"types": (rows, length), "labels": (rows,), "pair_weights": (rows,)}
    if recipe.replicas.clients:
        shapes |= {"examples": (rows,)}
    floats, place = {"weights", "pair_weights", "examples"}, meshes.rows(mesh)
    return {
        name: jax.ShapeDtypeStruct(shape, jnp.float32 if name in floats else jnp.int32, sharding=place)
        for name, shape in shapes.items()
    }


def _too_large(text: str, state: TrainState, batch: Any) -> memory.Memory:
    """The memory of a step that the TPU compiler refuses, from its own words; any other text is an error."""
    match = re.search(r"temporaries \(([\d.]+)([MGT])\)|Used ([\d.]+)([MGT]) of", text)
    if match is None:
        raise RuntimeError(text)
    number, unit = (match[1], match[2]) if match[1] else (match[3], match[4])
    used = round(float(number) * {"M": 2**20, "G": 2**30, "T": 2**40}[unit])
    return memory.parted(state, batch, used if match[1] else used - memory.size((state, batch)), 0)


def _rematerialised(said: list[str]) -> Iterator[str]:
    """The compiler's own complaints, each array once."""
    arrays = {
        match[1] for line in said if (match := re.search(REMATERIALISED + r".* HLO operation %\S+ = (\S+)", line))
    }
    for array in sorted(arrays):
        yield f"the compiler moves {array} by gathering it whole on every device"


def _gathered(found: list[Collective], params: Any, mesh: Mesh) -> Iterator[str]:
    """All-gathers of anything but parameters, and every all-to-all: activations that are moved for want of a place.

    A parameter may be gathered as a matrix of other dimensions of the same sizes; what is smaller than a megabyte is
    the compiler's own business.
    """
    known = set()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        used = NamedSharding(mesh, sharding.parameter(path, leaf.shape, mesh, gathered=True))
        known |= {tuple(sorted(shape)) for shape in (leaf.shape, used.shard_shape(leaf.shape))}
    for each in found:
        for shape in each.shapes if each.kind in ("all-gather", "all-to-all") else ():
            if tuple(sorted(size for size in shape if size > 1)) not in known and 2 * math.prod(shape) > 1e6:
                yield f"an {each.kind} over {each.group} devices moves {list(shape)}, which is no parameter"


@contextmanager
def _said() -> Iterator[list[str]]:
    """Takes what is written to stderr, by C++ too, and leaves it in the list at the end."""
    said: list[str] = []
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield said
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            said += file.read().decode(errors="replace").splitlines()
