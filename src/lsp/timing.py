"""Seconds that calls take beside each other, on a machine whose speed changes from minute to minute.

Suffixes: M calls, R rounds, E times in a row.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from lsp import interrupt

Clock = Callable[[], float]

LEAST = 3  # rounds, whatever the limits are
NOISE = 0.03  # of a model's speed: by so much it may differ when it is measured again


class Limits(NamedTuple):
    """When enough has been timed: after so many rounds or seconds, what comes first, but 3 rounds at least."""

    rounds: int = 50
    seconds: float = 10.0
    clock: Clock = time.perf_counter


def interleaved(calls: Sequence[Callable[[], Any]], limits: Limits, in_a_row: int = 1) -> np.ndarray:
    """Seconds float64 [M, R, E] of calls in turns, A B A B …, so that a slow minute is everybody's. A call waits for
    its own result, and what it compiles is compiled before.

    Before a turn of several calls in a row there is one that is not counted: it brings a model's weights back into the
    caches, where they are when it alone answers.
    """
    clock, began = limits.clock, limits.clock()
    rounds: list[list[list[float]]] = []
    while len(rounds) < LEAST or (len(rounds) < limits.rounds and clock() - began < limits.seconds):
        interrupt.check()
        rounds.append([_turn(call, in_a_row, clock) for call in calls])
    return np.array(rounds, np.float64).transpose(1, 0, 2)


def _turn(call: Callable[[], Any], in_a_row: int, clock: Clock) -> list[float]:
    if in_a_row > 1:
        call()
    seconds = []
    for _ in range(in_a_row):
        began = clock()
        call()
        seconds.append(clock() - began)
    return seconds
