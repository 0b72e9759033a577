"""The loop: every objective's training, from the newest saved step to the last one."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from lsp import Exit, Stopped, interrupt
from lsp import recipe as recipes
from lsp.model import cost
from lsp.model.config import ModelConfig
from lsp.steps import Steps
from lsp.train import account, blackbox, optimizer, processes, replicas, watch
from lsp.train import mesh as meshes
from lsp.train.best import Best
from lsp.train.clock import Clock
from lsp.train.compiled import Compiled, build, check
from lsp.train.log import Log, Meter
from lsp.train.objectives import Objective
from lsp.train.step import Signals, TrainState, Update, Variant, begin, begin_together, raw_key
from lsp.train.trackers import Tracker

LARGE = 64 << 20  # bytes of a step's buffers
FREED = 0.001  # seconds after which a processor has given back the buffers of a step whose results are there
ALONE = recipes.Replicas()


@dataclass(frozen=True)
class Plan:
    """What to train. `batches(start, stop)` yields the host batches of those steps, `evaluate(params)` measures on
    held-out data, `clock` says when to end, `transform` is chained after the optimizer (pruning's masks)."""

    config: ModelConfig
    params: Any
    objective: Objective
    batches: Callable[[int, int], Iterator[dict[str, np.ndarray]]]
    evaluate: Callable[[Any], dict[str, float]]
    train: recipes.Train
    mesh: recipes.Mesh
    clock: Clock
    transform: optax.GradientTransformation | None = None
    replicas: recipes.Replicas = ALONE
    teacher: ModelConfig | None = None  # that the objective reads, to count what it costs
    # Trained together, where there are any: `params` and so `evaluate`'s have a first axis for them, and row i of a
    # batch is of variant i % V.
    variants: tuple[Variant, ...] = ()
    secret: int | None = None  # in the place of the recipe's seed, where what is drawn must not be known
    # For the black box: which rows of the data a step's batch holds, and the text of a row of tokens.
    rows: Callable[[int], np.ndarray] | None = None
    decode: Callable[[Sequence[int]], str] | None = None


@dataclass(frozen=True)
class Fitted:
    """Finished parameters on the host, held-out metrics, and what this process spent (`account.summary`). Rates leave
    out compiling, evaluating and saving. `reached` is the last step of each variant: the loss of one that stayed behind
    was not finite."""

    params: Any
    step: int
    reached: np.ndarray
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
    check(train, plan.replicas, mesh, len(plan.variants))
    with jax.set_mesh(mesh):
        loop = _Loop(plan, path, mesh, progress, trackers)
        loop.run()
        progress.say(f"evaluating after {loop.done} steps")
        params = optimizer.weights(loop.state.params, loop.state.opt_state)
        metrics = plan.evaluate(params)
        loop.log.evaluated(loop.done, metrics)
        params = meshes.gathered(params)
        best: dict[str, Any] = {}
        if train.best:
            loop.best.offer(loop.done, metrics, params)
            processes.meet()  # the first one wrote what all read
            best["best_step"], metrics, params = loop.best.finished(loop.done)
            progress.say(f"the best {train.best} was {metrics[train.best]:.4g}, at step {best['best_step']}")
        reached, skipped = np.asarray(jax.device_get(loop.state.step)), loop.skipped()
        rates = best | account.summary(loop.meter, loop.step, train, planned=plan.config.head == "words")
        if "planned" in rates:
            progress.say(account.compared(rates["planned"]))
        if copies > 1:
            rates |= replicas.traffic(plan.replicas, loop.done, cost.parameters(plan.config))
    return Fitted(params, loop.done, reached, metrics, time.monotonic() - began, skipped, rates)


class _Loop:
    """A run under way: `done` steps are made, `state` is what they led to, and `saved` of them are on disk."""

    def __init__(self, plan: Plan, path: Path, mesh: Mesh, progress: Any, trackers: Sequence[Tracker]) -> None:
        self.plan, self.path, self.mesh, self.progress = plan, path, mesh, progress
        self.steps = Steps(path / "train", plan.train.keep, progress.warn)
        start, self.state, seconds = self._start()
        plan.clock.add(seconds)
        if start:
            progress.say(f"continuing from step {start}")
        if processes.first() and not start:
            plan.clock.check()
        self.meter = Meter(lambda batch: cost.training_flops(plan.config, batch, plan.teacher))
        self.step = Compiled(lambda remat: self._build(remat)[1], plan.train.remat, mesh, self.meter, progress.say)
        self.frozen = meshes.spread(plan.objective.frozen, meshes.place(plan.objective.frozen, mesh))
        self.log = Log(path / "metrics.jsonl", start, self.meter, trackers, seconds)
        self.log.skipped = self.skipped()
        self.end, self.in_turn = plan.train.steps or sys.maxsize, jax.default_backend() == "cpu"
        self.done = self.saved = start
        self.batches = plan.batches(start, self.end)
        self.rate, self.share = optimizer.schedule(plan.train), 0.0
        self.best = Best(path / "train", plan.train.best, plan.train.patience)

    def run(self) -> None:
        """Steps until the run is over."""
        train = self.plan.train
        with interrupt.holding(), self.progress.task("training", train.steps or None) as bar:
            try:
                self.measure()  # what ended the run at the step that it goes on from may have come before that
                if train.on_divergence == "rewind" and not self.done:
                    self.steps.save(0, self._saved())
                while not self.over() or (self.refused() and not self.over()):
                    if self.log.stop:
                        raise Stopped(Exit.of(self.log.stop))
                    if self.advance():
                        self.report(bar)
                if self.done % train.log_every:
                    self.write(bar)
                self.save()
            except Stopped:
                if processes.alone() or self.log.stop:  # else the others do not know, and would not save with this one
                    self.save()
                    self.steps.wait()
                    processes.meet()  # who leaves ends the others, and the first of them may not have written it all
                self.progress.say(f"stopping after step {self.done}")
                raise
            finally:
                self.steps.wait()

    def over(self) -> bool:
        """Whether all steps are made, the time is up (on that all processes agreed with the step before), or nothing
        got better for long enough; of copies only where they have met."""
        met = self.plan.replicas.count == 1 or self.done % self.plan.replicas.every == 0
        return self.done >= self.end or (met and (self.log.progress >= 1 or self.best.over(self.done)))

    def advance(self) -> bool:
        """One step. False where the watch refused the one before it: then this one changed nothing either.

        A processor makes one at a time where they are large: a step that begins before the buffers of the last one are
        free takes others from the heap, which grows to three times what one needs. Small steps follow each other, since
        waiting between them costs up to a fifth of their time.
        """
        if self.in_turn and self.step.buffers > LARGE:
            if self.refused():
                return False
            time.sleep(FREED)
        batch = self.meter.waiting(self.batches)
        self.share = self.plan.clock.progress(self.done, self.plan.train.steps)
        signals = meshes.each(Signals(self.share, interrupt.asked()), self.mesh)
        overflow = batch.pop("overflow", None)
        self.state, metrics = self.step(self.state, self.frozen, batch, np.int32(self.done), signals)
        if self.refused():
            return False
        self.done += 1
        self.log.add(self.done, metrics, batch, 0 if overflow is None else int(overflow))
        return True

    def refused(self) -> bool:
        """Waits for the newest step. True if the watch refused it, and the run goes on from another state."""
        bad, train = self.log.settle(), self.plan.train
        if bad is None:
            return False
        if self.plan.variants:
            raise watch.Diverged(bad.step + 1, "the loss of every variant is not finite")
        plan = replace(self.plan, train=replace(train, remat=self.step.policies[0]))  # what the step ran with
        private = self.plan.objective.private  # a box would keep its texts
        box = "" if private else blackbox.write(self.path, bad, self.state.params, plan, self.progress.warn)
        self.state = watch.answer(
            bad, self.state, train.on_divergence, lambda: self._start()[1], self.progress.warn, box
        )
        self.done, self.log.skipped = int(self.state.step), self.skipped()
        self.batches = self.plan.batches(self.done, self.end)
        if train.on_divergence == "rewind":
            self.save()  # so that a killed run takes the same road
        return True

    def report(self, bar: Any) -> None:
        """What is due after a step: a line of metrics, a save, an evaluation."""
        train, done = self.plan.train, self.done
        bar.idle = self.meter.compile_seconds
        if done % train.log_every == 0:
            self.write(bar)
        else:
            bar.update(done)
        if done % train.checkpoint_every == 0:
            self.save()
        self.measure()

    def measure(self) -> None:
        """The evaluation that is due after so many steps, if one is. The last of all is not made here."""
        train, done = self.plan.train, self.done
        if train.evaluate_every and done % train.evaluate_every == 0 and 0 < done < self.end:
            metrics = self.plan.evaluate(self.state.params)
            self.log.evaluated(done, metrics)
            if train.best:
                self.best.offer(done, metrics, meshes.gathered(self.state.params))

    def write(self, bar: Any) -> None:
        done, left = self.done, self.plan.clock.left()
        self.refused()
        if self.done == done and self.log.sums:
            rate = {} if self.plan.variants else {"learning_rate": float(self.rate(self.share))}
            bar.update(done, **left, **self.log.write(done, **rate))

    def skipped(self) -> int:
        return int(np.max(jax.device_get(self.state.recent.skipped)))

    def save(self) -> None:
        self.refused()
        if self.done > self.saved:
            self.steps.save(self.done, self._saved())  # which waits for the one before it
            self.best.settled(self.saved)
            self.saved = self.done

    def _saved(self) -> Saved:
        return Saved(self.state, np.array(self.plan.clock.seconds()))

    def _build(self, remat: recipes.Remat) -> tuple[Update, Any]:
        plan = self.plan
        return build(
            plan.config,
            plan.objective,
            plan.train,
            plan.replicas,
            self.mesh,
            remat,
            plan.transform,
            len(plan.variants),
        )

    def _start(self) -> tuple[int, TrainState, float]:
        """The newest saved step, or a first one: how many are done, the state on the mesh, and the seconds it took."""
        variants, update = self.plan.variants, self._build("none")[0]
        seed = self.plan.train.seed if self.plan.secret is None else self.plan.secret
        alone = partial(begin, update, key=raw_key(seed))
        first = partial(begin_together, update, variants=variants) if variants else alone
        shapes = jax.eval_shape(first, self.plan.params)
        places = meshes.place(shapes, self.mesh)
        like = jax.tree.map(lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), shapes, places)
        found = self.steps.latest(Saved(like, np.zeros(())))
        if found is not None:
            done, saved = found
            return done, saved.state, float(saved.seconds)
        return 0, jax.jit(first, out_shardings=places)(meshes.spread(self.plan.params, places.params)), 0.0
