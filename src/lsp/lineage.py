"""What a run came from: its parents, theirs and so on, as far as their folders are found. Standard library only.

A run names its parents by the hashes of their manifests, not by where they are: so a folder that moved is still the
parent, and one of the same name that was made again is not.
"""

import json
import math
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lsp import Exit, LspError, curves, manifest, recipe

# Inputs in `run.json` that a command line has too, in this order, after options of their names (but for raw text).
OPTIONS = (
    *("from", "teacher", "augmenter", "data", "valid", "tokenizer", "text", "train", "dev", "old", "old_dev"),
    *("format", "runtime"),
)


@dataclass(frozen=True)
class Stage:
    """A finished run, its small files confirmed by its manifest. `parents` are hashes of runs and prepared data."""

    path: Path
    manifest: dict[str, Any]
    asked: dict[str, Any]
    result: dict[str, Any]
    parents: tuple[str, ...]

    @property
    def identity(self) -> str:
        return manifest.identity(self.manifest)

    @property
    def recipe(self) -> str:
        """As `recipe.toml` has it; empty of a stage that has none."""
        return str(self.asked.get("recipe", ""))

    def file(self, name: str) -> bytes | None:
        """A small file of the run, or None where it has no such, or one that is too large to be read at once. Raises
        LspError (exit 4) for a damaged one."""
        size = self.manifest["files"].get(name, {}).get("size", math.inf)
        return manifest.confirmed(self.path, self.manifest, name) if size <= manifest.MANIFEST_LIMIT else None


def opened(path: Path) -> Stage:
    """The stage at `path`. Raises LspError (exit 4) if that is no finished run, or is damaged."""
    found = manifest.read(path, verify=False)
    asked, result = (_object(path, found, name) for name in ("run.json", "result.json"))
    inputs = asked.get("inputs", {})
    data = [inputs["data"]] if inputs.get("data") else []  # prepared data is an input, and its hash that of a manifest
    return Stage(path, found, asked, result, tuple(dict.fromkeys([*data, *found.get("parents", [])])))


def traced(runs: Sequence[Path], places: Sequence[Path]) -> list[Stage]:
    """The runs and all they came from that is beside them, or in one of the `places`; parents before children.

    Raises LspError (exit 4) for a damaged run or parent.
    """
    known: dict[str, Path] = {}
    looked: set[Path] = set()
    found: dict[str, Stage] = {}

    def look(folder: Path) -> None:
        if folder not in looked:
            looked.add(folder)
            known.update({identity: path for identity, path in _runs_in(folder) if identity not in known})

    def add(stage: Stage) -> None:
        if stage.identity in found:
            return
        look(stage.path.absolute().parent)
        for parent in stage.parents:
            if parent in known:
                add(opened(known[parent]))
        found[stage.identity] = stage

    stages = [opened(path) for path in runs]
    known.update({stage.identity: stage.path for stage in stages})
    for place in places:
        look(place.absolute())
    for stage in stages:
        add(stage)
    return list(found.values())


def names(stages: Sequence[Stage]) -> dict[str, str]:
    """What to call each stage, by its hash: the name of its folder, and as much before it as tells them apart."""
    shown = curves.names([stage.path.resolve() for stage in stages])
    return {stage.identity: name for stage, name in zip(stages, shown, strict=True)}


def missing(stage: Stage, known: dict[str, str]) -> list[str]:
    """Hashes of the parents that were not found. Raw text and published checkpoints are no runs, and not looked for."""
    named = stage.manifest.get("parents", []) if stage.manifest.get("stage") != "import" else []
    return [parent for parent in named if parent not in known]


def changed(stage: Stage) -> list[str]:
    """`train.steps: 1000 → 40` for each key of the recipe that is not the default of its command."""
    word = str(stage.asked.get("command", "")).rpartition(" ")[2]
    kind = next((each for each in recipe.STAGES if each.__name__.lower() == word), None)
    if kind is None or not stage.recipe:
        return []
    return recipe.differences(recipe.dump(kind()), stage.recipe)


def again(stage: Stage, known: dict[str, str]) -> list[str]:
    """The command that makes a stage again, as lines of a shell script, with the hash of each file that is an input: a
    run does not record where its inputs were. Budgets, columns and goals are not recorded either."""
    name, command = known[stage.identity], str(stage.asked.get("command", ""))
    words, notes = [f"lsp {command}"], []
    inputs = stage.asked.get("inputs", {})
    for key, value in ((key, inputs[key]) for key in OPTIONS if inputs.get(key)):
        given = known.get(value, key.upper() if len(value) == 64 else value)
        if given == key.upper():
            notes.append(f"# {given}: {value}")
        if (command, key) == ("compress prune", "teacher"):  # only a search gives one
            notes.append(f"# It learnt to answer as {given} does: make the search again.")
            continue
        option = "" if key == "text" or command == "import" else f"--{key.replace('_', '-')}"
        words.append(f"{option} {shlex.quote(given)}".strip())
    if stage.recipe:
        own = "chain.toml" if "chain.toml" in stage.manifest["files"] else "recipe.toml"
        words.append(f"--recipe {shlex.quote(f'{name}/{own}')}")
    return [*notes, " \\\n    ".join([*words, f"--out {shlex.quote(f'{name}-again')}"])]


def _runs_in(folder: Path) -> Iterator[tuple[str, Path]]:
    """(hash, path) of each finished run in a folder, and of the folder itself if it is one; damaged ones, and what is
    not ours to read, are passed by: nobody asked for them."""
    if not folder.is_dir():
        return
    for path in [folder, *_listed(folder)]:
        try:
            if path.is_dir() and (path / "manifest.json").is_file():
                yield manifest.identity(manifest.load(path)), path
        except (LspError, OSError):
            continue


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def _object(path: Path, found: dict[str, Any], name: str) -> dict[str, Any]:
    """A JSON object of a run's, confirmed; empty where an older lsp wrote none."""
    if name not in found["files"]:
        return {}
    try:
        value = json.loads(manifest.confirmed(path, found, name))
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise LspError(f"{path / name} is no JSON object.", hint="Run the stage again.", code=Exit.ARTIFACT)
    return value
