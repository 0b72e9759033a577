"""The training step as a program: put together from a recipe, compiled ahead for each shape of batch, and made to fit
the memory by computing some things twice."""

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from lsp import LspError, interrupt
from lsp import recipe as recipes
from lsp.model.attention import KEPT_BARRIERS
from lsp.model.config import ModelConfig
from lsp.model.encoder import REMAT, graphdef
from lsp.train import memory, optimizer, processes, replicas
from lsp.train import mesh as meshes
from lsp.train.log import Meter
from lsp.train.objectives import Objective
from lsp.train.step import Signals, TrainState, Update, make_train_step, make_update


def build(
    config: ModelConfig,
    objective: Objective,
    train: recipes.Train,
    copies: recipes.Replicas,
    mesh: Mesh,
    remat: recipes.Remat,
    after: optax.GradientTransformation | None = None,
    variants: int = 0,
) -> tuple[Update, Any]:
    """The update that a recipe asks for and the jitted step around it; `after` is chained behind the optimizer. Of
    `variants` that are trained together none is stopped by a spike, which would be the spike of one of them."""
    alone = make_update(
        graphdef(config, remat),
        objective,
        optimizer.make(replace(train, clip=0.0) if objective.private else train, after),
        accumulate=train.accumulate,
        full=0 if objective.private else train.batch_size // copies.count,
        precision=train.precision,
        expected=train.batch_size,
    )
    update = replicas.delayed(alone, copies, mesh)
    return update, make_train_step(update, spike=0.0 if variants else train.spike, variants=variants)


def check(train: recipes.Train, copies: recipes.Replicas, mesh: Mesh, variants: int = 0) -> None:
    """Raises LspError (exit 2) for a recipe whose batches the mesh can't share, or whose copies or variants can't be
    trained together."""
    meshes.check_batch(train.batch_size, train.accumulate, mesh, copies.count)
    if variants:
        keys = {"mesh.fsdp": mesh.shape["fsdp"] > 1, "mesh.tensor": mesh.shape["tensor"] > 1}
        keys["train.on_divergence"] = train.on_divergence != "stop"
        if key := next((key for key, asked in keys.items() if asked), None):
            raise LspError(f"{key} does not go together with --seeds and --sweep.", hint=f"Leave {key} at its default.")
    if train.batch_start:
        meshes.check_batch(train.batch_start, 1, mesh, copies.count)
    replicas.check(copies, train)
    if train.patience and not train.best:
        raise LspError("train.patience waits for train.best.", hint="Add --set train.best=accuracy, say.")
    if train.best and not train.evaluate_every:
        raise LspError(
            f"train.best = {train.best} is found among evaluations, and there is one only.",
            hint="Add --set train.evaluate_every=N steps.",
        )
    if train.best and train.average:
        raise LspError("train.best and train.average both choose the finished weights.", hint="Leave one of them out.")


def policies(remat: recipes.Remat) -> tuple[recipes.Remat, ...]:
    """What `train.remat` allows, to be tried in this order."""
    return tuple(REMAT) if remat == "auto" else (remat,)


def program(lowered: Any, remat: recipes.Remat, mesh: Mesh) -> Any:
    """The program of a lowered step. XLA's CPU would take out the barriers around what is computed again, find that it
    was computed before, and keep it."""
    cpu = mesh.devices.flat[0].platform == "cpu"
    options = KEPT_BARRIERS if cpu and remat != "none" else None
    return interrupt.apart(partial(lowered.compile, compiler_options=options))


class Compiled:
    """A step that takes host batches. `make(remat)` gives the jitted one. Compiling is counted apart and can be
    interrupted; a step that does not fit the memory is compiled again with the next policy of `remat`."""

    def __init__(
        self,
        make: Callable[[recipes.Remat], Any],
        remat: recipes.Remat,
        mesh: Mesh,
        meter: Meter,
        say: Callable[[str], None],
    ) -> None:
        self.make, self.policies, self.mesh, self.meter, self.say = make, policies(remat), mesh, meter, say
        self.compiled: dict[tuple[Any, ...], Any] = {}
        self.planned: memory.Memory | None = None  # of the largest step so far
        self.largest: Any = None

    def __call__(
        self, state: TrainState, frozen: Any, host_batch: dict[str, np.ndarray], index: np.int32, signals: Signals
    ) -> Any:
        batch = meshes.send(host_batch, self.mesh)
        shape = tuple((name, array.shape) for name, array in batch.items())
        if shape not in self.compiled:
            began, before = time.monotonic(), memory.resident()
            self.compiled[shape] = self._compile(state, frozen, batch, index, signals)
            processes.meet()  # collectives wait half a minute for each other, and compiling may take longer
            found = memory.of(self.compiled[shape], state, batch)
            if jax.default_backend() == "cpu":
                found = found._replace(program=max(0, memory.resident() - before), start=memory.size(state.params))
            if self.planned is None or found.total > self.planned.total:
                self.planned, self.largest = found, self.compiled[shape]
            self.meter.compile_seconds += time.monotonic() - began
            self.meter.pause()
        return self.compiled[shape](state, frozen, batch, index, signals)

    @property
    def buffers(self) -> int:
        """Bytes that the largest step so far takes and gives back."""
        return self.planned.gradients + self.planned.activations if self.planned else 0

    def text(self) -> str:
        """The largest program, as XLA has it."""
        return str(self.largest.as_text())

    def _compile(self, state: TrainState, frozen: Any, batch: Any, *others: Any) -> Any:
        """With the first policy whose step fits; those before it are not tried again."""
        room = memory.usable()
        while True:
            lowered = self.make(self.policies[0]).lower(state, frozen, batch, *others)
            try:
                compiled = program(lowered, self.policies[0], self.mesh)
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error) or len(self.policies) == 1:
                    raise
                needed = "more memory than the device has"
            else:
                total = memory.of(compiled, state, batch).total + memory.size(frozen)
                if total <= room or len(self.policies) == 1:
                    return compiled
                needed = f"{total / 1e9:,.1f} GB and the device has {room / 1e9:,.1f}"
            before, self.policies = self.policies[0], self.policies[1:]
            self.say(f"a step with train.remat={before} needs {needed}; compiling it with {self.policies[0]}")
