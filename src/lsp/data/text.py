"""Documents from files of text: where a line, a record and a document end.

    files ──lines──▶ numbered lines ──documents──▶ one string a document

A plain file can be read in stretches that begin and end between two documents (`cut`). Everything is a stream: memory
does not grow with the corpus.
"""

import gzip
import itertools
import json
import lzma
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from typing import Any, NamedTuple

from lsp import LspError, nearest
from lsp.data import columns, files
from lsp.data.files import PACKED, STDIN, TABLES, digest, expand, kind, size, spooled, title, unusable

__all__ = ["digest", "documents", "expand", "kind", "lines", "records", "size", "spooled", "string", "title"]

RECORDS = (".jsonl", ".json", ".ndjson")  # an object a line; a file of one large object is told so
LINE_LIMIT = 64 << 20  # bytes; a longer "line" is some other kind of file
DOCUMENT_LIMIT = 16 << 20  # characters; a longer document is handed on in parts, so that memory stays flat


class Stretch(NamedTuple):
    """Part of a file, in stored bytes, from one `cut` to the next; `end` is None for the rest of the file."""

    path: str
    begin: int = 0
    end: int | None = None


def lines(
    path: str, read: Callable[[int], object] | None = None, begin: int = 0, end: int | None = None
) -> Generator[tuple[int, str], None, None]:
    r"""Lines with their numbers from 1, decoded, without their end: split at `\n` only, one `\r` before it dropped.

    gzip, xz and zstd are known by their first bytes, whatever the name. `read` is told how many stored bytes were
    read. A plain file can be read from byte `begin` to before `end`, both at the start of a line, which then is line 1.
    Raises LspError (exit 3) with file and line for text that is not UTF-8, damaged files and lines over 64 MiB.
    """
    name, number, at = title(path), 0, begin
    with files.opened(path) as raw:
        stream = files.decompressed(raw, path)
        if begin:
            stream.seek(begin)
        try:
            for number, line in enumerate(iter(partial(stream.readline, LINE_LIMIT + 1), b""), 1):
                if len(line) > LINE_LIMIT:
                    raise unusable(
                        f"{name}, line {number}: longer than {LINE_LIMIT >> 20} MiB; that is no line of text.",
                        "Put one paragraph or one record on a line.",
                    )
                if end is not None and at >= end:
                    return
                at += len(line)
                if read is not None and path != STDIN:
                    read(raw.tell())
                yield number, _decoded(line, path, number)
        except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
            raise unusable(
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
            raise unusable(
                f"{title(path)}, line {number}: not JSON ({error}).", "A .jsonl file holds one JSON object a line."
            ) from None
        if not isinstance(record, dict):
            raise unusable(
                f"{title(path)}, line {number}: a JSON {type(record).__name__}, not an object.",
                'A .jsonl file holds one object a line, as in {"text": "…"}.',
            )
        yield number, record


def string(value: Any, where: str) -> str:
    """`value` if it is text that UTF-8 can hold, else LspError (exit 3)."""
    if not isinstance(value, str):
        raise unusable(f"{where} holds {type(value).__name__}, not text.", "Every record needs text there.")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise unusable(
                f"{where} holds half of a surrogate pair, which is no character.", "Write the file again as UTF-8."
            ) from None
    return value


def documents(
    paths: Sequence[str | Stretch], field: str = "text", read: Callable[[int], object] | None = None
) -> Iterator[str]:
    """The documents of files from `expand`, or of stretches of them, lines joined by newlines, none empty.

    In plain text an empty line ends a document; in `.jsonl` each object is one, its text under `field`, and in Parquet
    and Arrow each row. Standard input is JSONL when it begins with `{`. Over 16 Mi characters a document is handed on
    in parts. `read` is told how many stored bytes were read in all. Raises LspError (exit 3) as `lines` does, and for
    records without `field`; exit 5 where a package is missing.
    """
    before = 0
    for path in paths:
        stretch = path if isinstance(path, Stretch) else Stretch(path)
        heard = partial(_further, read, before - stretch.begin) if read else None
        try:
            yield from _documents(stretch, field, heard)
        except LspError:
            if stretch.begin:  # lines were counted from the stretch: meet the first error of the file with its number
                for _ in _documents(Stretch(stretch.path), field, None):
                    pass
            raise
        before += 0 if stretch.path == STDIN else (stretch.end or size([stretch.path])) - stretch.begin


def can_be_cut(path: str) -> bool:
    """Whether stretches of the file can be read: it is plain text or JSONL, not compressed, no table."""
    return path != STDIN and not files.begins(path, PACKED + TABLES)


def cut(path: str, near: int, length: int) -> int:
    """Where the first document that begins at byte `near` or later does, in a plain file of `length` bytes.

    Without an empty line in the next 16 MiB it is a line of a longer document.
    """
    if near <= 0 or near >= length:
        return min(max(near, 0), length)
    with files.opened(path) as raw:
        raw.seek(near - 1)
        at = near - 1 + len(raw.readline(LINE_LIMIT + 1))  # what is longer `lines` refuses
        if _of_records(path):
            return at
        while line := raw.readline(LINE_LIMIT + 1):
            at += len(line)
            if at - near > DOCUMENT_LIMIT or not line.decode("utf-8", "replace").strip():
                return at
    return length


def _further(read: Callable[[int], object], before: int, stored: int) -> None:
    read(before + stored)


def _documents(stretch: Stretch, field: str, read: Callable[[int], object] | None) -> Iterator[str]:
    path, begin, end = stretch
    if path != STDIN and files.begins(path, TABLES):
        yield from columns.strings(path, field, read)
        return
    with closing(lines(path, read, begin, end)) as numbered:
        first: list[tuple[int, str]] = []
        if path == STDIN:  # which can be read only once
            first = list(itertools.islice(numbered, 1))
            keyed = bool(first) and first[0][1].lstrip().startswith("{")
        else:
            keyed = _of_records(path)
        every = itertools.chain(first, numbered)
        yield from _fields(path, every, field) if keyed else _paragraphs(every)


def _of_records(path: str) -> bool:
    """Whether a file has an object a line: its name says so, or, for piped text without a name, its first line."""
    if title(path) == path:
        return kind(path) in RECORDS
    return next((line for _, line in lines(path)), "").lstrip().startswith("{")


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
            raise unusable(
                f"{where}: no field '{field}'.{nearest(field, record)}",
                f"Fields there: {', '.join(record) or 'none'}. Name one with --set data.text_field=NAME.",
            )
        document = string(record[field], f"{where}: field '{field}'")
        if document.strip():
            yield document


def _decoded(line: bytes, path: str, number: int) -> str:
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise unusable(
            f"{title(path)}, line {number}: not UTF-8 (byte 0x{line[error.start]:02x} at column {error.start + 1}).",
            f"Convert it, naming its encoding (GB18030, latin1, …): iconv -f GB18030 -t UTF-8 {title(path)} > new.txt",
        ) from None
    text = text.removesuffix("\n").removesuffix("\r")
    return text.removeprefix("\ufeff") if number == 1 else text
