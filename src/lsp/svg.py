"""Charts as SVG inside a page: curves, points with an area, bars of parts. Text and numbers alone, no library.

All coordinates are in pixels from the top left of a drawing `WIDTH` wide; a page scales it.
"""

import math
from collections.abc import Sequence

from lsp.chart import Chart, Dot, short, ticks
from lsp.curves import Points, shorten
from lsp.page import text
from lsp.picture import COLOURS

WIDTH, LEFT, RIGHT, TOP, BOTTOM = 640, 56, 16, 28, 40
MOST = 400  # points of a line: more than a drawing has room for
GREY, PALE = "#555", "#e5e5e5"


def curves(chart: Chart) -> str:
    """The chart's lines, and held-out values as points; the picture that `lsp plot` draws, in a page."""
    left, right, low, high = chart.limits()
    frame = _Frame((left, right), (low, high), 240)
    pieces = frame.axes(chart.title(), chart.axis)
    for number, (curve, line) in enumerate(zip(chart.curves, chart.lines(), strict=True)):
        colour = COLOURS[number % len(COLOURS)]
        places = " ".join(f"{x:.1f},{y:.1f}" for x, y in map(frame.place, _thinned(line)))
        drawn = f'<polyline points="{places}" fill="none" stroke="{colour}" stroke-width="1.8"/>'
        dots = "".join(_circle(frame.place(point), 3.5, colour, "") for point in curve.held_out)
        pieces.append(f"<g><title>{text(curve.name)}</title>{drawn}{dots}</g>")
    return _drawing(pieces, frame.height, chart.title())


def scatter(dots: Sequence[Dot], title: str, axes: tuple[str, str]) -> str:
    """The dots with their names; the best are filled, and a line goes through them in the order of x."""
    xs, ys = [dot.x for dot in dots], [dot.y for dot in dots]
    frame = _Frame(_wider(xs), _wider(ys), 360)
    pieces = frame.axes(f"{axes[1]} · {title}", axes[0])
    line = [frame.place((dot.x, dot.y)) for dot in sorted(dots) if dot.best]
    places = " ".join(f"{x:.1f},{y:.1f}" for x, y in line)
    pieces.append(f'<polyline points="{places}" fill="none" stroke="{COLOURS[0]}" stroke-dasharray="4 3"/>')
    for dot in sorted(dots, key=lambda dot: -dot.area):  # the small ones in front
        place, radius = frame.place((dot.x, dot.y)), max(3.0, 18 * math.sqrt(dot.area))
        colour = COLOURS[0] if dot.best else "#999"
        pieces.append(_circle(place, radius, colour, f"{dot.name}: {dot.more}", hollow=not dot.best))
        anchor, away = ("end", -1) if place[0] > 0.6 * WIDTH else ("start", 1)
        x = place[0] + away * (radius + 4)
        pieces.append(_words(x, place[1] + 4, shorten(dot.name, 40), anchor, "#222" if dot.best else GREY))
    return _drawing(pieces, frame.height, title)


def bars(rows: Sequence[tuple[str, dict[str, float]]], unit: str) -> str:
    """A bar for each row, of parts that lie end to end, all to one scale; `unit` says what of."""
    parts = list(dict.fromkeys(part for _, values in rows for part in values))
    largest = max(sum(values.values()) for _, values in rows) or 1.0
    colours = {part: COLOURS[number % len(COLOURS)] for number, part in enumerate(parts)}
    left, step, pieces = 150.0, 30, []
    x = left
    for part in parts:  # what the colours mean, above
        pieces += [f'<rect x="{x:.0f}" y="6" width="11" height="11" fill="{colours[part]}"/>', _words(x + 16, 16, part)]
        x += 34 + 7.5 * len(part)
    for number, (name, values) in enumerate(rows):
        x, y = left, 28 + number * step
        pieces.append(_words(left - 8, y + 14, shorten(name, 20), "end", "#222"))
        for part, value in values.items():
            wide = (WIDTH - left - RIGHT) * value / largest
            told = text(f"{name}, {part}: {short(value)} {unit}")
            pieces.append(
                f'<rect x="{x:.1f}" y="{y}" width="{wide:.1f}" height="20" fill="{colours[part]}">'
                f"<title>{told}</title></rect>"
            )
            x += wide
    return _drawing(pieces, 28 + len(rows) * step, f"{unit} by part")


class _Frame:
    """The box that values are drawn in: x from left to right, y from the bottom up, both with some room around."""

    def __init__(self, xs: tuple[float, float], ys: tuple[float, float], height: int) -> None:
        self.height = height
        self.xs, self.low, self.high = xs, ys[0], ys[1]
        pad = 0.04 * (self.high - self.low) or 0.5
        self.bottom, self.top = self.low - pad, self.high + pad

    def place(self, point: tuple[float, float]) -> tuple[float, float]:
        across = (point[0] - self.xs[0]) / ((self.xs[1] - self.xs[0]) or 1.0)
        up = (point[1] - self.bottom) / (self.top - self.bottom)
        return LEFT + across * (WIDTH - LEFT - RIGHT), TOP + (1 - up) * (self.height - TOP - BOTTOM)

    def axes(self, title: str, below: str) -> list[str]:
        """Title, grid, numbers and the name of the x axis."""
        floor = self.height - BOTTOM
        pieces = [_words(0, 14, title, colour="#222")]
        for tick in ticks(self.low, self.high, 5, False):
            y = self.place((self.xs[0], tick))[1]
            pieces.append(f'<path d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="{PALE}"/>')
            pieces.append(_words(LEFT - 8, y + 4, short(tick), "end"))
        for tick in ticks(*self.xs, 6, False):
            x = self.place((tick, self.low))[0]
            pieces.append(f'<path d="M{x:.1f} {floor}v5" stroke="{GREY}"/>')
            pieces.append(_words(x, floor + 17, short(tick), "middle"))
        pieces.append(f'<path d="M{LEFT} {floor}H{WIDTH - RIGHT}" stroke="{GREY}"/>')
        return [*pieces, _words(WIDTH - RIGHT, self.height - 6, below, "end")]


def _drawing(pieces: Sequence[str], height: float, title: str) -> str:
    size = f'viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}"'
    label = f'role="img" aria-label="{text(title)}" font-family="system-ui,sans-serif" font-size="12"'
    inner = "\n".join(pieces)
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {label}>\n{inner}\n</svg>'


def _words(x: float, y: float, words: str, anchor: str = "start", colour: str = GREY) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}">{text(words)}</text>'


def _circle(place: tuple[float, float], radius: float, colour: str, title: str, hollow: bool = False) -> str:
    look = f'fill="none" stroke="{colour}" stroke-width="1.5"' if hollow else f'fill="{colour}" fill-opacity="0.75"'
    told = f"<title>{text(title)}</title>" if title else ""
    return f'<circle cx="{place[0]:.1f}" cy="{place[1]:.1f}" r="{radius:.1f}" {look}>{told}</circle>'


def _thinned(line: Points) -> Points:
    """At most `MOST` points of a line, the last among them."""
    every = math.ceil(len(line) / MOST)
    return [*line[:-1:every], line[-1]]


def _wider(values: Sequence[float]) -> tuple[float, float]:
    """Limits with room for the areas of dots at the edge."""
    low, high = min(values), max(values)
    pad = 0.08 * (high - low) or 0.5
    return low - pad, high + pad
