"""The loop: every objective's training, from the newest saved step to the last one."""

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from lsp import Exit, LspError, Stopped, interrupt
from lsp import recipe as recipes
from lsp.checkpoint import Steps
from lsp.train import mesh as meshes
from lsp.train import optimizer
from lsp.train.metrics import Mean, value
from lsp.train.objectives import Objective
from lsp.train.step import TrainState, make_train_step


@dataclass(frozen=True)
class Plan:
    """What to train. `batches(start, stop)` yields the host batches of those steps, `evaluate(params)` measures on
    held-out data, `transform` is chained after AdamW (pruning's masks)."""

    graphdef: Any
    params: Any
    objective: Objective
    batches: Callable[[int, int], Iterator[dict[str, np.ndarray]]]
    evaluate: Callable[[Any], dict[str, float]]
    train: recipes.Train
    mesh: recipes.Mesh
    transform: optax.GradientTransformation | None = None


@dataclass(frozen=True)
class Fitted:
    """Finished parameters on the host, held-out metrics, and what this process spent. Rates leave out compiling,
    evaluating and saving."""

    params: Any
    step: int
    metrics: dict[str, float]
    seconds: float
    compile_seconds: float
    useful_tokens_per_second: float

    def summary(self) -> dict[str, Any]:
        """What a result says of training."""
        return {name: number for name, number in vars(self).items() if name != "params"}


def fit(plan: Plan, path: Path, progress: Any) -> Fitted:
    """Trains to `train.steps`, going on from the newest whole step under `path`/train.

    Saves on SIGTERM and Ctrl-C and raises `Stopped`. Raises LspError exit 6 before the update that a loss or gradient
    that is not finite would have made, and exit 2 or 5 when batch or mesh do not fit the devices.
    """
    began = time.monotonic()
    train, mesh = plan.train, meshes.make(plan.mesh)
    meshes.check_batch(train.batch_size, train.accumulate, mesh)
    with jax.set_mesh(mesh):
        tx = optimizer.adamw(train, plan.transform)
        steps = Steps(path / "train", train.keep, progress.warn)
        start, state = _start(plan.params, tx, mesh, steps, progress)
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
        frozen = jax.device_put(plan.objective.frozen, meshes.place(plan.objective.frozen, mesh))
        state = _train(plan, step, state, start, frozen, steps, Log(path / "metrics.jsonl", start, meter), progress)
        progress.say(f"evaluating after {train.steps} steps")
        metrics = plan.evaluate(state.params)
        params = jax.device_get(state.params)
    return Fitted(params, train.steps, metrics, time.monotonic() - began, meter.compile_seconds, meter.rate())


def _start(params: Any, tx: Any, mesh: Mesh, steps: Steps, progress: Any) -> tuple[int, TrainState]:
    """The newest saved state, or a first one, placed on the mesh."""

    def first(params: Any) -> TrainState:
        with jax.numpy_dtype_promotion("standard"):
            return TrainState(jnp.int32(0), params, tx.init(params))

    shapes = jax.eval_shape(first, params)
    places = meshes.place(shapes, mesh)
    like = jax.tree.map(lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), shapes, places)
    found = steps.latest(like)
    if found is not None:
        progress.say(f"continuing from step {found[0]}")
        return found
    return 0, jax.jit(first, out_shardings=places)(jax.device_put(params, places.params))


def _train(
    plan: Plan, step: "Compiled", state: TrainState, start: int, frozen: Any, steps: Steps, log: "Log", progress: Any
) -> TrainState:
    train = plan.train
    done, saved = start, start
    with interrupt.holding(), progress.task("training", train.steps) as bar:
        try:
            for batch in plan.batches(start, train.steps):
                interrupt.check()
                useful, overflow = int((batch["segments"] > 0).sum()), batch.pop("overflow", None)
                state, metrics = step(state, frozen, batch, np.int32(done))
                done += 1
                log.add(done, metrics, useful, 0 if overflow is None else int(overflow))
                if done % train.log_every == 0 or done == train.steps:
                    bar.update(done, **log.write())
                else:
                    bar.update(done)
                if done % train.checkpoint_every == 0 or done == train.steps:
                    log.settle()
                    steps.save(done, state)
                    saved = done
                if train.evaluate_every and done % train.evaluate_every == 0 and done < train.steps:
                    log.evaluated(done, plan.evaluate(state.params))
        except Stopped:
            if done > saved:
                log.settle()
                steps.save(done, state)
            progress.say(f"stopping after step {done}")
            raise
        finally:
            steps.wait()
    return state


class Compiled:
    """A jitted step that takes host batches, compiled ahead for each of their shapes, so that compiling is counted
    apart and can be interrupted."""

    def __init__(self, step: Any, mesh: Mesh, meter: "Meter") -> None:
        self.step, self.mesh, self.meter = step, mesh, meter
        self.compiled: dict[tuple[Any, ...], Any] = {}

    def __call__(self, state: TrainState, frozen: Any, host_batch: dict[str, np.ndarray], index: np.int32) -> Any:
        batch = meshes.send(host_batch, self.mesh)
        shape = tuple((name, array.shape) for name, array in batch.items())
        if shape not in self.compiled:
            began = time.monotonic()
            self.compiled[shape] = interrupt.apart(self.step.lower(state, frozen, batch, index).compile)
            self.meter.compile_seconds += time.monotonic() - began
            self.meter.pause()
        return self.compiled[shape](state, frozen, batch, index)


class Meter:
    """Useful tokens a second, over steps that ran back to back: the one after a pause is not counted."""

    def __init__(self) -> None:
        self.tokens, self.seconds, self.compile_seconds = 0, 0.0, 0.0
        self.last: float | None = None

    def step(self, tokens: int) -> None:
        now = time.monotonic()
        if self.last is not None:
            self.tokens, self.seconds = self.tokens + tokens, self.seconds + now - self.last
        self.last = now

    def pause(self) -> None:
        self.last = None

    def rate(self) -> float:
        return self.tokens / self.seconds if self.seconds else 0.0


class Log:
    """`metrics.jsonl`, and the watch for a step that went wrong. Metrics are read one step late, so that the device
    never waits for the host; lines of steps that will be done again are dropped."""

    def __init__(self, path: Path, start: int, meter: Meter) -> None:
        self.path, self.meter = path, meter
        lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
        kept = [line for line in lines if line and json.loads(line)["step"] <= start]
        path.write_text("".join(line + "\n" for line in kept), encoding="utf-8")
        self.pending: tuple[int, dict[str, Any], int] | None = None
        self.sums: dict[str, Mean] = {}
        self.overflow = 0

    def add(self, step: int, metrics: dict[str, Any], useful: int, overflow: int) -> None:
        """Takes a step's metrics and settles the ones before."""
        self.settle()
        self.pending = (step, metrics, useful)
        self.overflow += overflow

    def settle(self) -> None:
        """Waits for the newest step. Raises LspError (exit 6) if its loss or gradient was not finite."""
        if self.pending is None:
            return
        (step, metrics, useful), self.pending = self.pending, None
        metrics = jax.device_get(metrics)
        self.meter.step(useful)
        norm = float(metrics.pop("gradient_norm"))
        if not metrics.pop("ok"):
            raise LspError(
                f"Training diverged at step {step}: loss {value(metrics['loss']):.4g}, gradient norm {norm:.4g}. "
                "The update was not made.",
                hint="Lower train.learning_rate or lengthen train.warmup, then run again with --overwrite.",
                code=Exit.DIVERGED,
            )
        metrics["gradient_norm"] = Mean(norm, 1.0)
        for name, mean in metrics.items():
            self.sums[name] = self.sums.get(name, Mean(0.0, 0.0)) + Mean(float(mean.total), float(mean.count))
        self.step = step

    def write(self) -> dict[str, float]:
        """One line with the means since the last one; returns it."""
        self.settle()
        row = {name: value(mean) for name, mean in self.sums.items()}
        row |= {"useful_tokens_per_second": self.meter.rate()}
        if self.overflow:
            row["masks_without_slot"] = self.overflow
        self.sums, self.overflow = {}, 0
        self._append({"step": self.step} | row)
        return row

    def evaluated(self, step: int, metrics: dict[str, float]) -> None:
        """One line with held-out metrics, each under `dev_`."""
        self.meter.pause()
        self._append({"step": step} | {f"dev_{name}": number for name, number in metrics.items()})

    def _append(self, row: dict[str, Any]) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
