"""Seconds that calls take beside each other, on a machine whose speed changes from minute to minute."""

import time
from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeVar

Key = TypeVar("Key", bound=Hashable)


def interleaved(
    calls: Mapping[Key, Callable[[], Any]],
    rounds: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Key, list[float]]:
    """The seconds of `rounds` of each call, taken in turns (A B A B) so that a slow minute is everybody's. A call waits
    for its own result, and is made once before, uncounted."""
    for call in calls.values():
        call()
    found: dict[Key, list[float]] = {key: [] for key in calls}
    for _ in range(rounds):
        for key, call in calls.items():
            began = clock()
            call()
            found[key].append(clock() - began)
    return found
