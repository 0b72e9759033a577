"""Curves as a picture, by matplotlib, which only this file imports."""

import io
import math
import warnings
from typing import Any

from lsp.chart import Chart, short, spread, ticks
from lsp.curves import shorten

# Okabe and Ito's colours, which colour-blind people can tell apart, without the yellow that white swallows.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
STYLES = ("-", "--", ":", "-.")  # for more runs than colours
DATES = {"svg": ["Date"], "pdf": ["CreationDate"]}  # left out, so that equal charts are equal files
LEADER = {"arrowstyle": "-", "linewidth": 0.6, "linestyle": ":", "relpos": (0.0, 0.5)}  # from a line to its name
GREY = "#555555"


def draw(chart: Chart, kind: str) -> bytes:
    """The chart as the bytes of a `kind` of file (png, svg, pdf): lines named at their right ends, no legend."""
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
        _fill(figure, chart)
        figure.savefig(file, format=kind, metadata=dict.fromkeys(DATES.get(kind, ())))
    return file.getvalue()


def _fill(figure: Any, chart: Chart) -> None:
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
    for each in (axes.xaxis, axes.yaxis):
        each.set_major_formatter(lambda value, _: short(value))
    axes.grid(color="#e5e5e5", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(colors=GREY, labelsize=9)
    axes.set_xlabel(chart.axis, color=GREY)
    axes.set_title(chart.title(), loc="left", fontsize=11, parse_math=False)
    _name(axes, chart, names)


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
