"""Curves in a terminal, braille dots where there is colour to tell runs apart, a letter a run where there is none; and
points of which the best have names."""

import itertools
import math
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from lsp.curves import Curve, Points, shorten, smooth

# Okabe and Ito's colours, which colour-blind people can tell apart, as the nearest of a terminal's 256.
COLOURS = (74, 208, 36, 175, 214, 32)
LETTERS = "abcdefghijklmnopqrstuvwxyz"
# The bit of a braille character for the dot in row y, column x.
DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))


@dataclass(frozen=True)
class Chart:
    """What to draw: curves of `metric` over `axis`, each a mean over `width` lines, with a logarithmic y if `log`."""

    curves: Sequence[Curve]
    metric: str
    axis: str
    width: int
    log: bool

    def title(self) -> str:
        """What the chart shows, with all that was done to the numbers."""
        held_out = f"points: held out (dev_{self.metric.removeprefix('dev_')})"
        said = [
            f"smoothed over {self.width} lines" if self.width > 1 and any(c.logged for c in self.curves) else "",
            held_out if any(c.held_out for c in self.curves) else "",
            "log scale" if self.log else "",
        ]
        return f"{self.metric} by {self.axis}" + "".join(f" · {each}" for each in said if each)

    def lines(self) -> list[Points]:
        """What is drawn as a line for each curve: the smoothed log, or where there is none the evaluations."""
        return [smooth(curve.logged, self.width) if curve.logged else curve.held_out for curve in self.curves]

    def height(self, y: float) -> float:
        """Where a value lies on the y axis, in no unit."""
        return math.log(y) if self.log else y

    def limits(self) -> tuple[float, float, float, float]:
        """The smallest and largest x, and the smallest and largest y."""
        points = [point for line in self.lines() for point in line] + [p for c in self.curves for p in c.held_out]
        xs, ys = zip(*points, strict=True)
        return min(xs), max(xs), min(ys), max(ys)


class Dot(NamedTuple):
    """A point of a scatter: its place, its area as a share of the largest, what it is called and what else is known of
    it, and whether it is one of the best."""

    x: float
    y: float
    area: float
    name: str
    more: str
    best: bool


def draw(chart: Chart, columns: int, rows: int, colour: bool) -> list[str]:
    """The chart as lines of at most `columns` characters, `rows` of them between title and x axis.

    With `colour` the text holds ANSI escapes. Without, it is ASCII but for the names: letters, and their capitals for
    held-out points.
    """
    letters = not colour or len(chart.curves) > len(COLOURS)
    rows = max(rows, len(chart.curves))
    left, right, low, high = chart.limits()
    bottom, top = chart.height(low), chart.height(high)
    levels = ticks(low, high, rows // 3, chart.log)
    margin = max(len(short(tick)) for tick in levels)
    names = [shorten(curve.name, max(8, columns // 4)) for curve in chart.curves]
    names = [f"{LETTERS[i]} {name}" if letters else name for i, name in enumerate(names)]
    width = max(10, columns - margin - 3 - max(map(_cells, names)))
    scale = _Scale(left, right, bottom, top, width, rows)
    cells: dict[tuple[int, int], tuple[str, int]] = {}

    for i, line in enumerate(chart.lines()):
        points = [(x, chart.height(y)) for x, y in line]
        if letters:
            cells |= {place: (LETTERS[i], i) for place in _trace(points, scale, 1, 1)}
        else:
            for column, row in _trace(points, scale, 2, 4):
                place = column // 2, row // 4
                before = ord(cells[place][0]) if place in cells else 0x2800
                cells[place] = chr(before | DOTS[row % 4][column % 2]), i
    for i, curve in enumerate(chart.curves):
        for x, y in curve.held_out:
            cells[scale.place(x, chart.height(y))] = (LETTERS[i].upper() if letters else "●", i)

    ends = [scale.place(left, chart.height(line[-1][1]))[1] for line in chart.lines()]
    marks = {scale.place(left, chart.height(tick))[1]: short(tick) for tick in levels}
    title = shorten(chart.title() if colour else chart.title().replace(" · ", ", "), columns)
    return [title, *_framed(cells, list(zip(names, ends, strict=True)), scale, marks, colour)]


def scatter(dots: Sequence[Dot], axes: tuple[str, str], columns: int, rows: int, colour: bool) -> list[str]:
    """The dots as lines of at most `columns` characters: the best, in the order of x, as letters that the names at the
    right explain, the others as small ones. A title of `axes`, what x and y are, is above."""
    best = sorted(dot for dot in dots if dot.best)
    rows = max(rows, len(best))
    xs, ys = [dot.x for dot in dots], [dot.y for dot in dots]
    levels = ticks(min(ys), max(ys), rows // 3, False)
    margin = max(len(short(tick)) for tick in levels)
    marked = list(zip(itertools.cycle(LETTERS.upper()), best, strict=False))
    names = [f"{letter} {shorten(dot.name, max(8, columns * 2 // 5))}" for letter, dot in marked]
    width = max(10, columns - margin - 3 - max(map(_cells, names)))
    scale = _Scale(min(xs), max(xs), min(ys), max(ys), width, rows)
    cells = {scale.place(dot.x, dot.y): ("·" if colour else ".", len(best)) for dot in dots if not dot.best}
    cells |= {scale.place(dot.x, dot.y): (letter, i) for i, (letter, dot) in enumerate(marked)}
    marks = {scale.place(scale.left, tick)[1]: short(tick) for tick in levels}
    ends = [(name, scale.place(dot.x, dot.y)[1]) for name, dot in zip(names, best, strict=True)]
    return [shorten(f"{axes[1]} by {axes[0]}", columns), *_framed(cells, ends, scale, marks, colour)]


def _framed(
    cells: dict[tuple[int, int], tuple[str, int]],
    names: Sequence[tuple[str, int]],
    scale: "_Scale",
    marks: dict[int, str],
    colour: bool,
) -> list[str]:
    """Cells between the axes: (column, row) from the top left → what stands there, and whose. `names` are what the
    owners are called and the rows where their names are wanted, `marks` the numbers of rows."""
    labels = {round(row): i for i, row in enumerate(spread([row for _, row in names], 1, 0, scale.rows - 1))}
    margin = max(map(len, marks.values()))
    wall, corner, floor, notch = ("|", "+", "-", "+") if not colour else ("│", "└", "─", "┬")

    def paint(text: str, i: int) -> str:
        return f"\x1b[38;5;{COLOURS[i % len(COLOURS)]}m{text}\x1b[0m" if colour else text

    lines = []
    for row in range(scale.rows):
        drawn = "".join(paint(*cells[c, row]) if (c, row) in cells else " " for c in range(scale.width))
        label = f" {paint(names[labels[row]][0], labels[row])}" if row in labels else ""
        lines.append(f"{marks.get(row, ''):>{margin}} {wall}{drawn}{label}".rstrip())
    numbers = ticks(scale.left, scale.right, scale.width // 12, False)
    notches = {scale.place(tick, scale.bottom)[0]: short(tick) for tick in numbers}
    lines.append(" " * margin + f" {corner}" + "".join(notch if c in notches else floor for c in range(scale.width)))
    return [*lines, " " * (margin + 2) + _under(notches, scale.width)]


@dataclass(frozen=True)
class _Scale:
    """Values to cells: x from left to right, y from the bottom up, into `width` × `rows` cells."""

    left: float
    right: float
    bottom: float
    top: float
    width: int
    rows: int

    def place(self, x: float, y: float, across: int = 1, down: int = 1) -> tuple[int, int]:
        """The column and row, from the top left, of a point on a grid of `across` × `down` dots a cell."""
        wide = (x - self.left) / (self.right - self.left) if self.right > self.left else 0.5
        high = (y - self.bottom) / (self.top - self.bottom) if self.top > self.bottom else 0.5
        return round(wide * (self.width * across - 1)), round((1 - high) * (self.rows * down - 1))


def _trace(points: Points, scale: _Scale, across: int, down: int) -> Iterator[tuple[int, int]]:
    """The dots of straight lines from point to point."""
    places = [scale.place(x, y, across, down) for x, y in points]
    yield places[0]
    for (a, b), (c, d) in itertools.pairwise(places):
        length = max(abs(c - a), abs(d - b))
        yield from ((round(a + (c - a) * n / length), round(b + (d - b) * n / length)) for n in range(1, length + 1))


def _under(notches: dict[int, str], width: int) -> str:
    """The line of numbers under the x axis, each centred on its notch; what would touch its neighbour is left out."""
    line = ""
    for column, text in sorted(notches.items()):
        start = max(0, min(column - len(text) // 2, width - len(text)))
        if start >= len(line) + (2 if line else 0):
            line = line.ljust(start) + text
    return line


def ticks(low: float, high: float, count: int, log: bool) -> list[float]:
    """About `count` round numbers from `low` to `high`; on a wide logarithmic scale 1, 2 and 5 of each power of ten."""
    if log and high > 20 * low:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        digits = (1, 2, 5) if math.log10(high / low) <= max(2, count / 2) else (1,)
        return [tick for power in powers for digit in digits if low <= (tick := digit * 10.0**power) <= high] or [low]
    span = high - low
    if not span:
        return [low]
    rough = span / max(2, count)
    unit = 10.0 ** math.floor(math.log10(rough))
    step = min((unit * digit for digit in (1, 2, 5, 10)), key=lambda step: abs(math.log(step / rough)))
    return [n * step for n in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)] or [low]


def short(value: float) -> str:
    """A number on an axis: 0.25, 2,000, 15k, 1.2M, 3G."""
    for unit, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= (1e4 if letter == "k" else unit):
            return f"{value / unit:.4g}{letter}"
    return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Places for labels near the wanted ones, at least `gap` apart and within the limits while they fit."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    placed: list[float] = []
    for i in order:
        placed.append(max(wanted[i], placed[-1] + gap if placed else low))
    limit = high
    for n in reversed(range(len(placed))):
        placed[n] = min(placed[n], limit)
        limit = placed[n] - gap
    return [place for _, place in sorted(zip(order, placed, strict=True))]


def _cells(text: str) -> int:
    """Terminal columns of a name: Chinese, Japanese and Korean characters take two, combining marks none."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
