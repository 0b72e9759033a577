"""Recipes from TOML and `key=value` changes, and as TOML again."""

import dataclasses
import json
import math
import tomllib
import types
import typing
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from lsp import LspError, nearest
from lsp.recipe.stages import LARGEST, LARGEST_SEED, LIMITS, Stage


def load(
    stage: type[Stage],
    path: Path | None = None,
    changes: Sequence[str] = (),
    defaults: Stage | None = None,
    option: str = "--set",
) -> Stage:
    """The stage's recipe: `defaults` (else its own), then the file, then `key=value` changes, given by `option`. Raises
    LspError (exit 2)."""
    table: dict[str, Any] = {}
    if path is not None:
        try:
            table = _table(path.read_bytes().decode("utf-8-sig"))
        except OSError as error:
            raise LspError(
                f"The recipe {path} can't be read: {error.strerror}.", hint="See recipes/ for examples."
            ) from None
        except ValueError as error:
            raise LspError(
                f"The recipe {path} is not TOML: {error}.", hint="A recipe has [sections] and key = value lines."
            ) from None
    recipe, known = defaults or stage(), [name for name, *_ in keys(stage)]
    recipe = _replace(recipe, table, str(path), "", known)
    for change in changes:
        dotted, equals, text = change.partition("=")
        if not equals:
            raise LspError(
                f"{option} {change} has no '='.", hint=f"Write --set {change}=VALUE, as in --set train.steps=100."
            )
        nested: Any = _value(text, f"{option} {dotted}")
        for part in reversed(dotted.strip().split(".")):
            nested = {part: nested}
        recipe = _replace(recipe, nested, option, "", known)
    return recipe


def dump(recipe: Any) -> str:
    """The recipe as TOML, every value said."""
    lines: list[str] = []
    for section, value in _sections(recipe):
        lines += ["", f"[{section}]"] if section else []
        lines += [f"{name} = {_toml(item)}" for name, item in value]
    return "\n".join(lines).lstrip("\n") + "\n"


def keys(stage: type) -> Iterator[tuple[str, str, Any, str]]:
    """Every key of a stage: dotted name, type, default, help."""

    def walk(cls: type, value: Any, prefix: str) -> Iterator[tuple[str, str, Any, str]]:
        hints = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            default = getattr(value, field.name)
            if dataclasses.is_dataclass(hints[field.name]):
                yield from walk(hints[field.name], default, f"{prefix}{field.name}.")
            else:
                yield prefix + field.name, _type_name(hints[field.name]), default, field.metadata["help"]

    return walk(stage, stage(), "")


def differences(old: str, new: str) -> list[str]:
    """`train.steps: 100 → 200` for each key in which two dumped recipes differ."""

    def flat(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        rows: dict[str, Any] = {}
        for name, value in table.items():
            rows |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
        return rows

    before, after = flat(tomllib.loads(old)), flat(tomllib.loads(new))
    names = dict.fromkeys([*before, *after])
    return [
        f"{name}: {before.get(name, '(none)')} → {after.get(name, '(none)')}"
        for name in names
        if before.get(name) != after.get(name)
    ]


def _replace(recipe: Any, table: dict[str, Any], source: str, prefix: str, known: Sequence[str]) -> Any:
    hints = typing.get_type_hints(type(recipe))
    changed: dict[str, Any] = {}
    for name, value in table.items():
        if name not in hints:
            anywhere = {k.rpartition(".")[2]: k for k in reversed(known)}
            whole = anywhere.__getitem__
            close = nearest(name, anywhere.keys() & {name}, whole) or nearest(name, hints, lambda key: prefix + key)
            close = close or nearest(name, anywhere, whole)
            raise LspError(
                f"{source}: unknown key '{prefix}{name}'.{close}",
                hint=f"Keys here: {', '.join(prefix + k for k in hints)}.",
            )
        if dataclasses.is_dataclass(hints[name]):
            if not isinstance(value, dict):
                raise LspError(
                    f"{source}: '{prefix}{name}' is a section, not a value.",
                    hint=f"Its keys: {', '.join(f'{prefix}{name}.{f.name}' for f in dataclasses.fields(hints[name]))}.",
                )
            changed[name] = _replace(getattr(recipe, name), value, source, f"{prefix}{name}.", known)
        else:
            changed[name] = _checked(hints[name], value, f"{source}: '{prefix}{name}'", name)
    return dataclasses.replace(recipe, **changed)


def _checked(hint: Any, value: Any, where: str, name: str) -> Any:
    if typing.get_origin(hint) is Literal:
        choices = typing.get_args(hint)
        if value not in choices or not isinstance(value, str):
            named = ", ".join(filter(None, choices))  # nothing at all needs no name
            raise LspError(f"{where} is {value!r}, which is not one of {named}.{nearest(str(value), choices)}")
        return value
    if hint is float and type(value) is int:
        value = float(value) if abs(value) < 1 << 1000 else math.inf
    if type(value) is not hint:
        raise LspError(f"{where} must be {_type_name(hint)}, not {value!r}.")
    for names, holds, wanted in LIMITS:
        if name in names and not holds(value):
            raise LspError(f"{where} is {value!r}; it must be {wanted}.")
    largest = LARGEST_SEED if name == "seed" else LARGEST
    if hint is int and value > largest:
        raise LspError(f"{where} is {value!r}; it must be at most {largest:,}.")
    if hint is float and not math.isfinite(value):
        raise LspError(f"{where} is {value!r}; it must be finite.")
    return value


def _table(text: str) -> dict[str, Any]:
    """TOML as a table. Raises ValueError: TOMLDecodeError where it is none, a plain one for what is too much of it."""
    try:
        table = tomllib.loads(text)
        repr(table)  # messages and dumps print values, and Python prints no number of more than 4,300 digits
    except tomllib.TOMLDecodeError:
        raise
    except ValueError:
        raise ValueError("a number in it has thousands of digits") from None
    except RecursionError:
        raise ValueError("lists or tables in it are nested too deeply") from None
    return table


def _value(text: str, where: str) -> Any:
    """What TOML would read, else the bare word: `--set model.preset=bert` needs no quotes."""
    try:
        return _table(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text
    except ValueError as error:
        raise LspError(f"{where} has no usable value: {error}.", hint="Give one number or word.") from None


def _sections(recipe: Any) -> Iterator[tuple[str, list[tuple[str, Any]]]]:
    values = [(f.name, getattr(recipe, f.name)) for f in dataclasses.fields(recipe)]
    plain = [(name, value) for name, value in values if not dataclasses.is_dataclass(value)]
    if plain:
        yield "", plain
    for name, value in values:
        if dataclasses.is_dataclass(value):
            yield name, [(f.name, getattr(value, f.name)) for f in dataclasses.fields(value)]


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")  # what JSON escapes TOML does
    return repr(value)


def _type_name(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return " or ".join(f'"{choice}"' for choice in typing.get_args(hint))
    if isinstance(hint, types.UnionType):
        return " or ".join(_type_name(part) for part in typing.get_args(hint))
    return {int: "a whole number", float: "a number", bool: "true or false", str: "text"}[hint]
