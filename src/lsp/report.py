"""The sections of the page that `lsp report` writes, from the result that its `--json` prints."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lsp import LspError, page, svg, timing
from lsp.chart import Chart, Dot
from lsp.curves import Curve, smoothing
from lsp.shown import number, size

TITLE = "lsp report"
NUMBERS = ("parameters", "size", "points lost", "95 % interval", "p", "examples/s", "times as fast")
AXES = ("times as fast", "points lost")
AREAS = "the area is that of the bytes; filled: no other is better"
LONG = 300  # characters of a text
Row = dict[str, Any]


class Limits(NamedTuple):
    """What a run must be: at most `drop` points lost, at least `speedup` times as fast, at most `size` bytes. None asks
    nothing."""

    drop: float | None = None
    speedup: float | None = None
    size: float | None = None


def gates(row: Row, limits: Limits) -> list[Row]:
    """Whether a stage keeps to the limits. A drop counts as too large where all of its interval is: what more examples
    might well undo is noise, and so is a speed that a clock can hardly tell from the limit. Raises LspError (exit 2)
    for a limit of what the stage did not measure."""
    measured = {
        "--max-drop": (limits.drop, row["points_lost"]),
        "--min-speedup": (limits.speedup, row["speedup"]),
        "--max-size": (limits.size, row["bytes"]),
    }
    found = []
    for option, (limit, value) in measured.items():
        if limit is None:
            continue
        if value is None:
            raise LspError(
                f"{row['name']} can't be held to {option}: its stage, {row['stage']}, did not measure that.",
                hint="Give a compress stage --dev. Speed is measured in turns by a search, and by lsp bench.",
            )
        least = row["interval"][0] if option == "--max-drop" and row["interval"] else value
        passed = value >= (1 - timing.NOISE) * limit if option == "--min-speedup" else least <= limit
        found.append({"gate": option, "limit": limit, "value": value, "passed": passed})
    return found


def in_all(rows: Sequence[Row]) -> list[Row]:
    """What the stages did together: each classifier beside the first of those it came from. Points are those of the
    stages on the way, each beside its parent as that stage read the same file, and without an interval, since the
    answers of first and last were not compared row by row."""
    models = {row["name"]: row for row in rows if row["metric"] not in (None, "loss") and row["bytes"]}
    found = []
    for row in models.values():
        first, way = row, []
        while parents := [models[name] for name in first["parents"] if name in models]:
            way.append(first)
            first = parents[0]
        if first is row:
            continue
        dev = row["inputs"].get("dev")
        same = dev and all(
            each["inputs"].get("dev") == dev and each["metric"] == row["metric"] for each in (first, *way)
        )
        lost = [each["points_lost"] for each in way if each["points_lost"] is not None]
        points = sum(lost) if same and len(lost) == len(way) else None
        share = row["bytes"] / first["bytes"]
        found.append({"name": row["name"], "from": first["name"], "share_of_bytes": share, "points_lost": points})
    return found


def body(result: Row) -> Iterator[str]:
    """The page, piece by piece."""
    rows = result["stages"]
    given = next(row for row in rows if row["name"] == result["name"])
    yield f"<h1>{page.text(given['name'])}</h1>"
    yield page.note(f"{TITLE} · {given['stage']} · {given['identity'][:12]}")
    yield page.table([_headline(row) for row in rows], NUMBERS)
    yield page.note(
        "Points lost, in hundredths of the metric, are beside the stage's parent on the same examples; a negative "
        "number is a gain. The interval is of a paired bootstrap, p of McNemar's exact test (of numbers, of random "
        "signs). Examples/s are of the hour in which a stage ran; times as fast, beside the parent, is of stages that "
        "measured both models in turns. lsp bench measures any."
    )
    yield _together(result["in_all"], given["name"])
    yield page.table([_gate(gate) for gate in result["gates"]], ("limit", "value"))
    yield from page.section("From text to here", *map(_stage, rows))
    yield from page.section("Bytes", *_bytes(result["parts"]))
    yield from page.section("What the search tried", *_search(result["search"]))
    yield from page.section("Training", *map(_curve, result["curves"]))
    yield from page.section("Labels that flipped", *_flipped(rows, result["flips"], given["name"]))
    script = page.lines(result["again"])
    told = page.note(
        "Words in capitals stand for files, known by the hash of what they hold. Runs do not record budgets, columns, "
        "goals, a tokenizer that was given, --seeds and --sweep. --out is new, so that nothing is written over."
    )
    yield from page.section("Make it again", script, told)


def _headline(row: Row) -> Row:
    interval = row["interval"]
    return {
        "run": row["name"],
        "stage": row["stage"],
        "parameters": _or_blank(row["parameters"], number),
        "size": _or_blank(row["bytes"], size),
        "metric": None if row["value"] is None else f"{row['metric']}\u00a0{row['value']:.4g}",
        "points lost": _or_blank(row["points_lost"], _points),
        "95 % interval": interval and " … ".join(map(_points, interval)),
        "p": _or_blank(row["p"], "{:.2g}".format),
        "examples/s": _or_blank(row["examples_per_second"], "{:,.0f}".format),
        "times as fast": _or_blank(row["speedup"], "{:.2f}".format),
    }


def _gate(gate: Row) -> Row:
    told = {name: number(gate[name]) for name in ("limit", "value")}
    return {"gate": gate["gate"]} | told | {"passed": "yes" if gate["passed"] else "no"}


def _together(found: Sequence[Row], name: str) -> str:
    one = next((each for each in found if each["name"] == name), None)
    if one is None:
        return ""
    lost, share = one["points_lost"], f"{one['share_of_bytes']:.1%}".replace("%", " %")
    points = "" if lost is None else f", with {abs(lost):.2f} points {'lost' if lost >= 0 else 'gained'} in all"
    return f"<p><b>{page.text(name)}</b> has {share} of the bytes of {page.text(one['from'])}{points}.</p>"


def _stage(row: Row) -> str:
    """A stage with what it was made of, and what of its recipe is not the default."""
    parents = [*([f"text {row['text'][:12]}"] if row["text"] else []), *row["parents"]]
    made = [f"made of {', '.join(parents)}"] if parents else []
    gone = [f"a parent that was not found: {parent[:12]}" for parent in row["missing"]]
    trained = [f"{number(row['steps'])} steps of training"] if row["steps"] else []
    facts = ", ".join([str(row["stage"]), *made, *gone, *trained])
    inputs = page.table([{"input": key, "hash": value} for key, value in row["inputs"].items() if value])
    count = len(row["changed"])
    recipe = page.lines(row["changed"]) if count else ""
    differs = {0: "all of it the default", 1: "1 key not the default"}.get(count, f"{count} keys not the default")
    words = f"recipe: {differs}" if row["recipe"] else "inputs"
    head = f"<b>{page.text(row['name'])}</b> <small>{row['identity'][:12]}</small><br/>{page.text(facts)}"
    return f"<div><p>{head}</p>{page.details(words, recipe + inputs)}</div>"


def _bytes(parts: Sequence[Row]) -> Iterator[str]:
    if not parts:
        return
    groups = {name: list(rows) for name, rows in itertools.groupby(parts, lambda row: row["name"])}
    bars = [(name, {row["part"]: row["bytes"] for row in rows}) for name, rows in groups.items()]
    yield page.figure(svg.bars(bars, "bytes"))
    rows = [
        {
            "run": row["name"],
            "part": row["part"],
            "parameters": number(row["parameters"]) if row["parameters"] else None,
            "size": size(row["bytes"]),
        }
        for row in parts
    ]
    yield page.details("as a table", page.table(rows, NUMBERS))


def _search(tried: Sequence[Row]) -> Iterator[str]:
    """Of each search a chart of the models that it tried, and a table."""
    for name, group in itertools.groupby(tried, lambda row: row["name"]):
        rows = list(group)
        yield page.figure(svg.scatter(dots(rows), AREAS, AXES))
        told = [
            {
                "model": _called(row),
                "points lost": _points(row["points_lost"]),
                "times as fast": f"{row['speedup']:.2f}",
                "size": size(row["bytes"]),
                "meets the goal": "yes" if row["meets"] else "no",
                "": "taken" if row["taken"] else "",
            }
            for row in rows
        ]
        yield page.details(f"{name} tried {len(rows)}", page.table(told, NUMBERS), shown=True)


def dots(tried: Sequence[Row]) -> list[Dot]:
    """The models that a search tried, by speed and points lost; the area is that of the bytes."""
    largest = max(row["bytes"] for row in tried)
    return [
        Dot(row["speedup"], row["points_lost"], row["bytes"] / largest, _called(row), size(row["bytes"]), row["best"])
        for row in tried
    ]


def _called(row: Row) -> str:
    return Path(row["run"]).name


def _curve(found: Row) -> str:
    curve = Curve(found["name"], found["logged"], found["held_out"])
    drawn = svg.curves(Chart([curve], found["metric"], "step", smoothing([curve]), log=False))
    return page.figure(f"<figcaption><b>{page.text(curve.name)}</b></figcaption>{drawn}")


def _flipped(rows: Sequence[Row], flips: Sequence[Row], given: str) -> Iterator[str]:
    for row in rows:
        if not row["flips"]:
            continue
        counts = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in row["flips"].items())
        own = [_flip(each) for each in flips if each["name"] == row["name"]]
        words = f"{row['name']}: {counts}, of {row['examples']:,} examples"
        if own:
            yield page.details(words, page.table(own, ("row", "before", "after")), shown=row["name"] == given)
        else:
            yield page.note(words)


def _flip(each: Row) -> Row:
    text = each["text"] if isinstance(each["text"], str) else " ⸱ ".join(each["text"])
    return {
        "row": each["row"],
        "label": _label(each["label"]),
        "before": f"{_label(each['before'])} {each['probability_before']:.2f}",
        "after": f"{_label(each['after'])} {each['probability_after']:.2f}",
        "": each["direction"],
        "text": text if len(text) <= LONG else text[: LONG - 1] + "…",
    }


def _label(label: Any) -> str:
    return label if isinstance(label, str) else ", ".join(label) or "none"


def summary(result: Row) -> Row:
    """For a person at a terminal: where the page is, and the table at its top."""
    rows = [{key: value for key, value in _headline(row).items() if key != "p"} for row in result["stages"]]
    return {"out": result["out"], "status": result["status"], "stages": rows, "gates": result["gates"]}


def _points(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}"  # and no -0.00


def _or_blank(value: Any, write: Any) -> str | None:
    return None if value is None else write(value)
