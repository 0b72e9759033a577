"""When a run is over: after its steps, or when its time is up, whichever comes first."""

import time

from lsp import LspError


class Clock:
    """How much of a run is done. It starts when it is made and counts real time, that of earlier processes included.

    `budget` in seconds; 0 means that steps alone count. Step is the only clock of a run without a budget: with one,
    the learning rate follows the time, and two runs are no longer equal bit for bit.
    """

    def __init__(self, budget: float = 0.0) -> None:
        self.budget, self.began, self.before = budget, time.monotonic(), 0.0

    def add(self, seconds: float) -> None:
        """Counts the time of the processes before this one."""
        self.before = seconds

    def seconds(self) -> float:
        """What the run has taken so far."""
        return self.before + time.monotonic() - self.began

    def progress(self, done: int, steps: int) -> float:
        """The share of the run that is done in the middle of the next step, from 0 to 1; `steps` 0 means no end."""
        by_steps = (done + 1) / (steps + 1) if steps else 0.0
        by_time = self.seconds() / self.budget if self.budget else 0.0
        return min(1.0, max(by_steps, by_time))

    def check(self) -> None:
        """Raises LspError (exit 2) when nothing is left of the budget before training begins."""
        if self.budget and self.seconds() >= self.budget:
            raise LspError(
                f"--budget {self.budget:.0f}s was used up after {self.seconds():.0f} s, before the first step.",
                hint="Give it more time; what was prepared is kept for the next try.",
            )

    def left(self) -> dict[str, float]:
        """For a progress display: the minutes that are left, when there is a budget."""
        return {"minutes_left": max(0.0, self.budget - self.seconds()) / 60} if self.budget else {}
