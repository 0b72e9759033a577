"""Documents from text files: which files there are, how one is opened, and where a document ends.

    paths ──expand──▶ files ──lines──▶ numbered lines ──documents──▶ one string a document

Everything is a stream: memory does not grow with the corpus.
"""

import errno
import glob
import gzip
import hashlib
import itertools
import json
import lzma
import os
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from lsp import Exit, LspError, nearest

KINDS = (".txt", ".jsonl")
LINE_LIMIT = 64 << 20  # bytes; a longer "line" is some other kind of file
DOCUMENT_LIMIT = 16 << 20  # characters; a longer document is handed on in parts, so that memory stays flat
STDIN = "-"

# Kinds of file that people pass by mistake, by their first bytes, and what to type instead.
FOREIGN = {
    b"\x28\xb5\x2f\xfd": ("zstd-compressed, which lsp does not read", "Unpack it: zstd -d {path}"),
    b"PAR1": ("a Parquet file, which lsp does not read", "Write its text column as JSON lines, one object a line."),
    b"PK\x03\x04": ("a zip archive", "Unpack it: unzip {path}"),
    b"BZh": ("bzip2-compressed, which lsp does not read", "Unpack it: bunzip2 {path}"),
    b"%PDF": ("a PDF", "Extract its text: pdftotext {path}"),
    b"\xff\xfe": ("UTF-16, not UTF-8", "Convert it: iconv -f UTF-16 -t UTF-8 {path} > {path}.utf8.txt"),
    b"\xfe\xff": ("UTF-16, not UTF-8", "Convert it: iconv -f UTF-16 -t UTF-8 {path} > {path}.utf8.txt"),
}


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
    name = Path(path)
    return Path(name.stem).suffix.lower() if name.suffix.lower() in (".gz", ".xz") else name.suffix.lower()


def title(path: str) -> str:
    """What to call a path in a message."""
    return "standard input" if path == STDIN or path.startswith("/dev/fd/") else path


def size(paths: Sequence[str]) -> int:
    """Bytes of the files as they are stored."""
    return sum(os.stat(path).st_size for path in paths)


def digest(paths: Sequence[str]) -> str:
    """SHA-256 (hex) over the stored bytes and the kind of each file, in order: the identity of a corpus.

    `paths` are expanded; the files' names and folders do not matter. Standard input must be spooled first (`spooled`),
    since it can be read only once.
    """
    files = expand(paths)
    with ThreadPoolExecutor() as pool:
        identities = [f"{kind(file)} {found}" for file, found in zip(files, pool.map(_sha256, files), strict=True)]
    return hashlib.sha256("\n".join(identities).encode()).hexdigest()


@contextmanager
def spooled(paths: Sequence[str], directory: Path) -> Iterator[list[str]]:
    """`paths` with `-` and pipes replaced by a nameless copy inside `directory`, so that they can be read twice.

    The copy vanishes with the process, however that ends. `directory` is made when there is something to copy.
    """
    copies: list[Any] = []
    try:
        readable = list(paths)
        for index, path in enumerate(paths):
            if path == STDIN or (os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)):
                copies.append(_copy(path, directory))
                readable[index] = f"/dev/fd/{copies[-1].fileno()}"
        yield readable
    finally:
        for copy in copies:
            copy.close()


def lines(path: str, read: Callable[[int], object] | None = None) -> Iterator[tuple[int, str]]:
    r"""Lines with their numbers from 1, decoded, without their end: split at `\n` only, one `\r` before it dropped.

    gzip and xz are known by their first bytes, whatever the name. `read` is told how many stored bytes were read.
    Raises LspError (exit 3) with file and line for text that is not UTF-8, damaged files and lines over 64 MiB.
    """
    name, number = title(path), 0
    with _opened(path) as raw:
        stream = _decompressed(raw, path)
        try:
            for number, line in enumerate(iter(partial(stream.readline, LINE_LIMIT + 1), b""), 1):
                if len(line) > LINE_LIMIT:
                    raise _unusable(
                        f"{name}, line {number}: longer than {LINE_LIMIT >> 20} MiB; that is no line of text.",
                        "Put one paragraph or one record on a line.",
                    )
                if read is not None and path != STDIN:
                    read(raw.tell())
                yield number, _decoded(line, path, number)
        except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
            raise _unusable(
                f"{name}: the compressed data is damaged or cut short after line {number} ({error}).",
                "Fetch or write the file again.",
            ) from None


def records(path: str, numbered: Iterable[tuple[int, str]]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The JSON objects of a `.jsonl` file with their line numbers; empty lines are passed over. Errors exit 3."""
    for number, line in numbered:
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _unusable(
                f"{title(path)}, line {number}: not JSON ({error}).", "A .jsonl file holds one JSON object a line."
            ) from None
        if not isinstance(record, dict):
            raise _unusable(
                f"{title(path)}, line {number}: a JSON {type(record).__name__}, not an object.",
                'A .jsonl file holds one object a line, as in {"text": "…"}.',
            )
        yield number, record


def string(value: Any, where: str) -> str:
    """`value` if it is text that UTF-8 can hold, else LspError (exit 3)."""
    if not isinstance(value, str):
        raise _unusable(f"{where} holds {type(value).__name__}, not text.", "Every record needs text there.")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise _unusable(
                f"{where} holds half of a surrogate pair, which is no character.", "Write the file again as UTF-8."
            ) from None
    return value


def documents(paths: Sequence[str], field: str = "text", read: Callable[[int], object] | None = None) -> Iterator[str]:
    """The documents of files from `expand`, lines joined by newlines, none empty.

    In plain text an empty line ends a document; in `.jsonl` each object is one, its text under `field`. Standard input
    is JSONL when it begins with `{`. Over 16 Mi characters a document is handed on in parts. `read` is told how many
    stored bytes were read in all. Raises LspError (exit 3) as `lines` does, and for records without `field`.
    """
    before = 0
    for path in paths:
        numbered = lines(path, partial(_further, read, before) if read else None)
        first = list(itertools.islice(numbered, 1))
        numbered = itertools.chain(first, numbered)
        piped = title(path) != path
        if kind(path) == ".jsonl" or (piped and first and first[0][1].lstrip().startswith("{")):
            yield from _fields(path, numbered, field)
        else:
            yield from _paragraphs(numbered)
        before += 0 if path == STDIN else os.stat(path).st_size


def _further(read: Callable[[int], object], before: int, stored: int) -> None:
    read(before + stored)


def _paragraphs(numbered: Iterable[tuple[int, str]]) -> Iterator[str]:
    held: list[str] = []
    length = 0
    for _, line in numbered:
        blank = not line.strip()
        if not blank:
            held.append(line)
            length += len(line)
        if held and (blank or length > DOCUMENT_LIMIT):
            yield "\n".join(held)
            held, length = [], 0
    if held:
        yield "\n".join(held)


def _fields(path: str, numbered: Iterable[tuple[int, str]], field: str) -> Iterator[str]:
    for number, record in records(path, numbered):
        where = f"{title(path)}, line {number}"
        if field not in record:
            raise _unusable(
                f"{where}: no field '{field}'.{nearest(field, record)}",
                f"Fields there: {', '.join(record) or 'none'}. Name one with --set data.text_field=NAME.",
            )
        document = string(record[field], f"{where}: field '{field}'")
        if document.strip():
            yield document


def _find(path: str) -> list[str]:
    if path == STDIN:
        return [path]
    if os.path.isdir(path):
        found = [
            os.path.join(folder, name)
            for folder, folders, names in os.walk(path)
            for name in names
            if kind(name) in KINDS and not name.startswith(".")
        ]
        return sorted(found)
    if os.path.lexists(path):
        return [path]
    return [file for match in sorted(glob.glob(path, recursive=True)) for file in _find(match)]


def _nothing(path: str) -> LspError:
    wanted = "Text is read from .txt and .jsonl files, also .gz and .xz, from folders, globs, and - (stdin)."
    if os.path.isdir(path):
        return _unusable(f"The folder {path} holds no .txt or .jsonl file.", wanted)
    if glob.has_magic(path):
        return _unusable(f"No file matches {path}.", wanted)
    parent = Path(path).parent
    names = sorted(os.listdir(parent)) if parent.is_dir() else []
    return _unusable(f"There is no file {path}.{nearest(Path(path).name, names)}", wanted)


@contextmanager
def _opened(path: str) -> Iterator[Any]:
    if path == STDIN:
        yield sys.stdin.buffer
        return
    try:
        raw = open(path, "rb", buffering=1 << 20)  # noqa: SIM115 - closed below; a `with` here would catch the caller's errors
    except OSError as error:
        raise _unusable(f"{path} can't be read: {error.strerror}.", "Check the path and its permissions.") from None
    with raw:
        if raw.seekable():
            raw.seek(0)  # where /dev/fd/N shares the offset of a spooled copy, it stands at the end
        yield raw


def _decompressed(raw: Any, path: str) -> Any:
    first = raw.peek(8)[:8]
    if first.startswith(b"\x1f\x8b"):
        return gzip.GzipFile(fileobj=raw, mode="rb")
    if first.startswith(b"\xfd7zXZ\x00"):
        return lzma.LZMAFile(raw)
    for magic, (found, hint) in FOREIGN.items():
        if first.startswith(magic):
            raise _unusable(f"{title(path)} is {found}.", hint.format(path=title(path)))
    return raw


def _decoded(line: bytes, path: str, number: int) -> str:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _unusable(
            f"{title(path)}, line {number}: not UTF-8 (byte 0x{line[error.start]:02x} at column {error.start + 1}).",
            f"Convert it, naming its encoding (GB18030, latin1, …): iconv -f GB18030 -t UTF-8 {title(path)} > new.txt",
        ) from None
    text = text.removesuffix("\n").removesuffix("\r")
    return text.removeprefix("\ufeff") if number == 1 else text


def _copy(path: str, directory: Path) -> Any:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        copy = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115 - nameless, and closed by `spooled`
        with _opened(path) as raw:
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


def _sha256(path: str) -> str:
    with _opened(path) as raw:
        return hashlib.file_digest(raw, "sha256").hexdigest()


def _unusable(message: str, hint: str) -> LspError:
    return LspError(message, hint=hint, code=Exit.DATA)
