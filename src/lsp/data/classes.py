"""Classes by their names, as labelled files spell them."""

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from lsp import nearest
from lsp.data import text
from lsp.data.files import unusable

MOST = 1000  # more is a column of something else
LARGEST = 3.4028234663852886e38  # number that float32 holds


def name_of(value: Any, where: str) -> str:
    """A label as its name: 1, 1.0 and +1 are "1", of a record as in a table's cell, and true is "true"."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        fix = "Give one class for each example, or finetune with --set head.problem=multi_label."
        raise unusable(f"{where} holds a list of labels.", fix)
    there = isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))
    name = str(value).strip() if there else ""
    if not name:
        raise unusable(f"{where} holds no label.", "Every row needs the name or number of its class.")
    return _spelled(text.string(name, where))


def _spelled(name: str) -> str:
    """A whole number in the usual way, as a column of them is written with and without an empty cell; 007 is a name."""
    whole = re.fullmatch(r"([+-]?(?:0|[1-9][0-9]{0,30}))(?:\.0*)?", name)
    return str(int(whole[1])) if whole else name


def _is_number(name: str) -> bool:
    return bool(re.fullmatch(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)", name))


def names_of(path: str, found: list[str]) -> tuple[str, ...]:
    """The classes among the labels found, sorted (as numbers where they are). Raises LspError (exit 3)."""
    counts = Counter(found)
    if not counts:
        raise unusable(f"{text.title(path)} holds no label at all.", "Name another --label-column.")
    if len(counts) == 1:
        raise unusable(
            f"{text.title(path)} holds one class only ({next(iter(counts))!r}, {len(found)} rows).",
            "Give examples of two classes or more, or name another --label-column.",
        )
    if len(counts) > MOST:
        raise unusable(
            f"{text.title(path)} holds {len(counts)} different labels in {len(found)} rows; those are no classes.",
            "Name another --label-column.",
        )
    return tuple(sorted(counts, key=float) if all(map(_is_number, counts)) else sorted(counts))


def several(value: Any) -> list[Any]:
    """The names in a cell: a list of a record's, or with commas between. None is no label at all."""
    if value is None:
        return []
    if isinstance(value, str):
        return [part for part in value.split(",") if part.strip()]
    return value if isinstance(value, list) else [value]


def number(value: Any, where: str) -> float:
    """A label of a regression. Raises LspError (exit 3)."""
    try:
        found = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not abs(found) <= LARGEST:
        raise unusable(
            f"{where} is {str(value)[:40]!r}, not a number that float32 holds.",
            "With head.problem = regression labels are numbers.",
        )
    return found


def places(names: tuple[str, ...]) -> dict[str, int]:
    """The place of each class, by its name; where none is called by a number, by its number too."""
    found = {_spelled(name): place for place, name in enumerate(names)}
    found |= {name: place for place, name in enumerate(names)}
    if not any(map(_is_number, names)):
        found |= {str(place): place for place in range(len(names))}
    return found


def indices(found: list[tuple[str, list[str]]], names: tuple[str, ...]) -> list[list[int]]:
    """The places of what was found in a row each. Raises LspError (exit 3) for a class that is none of `names`."""
    index = places(names)
    for where, held in found:
        for name in held:
            if name not in index:
                message = f"{where}: label {name!r} is unknown.{nearest(name, names)}"
                raise unusable(message, f"The labels are: {shown(names)}.")
    return [[index[name] for name in held] for _, held in found]


def shown(names: Sequence[str]) -> str:
    """The first names, cut to what fits in a sentence."""
    first = [repr(name if len(name) <= 30 else name[:29] + "…") for name in names[:10]]
    return ", ".join(first) + (f", … ({len(names)} in all)" if len(names) > 10 else "")
