"""The loop: every objective's training, from the newest saved step to the last one."""

import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from lsp import Exit, Stopped, interrupt
from lsp import recipe as recipes
from lsp.checkpoint import Steps
from lsp.train import mesh as meshes
from lsp.train import optimizer, processes
from lsp.train.clock import Clock
from lsp.train.log import Log, Meter
from lsp.train.objectives import Objective
from lsp.train.step import Signals, TrainState, make_train_step


@dataclass(frozen=True)
class Plan:
    """What to train. `batches(start, stop)` yields the host batches of those steps, `evaluate(params)` measures on
    held-out data, `clock` says when to end, `transform` is chained after the optimizer (pruning's masks)."""

    graphdef: Any
    params: Any
    objective: Objective
    batches: Callable[[int, int], Iterator[dict[str, np.ndarray]]]
    evaluate: Callable[[Any], dict[str, float]]
    train: recipes.Train
    mesh: recipes.Mesh
    clock: Clock
    transform: optax.GradientTransformation | None = None


@dataclass(frozen=True)
class Fitted:
    """Finished parameters on the host, held-out metrics, and what this process spent (`Meter.summary`). Rates leave out
    compiling, evaluating and saving."""

    params: Any
    step: int
    metrics: dict[str, float]
    seconds: float
    rates: dict[str, float]

    def summary(self) -> dict[str, Any]:
        """What a result says of training."""
        return {"step": self.step, "metrics": self.metrics, "seconds": self.seconds} | self.rates


class Saved(NamedTuple):
    """What a step on disk holds: the state, and the seconds that the run has taken, float64."""

    state: TrainState
    seconds: np.ndarray


def fit(plan: Plan, path: Path, progress: Any) -> Fitted:
    """Trains until `plan.clock` says that the run is over, going on from the newest whole step under `path`/train.

    Saves on SIGTERM and Ctrl-C and raises `Stopped`. Raises LspError exit 6 before the update that a loss or gradient
    that is not finite would have made, and exit 2 or 5 when batch or mesh do not fit the devices.
    """
    began = time.monotonic()
    train, mesh = plan.train, meshes.make(plan.mesh)
    meshes.check_batch(train.batch_size, train.accumulate, mesh)
    with jax.set_mesh(mesh):
        tx = optimizer.make(train, plan.transform)
        steps = Steps(path / "train", train.keep, progress.warn)
        start, state = _start(plan, tx, mesh, steps, progress)
        if processes.first():
            plan.clock.check()
        meter = Meter()
        step = Compiled(
            make_train_step(
                plan.graphdef,
                plan.objective,
                tx,
                seed=train.seed,
                accumulate=train.accumulate,
                precision=train.precision,
            ),
            mesh,
            meter,
        )
        frozen = meshes.spread(plan.objective.frozen, meshes.place(plan.objective.frozen, mesh))
        log = Log(path / "metrics.jsonl", start, meter)
        done, state = _train(plan, step, start, state, frozen, steps, log, progress)
        progress.say(f"evaluating after {done} steps")
        params = optimizer.weights(state.params, state.opt_state)
        metrics = plan.evaluate(params)
        params = meshes.gathered(params)
    return Fitted(params, done, metrics, time.monotonic() - began, meter.summary())


def _start(plan: Plan, tx: Any, mesh: Mesh, steps: Steps, progress: Any) -> tuple[int, TrainState]:
    """The newest saved state, or a first one, placed on the mesh. The clock goes on from what was saved with it."""

    def first(params: Any) -> TrainState:
        with jax.numpy_dtype_promotion("standard"):
            return TrainState(jnp.int32(0), params, tx.init(params))

    shapes = jax.eval_shape(first, plan.params)
    places = meshes.place(shapes, mesh)
    like = jax.tree.map(lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), shapes, places)
    found = steps.latest(Saved(like, np.zeros(())))
    if found is not None:
        done, saved = found
        plan.clock.add(float(saved.seconds))
        progress.say(f"continuing from step {done}")
        return done, saved.state
    return 0, jax.jit(first, out_shardings=places)(meshes.spread(plan.params, places.params))


def _train(
    plan: Plan, step: "Compiled", start: int, state: TrainState, frozen: Any, steps: Steps, log: Log, progress: Any
) -> tuple[int, TrainState]:
    """Steps from `start` until the run is over: how many are done then, and the state after them."""
    train, clock = plan.train, plan.clock
    rate = optimizer.schedule(train)
    batches = plan.batches(start, train.steps or sys.maxsize)
    done, saved = start, start

    def save() -> None:
        nonlocal saved
        if done > saved:
            log.settle()
            steps.save(done, Saved(state, np.array(clock.seconds())))
            saved = done

    with interrupt.holding(), progress.task("training", train.steps or None) as bar:
        try:
            # Whether the time is up is what all processes agreed on with the step before.
            while log.progress < 1 and (done < train.steps or not train.steps):
                if log.stop:
                    raise Stopped(Exit.of(log.stop))
                batch = log.meter.waiting(batches)
                share = clock.progress(done, train.steps)
                signals = meshes.each(Signals(share, interrupt.asked()), step.mesh)
                useful, overflow = int((batch["segments"] > 0).sum()), batch.pop("overflow", None)
                state, metrics = step(state, frozen, batch, np.int32(done), signals)
                done += 1
                log.add(done, metrics, useful, batch["segments"].size, 0 if overflow is None else int(overflow))
                if done % train.log_every == 0:
                    bar.update(done, **clock.left(), **log.write(learning_rate=float(rate(share))))
                else:
                    bar.update(done)
                if done % train.checkpoint_every == 0:
                    save()
                if train.evaluate_every and done % train.evaluate_every == 0 and done < train.steps:
                    log.evaluated(done, plan.evaluate(state.params))
            if done > start and done % train.log_every:
                bar.update(done, **log.write(learning_rate=float(rate(share))))
            save()
        except Stopped:
            if processes.alone() or log.stop:  # else the others do not know of it, and would not save with this one
                save()
            progress.say(f"stopping after step {done}")
            raise
        finally:
            steps.wait()
    return done, state


class Compiled:
    """A jitted step that takes host batches, compiled ahead for each of their shapes, so that compiling is counted
    apart and can be interrupted."""

    def __init__(self, step: Any, mesh: Mesh, meter: "Meter") -> None:
        self.step, self.mesh, self.meter = step, mesh, meter
        self.compiled: dict[tuple[Any, ...], Any] = {}

    def __call__(
        self, state: TrainState, frozen: Any, host_batch: dict[str, np.ndarray], index: np.int32, signals: Signals
    ) -> Any:
        batch = meshes.send(host_batch, self.mesh)
        shape = tuple((name, array.shape) for name, array in batch.items())
        if shape not in self.compiled:
            began = time.monotonic()
            self.compiled[shape] = interrupt.apart(self.step.lower(state, frozen, batch, index, signals).compile)
            processes.meet()  # collectives wait half a minute for each other, and compiling may take longer
            self.meter.compile_seconds += time.monotonic() - began
            self.meter.pause()
        return self.compiled[shape](state, frozen, batch, index, signals)
