"""Curves and points as a picture, by matplotlib, which only this file imports."""

import io
import math
import os
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from lsp import cache
from lsp.chart import Chart, Dot, short, spread, ticks
from lsp.curves import shorten

# Okabe and Ito's colours, which colour-blind people can tell apart, without the yellow that white swallows.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", ":", "-.")  # for more runs than colours
DATES = {"svg": ["Date"], "pdf": ["CreationDate"]}  # left out, so that equal charts are equal files
LEADER = {"arrowstyle": "-", "linewidth": 0.6, "linestyle": ":", "relpos": (0.0, 0.5)}  # from a line to its name
GREY = "#555555"


def draw(chart: Chart, kind: str) -> bytes:
    """The chart as the bytes of a `kind` of file (png, svg, pdf): lines named at their right ends, no legend."""
    return _picture(lambda figure: _curves(figure, chart), kind)


def scatter(dots: Sequence[Dot], title: str, axes: tuple[str, str], kind: str) -> bytes:
    """The dots as the bytes of a `kind` of file: the best filled, with their names and a line through them."""
    return _picture(lambda figure: _dots(figure, dots, title, axes), kind)


def _picture(fill: Callable[[Any], None], kind: str) -> bytes:
    # matplotlib keeps a list of the fonts it found.
    os.environ.setdefault("MPLCONFIGDIR", str(cache.folder("matplotlib")))
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    file = io.BytesIO()
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams["svg.hashsalt"] = "lsp"
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure = Figure(figsize=(8, 4.5), dpi=150)
        FigureCanvasAgg(figure)
        fill(figure)
        figure.savefig(file, format=kind, metadata=dict.fromkeys(DATES.get(kind, ())))
    return file.getvalue()


def _curves(figure: Any, chart: Chart) -> None:
    from matplotlib.ticker import FixedLocator, NullLocator

    # Text comes from the names of folders: none of it is mathematics.
    names = [shorten(curve.name, 28) for curve in chart.curves]
    room = min(0.3, 0.02 + 0.0095 * max(map(len, names)))
    axes = figure.add_axes((0.07, 0.12, 0.91 - room, 0.8))
    left, right, low, high = chart.limits()
    if chart.log:
        axes.set_yscale("log")
    for i, (curve, line) in enumerate(zip(chart.curves, chart.lines(), strict=True)):
        look = {"color": COLOURS[i % len(COLOURS)], "linestyle": STYLES[i // len(COLOURS) % len(STYLES)]}
        if chart.width > 1 and curve.logged:
            axes.plot(*zip(*curve.logged, strict=True), color=look["color"], linewidth=0.7, alpha=0.25)
        axes.plot(*zip(*line, strict=True), linewidth=1.8, **look)
        if curve.held_out:
            axes.plot(
                *zip(*curve.held_out, strict=True),
                linestyle="none",
                marker="o",
                markersize=6,
                color=look["color"],
                markeredgecolor="white",
                zorder=3,
                clip_on=False,
            )
    # The limits are those of what is drawn in full; the faint raw lines may leave them.
    pad = 0.04 * (chart.height(high) - chart.height(low)) or 0.5
    axes.set_ylim([math.exp(y) if chart.log else y for y in (chart.height(low) - pad, chart.height(high) + pad)])
    bottom, top = axes.get_ylim()
    axes.yaxis.set_major_locator(FixedLocator(ticks(bottom, top, 6, chart.log)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_xlim(left, right if right > left else left + 1)
    _dress(axes, chart.title(), chart.axis)
    _name(axes, chart, names)


def _dots(figure: Any, dots: Sequence[Dot], title: str, named: tuple[str, str]) -> None:
    best = sorted(dot for dot in dots if dot.best)
    axes = figure.add_axes((0.07, 0.12, 0.91, 0.8))
    axes.plot([dot.x for dot in best], [dot.y for dot in best], color=COLOURS[0], linestyle="--", linewidth=1)
    for dot in sorted(dots, key=lambda dot: -dot.area):  # the small ones in front
        colour = COLOURS[0] if dot.best else GREY
        axes.scatter(
            *(dot.x, dot.y, 700 * dot.area),
            facecolor=colour if dot.best else "none",
            edgecolor=colour,
            alpha=0.75,
            zorder=3 if dot.best else 2,
        )
    axes.margins(0.1, 0.12)
    left, right = axes.get_xlim()
    for dot in best:
        ends = dot.x > (left + right) / 2  # the right half's names end where its dots are
        away = math.sqrt(700 * dot.area / math.pi) + 4  # points
        axes.annotate(
            f"{shorten(dot.name, 32)}, {dot.more}",
            xy=(dot.x, dot.y),
            xytext=(-away if ends else away, 0),
            textcoords="offset points",
            ha="right" if ends else "left",
            va="center",
            fontsize=8,
            parse_math=False,
        )
    _dress(axes, f"{named[1]} · {title}", named[0])


def _dress(axes: Any, title: str, below: str) -> None:
    """Round numbers, a pale grid, the title, and the name of the x axis."""
    for each in (axes.xaxis, axes.yaxis):
        each.set_major_formatter(lambda value, _: short(value))
    axes.grid(color="#e5e5e5", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=GREY, labelsize=9)
    axes.set_xlabel(below, color=GREY)
    axes.set_title(title, loc="left", fontsize=11, parse_math=False)


def _name(axes: Any, chart: Chart, names: list[str]) -> None:
    """Each name right of the chart at the height where its line ends, moved no further than its neighbours ask."""
    right = axes.get_xlim()[1]
    bottom, top = map(chart.height, axes.get_ylim())
    ends = [line[-1] for line in chart.lines()]
    wanted = [(chart.height(y) - bottom) / (top - bottom) for _, y in ends]
    for i, (place, (x, y)) in enumerate(zip(spread(wanted, 0.05, 0.0, 1.0), ends, strict=True)):
        colour = COLOURS[i % len(COLOURS)]
        moved = abs(place - wanted[i]) > 0.01 or x < right
        axes.annotate(
            names[i],
            xy=(x, y),
            xytext=(1.02, place),
            textcoords="axes fraction",
            va="center",
            color=colour,
            fontsize=9,
            parse_math=False,
            annotation_clip=False,
            arrowprops=LEADER | {"color": colour} if moved else None,
        )
