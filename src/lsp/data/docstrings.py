"""A corpus and a classification task from the documentation that every Python installation carries.

Docstrings are found by parsing source files; nothing is imported, so nothing runs. The task is to say which package a
docstring was written in. Its name would give that away, so the names of all classes (and the aliases `np`, `jnp`) are
replaced with the word "this" in the labelled texts; code, signatures and section headings, which betray a package by
its layout, are dropped everywhere.

The split is by module: all docstrings of a file are in one part. The same installation always gives the same harvest.
"""

import ast
import hashlib
import inspect
import os
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lsp import SETUP, Exit, LspError

STANDARD_LIBRARY = "python"
CLASSES = 8
# The standard library and what lsp itself depends on, so that the task is about the same on every machine. The first
# eight have most docstrings; the others stand in for one that is missing.
PREFERRED = (
    *(STANDARD_LIBRARY, "numpy", "scipy", "jax", "flax", "orbax", "huggingface_hub", "pygments"),
    *("rich", "optax", "grain", "google"),
)
ALIASES = {"numpy": ("np",), "jax": ("jnp",), "huggingface_hub": ("huggingface", "hugging face")}
FEWEST = 300  # a package with fewer docstrings is no class: it would shrink all the others
MOST = 1200  # examples of a class; more would only make the demo slower
DEV_SHARE = 5  # one docstring in five is held out

SHORTEST = 40  # characters; below that a docstring is a label rather than a sentence
LONGEST_EXAMPLE = 300  # characters; longer ones are cut at a word
LONGEST_DOCUMENT = 10_000
LARGEST_FILE = 500_000  # bytes; larger ones are tables and generated code
LARGEST_SOURCE = 60_000_000  # bytes of source in all: about ten seconds, however much is installed
SKIPPED_FOLDERS = {"__pycache__", "site-packages", "dist-packages", "test", "tests", "testing", "_vendor", "lib2to3"}

CALL = re.compile(r"[\w.]+\(.*\)(\s*->.*)?")  # a signature in words: `zeros(shape, dtype=float) -> array`
TYPED = re.compile(r"\*{0,2}[\w., *]+ ?:( .*)?")  # `x, y : array_like`, when an indented explanation follows
RULE = re.compile(r"[-=~^*#`_+.]{3,}")
OWNER = re.compile(r":(copyright|license|authors?):.*")
HEADINGS = {  # without a rule under them, as Google's style has them
    *("args", "arguments", "parameters", "returns", "return", "yields", "raises", "attributes", "methods"),
    *("see also", "notes", "note", "references", "examples", "example", "usage", "warnings"),
}


@dataclass(frozen=True)
class Docstring:
    package: str
    file: str  # relative to the folder that was searched, with the package first: "numpy/linalg/_linalg.py"
    text: str  # one line of plain text, at most LONGEST_DOCUMENT characters


@dataclass(frozen=True)
class Harvest:
    """Texts to pretrain on (none of them from a dev file) and the labelled task."""

    corpus: list[str]
    train: list[tuple[str, str]]  # text, package
    dev: list[tuple[str, str]]
    packages: list[str]  # the classes
    files: int  # files that were read
    dev_files: list[str] = field(default_factory=list)


def harvest(standard_library: Path | None = None, site_packages: Sequence[Path] | None = None) -> Harvest:
    """Docstrings of this installation, or of the folders given. Raises LspError (exit 3) when fewer than two
    packages have enough of them."""
    files = affordable(sources(standard_library, site_packages))
    found = distinct(read for package, file, path in files for read in docstrings(package, file, path))
    packages = choose(found)
    dev_files = {file for package in packages for file in held_out([d for d in found if d.package == package])}
    train: dict[str, list[Docstring]] = {package: [] for package in packages}
    dev: dict[str, list[Docstring]] = {package: [] for package in packages}
    for docstring in found:
        if docstring.package in train:
            (dev if docstring.file in dev_files else train)[docstring.package].append(docstring)
    return Harvest(
        corpus=[d.text for d in found if d.file not in dev_files],
        train=balanced(train, MOST, packages),
        dev=balanced(dev, MOST // DEV_SHARE, packages),
        packages=packages,
        files=len(files),
        dev_files=sorted(dev_files),
    )


def sources(standard_library: Path | None, site_packages: Sequence[Path] | None) -> Iterator[tuple[str, str, Path]]:
    """(package, name of the file, path) of every Python file; a top-level folder of site-packages is a package."""
    if standard_library is None:
        standard_library = Path(sysconfig.get_paths()["stdlib"])
    if site_packages is None:
        folders = [sysconfig.get_paths()["purelib"], sysconfig.get_paths()["platlib"]]
        folders += [folder for folder in sys.path if folder.endswith(("site-packages", "dist-packages"))]
        site_packages = [Path(folder) for folder in dict.fromkeys(folders)]
    for path in python_files(standard_library):
        yield STANDARD_LIBRARY, f"{STANDARD_LIBRARY}/{path.relative_to(standard_library).as_posix()}", path
    for folder in site_packages:
        for path in python_files(folder):
            name = path.relative_to(folder)
            package = name.parts[0].removesuffix(".py")
            if package != "lsp":  # it is there or not, depending on how lsp was installed
                yield package, name.as_posix(), path


def affordable(files: Iterable[tuple[str, str, Path]]) -> list[tuple[str, str, Path]]:
    """Preferred packages, then the others by name, until LARGEST_SOURCE is reached; too large files are left out."""
    rank = {package: position for position, package in enumerate(PREFERRED)}
    chosen, left = [], LARGEST_SOURCE
    for package, file, path in sorted(files, key=lambda entry: (rank.get(entry[0], len(rank)), entry[1])):
        size = path.stat().st_size if path.is_file() else 0  # a broken link is no file
        if 0 < size <= min(left, LARGEST_FILE):
            chosen.append((package, file, path))
            left -= size
    return chosen


def python_files(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in SKIPPED_FOLDERS and not name.startswith("config-")]
        for name in names:
            if name.endswith(".py") and not name.startswith("test_") and not name.endswith("_test.py"):
                yield Path(parent, name)


def docstrings(package: str, file: str, path: Path) -> Iterator[Docstring]:
    """The cleaned docstrings of a file; none when it can't be read or isn't Python of this version."""
    try:
        source = path.read_bytes()
    except OSError:
        return
    if b'"""' not in source and b"'''" not in source:  # parsing is what takes the time
        return
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other people's invalid escapes
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    for node in definitions(tree):
        text = clean(ast.get_docstring(node, clean=False) or "")
        if len(text) >= SHORTEST:
            yield Docstring(package, file, text)


def definitions(tree: ast.Module) -> Iterator[ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef]:
    """The module, its classes and functions, in the order of the file; expressions are not visited."""
    statements: list[ast.AST] = [tree]
    while statements:
        node = statements.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node
        inside = [child for name in ("body", "handlers", "orelse", "finalbody") for child in getattr(node, name, ())]
        blocks = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef, ast.If, ast.Try, ast.ExceptHandler, ast.With)
        statements += [child for child in reversed(inside) if isinstance(child, blocks)]


def clean(docstring: str) -> str:
    """The prose of a docstring on one line: no doctests, code blocks, signatures, headings or rules."""
    lines = inspect.cleandoc(docstring).split("\n")
    kept: list[str] = []
    block = -1  # inside an indented block that began under a line of this indentation
    fenced = doctest = False
    for position, line in enumerate(lines):
        text = line.strip()
        indent = len(line) - len(line.lstrip())
        if text.startswith("```"):
            fenced = not fenced
            continue
        doctest = text.startswith((">>>", "In [")) or (doctest and bool(text))
        if text and indent <= block:
            block = -1
        if not text or fenced or doctest or block >= 0 or text.startswith(".. "):
            block = indent if text.endswith("::") and block < 0 and not fenced else block
            continue
        if text.endswith("::"):  # "as follows::" is prose, what it announces is code
            block, text = indent, text[:-1]
        following = lines[position + 1] if position + 1 < len(lines) else ""
        explained = bool(following.strip()) and len(following) - len(following.lstrip()) > indent
        heading = text.rstrip(":").lower() in HEADINGS or RULE.fullmatch(following.strip())
        signature = CALL.fullmatch(text) or (explained and TYPED.fullmatch(text))
        if not (heading or signature or RULE.fullmatch(text) or OWNER.fullmatch(text)):
            kept.append(text)
    prose = " ".join(kept)
    if not prose.isprintable():  # tabs, control characters, lone surrogates that no file could hold
        prose = "".join(c if c.isprintable() else " " for c in prose)
    return shorten(" ".join(prose.split()), LONGEST_DOCUMENT)


def shorten(text: str, longest: int) -> str:
    """`text`, cut after a word when it has more than `longest` characters."""
    return text if len(text) <= longest else text[: longest + 1].rpartition(" ")[0] or text[:longest]


def distinct(found: Iterable[Docstring]) -> list[Docstring]:
    """The first of equal texts, whatever their case; spaces are already folded."""
    first: dict[str, Docstring] = {}
    for docstring in found:
        first.setdefault(docstring.text.casefold(), docstring)
    return list(first.values())


def choose(found: Sequence[Docstring]) -> list[str]:
    """The classes: preferred packages that have FEWEST docstrings, then the packages with most, CLASSES in all."""
    counts: dict[str, int] = {}
    for docstring in found:
        counts[docstring.package] = counts.get(docstring.package, 0) + 1
    others = sorted(counts.keys() - set(PREFERRED), key=lambda name: (-counts[name], name))
    chosen = [name for name in (*PREFERRED, *others) if counts.get(name, 0) >= FEWEST][:CLASSES]
    if len(chosen) < 2:
        raise LspError(
            f"This Python has {len(found)} docstrings in {len(counts)} packages; "
            f"the demo needs two packages with {FEWEST} each.",
            hint=f"Set lsp up again: {SETUP}",
            code=Exit.DATA,
        )
    return chosen


def held_out(of_package: Sequence[Docstring]) -> set[str]:
    """Files with about one docstring in DEV_SHARE of a package's, taken in the order of a hash of their names."""
    sizes: dict[str, int] = {}
    for docstring in of_package:
        sizes[docstring.file] = sizes.get(docstring.file, 0) + 1
    wanted = len(of_package) // DEV_SHARE
    dev: set[str] = set()
    for file in sorted(sizes, key=order):
        if sizes[file] <= wanted:  # a file larger than what is left would empty the train part
            dev.add(file)
            wanted -= sizes[file]
    return dev


def balanced(parts: dict[str, list[Docstring]], most: int, packages: Sequence[str]) -> list[tuple[str, str]]:
    """As many (text, package) of each package, spread over its files, in a fixed mixed order."""
    hidden = names_of(packages)
    labelled: dict[str, dict[str, str]] = {}
    for package, docs in parts.items():
        texts = sorted((shorten(hidden.sub("this", d.text), LONGEST_EXAMPLE) for d in docs), key=order)
        labelled[package] = {text.casefold(): text for text in texts if len(text) >= SHORTEST}
    size = min(most, *(len(texts) for texts in labelled.values()))
    pairs = [(text, package) for package, texts in labelled.items() for text in list(texts.values())[:size]]
    return sorted(pairs, key=lambda pair: order(pair[0] + pair[1]))


def names_of(packages: Sequence[str]) -> re.Pattern[str]:
    """Matches the packages' names and aliases as whole words; an underscore ends a word, as in `jax_array`."""
    names = [name for package in packages for name in (package, *ALIASES.get(package, ()))]
    longest_first = sorted(names, key=len, reverse=True)
    return re.compile(rf"(?<![^\W_])(?:{'|'.join(map(re.escape, longest_first))})(?![^\W_])", re.IGNORECASE)


def order(name: str) -> bytes:
    """A key that mixes an order the same way everywhere; `hash` differs from one process to the next."""
    return hashlib.sha256(name.encode()).digest()
