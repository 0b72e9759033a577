"""What a person or a script sees: results on stdout, everything else (progress, warnings, errors) on stderr."""

import atexit
import json
import math
import os
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, TextIO

from lsp import Exit, LspError
from lsp.shown import duration as duration
from lsp.shown import number as number
from lsp.shown import safe as safe
from lsp.shown import size as size

if TYPE_CHECKING:
    from rich.progress import Progress as Bars
    from rich.progress import TaskID


class Progress:
    """How far the work is, on stderr: live bars on a terminal, else one plain line per 5 % or 30 s and never a `\\r`.

    Tasks nest. `update` may be called at every step: it draws ten times a second at most. A closed stderr ends the
    display, not the work.
    """

    def __init__(self, quiet: bool = False) -> None:
        self.quiet = quiet
        self.live = not quiet and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self.tasks: list[Task] = []
        self.bars: Bars | None = None
        self.warned: set[str] = set()

    def say(self, text: str) -> None:
        """One line."""
        if not self.quiet:
            self._line(text)

    def show(self, lines: Sequence[str]) -> None:
        """A drawing, whose lines may hold colours."""
        if not self.quiet:
            to_stderr("\n".join(lines))

    def warn(self, text: str) -> None:
        """One line that is shown with `--quiet` too, and once: the stages of a search read the same files."""
        if text not in self.warned:
            self.warned.add(text)
            self._line(f"warning: {text}")

    @contextmanager
    def task(self, name: str, total: float | None) -> Iterator["Task"]:
        """A phase of `total` parts; None when unknown. Inside another one it is shown below it."""
        task = Task(self, name, total)
        self.tasks.append(task)
        if self.live:
            self._show(task)
        try:
            yield task
            task.finish()
        finally:
            self.tasks.remove(task)
            if self.bars is not None and task.bar is not None:
                self.bars.remove_task(task.bar)
                if not self.tasks:
                    self.bars.stop()
                    self.bars = None

    def _show(self, task: "Task") -> None:
        if self.bars is None:
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn

            self.bars = Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(24),
                TextColumn("{task.fields[text]}", markup=False),
                console=Console(stderr=True, highlight=False),
                refresh_per_second=5,
                transient=True,
            )
            self.bars.start()
        task.bar = self.bars.add_task(safe(task.name), total=task.total or None, text="")

    def _line(self, text: str) -> None:
        if self.bars is not None:
            self.bars.console.print(safe(text), markup=False, soft_wrap=True)
        else:
            to_stderr(safe(text))


APART, MARKS = 5.0, 24  # seconds between what a pace is read from, and how many of them: two minutes
SOON = 1.0  # second before which no pace is told: a device is handed its first batches in no time
SURE = 60.0  # seconds after which a pace is believed though little is done: the first steps are slow


class Task:
    """One phase of a `Progress`."""

    def __init__(self, progress: Progress, name: str, total: float | None) -> None:
        self.progress, self.name, self.total = progress, name, total
        self.bar: TaskID | None = None
        self.done: float = 0.0
        self.fields: dict[str, Any] = {}
        self.start = self.drawn = time.monotonic()
        self.idle = 0.0  # seconds in which nothing could be done, as while compiling: no pace is read from them
        self.drawn_at = 0.0  # what was done when last drawn
        # Times without `idle` and `done` of updates, a few seconds apart; pauses fall out of them after a while.
        self.marks: deque[tuple[float, float]] = deque(maxlen=MARKS)

    def update(self, done: float, **fields: Any) -> None:
        """`done` of the total parts; fields such as `loss=2.31, tokens_per_second=9800` stay until replaced."""
        now = time.monotonic()
        self.done = done
        self.fields.update(fields)
        if not self.marks:
            self.drawn_at = done  # a resumed run starts in the middle
        worked = now - self.idle
        if not self.marks or worked - self.marks[-1][0] >= APART:
            self.marks.append((worked, done))
        if self.progress.quiet or not self._due(now):
            return
        self.drawn, self.drawn_at = now, done
        if self.progress.bars is not None and self.bar is not None:
            self.progress.bars.update(self.bar, completed=done, text=safe(self._text(now)))
        else:
            self.progress.say(f"{self._path()}: {self._text(now)}")

    def finish(self) -> None:
        """The last line: what was done and how long it took."""
        seconds = time.monotonic() - self.start
        if seconds >= 1 and not self.progress.quiet:
            parts = [self._count(), *described(self.fields), f"in {duration(seconds)}"]
            self.progress.say(f"{self._path()}: {', '.join(part for part in parts if part)}")

    def seconds_left(self, now: float) -> float | None:
        """At the pace of the last minutes, or None while that can't be known."""
        if not self.marks or not self.total:
            return None
        since, before = self.marks[0]
        took = now - self.idle - since
        if self.done <= before or took < SOON:
            return None
        if took < SURE and self.done - before < self.total / 30:
            return None
        return (self.total - self.done) * took / (self.done - before)

    def _due(self, now: float) -> bool:
        since = now - self.drawn
        if self.progress.live:
            return since >= 0.1
        return since >= 30 or bool(since >= 2 and self.total and self.done - self.drawn_at >= 0.05 * self.total)

    def _path(self) -> str:
        tasks = self.progress.tasks
        return " › ".join(task.name for task in tasks[: tasks.index(self) + 1])

    def _count(self) -> str:
        return f"{number(self.done)}/{number(self.total)}" if self.total else number(self.done) if self.done else ""

    def _text(self, now: float) -> str:
        left = self.seconds_left(now)
        return ", ".join(
            [self._count(), *described(self.fields), *([] if left is None else [f"{duration(left)} left"])]
        )


def described(fields: Mapping[str, Any]) -> list[str]:
    """`loss 2.31`, `9,800 tokens/s`: a field's name and value as a person would write them."""
    named = {
        "tokens_per_second": "tokens/s",
        "examples_per_second": "examples/s",
        "useful_tokens_per_second": "tokens/s",
    }
    return [
        f"{number(v)} {named[k]}" if k in named else f"{k.replace('_', ' ')} {number(v)}" for k, v in fields.items()
    ]


def result(data: Mapping[str, Any], as_json: bool) -> None:
    """Print a command's result on stdout: one JSON object on one line, or a line a value and tables for a person."""
    if as_json:
        to_stdout(json.dumps(plain(data), ensure_ascii=False, allow_nan=False))
    else:
        to_stdout("\n".join(_lines(data)))


def fail(error: LspError, as_json: bool, command: str, status: str = "failed") -> None:
    """Say what went wrong and what to type: on stderr, or with `--json` as the one object on stdout."""
    if as_json:
        fields = {
            "command": command,
            "status": status,
            "error": error.message,
            "hint": error.hint,
            "code": int(error.code),
        }
        with suppress(LspError):
            to_stdout(json.dumps(fields, ensure_ascii=False))
            return
    to_stderr(safe(f"error: {error.message}" if status == "failed" else error.message))
    if error.hint:
        to_stderr(safe(f"fix: {error.hint}"))


def colour(stream: TextIO | None = None) -> bool:
    """Whether a stream, stdout if none is given, is a terminal that shows colours, or the environment says so
    (NO_COLOR, FORCE_COLOR)."""
    if os.environ.get("NO_COLOR"):
        return False
    return bool(os.environ.get("FORCE_COLOR")) or ((stream or sys.stdout).isatty() and os.environ.get("TERM") != "dumb")


def to_stdout(text: str) -> None:
    """A line on stdout. A reader that went away, as in `lsp … | head -1`, has what it wanted: not an error. Raises
    LspError (exit 5) where it can't be written, to a full disk say."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        hang_up()
    except OSError as error:
        atexit.register(hang_up)  # until then what is said there fails too, and is said on stderr
        hint = "Free some space, or send it elsewhere."
        raise LspError(f"What is printed can't be written: {error.strerror}.", hint=hint, code=Exit.MACHINE) from None


def to_stderr(text: str) -> None:
    """A line on stderr, or nowhere when that is closed: hours of work must not die with a terminal."""
    try:
        print(text, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  it stays open to the end


def hang_up() -> None:
    """Send what is still buffered for a closed stdout nowhere, so that the interpreter does not complain at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def plain(value: Any) -> Any:
    """The value as JSON has it: NumPy scalars as numbers, paths as text, and null for what is not finite."""
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)


def _lines(data: Mapping[str, Any]) -> list[str]:
    """Scalars as aligned `name  value` lines, lists of mappings as tables below them."""
    scalars, tables = dict(_scalars(data)), [v for v in data.values() if _is_table(v)]
    width = max(map(len, scalars), default=0)
    lines = [f"{name:{width}}  {value}" for name, value in scalars.items()]
    for rows in tables:
        lines += ["", *table(rows)]
    return lines


def _is_table(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(row, Mapping) for row in value)


def _scalars(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in data.items():
        if isinstance(value, Mapping):
            yield from _scalars(value, f"{prefix}{name}.")
        elif not _is_table(value) and value not in ([], ()):
            yield safe(prefix + str(name)), safe(_shown(str(name), value))


def _shown(name: str, value: Any) -> str:
    """A value as its name asks: bytes and seconds with units, lists with commas."""
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, list | tuple):
        return ", ".join(_shown(name, item) for item in value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        if name == "bytes" or name.endswith("_bytes"):
            return size(value)
        if name == "seconds" or name.endswith("_seconds"):
            return duration(value)
    return number(value)


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """The rows under their keys; numbers to the right, text to the left. A missing or None value is blank."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    cells = [[safe("" if row.get(n) is None else _shown(n, row[n])) for n in names] for row in rows]
    right = [all(isinstance(row.get(n), int | float | None) for row in rows) for n in names]
    titles = [safe(str(n).replace("_per_second", "/s").replace("_", " ")) for n in names]
    widths = [max(map(cell_width, column)) for column in zip(titles, *cells, strict=True)]

    def line(texts: Sequence[str]) -> str:
        padded = (
            " " * (w - cell_width(t)) + t if r else t + " " * (w - cell_width(t))
            for t, w, r in zip(texts, widths, right, strict=True)
        )
        return "  ".join(padded).rstrip()

    return [line(titles), "  ".join("─" * w for w in widths), *map(line, cells)]


def cell_width(text: str) -> int:
    """Terminal columns: Chinese, Japanese and Korean characters take two, combining marks none."""
    import unicodedata

    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)
