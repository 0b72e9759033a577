"""The loop: every objective's training, from the newest saved step to the last one."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
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
from lsp.steps import Steps
from lsp.train import blackbox, optimizer, processes, replicas, watch
from lsp.train import mesh as meshes
from lsp.train.clock import Clock
from lsp.train.log import Log, Meter
from lsp.train.objectives import Objective
from lsp.train.step import Signals, TrainState, Update, make_train_step, make_update
from lsp.train.trackers import Tracker

ALONE = recipes.Replicas()


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
    replicas: recipes.Replicas = ALONE
    # For the black box: which rows of the data a step's batch holds, and the text of a row of tokens.
    rows: Callable[[int], np.ndarray] | None = None
    decode: Callable[[Sequence[int]], str] | None = None


@dataclass(frozen=True)
class Fitted:
    """Finished parameters on the host, held-out metrics, and what this process spent (`Meter.summary`). Rates leave out
    compiling, evaluating and saving."""

    params: Any
    step: int
    metrics: dict[str, float]
    seconds: float
    skipped: int
    rates: dict[str, Any]

    def summary(self) -> dict[str, Any]:
        """What a result says of training."""
        first = {"step": self.step, "metrics": self.metrics, "seconds": self.seconds, "skipped_steps": self.skipped}
        return first | self.rates


class Saved(NamedTuple):
    """What a step on disk holds: the state, and the seconds that the run has taken, float64."""

    state: TrainState
    seconds: np.ndarray


def fit(plan: Plan, path: Path, progress: Any, trackers: Sequence[Tracker] = ()) -> Fitted:
    """Trains until `plan.clock` says that the run is over, going on from the newest whole step under `path`/train.

    Saves on SIGTERM and Ctrl-C and raises `Stopped`. Raises LspError exit 6 before an update that the watch refuses and
    has no way around (`watch.answer`), and exit 2 or 5 when batch or mesh do not fit the devices.
    """
    began = time.monotonic()
    train, copies = plan.train, plan.replicas.count
    mesh = meshes.make(plan.mesh, replicas=copies)
    meshes.check_batch(train.batch_size, train.accumulate, mesh, copies)
    if train.batch_start:
        meshes.check_batch(train.batch_start, 1, mesh, copies)
    replicas.check(plan.replicas, train)
    with jax.set_mesh(mesh):
        tx = optimizer.make(train, plan.transform)
        alone = make_update(
            plan.graphdef,
            plan.objective,
            tx,
            accumulate=train.accumulate,
            full=train.batch_size // copies,
            precision=train.precision,
        )
        update = replicas.delayed(alone, plan.replicas, mesh)
        steps = Steps(path / "train", train.keep, progress.warn)
        start, state, seconds = _start(plan, update, mesh, steps)
        plan.clock.add(seconds)
        if start:
            progress.say(f"continuing from step {start}")
        if processes.first():
            plan.clock.check()
        meter = Meter()
        step = Compiled(make_train_step(update, seed=train.seed, spike=train.spike), mesh, meter)
        frozen = meshes.spread(plan.objective.frozen, meshes.place(plan.objective.frozen, mesh))
        log = Log(path / "metrics.jsonl", start, meter, trackers)

        def restore() -> TrainState:
            return _start(plan, update, mesh, steps)[1]

        done, state = _train(plan, path, step, start, state, frozen, steps, restore, log, progress)
        progress.say(f"evaluating after {done} steps")
        params = optimizer.weights(state.params, state.opt_state)
        metrics = plan.evaluate(params)
        log.evaluated(done, metrics)
        params = meshes.gathered(params)
        skipped = int(state.recent.skipped)
    return Fitted(params, done, metrics, time.monotonic() - began, skipped, meter.summary())


def _start(plan: Plan, update: Update, mesh: Mesh, steps: Steps) -> tuple[int, TrainState, float]:
    """The newest saved step, or a first one: how many are done, the state on the mesh, and the seconds it took."""

    def first(params: Any) -> TrainState:
        with jax.numpy_dtype_promotion("standard"):
            return TrainState(jnp.int32(0), params, update.init(params))

    shapes = jax.eval_shape(first, plan.params)
    places = meshes.place(shapes, mesh)
    like = jax.tree.map(lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), shapes, places)
    found = steps.latest(Saved(like, np.zeros(())))
    if found is not None:
        done, saved = found
        return done, saved.state, float(saved.seconds)
    return 0, jax.jit(first, out_shardings=places)(meshes.spread(plan.params, places.params)), 0.0


def _train(
    plan: Plan,
    path: Path,
    step: "Compiled",
    start: int,
    state: TrainState,
    frozen: Any,
    steps: Steps,
    restore: Callable[[], TrainState],
    log: Log,
    progress: Any,
) -> tuple[int, TrainState]:
    """Steps from `start` until the run is over: how many are done then, and the state after them."""
    train, clock = plan.train, plan.clock
    rate = optimizer.schedule(train)
    end = train.steps or sys.maxsize
    batches = plan.batches(start, end)
    done, saved, share = start, start, 0.0
    log.skipped = int(state.recent.skipped)

    def refused() -> bool:
        """Waits for the newest step. True if the watch refused it, and the run goes on from another state."""
        nonlocal done, state, batches
        bad = log.settle()
        if bad is None:
            return False
        box = blackbox.write(path, bad, state.params, plan, progress.warn)
        state = watch.answer(bad, state, train.on_divergence, restore, progress.warn, box)
        done, log.skipped = int(state.step), int(state.recent.skipped)
        batches = plan.batches(done, end)
        if train.on_divergence == "rewind":
            save()  # so that a killed run takes the same road
        return True

    def save() -> None:
        nonlocal saved
        refused()
        if done > saved:
            steps.save(done, Saved(state, np.array(clock.seconds())))
            saved = done

    def over() -> bool:
        """Whether all steps are made, or the time is up: on that all processes agreed with the step before."""
        return done >= end or log.progress >= 1

    def write() -> None:
        number = done
        refused()
        if done == number and log.sums:
            bar.update(done, **clock.left(), **log.write(done, learning_rate=float(rate(share))))

    with interrupt.holding(), progress.task("training", train.steps or None) as bar:
        try:
            if train.on_divergence == "rewind" and not start:
                steps.save(0, Saved(state, np.array(clock.seconds())))
            while not over() or (refused() and not over()):
                if log.stop:
                    raise Stopped(Exit.of(log.stop))
                batch = log.meter.waiting(batches)
                share = clock.progress(done, train.steps)
                signals = meshes.each(Signals(share, interrupt.asked()), step.mesh)
                overflow = batch.pop("overflow", None)
                state, metrics = step(state, frozen, batch, np.int32(done), signals)
                if refused():  # the step before: this one changed nothing
                    continue
                done += 1
                log.add(done, metrics, batch, 0 if overflow is None else int(overflow))
                if done % train.log_every == 0:
                    write()
                else:
                    bar.update(done)
                if done % train.checkpoint_every == 0:
                    save()
                if train.evaluate_every and done % train.evaluate_every == 0 and done < train.steps:
                    log.evaluated(done, plan.evaluate(state.params))
            if done % train.log_every:
                write()
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
