"""Files of text: which ones are meant, how one is opened and decompressed, and what makes a corpus the same corpus.

    arguments ──sources──▶ weighted sources ──expand──▶ files ──opened, decompressed──▶ bytes

Paths with `://` in them are opened by fsspec. Everything is a stream: memory does not grow with a file.
"""

import errno
import glob
import gzip
import hashlib
import io
import json
import lzma
import math
import os
import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from lsp import Exit, LspError, lacking, nearest
from lsp.data import remote

KINDS = (".txt", ".jsonl", ".parquet")  # what a folder is searched for
COMPRESSED = (".gz", ".xz", ".zst")
STDIN = "-"
FEED = 4096  # bytes of zstd taken at once: even of a bomb they become 128 MB at most
READ = (
    "Text is read from .txt, .jsonl and .parquet files, also .gz, .xz and .zst, from datasets saved to disk, from "
    "folders, globs, addresses such as gs://BUCKET/FOLDER, and - (stdin)."
)
WEIGHTED = re.compile(r"([\w.-]+)=([^:/]*):(.+)", re.DOTALL)

# Kinds of file that people pass by mistake, by their first bytes, and what to type instead.
FOREIGN = {
    b"PAR1": ("a Parquet file, which is read as raw text only", "Write it as JSON lines, one object a line."),
    b"PK\x03\x04": ("a zip archive", "Unpack it: unzip {path}"),
    b"BZh": ("bzip2-compressed, which lsp does not read", "Unpack it: bunzip2 {path}"),
    b"%PDF": ("a PDF", "Extract its text: pdftotext {path}"),
    b"\xff\xff\xff\xff": ("an Arrow file, which is read as raw text only", "Write it as JSON lines."),
    b"ARROW1": ("an Arrow file, which is read as raw text only", "Write it as JSON lines."),
    b"\xff\xfe": ("UTF-16, not UTF-8", "Convert it: iconv -f UTF-16 -t UTF-8 {path} > {path}.utf8.txt"),
    b"\xfe\xff": ("UTF-16, not UTF-8", "Convert it: iconv -f UTF-16 -t UTF-8 {path} > {path}.utf8.txt"),
}
PACKED = (b"\x1f\x8b", b"\xfd7zXZ\x00", b"\x28\xb5\x2f\xfd")  # gzip, xz, zstd
TABLES = (b"PAR1", b"ARROW1", b"\xff\xff\xff\xff")  # Parquet, and Arrow's file and stream


class Source(NamedTuple):
    """Text of one kind: its `weight` is the share of an epoch that it fills. Unweighted text is one source, unnamed."""

    name: str
    weight: float
    paths: tuple[str, ...]


def sources(arguments: Sequence[str]) -> list[Source]:
    """`NAME=WEIGHT:PATH` arguments as sources, weights made to add up to 1; plain paths as one source together.

    Raises LspError (exit 2) for a weight that is none, a name given twice, and weighted and plain paths side by side.
    """
    found: dict[str, Source] = {}
    plain = []
    for argument in arguments:
        match = None if os.path.lexists(argument) else WEIGHTED.fullmatch(argument)
        if not match:
            if re.fullmatch(r"[\w.-]+=[-+.\deE]*:?", argument) and not os.path.lexists(argument):
                raise LspError(f"{argument} names no path.", hint="Write NAME=WEIGHT:PATH, as in news=0.7:news/.")
            plain.append(argument)
            continue
        name, weight, path = match.groups()
        if name in found:
            raise LspError(
                f"The source {name} is given twice.",
                hint="Give each its own name; a folder or a glob makes one source of many files.",
            )
        found[name] = Source(name, _weight(name, weight), (path,))
    if found and plain:
        raise LspError(
            f"{plain[0]} has no weight, and {next(iter(found))} has one.",
            hint=f"Weigh all of them or none, as in other=0.5:{plain[0]}.",
        )
    if not found:
        return [Source("", 1.0, tuple(plain))]
    total = sum(source.weight for source in found.values())
    return [source._replace(weight=source.weight / total) for source in found.values()]


def expand(paths: Sequence[str]) -> list[str]:
    """The files meant by files, folders (searched to the bottom), globs and `-`: each once, folders and globs sorted.

    Raises LspError (exit 3) when one of `paths` leads to no file.
    """
    files: dict[str, None] = {}
    for path in paths:
        found = _find(path)
        if not found:
            raise _nothing(path)
        files |= dict.fromkeys(found)
    return list(files)


def kind(path: str) -> str:
    """The suffix that says what is in a file, compression aside: `.jsonl` for `a/b.jsonl.gz`, nothing for `-`."""
    # What a web server is asked besides is no part of a name: Hugging Face's links end in ?download=true.
    name = PurePosixPath(re.split("[?#]", path)[0] if path.startswith(("http://", "https://")) else path)
    return PurePosixPath(name.stem).suffix.lower() if name.suffix.lower() in COMPRESSED else name.suffix.lower()


def title(path: str) -> str:
    """What to call a path in a message."""
    return "standard input" if path == STDIN or path.startswith("/dev/fd/") else path


def size(paths: Iterable[str]) -> int:
    """Bytes of the files as they are stored."""
    return sum(remote.size(path) if remote.is_remote(path) else os.stat(path).st_size for path in paths)


def digest(paths: Sequence[str]) -> str:
    """The identity of a corpus (hex): SHA-256 over stored bytes and kind of each file in order, and the weights.

    `paths` are expanded; the files' names and folders do not matter. Of remote files, which may be larger than what
    one machine should read for this, size and fingerprint (ETag, time of change) stand for the bytes. Standard input
    must be spooled first (`spooled`), since it can be read only once.
    """
    given = sources(paths)
    digests = [_digest(expand(source.paths)) for source in given]
    if not given[0].name:
        return digests[0]
    named = [f"{source.name} {source.weight!r} {found}" for source, found in zip(given, digests, strict=True)]
    return hashlib.sha256("\n".join(named).encode()).hexdigest()


@contextmanager
def spooled(paths: Sequence[str], directory: Path) -> Iterator[list[str]]:
    """`paths` with `-` and pipes replaced by a nameless copy inside `directory`, so that they can be read twice.

    The copy vanishes with the process, however that ends. `directory` is made when there is something to copy.
    """
    copies: list[Any] = []
    try:
        readable = list(paths)
        for index, argument in enumerate(paths):
            match = None if os.path.lexists(argument) else WEIGHTED.fullmatch(argument)
            path = match[3] if match else argument
            if path == STDIN or (os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)):
                copies.append(_copy(path, directory))
                readable[index] = argument.removesuffix(path) + f"/dev/fd/{copies[-1].fileno()}"
        yield readable
    finally:
        for copy in copies:
            copy.close()


@contextmanager
def opened(path: str) -> Iterator[Any]:
    """The stored bytes of a file, buffered, at their beginning. Raises LspError (exit 3) when it can't be read."""
    if path == STDIN:
        if sys.stdin is None:
            raise LspError("Standard input is closed.", hint="Name a file, or pipe one in.", code=Exit.DATA)
        yield sys.stdin.buffer
        return
    try:
        # Closed below; a `with` here would catch the caller's errors.
        raw: Any = remote.opened(path) if remote.is_remote(path) else open(path, "rb", buffering=1 << 20)  # noqa: SIM115
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        raise unusable(f"{path} can't be read: {reason}.", "Check the path and its permissions.") from None
    with raw:
        if raw.seekable():
            raw.seek(0)  # where /dev/fd/N shares the offset of a spooled copy, it stands at the end
        yield raw


def begins(path: str, magics: Iterable[bytes]) -> bool:
    """Whether the stored bytes begin with one of `magics`."""
    with opened(path) as raw:
        return raw.peek(8)[:8].startswith(tuple(magics))


def decompressed(raw: Any, path: str) -> Any:
    """What `opened` gave as plain bytes: gzip, xz and zstd are known by their first bytes, whatever the name."""
    first = raw.peek(8)[:8]
    if first.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=raw, mode="rb")
    if first.startswith(b"\xfd7zXZ\x00"):
        return lzma.LZMAFile(raw)
    if first.startswith(b"\x28\xb5\x2f\xfd"):
        return io.BufferedReader(_Zstd(raw, path), 1 << 14)
    for magic, (found, hint) in FOREIGN.items():
        if first.startswith(magic):
            raise unusable(f"{title(path)} is {found}.", hint.format(path=title(path)))
    return raw


def unusable(message: str, hint: str) -> LspError:
    return LspError(message, hint=hint, code=Exit.DATA)


def unread(package: str, path: str) -> LspError:
    """For a package that only some kinds of text need."""
    return lacking(f"{title(path)} can't be read without the Python package {package}.", "data")


class _Zstd(io.RawIOBase):
    """zstd as plain bytes. Unlike the library's own reader it notices a file that is cut short (EOFError)."""

    def __init__(self, raw: Any, path: str) -> None:
        try:
            import zstandard
        except ModuleNotFoundError:
            raise unread("zstandard", path) from None
        self.raw, self.library = raw, zstandard
        self.frame: Any = None  # None between two frames
        self.fed, self.made = b"", memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.made:
            self.fed = self.fed or self.raw.read(FEED)
            if not self.fed:
                if self.frame is not None:
                    raise EOFError("a frame has no end")
                return 0
            self.frame = self.frame or self.library.ZstdDecompressor().decompressobj()
            try:
                self.made = memoryview(self.frame.decompress(self.fed))
            except self.library.ZstdError as error:
                raise EOFError(str(error)) from None
            self.fed = self.frame.unused_data if self.frame.eof else b""
            self.frame = None if self.frame.eof else self.frame
        taken = self.made[: len(buffer)]
        buffer[: len(taken)] = taken
        self.made = self.made[len(taken) :]
        return len(taken)


def _weight(name: str, text: str) -> float:
    try:
        weight = float(text)
    except ValueError:
        raise LspError(
            f"The weight of {name} is {text!r}, which is no number.", hint=f"Write it as in {name}=0.7:PATH."
        ) from None
    if not (weight > 0 and math.isfinite(weight)):
        raise LspError(
            f"The weight of {name} is {text}; it must be more than 0.", hint="Leave a source out to give it no share."
        )
    return weight


def _find(path: str) -> list[str]:
    if path == STDIN:
        return [path]
    if remote.is_remote(path):
        found = remote.find(path)
        return found if found == [path] else _texts(found)
    if os.path.isdir(path):
        return _texts(list(_below(path)))
    if os.path.lexists(path):
        return [path]
    return [file for match in sorted(glob.glob(path, recursive=True)) for file in _find(match)]


def _below(path: str) -> Iterator[str]:
    """All files below a folder, through links too; each folder once, whatever links lead to it."""

    def refused(error: OSError) -> None:
        raise unusable(f"The folder {error.filename} can't be read: {error.strerror}.", "Name what is to be read.")

    seen: set[str] = set()
    for folder, folders, names in os.walk(path, onerror=refused, followlinks=True):
        folders.sort()
        real = os.path.realpath(folder)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (os.path.join(folder, name) for name in names)


def _texts(names: Iterable[str]) -> list[str]:
    """The files of text among `names`, sorted; in the folder of a Hugging Face dataset its tables, in its own order."""
    arrows = {_folder(name) for name in names if name.endswith(".arrow")}
    states = {_folder(name): name for name in names if name.endswith("/state.json") and _folder(name) in arrows}
    for name in names:
        if name.endswith("/dataset_dict.json"):
            splits = [folder.rpartition("/")[2] for folder in sorted(states) if _folder(folder) == _folder(name)]
            raise unusable(
                f"{_folder(name)} holds several splits: {', '.join(splits)}.",
                f"Name the one to use, as in {_folder(name)}/train.",
            )
    plain = {name: [name] for name in names if kind(name) in KINDS and _folder(name) not in states}
    tables = {folder: _tables(folder, state) for folder, state in states.items()}
    found = plain | tables
    return [file for name in sorted(found) if not name.rpartition("/")[2].startswith(".") for file in found[name]]


def _folder(name: str) -> str:
    return name.rpartition("/")[0]


def _tables(folder: str, state: str) -> list[str]:
    """The files of a dataset made by `save_to_disk`, as its `state.json` lists them."""
    try:
        with opened(state) as raw:
            listed = json.loads(raw.read(1 << 24))
        tables = [f"{folder}/{entry['filename']}" for entry in listed["_data_files"]]
        picked = bool(listed.get("_indices_data_files"))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise unusable(f"{state} is not the state of a saved dataset.", "Save it again: save_to_disk.") from None
    if picked:
        raise unusable(
            f"{folder} is a dataset whose rows were picked but not written.",
            "Save it again: dataset.flatten_indices().save_to_disk(…).",
        )
    return tables


def _nothing(path: str) -> LspError:
    if remote.is_remote(path):
        return unusable(f"There is no text at {path}.", READ)
    if os.path.isdir(path):
        return unusable(f"The folder {path} holds no .txt, .jsonl or .parquet file.", READ)
    if glob.has_magic(path):
        return unusable(f"No file matches {path}.", READ)
    parent = Path(path).parent
    names = sorted(os.listdir(parent)) if parent.is_dir() else []
    return unusable(f"There is no file {path}.{nearest(Path(path).name, names)}", READ)


def _digest(files: Sequence[str]) -> str:
    with ThreadPoolExecutor() as pool:
        identities = [f"{kind(file)} {found}" for file, found in zip(files, pool.map(_identity, files), strict=True)]
    return hashlib.sha256("\n".join(identities).encode()).hexdigest()


def _identity(path: str) -> str:
    if remote.is_remote(path):
        return remote.fingerprint(path)
    with opened(path) as raw:
        return hashlib.file_digest(raw, "sha256").hexdigest()


def _copy(path: str, directory: Path) -> Any:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        copy = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115 - nameless, and closed by `spooled`
        with opened(path) as raw:
            while block := raw.read(1 << 20):
                copy.write(block)
        copy.flush()
        return copy
    except OSError as error:
        code = Exit.USAGE if error.errno in (errno.EEXIST, errno.ENOTDIR) else Exit.MACHINE
        raise LspError(
            f"{title(path)} can't be copied into {directory}: {error.strerror}.",
            hint="It is read twice, so it needs room there. Give another --out.",
            code=code,
        ) from None
