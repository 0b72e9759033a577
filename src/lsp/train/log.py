"""What a run says of itself: `metrics.jsonl` and its rates."""

import json
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lsp.manifest import write_atomically
from lsp.train import energy, memory, processes
from lsp.train.metrics import Mean, value
from lsp.train.trackers import Tracker
from lsp.train.watch import Refused

Batch = dict[str, np.ndarray]


class Meter:
    """Rates over steps that ran back to back; the one after a pause (compiling, evaluating) is not counted.

    `flops` says what a step needs for a batch (`cost.needed_flops`, three times, and a teacher's).
    """

    def __init__(self, flops: Callable[[Batch], int] = lambda batch: 0) -> None:
        self.flops = flops
        self.useful, self.tokens, self.seconds, self.compile_seconds = 0, 0, 0.0, 0.0
        self.steps = self.needed = 0
        self.resident, self.peak = memory.resident(), peak_memory()  # before the run
        self.waited = self.waiting_now = 0.0
        self.last: float | None = None
        self.energy = energy.Energy(energy.counters(gpus=jax.default_backend() == "gpu"))

    def waiting(self, batches: Iterator[Batch]) -> Batch:
        """The next batch, and how long the run stood still for it."""
        began = time.monotonic()
        batch = next(batches)
        self.waiting_now += time.monotonic() - began
        return batch

    def step(self, batch: Batch) -> int:
        """A step with this batch is done; its useful tokens, those that are no padding."""
        now = time.monotonic()
        self.energy.sample()
        useful = int((batch["segments"] > 0).sum())
        if self.last is not None:
            self.useful, self.tokens = self.useful + useful, self.tokens + batch["segments"].size
            self.seconds, self.waited = self.seconds + now - self.last, self.waited + self.waiting_now
            self.steps, self.needed = self.steps + 1, self.needed + self.flops(batch)
        self.last, self.waiting_now = now, 0.0
        return useful

    def pause(self) -> None:
        self.last = None

    def rate(self) -> float:
        """Useful tokens a second."""
        return self.useful / self.seconds if self.seconds else 0.0

    def summary(self) -> dict[str, Any]:
        """What a result says of the run's speed and cost. Shares are of all tokens, and of the time."""
        return {
            "compile_seconds": self.compile_seconds,
            "useful_tokens_per_second": self.rate(),
            "padding_share": 1 - self.useful / self.tokens if self.tokens else 0.0,
            "data_wait_share": self.waited / self.seconds if self.seconds else 0.0,
            "peak_memory_bytes": peak_memory(),
        } | self.energy.summary()


def peak_memory() -> int:
    """The most memory in use at any time: of the fullest device where the platform counts it, else of this process."""
    used = [(device.memory_stats() or {}).get("peak_bytes_in_use", 0) for device in jax.local_devices()]
    return max(used) or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


class Log:
    """`metrics.jsonl`. Metrics are read one step late, so that the device never waits for the host. Lines of what will
    be done again are dropped: of steps after `start`, and evaluations of `start`; so is half a line that a full disk
    left. `trackers` get every new line too. `seconds` are those that the run has taken, where no line tells."""

    def __init__(
        self, path: Path, start: int, meter: Meter, trackers: Sequence[Tracker] = (), seconds: float = 0.0
    ) -> None:
        self.path, self.meter, self.trackers = path, meter, trackers
        before: dict[str, float] = {}
        if processes.first():
            lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
            kept = [line for line in lines if _stands(line, start)]
            write_atomically(path, "".join(line + "\n" for line in kept))
            # A run may go on from before its first line, which then is a dropped one.
            told = kept[-1:] or [line for line in lines if _stands(line, sys.maxsize)][:1]
            before = json.loads(told[0]) if told else before
        # What the run has taken so far: steps between that line and `start` count as its average step.
        share = start / max(1, before.get("step", 0))
        self.tokens = round(before.get("tokens", 0) * share)
        self.began = time.monotonic() - (before["seconds"] * share if "seconds" in before else seconds)
        self.untold = 0 if before else start  # steps that no line tells of
        self.pending: tuple[int, dict[str, Any], Batch, int] | None = None
        self.sums: dict[str, Mean] = {}
        self.overflow = self.skipped = 0
        self.progress, self.stop = 0.0, 0  # what all processes agreed on with the newest settled step

    def add(self, step: int, metrics: dict[str, Any], batch: Batch, overflow: int) -> None:
        """Takes what step number `step`, from 1, made of its batch; the one before must be settled."""
        self.pending = (step, metrics, batch, overflow)

    def settle(self) -> Refused | None:
        """Waits for the newest step. Returns it, and forgets it, if it was not made."""
        if self.pending is None:
            return None
        (step, metrics, batch, overflow), self.pending = self.pending, None
        metrics = jax.device_get(metrics)
        signals = metrics.pop("signals")
        self.progress, self.stop = float(signals.progress), int(signals.stop)
        norm = float(metrics.pop("gradient_norm"))
        if not metrics.pop("ok"):
            self.meter.pause()
            return Refused(step - 1, value(metrics["loss"]), norm, batch)
        self.tokens += self.meter.step(batch)
        metrics["gradient_norm"] = Mean(norm, 1.0)
        for name, mean in metrics.items():
            self.sums[name] = self.sums.get(name, Mean(0.0, 0.0)) + Mean(float(mean.total), float(mean.count))
        self.overflow += overflow
        return None

    def write(self, step: int, **more: float) -> dict[str, float]:
        """One line with the means since the last one, and `more`; returns the means. The step must be settled."""
        row = {name: value(mean) for name, mean in self.sums.items()}
        row |= {"useful_tokens_per_second": self.meter.rate()}
        if self.overflow:
            row["masks_without_slot"] = self.overflow
        if self.skipped:
            row["skipped_steps"] = self.skipped
        self.sums, self.overflow = {}, 0
        self._append(step, row | more)
        return row

    def evaluated(self, step: int, metrics: dict[str, float]) -> None:
        """One line with held-out metrics, each under `dev_`."""
        self.meter.pause()
        self._append(step, {f"dev_{name}": number for name, number in metrics.items()})

    def _append(self, step: int, row: dict[str, float]) -> None:
        """Every line says what the run has taken so far: useful tokens, and seconds over restarts."""
        if 0 < self.untold < step:  # steps that no line tells of count as the average of those that followed
            self.tokens, self.untold = round(self.tokens * step / (step - self.untold)), 0
        row |= {"tokens": self.tokens, "seconds": round(time.monotonic() - self.began, 3)}
        if processes.first():
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": step} | row) + "\n")
        for track in self.trackers:
            track(step, row)


def _stands(line: str, start: int) -> bool:
    """Whether a line of a run that goes on from `start` is not written again."""
    try:
        row = json.loads(line)
    except ValueError:
        return False
    return bool(row["step"] < start or (row["step"] == start and not any(name.startswith("dev_") for name in row)))
