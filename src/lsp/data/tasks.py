r"""Labelled tables: the texts to classify and the names of their classes.

TSV has no quoting and no escapes: rows end at `\n`, fields at `\t`, and `"` is an ordinary character. CSV is quoted as
usual, JSONL has an object a line, and plain text, which has no labels, a text a line. All may be .gz or .xz.
"""

import csv
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lsp import LspError, nearest
from lsp.data import classes, text
from lsp.data.files import unusable
from lsp.recipe import Problem

# Columns found without being named, in this order; compared without case.
PAIRS = (
    *(("sentence1", "sentence2"), ("question", "sentence"), ("question1", "question2"), ("premise", "hypothesis")),
    *(("text_a", "text_b"), ("text1", "text2"), ("#1 string", "#2 string"), ("question", "answer")),
)
TEXTS = ("sentence", "text", "review", "content", "document", "comment", "question", "title")
LABELS = ("label", "labels", "class", "category", "quality", "target", "sentiment", "gold_label", "is_duplicate")
# GLUE's QQP has lines that end early, which everybody passes by; in no other file is that anything but a mistake.
RAGGED = ["id", "qid1", "qid2", "question1", "question2", "is_duplicate"]
LONGEST_CELL = 64 << 20  # characters of a CSV cell


@dataclass(frozen=True)
class Table:
    """Rows of one text or two. A label is the place of a class in `names`, a list of such places where an example may
    have several, or a number where there are no names; unlabelled data has none."""

    texts: list[tuple[str, ...]]
    labels: list[Any]
    names: tuple[str, ...]
    groups: dict[str, list[str]] = field(default_factory=dict)  # cells of the columns that were asked for besides
    passed: int = field(default=0, compare=False)  # lines of `RAGGED` files that were passed by
    # What the columns of the texts are called; numbers from 1 where nothing names them.
    columns: tuple[str, ...] = field(default=(), compare=False)

    def some(self, chosen: Iterable[int]) -> "Table":
        """The rows with the numbers `chosen` alone, in that order."""
        numbers = list(chosen)

        def of(cells: list[Any]) -> list[Any]:
            return [cells[number] for number in numbers] if cells else []

        groups = {name: of(cells) for name, cells in self.groups.items()}
        return Table(of(self.texts), of(self.labels), self.names, groups, self.passed, self.columns)


def read(
    path: Any,
    text_columns: Sequence[str] = (),
    label_column: str = "",
    labels: Sequence[str] | None = None,
    problem: Problem = "single_label",
    slices: Sequence[str] = (),
    grow: bool = False,
    known: Sequence[str] = (),
) -> Table:
    """The table in a file (`-` is standard input).

    Columns are known by their usual names, or given: a name, or a number from 1 where there is no header. Those that a
    model was trained on, `known`, are looked for before the usual ones (numbers where there is no header), and there
    must be as many of texts. `labels`
    are the classes there must be, which a file may also call by their numbers from 0; without them the file's own,
    sorted (as numbers where they are). With `grow` others may follow those. `slices` are columns to keep as `groups`.
    Raises LspError (exit 3, or 2 for a column option) naming the line.
    """
    path = str(path)
    columns, rows = _table(path, tuple(text_columns), label_column, labelled=True, known=known)
    if columns is None:
        raise unusable(f"{text.title(path)} is empty.", "Give a file with a row for each example.")
    texts: list[tuple[str, ...]] = []
    found: list[tuple[str, Any]] = []
    groups: dict[str, list[str]] = {name: [] for name in slices}
    for where, row in rows:
        texts.append(columns.read_texts(row, where))
        found.append((where, columns.label_of(row, where)))
        for name, cells in groups.items():
            cells.append(columns.cell(row, name, where))
    if not texts:
        raise unusable(f"{text.title(path)} has a header and no rows.", "Give a file with a row for each example.")
    called = _called(columns.label or 0)
    if problem == "regression":
        numbers = [classes.number(value, f"{where}: {called}") for where, value in found]
        return Table(texts, numbers, (), groups, len(columns.short), columns.called())
    several = problem == "multi_label"
    named = [
        (
            where,
            [classes.name_of(each, f"{where}: {called}") for each in (classes.several(value) if several else [value])],
        )
        for where, value in found
    ]
    own = [each for _, held in named for each in held]
    names = tuple(labels) if labels is not None else classes.names_of(path, own)
    names += tuple(sorted({*own} - {*classes.places(names)})) if grow else ()
    indices = classes.indices(named, names)
    found_labels = indices if several else [index for (index,) in indices]
    return Table(texts, found_labels, names, groups, len(columns.short), columns.called())


def stream(
    path: str, text_columns: Sequence[str] = (), known: Sequence[str] = ()
) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """The texts of a file row by row, and what else a row holds, by the names of columns (numbers from 1 where there is
    no header). Nothing but the current row is held. `known` and errors as `read`."""
    columns, rows = _table(path, tuple(text_columns), "", labelled=False, known=known)
    for where, row in rows:
        assert columns is not None
        yield columns.read_texts(row, where), columns.others(row)


@dataclass(frozen=True)
class _Columns:
    """Where texts and label stand: keys of an object, or indices of a row."""

    texts: tuple[str | int, ...]
    label: str | int | None
    headed: bool  # the first row holds names
    names: tuple[str, ...] = ()  # of all columns that are no objects' keys
    short: list[int] = field(default_factory=list)  # lines that were passed by, once the rows are read

    def read_texts(self, row: Any, where: str) -> tuple[str, ...]:
        return tuple(text.string(_cell(row, name, where), f"{where}: {_called(name)}") for name in self.texts)

    def called(self) -> tuple[str, ...]:
        """The names of the columns of texts."""
        return tuple(self.names[name] if isinstance(name, int) else name for name in self.texts)

    def label_of(self, row: Any, where: str) -> Any:
        """The cell with the label."""
        assert self.label is not None
        return _cell(row, self.label, where)

    def others(self, row: Any) -> dict[str, Any]:
        """What a row holds besides its texts."""
        if isinstance(row, Mapping):
            return {str(name): value for name, value in row.items() if name not in self.texts}
        return {name: row[index] for index, name in enumerate(self.names) if index not in self.texts}

    def cell(self, row: Any, name: str, where: str) -> str:
        """A cell of another column. Raises LspError (exit 2) where there is none."""
        cells = row if isinstance(row, Mapping) else dict(zip(self.names, row, strict=True))
        if name not in cells:
            raise LspError(
                f"{where}: there is no column {name}.{nearest(name, cells)}",
                hint=f"There are: {classes.shown([*cells])}.",
            )
        return str(cells[name])


def _table(
    path: str, texts: tuple[str, ...], label: str, labelled: bool, known: Sequence[str]
) -> tuple[_Columns | None, Iterator[tuple[str, Any]]]:
    """The columns to read and the rows, each with its place for messages. Nothing at all for an empty file."""
    numbered = _rows(path)
    first = next(numbered, None)
    if first is None:
        return None, iter(())
    number, head = first
    columns = _columns(path, head, texts, label, labelled, known)
    if known and len(columns.texts) != len(known):
        kinds = ("", "one text", "pairs of texts")
        raise unusable(
            f"{text.title(path)} gives {kinds[len(columns.texts)]} a row, and the model was trained on "
            f"{kinds[len(known)]}: {', '.join(map(repr, known))}.",
            "Name what it is to read: --text-column NAME, twice for pairs.",
        )

    def rows() -> Iterator[tuple[str, Any]]:
        for line, row in numbered if columns.headed else itertools.chain([first], numbered):
            where = f"{text.title(path)}, line {line}"
            if row == [""] and len(head) > 1:
                continue  # a blank line
            if not isinstance(row, Mapping) and len(row) != len(head):
                if head == RAGGED:
                    columns.short.append(line)
                    continue
                count = f"{len(row)} {'column' if len(row) == 1 else 'columns'}"
                hint = "Every row needs the same columns, also when one is empty."
                raise unusable(f"{where}: {count} where line {number} has {len(head)}.", hint)
            yield where, row

    return columns, rows()


def _columns(
    path: str, head: Any, texts: tuple[str, ...], label: str, labelled: bool, known: Sequence[str]
) -> _Columns:
    """Finds the columns in the first row or object."""
    if len(texts) > 2:
        raise LspError(f"{len(texts)} --text-columns: an example is one text or a pair.", hint="Give two at most.")
    keyed = isinstance(head, Mapping)
    names = [str(name) for name in head]
    header = {name.strip().lower(): name for name in reversed(names)}
    numbers = bool(known) and all(name.isdecimal() for name in known)  # of a file that had no header
    named = bool(known) and not numbers and all(name.strip().lower() in header for name in known)
    # Where a file has no header a class may be called as a column of texts usually is: "question", say.
    first = names[int(label) - 1].strip().lower() if _is_place(label, names) else ""
    usual = tuple(known) if named else _usual_texts({name: name for name in header if name != first})
    if text.kind(path) == ".txt" and not (texts or labelled):  # a text a line, whatever the first one is
        return _Columns((0,), None, False, ("1",))
    if len(names) == 1 and not (keyed or texts or usual or labelled or text.kind(path) == ".csv"):
        return _Columns((0,), None, False, ("1",))
    placed = numbers and all(_is_place(name, names) for name in known)
    if placed and not (labelled or texts) and all(_speaks(names[int(name) - 1]) for name in known):
        usual = ()  # found in a column of labels
    headed = keyed or bool(usual) or any(name and not _is_place(name, names) for name in (*texts, label))
    if placed and not headed:
        usual = tuple(known)
    if labelled and not label and headed:
        label = next((name for name in LABELS if name in header), "")
    for what, found in (("text", texts or usual), ("label", label or not labelled)):
        if not found:
            raise unusable(
                f"{text.title(path)}: which column holds the {what}? Its first line holds: {classes.shown(names)}.",
                f"Give --{what}-column NAME, or --{what}-column N (from 1) where there is no header.",
            )

    def place(name: str, option: str) -> str | int:
        if _is_place(name, names) and not (headed and name in header):
            index = int(name) - 1
        elif name.strip().lower() in header:
            index = names.index(name if name in names else header[name.strip().lower()])
        else:
            raise LspError(
                f"{option} {name}: {text.title(path)} has no such column.{nearest(name, names)}",
                hint=f"Its first line holds: {classes.shown(names)}. Without a header, give its number from 1.",
            )
        return names[index] if keyed else index

    return _Columns(
        tuple(place(name, "--text-column") for name in texts or usual),
        place(label, "--label-column") if labelled else None,
        headed and not keyed,
        tuple(_apart(names) if headed else map(str, range(1, len(names) + 1))),
    )


def _speaks(cell: str) -> bool:
    """Whether a cell is a text and no column's name."""
    name = cell.strip().lower()
    return not re.fullmatch(r"[\w.-]*", name, re.ASCII) and not any(name in pair for pair in PAIRS)


def _is_place(name: str, names: Sequence[str]) -> bool:
    """Whether it is the number of one of so many columns, from 1."""
    return bool(re.fullmatch("[0-9]{1,9}", name)) and 1 <= int(name) <= len(names)


def _apart(names: Sequence[str]) -> list[str]:
    """The names, with a number behind one that was there before: `id`, `id.2`."""
    seen: Counter[str] = Counter()
    told = []
    for name in names:
        seen[name] += 1
        told.append(name if seen[name] == 1 else f"{name}.{seen[name]}")
    return told


def _usual_texts(header: Mapping[str, str]) -> tuple[str, ...]:
    pair = next((pair for pair in PAIRS if all(name in header for name in pair)), None)
    return pair or next(((name,) for name in TEXTS if name in header), ())


def _rows(path: str) -> Iterator[tuple[int, Any]]:
    """Lines with their numbers, cut into fields (or an object's keys and values)."""
    numbered: Iterator[tuple[int, str]] = text.lines(path)
    first = next(numbered, None)
    if first is None:
        return iter(())
    numbered = itertools.chain([first], numbered)
    kind = text.kind(path)
    if kind == ".csv":
        return _csv(path, numbered)
    if kind not in (".tsv", ".txt", ".csv") and (first[1].strip() == "[" or re.match(r"\s*\[\s*\{", first[1])):
        raise unusable(
            f"{text.title(path)} begins with a list.", "Give a file with a JSON object a line: jq -c '.[]' FILE"
        )
    if kind == ".jsonl" or (kind not in (".tsv", ".txt") and first[1].lstrip().startswith("{")):
        return text.records(path, numbered)
    if kind == ".txt":
        return ((number, [line]) for number, line in numbered)
    if kind != ".tsv" and _csv_header(first[1]):
        return _csv(path, numbered)
    return ((number, line.split("\t")) for number, line in numbered)


def _csv_header(line: str) -> bool:
    """Whether a line names columns with commas between, one of them as a column of texts usually is."""
    cells = [cell.strip().strip('"').lower() for cell in line.split(",")]
    return len(cells) > 1 and "\t" not in line and bool(_usual_texts(dict.fromkeys(cells, "")))


def _csv(path: str, numbered: Iterable[tuple[int, str]]) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(LONGEST_CELL)
    reader = csv.reader((line + "\n" for _, line in numbered), strict=True)
    while True:
        number = reader.line_num + 1  # where the record begins; quoted cells may hold newlines
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise unusable(
                f"{text.title(path)}, line {number}: not CSV ({error}).",
                "Quote cells that hold commas, quotes or newlines.",
            ) from None
        if row:
            yield number, row


def _called(name: str | int) -> str:
    return f"column {name + 1}" if isinstance(name, int) else f"field '{name}'"


def _cell(row: Any, name: str | int, where: str) -> Any:
    if isinstance(row, Mapping) and name not in row:
        raise unusable(
            f"{where}: no field '{name}'.{nearest(str(name), row)}", f"Fields there: {', '.join(row) or 'none'}."
        )
    return row[name]
