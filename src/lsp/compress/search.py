"""Which chains of compress stages to try for a goal, and which of those that were tried to take.

A chain is: pieces that no example has, then layers, heads and units with training that recovers, then int8.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lsp import timing
from lsp.recipe import Int8Kind

DEPTHS = (1.0, 2 / 3, 1 / 2, 1 / 3)  # shares of the layers that are tried
LADDER = (1.5, 2.0, 3.0, 4.5, 7.0)  # speeds of the structure that are tried, in turn, where no speed is asked for

UNHARMED = 0.5  # points that one scale for each matrix may cost more than one for each token, which is slower
STEP = 1.75  # times as fast at once, where what stays is trained; a structure that is to be faster is reached in two


@dataclass(frozen=True)
class Goal:
    """What a model must be: at most `drop` points of its metric lost, at least `speedup` times as fast as the one it is
    made from, at most `size` bytes. 0 asks nothing of speed or size."""

    drop: float
    speedup: float = 0.0
    size: float = 0.0

    def missed(self, tried: "Tried") -> float:
        """By how much a model misses the goal: 0 where it does not, or is slower by no more than a clock can tell. A
        point too many counts as much as being a tenth too slow or too large."""
        points = max(0.0, tried.drop - self.drop) / 10
        slow = max(0.0, (1 - timing.NOISE) * self.speedup / tried.speedup - 1) if self.speedup else 0.0
        large = max(0.0, tried.bytes / self.size - 1) if self.size else 0.0
        return points + slow + large


@dataclass(frozen=True)
class Shape:
    """A structure to prune to: `depth` layers, and `speedup` times as fast as the model it begins with; or, once that
    was found, what each layer keeps, as `prune.shape` has it, and what each kept half-way there."""

    depth: int
    speedup: float
    spelt: str = ""
    through: str = ""


@dataclass(frozen=True)
class Tried:
    """A chain that was made and measured: points lost on the dev file, times as fast, bytes. `run` is where it is, and
    `int8` the kind at its end, as `chain.int8` says it."""

    run: str
    shape: Shape | None
    trained: bool
    drop: float
    speedup: float
    bytes: int
    int8: Int8Kind = "none"

    def beats(self, other: "Tried") -> bool:
        """As good in everything, and better in something."""
        mine, theirs = ((each.drop, -each.speedup, each.bytes) for each in (self, other))
        return mine != theirs and all(one <= two for one, two in zip(mine, theirs, strict=True))


def shapes(layers: int, speedup: float) -> list[Shape]:
    """The structures to try for a speed: with all layers, with two thirds of them, …, the deepest first. One that is
    faster by its depth alone keeps all its heads and units."""
    depths = sorted({max(1, math.ceil(layers * share - 1e-9)) for share in DEPTHS}, reverse=True)
    return [Shape(depth, speedup) for depth in depths]


def needed(goal: Goal, plain: Tried) -> list[float]:
    """How many times as fast the structure must be, on top of `plain`, the chain without pruning and with int8, in the
    order to try. Size asks for as much as it is missed by and, since word tables stay as they are, for more."""
    fast = goal.speedup / plain.speedup if goal.speedup else 0.0
    small = plain.bytes / goal.size if goal.size else 0.0
    least = max(fast, small)
    if not goal.speedup and not goal.size:
        return list(LADDER)
    if max((1 - timing.NOISE) * fast, small) <= 1:
        return []
    steps = (1.05, 1.25, 1.5, 2.0, 3.0) if small > 1 else (1.05, 1.25, 1.5)
    return [round(least * more, 2) for more in steps]


def promising(free: Sequence[Tried], goal: Goal) -> list[Tried]:
    """Of models without training those that it may bring to the goal, the most accurate first: it makes them neither
    faster, but for the noise of a clock, nor smaller."""
    able = [one for one in free if one.speedup >= (1 - timing.NOISE) * goal.speedup]
    if goal.size:
        able = [one for one in able if one.bytes <= goal.size]
    return sorted(able, key=lambda one: one.drop)


def aimed(found: Tried, goal: Goal) -> Shape | None:
    """The structure to try after one that was trained and missed the goal by its speed: as much faster or slower as the
    dev file says, which knows better than the one batch that it was chosen on. None for one that does not miss, or
    whose speed is not why: it loses too many points and is no faster than it has to be, or is too slow as well."""
    if found.shape is None or not goal.speedup or not goal.missed(found):
        return None
    over, wrong = found.speedup / goal.speedup, found.drop > goal.drop
    speedup = round(found.shape.speedup / over, 2)
    spare, slow = over > 1 + timing.NOISE, over < 1 - timing.NOISE
    return Shape(found.shape.depth, speedup) if speedup > 1 and (spare if wrong else slow) else None


def front(tried: Sequence[Tried]) -> list[Tried]:
    """Those that no other beats, the most accurate first (Pareto)."""
    best = [one for one in tried if not any(other.beats(one) for other in tried)]
    return sorted(best, key=lambda one: (one.drop, -one.speedup))


def best(tried: Sequence[Tried], goal: Goal) -> Tried:
    """The chain to take: of those that meet the goal the fastest, or if speed was asked for the most accurate; else the
    one that misses it least."""

    def rank(one: Tried) -> Any:
        wish = (one.drop, -one.speedup) if goal.speedup else (-one.speedup, one.drop)
        return goal.missed(one), one.speedup < goal.speedup, *wish, one.bytes

    return min(tried, key=rank)
