"""The best of a run's evaluations, and the weights it was made with: on disk, so that a killed run finds them again."""

import json
import shutil
from collections.abc import Collection
from pathlib import Path

from lsp import Exit, LspError, nearest
from lsp.arrays import Tree, load_params, save_params
from lsp.manifest import write_atomically
from lsp.train import processes


def known(metric: str, metrics: Collection[str]) -> None:
    """Raises LspError (exit 2) for a metric that is none of these."""
    if metric not in metrics:
        raise LspError(
            f"train.best = {metric}: no such metric here.{nearest(metric, metrics)}",
            hint=f"There are: {', '.join(metrics)}.",
            code=Exit.USAGE,
        )


class Best:
    """`RUN/train/best.json` has every evaluation by its step, and `RUN/train/best.<step>/` the weights of the best, and
    of those that were the best at or since the newest step that a killed run goes on from.

    All of it follows from the evaluations up to a step, so that a run that is resumed, and makes some of them again,
    stops where it would have stopped.
    """

    def __init__(self, path: Path, metric: str, patience: int) -> None:
        self.path, self.metric, self.patience = path, metric, patience
        self.file = path / "best.json"
        stored = json.loads(self.file.read_bytes()) if metric and self.file.exists() else {}
        self.seen: dict[int, dict[str, float]] = {int(step): metrics for step, metrics in stored.items()}

    def offer(self, step: int, metrics: dict[str, float], params: Tree) -> None:
        """An evaluation of `params`. Raises LspError (exit 2) when it knows no such metric."""
        if not self.metric:
            return
        known(self.metric, metrics)
        self.seen[step] = metrics
        if not processes.first():
            return
        if self.step(step) == step:
            save_params(self._place(step), params)
        write_atomically(self.file, json.dumps(self.seen))

    def settled(self, saved: int) -> None:
        """No evaluation up to the step `saved` is made again: of their weights only the best can be the best at last.
        Those since then are kept, since another one of the same step may come out worse."""
        if not self.metric or not processes.first():
            return
        best = self.step(saved)
        for step in self.seen:
            if step <= saved and step != best:
                shutil.rmtree(self._place(step), ignore_errors=True)

    def over(self, step: int) -> bool:
        """Whether so many evaluations since the best one were no better."""
        best = self.step(step)
        if best is None or not self.patience:
            return False
        return sum(best < each <= step for each in self.seen) >= self.patience

    def step(self, last: int) -> int | None:
        """The step of the best evaluation up to `last`; of equal ones the first."""
        sign = -1 if self.metric == "loss" else 1
        seen = [step for step in sorted(self.seen) if step <= last]
        return max(seen, key=lambda step: sign * self.seen[step][self.metric], default=None)

    def finished(self, last: int) -> tuple[int, dict[str, float], Tree]:
        """The best step up to `last`, its metrics and its weights, in NumPy."""
        step = self.step(last)
        assert step is not None
        return step, self.seen[step], load_params(self._place(step))

    def _place(self, step: int) -> Path:
        return self.path / f"best.{step:08d}"
