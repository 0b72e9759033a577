"""Curves from `metrics.jsonl`, and what is drawn of them."""

import json
from pathlib import Path
from typing import Any

import pytest

from lsp import Exit, LspError, curves
from lsp.chart import Chart, Dot, draw, scatter, short, spread, ticks
from lsp.curves import Curve, Points


def run(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.mkdir(parents=True)
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def chart(*lines: Points, held_out: Points | None = None, **options: Any) -> Chart:
    found = [Curve(f"run{i}", line, (held_out or []) if i == 0 else []) for i, line in enumerate(lines)]
    return Chart(found, **{"metric": "loss", "axis": "step", "width": 1, "log": False} | options)


def test_a_curve_is_the_log_and_the_evaluations_of_one_metric(tmp_path: Path) -> None:
    rows = [
        {"step": 10, "loss": 3.0, "tokens": 900},
        {"step": 10, "dev_loss": 3.5, "dev_f1": 0.5, "tokens": 900},
        {"step": 20, "loss": float("nan"), "tokens": 1800},
        {"step": 30, "loss": 2, "tokens": 2700},
        {"step": 30, "dev_loss": 9.0, "tokens": 2700},
        {"step": 30, "dev_loss": 2.5, "tokens": 2700},  # evaluated once more by the process after
    ]
    path = run(tmp_path / "a", rows)
    assert curves.curve(path, "a", "loss", "step") == ("a", [(10, 3.0), (30, 2)], [(10, 3.5), (30, 2.5)])
    assert curves.curve(path, "a", "f1", "tokens") == ("a", [], [(900, 0.5)])
    assert curves.curve(path, "a", "dev_loss", "step") == ("a", [], [(10, 3.5), (30, 2.5)])


def test_a_line_that_is_being_written_waits(tmp_path: Path) -> None:
    path = run(tmp_path / "a", [{"step": 1, "loss": 1.0}])
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    assert len(curves.read(path)) == 1


@pytest.mark.parametrize(
    ("text", "metric", "axis", "code", "said"),
    [
        (None, "loss", "step", Exit.ARTIFACT, "is not a run"),
        ("", "loss", "step", Exit.ARTIFACT, "nothing has been logged"),
        ('{"step": 1, "loss": 1}\n[1]\n', "loss", "step", Exit.ARTIFACT, "line 2, is damaged"),
        ('{"step": 1, "loss": 1}\n', "los", "step", Exit.USAGE, "Did you mean 'loss'?"),
        ('{"step": 1, "loss": 1}\n', "loss", "tokens", Exit.USAGE, "can't be drawn over tokens"),
    ],
)
def test_what_cannot_be_drawn_is_named(
    tmp_path: Path, text: str | None, metric: str, axis: str, code: Exit, said: str
) -> None:
    if text is not None:
        (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(LspError) as caught:
        curves.curve(tmp_path, "a", metric, axis)
    assert said in caught.value.message and caught.value.hint
    assert caught.value.code == code


def test_runs_are_named_by_what_tells_them_apart() -> None:
    paths = [Path("/x/a/encoder"), Path("/x/b/encoder"), Path("/x/b/tiny")]
    assert curves.names(paths) == ["a/encoder", "b/encoder", "tiny"]
    assert curves.shorten("learning-rate-0.001", 11) == "learn…0.001"


def test_smoothing_is_a_mean_that_keeps_the_first_point() -> None:
    points: Points = [(x, y) for x, y in enumerate([9.0, 3.0, 0.0, 6.0, 3.0])]
    assert curves.smooth(points, 3) == [(0, 9), (1, 4), (2, 3), (3, 3), (4, 4.5)]
    assert curves.smooth(points, 1) == points
    assert curves.smooth(points, 99)[0] == points[0]


def test_without_colour_letters_tell_runs_apart() -> None:
    drawn = chart([(0, 10.0), (100, 0.0)], [(0, 0.0), (50, 0.0)], held_out=[(50, 5.0)])
    assert draw(drawn, 44, 6, False) == [
        "loss by step, points: held out (dev_loss)",
        "10 |aaaa",
        "   |    aaaaaa",
        " 5 |          aaaaaaA",
        "   |                 aaaaaa",
        "   |                       aaaaaa     a run0",
        " 0 |bbbbbbbbbbbbbbbbb            aaaa b run1",
        "   ++---------------+---------------+",
        "    0              50             100",
    ]


def test_in_colour_the_dots_are_braille_and_each_run_has_its_own() -> None:
    lines = draw(chart([(0, 1.0), (1, 1.0)], [(0, 0.0), (1, 0.0)]), 40, 4, True)
    first, last = lines[1], lines[4]
    assert first.count("\x1b[38;5;74m⠉\x1b[0m") > 20, "dots along the top of the cells"
    assert last.count("\x1b[38;5;208m⣀\x1b[0m") > 20, "dots along their bottom"


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("points", [[(5, 2.0)], [(5, 2.0), (6, 2.0)], [(0, 1e-9), (1e9, 1e9)]])
def test_single_points_level_lines_and_wide_ranges_are_drawn(points: Points, log: bool) -> None:
    for colour in (False, True):
        assert len(draw(chart(points, log=log), 60, 10, colour)) == 1 + 10 + 2


def test_points_have_names_where_they_are_the_best() -> None:
    kinds = ((2.0, 0.0, "exact", True), (3.0, 4.0, "worse", False), (6.0, 2.0, "quick", True))
    dots = [Dot(x, y, 1.0, name, "", best) for x, y, name, best in kinds]
    assert scatter(dots, ("times", "points"), 40, 5, False) == [
        "points by times",
        "4 |       .",
        "  |",
        "2 |                            B B quick",
        "  |",
        "0 |A                             A exact",
        "  ++-------------+-------------+",
        "   2             4             6",
    ]
    lines = scatter(dots, ("times", "points"), 40, 5, True)
    assert [line.count("\x1b[38;5;74m") for line in lines] == [0, 0, 0, 0, 0, 2, 0, 0], "of A: its place and its name"
    alike = [dot._replace(x=1.0, y=1.0, best=True) for dot in dots]
    assert len(scatter(alike, ("times", "points"), 40, 2, False)) == 1 + 3 + 2, "a row for each name"


def test_axes_have_round_numbers() -> None:
    assert ticks(0, 10, 5, False) == [0, 2, 4, 6, 8, 10]
    assert ticks(5.21, 6.92, 6, False) == pytest.approx([5.4, 5.6, 5.8, 6.0, 6.2, 6.4, 6.6, 6.8])
    assert ticks(0.01, 90, 6, True) == [0.01, 0.1, 1, 10]
    assert ticks(0.5, 20, 6, True) == [0.5, 1, 2, 5, 10, 20]
    assert [short(x) for x in (0, 0.25, 2000, 15e3, 1.2e6, 3e9)] == ["0", "0.25", "2,000", "15k", "1.2M", "3G"]


def test_labels_keep_apart_and_within_the_chart() -> None:
    assert spread([5, 5, 5], 1, 0, 10) == [5, 6, 7]
    assert spread([10, 10, 2], 1, 0, 10) == [9, 10, 2]
    assert spread([], 1, 0, 10) == []
