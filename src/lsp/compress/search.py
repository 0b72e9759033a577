"""Which chains of compress stages to try for a goal, and which of those that were tried to take.

A chain is: pieces that no example has, then layers, heads and units with training that recovers, then int8.
"""

import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from lsp import checkpoint, timing
from lsp import recipe as recipes
from lsp.compress.structure import NEAR
from lsp.recipe import Int8Kind

NARROW, UNITS = 5 / 6, 16  # a share of the channels that is tried too, rounded down to whole vectors
DEPTHS = (1.0, 2 / 3, 1 / 2, 1 / 3)  # shares of the layers that are tried
LADDER = (1.5, 2.0, 3.0, 4.5, 7.0)  # speeds of the structure that are tried, in turn, where no speed is asked for

NEARLY = 0.85  # so much of `Goal.spare` a model has, at least, whose structure is worth aiming again
UNHARMED = 0.5  # points that what is faster or smaller may cost beside what is not: static int8, fewer pieces
COMMON = 0.98  # share of the training examples' tokens whose pieces stay where all are too large: three of five or so
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

    def enough(self, tried: "Tried") -> bool:
        """Whether a model is as fast and as small as it has to be, whatever it loses."""
        return not replace(self, drop=math.inf).missed(tried)

    def spare(self, tried: "Tried") -> float:
        """How many times slower a model might be, and larger in its encoder, to be just as fast and as small as was
        asked: under 1 where it is slower or larger than that, 0 where all but the encoder is too large alone."""
        fast = tried.speedup / self.speedup if self.speedup else math.inf
        small = (self.size - tried.bytes + tried.encoder) / max(1, tried.encoder) if self.size else math.inf
        return max(0.0, min(fast, small))


@dataclass(frozen=True)
class Shape:
    """A structure to prune to: `depth` layers, `channels` channels (0: all), `speedup` times as fast as the model it
    begins with; or, once that was found, what each layer keeps, as `prune.shape` has it, and what it kept half-way."""

    depth: int
    speedup: float
    spelt: str = ""
    through: str = ""
    channels: int = 0


@dataclass(frozen=True)
class Tried:
    """A chain that was made and measured: points lost on the dev file, times as fast, bytes, and how many of those are
    the `encoder`'s, the rest being words and the head. `run` is where it is; `int8`, the kind at its end, and `pieces`
    are as `chain` has them."""

    run: str
    shape: Shape | None
    trained: bool
    drop: float
    speedup: float
    bytes: int
    int8: Int8Kind = "none"
    encoder: int = 0
    pieces: int = 0

    @property
    def spelt(self) -> str:
        """What each layer keeps, or nothing where no structure was pruned."""
        return self.shape.spelt if self.shape else ""

    def beats(self, other: "Tried") -> bool:
        """As good in everything, and better in something."""
        mine, theirs = ((each.drop, -each.speedup, each.bytes) for each in (self, other))
        return mine != theirs and all(one <= two for one, two in zip(mine, theirs, strict=True))


def shapes(layers: int, width: int, speedup: float) -> list[Shape]:
    """The structures to try for a speed: with all layers, with two thirds of them, …, the deepest first. One that is
    faster by its depth alone keeps all its heads and units. Before these, all layers with fewer channels than `width`,
    which makes words smaller too."""
    depths = sorted({max(1, math.ceil(layers * share - 1e-9)) for share in DEPTHS}, reverse=True)
    channels = int(width * NARROW) // UNITS * UNITS
    narrow = [Shape(layers, speedup, channels=channels)] if channels else []
    return narrow + [Shape(depth, speedup) for depth in depths]


def asked(goal: Goal, plain: Tried) -> tuple[float, float]:
    """How many times as fast the structure must be, on top of `plain`, the chain without pruning and with int8: for the
    speed that is asked for, and for the size, which is missed by as much. 0 where none is."""
    return goal.speedup / plain.speedup, plain.bytes / goal.size if goal.size else 0.0


def harmed(worse: Tried, better: Tried, goal: Goal) -> bool:
    """Whether what is faster or smaller costs too much beside what is not: `UNHARMED`, or the goal."""
    return worse.drop - better.drop > UNHARMED or worse.drop > goal.drop >= better.drop


def needed(goal: Goal, plain: Tried) -> list[float]:
    """How many times as fast to make the structure, in the order to try: as is `asked` and, since words hardly get
    smaller, more. None where `plain` is fast and small enough, or words are too large even with fewer channels."""
    if not goal.speedup and not goal.size:
        return list(LADDER)
    if goal.enough(plain) or 0 < goal.size < NARROW * (plain.bytes - plain.encoder):
        return []
    fast, small = asked(goal, plain)
    steps = (1.05, 1.25, 1.5, 2.0, 3.0) if small > 1 else (1.05, 1.25, 1.5)
    return [round(max(fast, small) * more, 2) for more in steps]


def promising(free: Sequence[Tried], goal: Goal) -> list[Tried]:
    """Of models without training those that it may bring to the goal, the most accurate first: training makes them
    neither faster nor smaller, and aiming again does only a little."""
    return sorted((one for one in free if goal.spare(one) >= NEARLY), key=lambda one: one.drop)


def aimed(found: Tried, goal: Goal) -> Shape | None:
    """The structure that is just fast and small enough by what the dev file and the disk say of one that was `found`,
    which know better than the batch that it was chosen on. None where it is that already, as nearly as structures are
    chosen, or where the goal asks for no structure, or for none that there is."""
    spare = goal.spare(found)
    exact = goal.enough(found) and spare <= (1 + timing.NOISE) * NEAR
    if found.shape is None or exact or not 0 < spare < math.inf:
        return None
    speedup = round(found.shape.speedup / spare * (1 + timing.NOISE), 2)
    return replace(found.shape, speedup=speedup, spelt="", through="") if speedup > 1 else None


def near(one: Shape, other: Shape) -> bool:
    """Whether two structures differ by no more than a clock can tell."""
    apart = abs(one.speedup / other.speedup - 1)
    return (one.depth, one.channels) == (other.depth, other.channels) and apart <= timing.NOISE


def misaimed(found: Tried, goal: Goal) -> bool:
    """Whether a model that was trained may meet the goal once it is `aimed` again: it loses too much, and may be slower
    or larger; or it loses little, and has to be faster or smaller."""
    return goal.missed(found) > 0 and (found.drop > goal.drop) == goal.enough(found)


class Trial(Protocol):
    """What makes chains out of one model and measures them beside it: `int8`, the kind at their end, `undecided` where
    it may be another, and `pieces` are as `chain` has them; `last` and `stage` are the seconds that the last chain with
    training took, and its last stage."""

    base: checkpoint.Checkpoint
    recipe: recipes.Search
    int8: Int8Kind
    undecided: bool
    pieces: int
    last: float
    stage: float

    def over(self, seconds: float = 0.0) -> bool:
        """Whether the time is up, or will be in so many seconds."""

    def common(self) -> int:
        """How many pieces `COMMON` of the training examples' tokens are."""

    def tried(self, shape: Shape | None, trained: bool) -> Tried:
        """One chain, made and measured."""

    def reached(self, shape: Shape, trained: bool) -> Tried | None:
        """The same, or None where a structure can't be as fast as it is to be."""

    def recovered(self, shape: Shape | None) -> Tried | None:
        """The same with training, or None where there is no structure or one was aimed at the same before."""


def chains(trial: Trial, goal: Goal) -> Iterator[Tried]:
    """Makes chains by a trial, the cheap ones first: those without structure; for each speed that the structure needs
    each depth without training, until one meets the goal, and of those that are fast and small enough the most accurate
    with training (where the recipe has any), until one does or the time is up; or until points are all that is missed,
    for what is faster loses more."""
    plain = yield from _unpruned(trial, goal)
    if trial.base.config.preset == "bilstm":  # which has no heads and units to remove
        return
    config, train = trial.base.config, trial.recipe.train
    aims, trains = bool(goal.speedup or goal.size), bool(train.epochs or train.steps)
    for speedup in needed(goal, plain):
        free: list[Tried] = []
        for shape in shapes(len(config.layers), config.width, speedup):
            if trial.over():
                return
            if found := trial.reached(shape, trained=False):
                free.append(found)
                yield found
                if aims and not goal.missed(found):  # shallower ones lose more as a rule
                    break
        enough = not trains and any(goal.enough(one) for one in free)
        for each in promising(free, goal) if trains else ():
            if trial.over(trial.last):
                return
            for found in _trained(trial, each, goal):
                yield found
                if aims and not goal.missed(found):
                    return
                if not aims and found.drop > goal.drop:
                    return
                enough |= goal.enough(found)
        if aims and enough:
            return


def _unpruned(trial: Trial, goal: Goal) -> Generator[Tried, None, Tried]:
    """int8 alone, of the kind that suits the model; and where size asks for more structure to go than speed does, the
    same without rare pieces. Returns the one that others begin as."""
    plain = trial.tried(None, trained=False)
    yield plain
    if trial.undecided and plain.drop > min(UNHARMED, goal.drop):
        trial.int8 = "dynamic"
        other = trial.tried(None, trained=False)
        yield other
        if harmed(plain, other, goal):
            plain = other
        else:
            trial.int8 = "static"
    fast, small = asked(goal, plain)
    if small > max(1.0, fast) and trial.recipe.chain.vocabulary and not trial.pieces:
        trial.pieces = trial.common()
        fewer = trial.tried(None, trained=False)
        yield fewer
        if harmed(fewer, plain, goal):
            trial.pieces = 0
        else:
            plain = fewer
    return plain


def _trained(trial: Trial, free: Tried, goal: Goal) -> Iterator[Tried]:
    """The structure of a model without training, aimed at the speed and size that it has to have, with training; and
    where it misses by those, aimed once more."""
    found = trial.recovered(aimed(free, goal) or free.shape)
    if found is None:
        return
    yield found
    alike = found.spelt == free.spelt  # aiming moves nothing: by its depth alone it is faster
    again = aimed(found, goal) if misaimed(found, goal) and not alike else None
    if again is not None and not trial.over(trial.stage) and (other := trial.recovered(again)):
        yield other


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
