"""Imports point one way: cli → commands → compress, deploy → train → checkpoint → model, data → recipe."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src" / "lsp"
FILES = sorted(path for path in SOURCE.rglob("*.py") if path.name != "__init__.py")
# A room may import itself and the rooms of lower levels. All else is of the lowest level.
LEVELS = (
    {"model", "data"},
    {"arrays"},
    {"checkpoint", "steps"},
    {"train"},
    {"compress", "deploy"},
    {"commands"},
    {"cli"},
    {"__main__"},
)
FRONT = {"console", "arguments", "failures"}  # for the front door and, of these, console for the commands
BARE = (
    *("cli/__init__.py", "data/text.py", "data/tokenizer.py", "data/shards.py", "data/tasks.py"),
    *("recipe/stages.py", "recipe/reading.py", "directory.py"),
)


def imports(path: Path, top_only: bool = False) -> Iterator[str]:
    """Every module a file imports, dotted: `from lsp.data import text` gives `lsp.data.text`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in tree.body if top_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: write imports in full"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def room(module: str) -> str:
    """`lsp.data.text` → `data`; a name from `lsp` itself, such as `lsp.LspError`, → `lsp`."""
    name = module.split(".")[1] if "." in module else ""
    return name if name and ((SOURCE / name).is_dir() or (SOURCE / f"{name}.py").exists()) else "lsp"


def level(name: str) -> int:
    return next((number for number, rooms in enumerate(LEVELS, 1) if name in rooms), 0)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_down(path: Path) -> None:
    here = path.relative_to(SOURCE).parts[0].removesuffix(".py")
    for module in imports(path):
        if module.split(".")[0] != "lsp":
            continue
        there = room(module)
        if there in FRONT or here in FRONT:
            allowed = here == "cli" or (here, there) in {("commands", "console"), ("failures", "console")}
            assert allowed or (here in FRONT and there not in FRONT and level(there) == 0), f"{here} imports {module}"
        elif there != here:
            assert level(there) < level(here) or level(here) == 0 == level(there), f"{here} imports {module}"


def test_commands_do_not_import_each_other() -> None:
    for path in (SOURCE / "commands").glob("*.py"):
        if path.stem != "demo":
            assert not [module for module in imports(path) if module.startswith("lsp.commands")], path


@pytest.mark.parametrize("name", BARE)
def test_data_can_be_prepared_without_jax(name: str) -> None:
    """Not even through what they import: the closure over our own modules is walked."""
    seen: set[Path] = set()
    waiting = [SOURCE / name]
    while waiting:
        path = waiting.pop()
        if path in seen or not path.exists():
            continue
        seen.add(path)
        for module in imports(path, top_only=name.startswith("cli")):
            assert module.split(".")[0] not in {"jax", "grain", "flax", "optax", "orbax"}, f"{path} imports {module}"
            if module.startswith("lsp."):
                parts = module.split(".")[1:]
                waiting += [SOURCE.joinpath(*parts).with_suffix(".py"), SOURCE.joinpath(*parts[:-1]).with_suffix(".py")]


def test_only_arrays_imports_orbax() -> None:
    for path in FILES:
        if any(module.split(".")[0] == "orbax" for module in imports(path)):
            assert path.name == "arrays.py"
