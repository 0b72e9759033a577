"""Rows of tokens on disk: packed once, then memory-mapped, so that any row is one look-up away.

    documents ──packing──▶ rows of T tokens ──▶ DIRECTORY/rows/00000.rows, … ──▶ Rows: rows[i]

A shard is a header of 128 bytes and then its rows, `uint16` while the ids fit, else `uint32`, all little-endian. Rows
are written to `rows.tmp`, which becomes `rows` when every shard in it is whole and synced: a killed process leaves
nothing that reads as rows.

Suffixes: T tokens of a row, N rows.
"""

import os
import shutil
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from lsp import Exit, LspError, interrupt, manifest, recipe
from lsp.data import packing, text
from lsp.data.tokenizer import CLS, PAD, Tokenizer, learn, sample

MAGIC = b"LSPROWS\n"
VERSION = 1
# Magic, version, bytes a token, rows, T, vocabulary, useful tokens, documents, bytes of text, tokenizer's SHA-256.
HEADER = struct.Struct("<8sIIQIIQQQ32s")
HEADER_BYTES = 128  # the header, zeros, and the CRC-32 of both in the last four bytes
SHARD_BYTES = 256 << 20


@dataclass(frozen=True)
class Counts:
    """What was packed. `tokens` counts padding, `useful_tokens` does not; `bytes_in` is UTF-8 text."""

    rows: int = 0
    tokens: int = 0
    useful_tokens: int = 0
    documents: int = 0
    bytes_in: int = 0

    @property
    def padding_share(self) -> float:
        return 1 - self.useful_tokens / self.tokens if self.tokens else 0.0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(Counts)))


def prepare(
    paths: Sequence[str], path: Path, data: recipe.Text, tokenizer: Path | None, seed: int, progress: Any
) -> Counts:
    """Raw text to `path/tokenizer` and `path/rows`; done parts are kept, so a killed call can be made again.

    `paths` is what `text.expand` takes, standard input spooled. The tokenizer is that of the directory `tokenizer`,
    else one trained with `seed`. The same arguments give the same bytes. `progress` is a `console.Progress`.
    """
    files = text.expand(paths)
    stored, read = text.size(files) / 1e6, partial(text.documents, files, data.text_field)
    if (path / "rows").is_dir():
        return Rows.open(path).counts
    if tokenizer is not None:
        words = Tokenizer.load(tokenizer)
        words.save(path / "tokenizer")
    elif (path / "tokenizer").is_dir():
        words = Tokenizer.load(path)
    else:
        with progress.task("sampling text (MB)", stored) as task:
            lines = sample(read(lambda done: task.update(done / 1e6)), data.vocab_size, seed)
        if not lines:
            raise _nothing(files)
        progress.say(
            f"training a tokenizer of {data.vocab_size} pieces on {sum(map(len, lines)) / 1e6:.1f} M characters"
        )
        words = interrupt.apart(
            partial(learn, lines, vocab_size=data.vocab_size, kind=data.tokenizer, lowercase=data.lowercase)
        )
        words.save(path / "tokenizer")
    with progress.task("tokenizing and packing (MB)", stored) as task:
        counts = pack(read(lambda done: task.update(done / 1e6)), words, path, data.sequence_length)
    if not counts.rows:
        raise _nothing(files)
    return counts


def prepared(paths: Sequence[str]) -> str:
    """The identity of the prepared data that `paths` name, or an empty string when they name raw text.

    Raises LspError: exit 4 for a damaged directory, 2 for one of another stage or for several.
    """
    sealed = [path for path in paths if (Path(path) / "manifest.json").exists() or (Path(path) / "run.json").exists()]
    if not sealed:
        return ""
    if len(paths) > 1:
        raise LspError(
            f"{sealed[0]} is prepared data, which stands alone.", hint="Prepare all the text together with lsp prepare."
        )
    sealed_as = manifest.read(Path(sealed[0]))
    if sealed_as.get("stage") != "prepare":
        raise LspError(
            f"{sealed[0]} holds a model ({sealed_as.get('stage')}), not text.",
            hint="Give raw text, or what lsp prepare made.",
        )
    return manifest.identity(sealed_as)


def pack(documents: Iterable[str], tokenizer: Tokenizer, path: Path, sequence_length: int) -> Counts:
    """Writes `path/rows`: documents as `[CLS] text [SEP]`, long ones in several pieces, padding only where none fits.

    Without any text there are no rows, and nothing is written.
    """
    temporary = path / "rows.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    with _Writer(temporary, sequence_length, tokenizer) as writer:
        for packed in packing.rows(documents, tokenizer, sequence_length):
            writer.write(packed.rows)
            writer.count(packed.documents, packed.bytes_in)
        counts = writer.close()
    if not counts.rows:
        shutil.rmtree(temporary)
        return counts
    manifest.sync(temporary)
    os.rename(temporary, path / "rows")
    manifest.sync(path)
    return counts


def segments(tokens: np.ndarray) -> np.ndarray:
    """Which piece of its row each token belongs to: 1, 2, … counted at each [CLS], 0 on padding; int32 [..., T].

    No text encodes to [CLS] or [PAD], so segments are read off the tokens and never stored.
    """
    return np.cumsum(tokens == CLS, axis=-1, dtype=np.int32) * (tokens != PAD)


class Rows:
    """The packed rows of a directory, memory-mapped: `rows[i]` is [T], `rows.take(indices)` [N, T], both int32."""

    def __init__(self, path: Path, shards: list["_Shard"]) -> None:
        head = shards[0]
        self.path = path
        self.sequence_length, self.vocab_size, self.tokenizer_hash = (
            head.sequence_length,
            head.vocab_size,
            head.tokenizer,
        )
        self.counts = sum((shard.counts for shard in shards), Counts())
        self._tokens = [shard.tokens for shard in shards]
        self._ends = np.cumsum([shard.counts.rows for shard in shards])

    @classmethod
    def open(cls, path: Path) -> "Rows":
        """The rows in `path/rows`; a header is believed only if it fits its file. Raises LspError (exit 4)."""
        files = sorted((path / "rows").glob("*.rows"))
        if not files:
            raise LspError(
                f"{path} holds no packed rows.", hint=f"Make them: lsp prepare TEXT --out {path}", code=Exit.ARTIFACT
            )
        shards = [_Shard(file) for file in files]
        for index, (file, shard) in enumerate(zip(files, shards, strict=True)):
            if file.name != _name(index):
                raise _damaged(file, f"the shard before it, {_name(index)}, is missing")
            if shard.kind != shards[0].kind:
                raise _damaged(file, f"it has another row length or tokenizer than {files[0].name}")
        return cls(path, shards)

    @property
    def useful_tokens(self) -> int:
        return self.counts.useful_tokens

    def __len__(self) -> int:
        return self.counts.rows

    def __getitem__(self, index: int) -> np.ndarray:
        return self.take(np.array([index]))[0]

    def take(self, indices: np.ndarray) -> np.ndarray:
        """The rows at `indices` [N] from 0 as int32 [N, T]. Raises IndexError."""
        if len(indices) and not (indices.min() >= 0 and indices.max() < len(self)):
            raise IndexError(f"row {indices.min()} or {indices.max()} of {len(self)}")
        taken = np.empty((len(indices), self.sequence_length), np.int32)
        shards = np.searchsorted(self._ends, indices, side="right")
        for shard in np.unique(shards):
            here = shards == shard
            tokens = self._tokens[shard]
            taken[here] = tokens[indices[here] - (self._ends[shard] - len(tokens))]
        return taken


class Subset:
    """Some rows of `rows`, in the order of `indices` [N], read as `Rows` is."""

    def __init__(self, rows: Rows, indices: np.ndarray) -> None:
        self.rows, self.indices = rows, indices
        self.sequence_length, self.vocab_size, self.tokenizer_hash = (
            rows.sequence_length,
            rows.vocab_size,
            rows.tokenizer_hash,
        )

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.rows[int(self.indices[index])]

    def take(self, indices: np.ndarray) -> np.ndarray:
        """As `Rows.take`."""
        return self.rows.take(self.indices[indices])


class _Writer:
    """Rows into numbered shard files. A shard's header is written last, when its rows are on the disk."""

    def __init__(self, path: Path, sequence_length: int, tokenizer: Tokenizer) -> None:
        self.path, self.sequence_length, self.tokenizer = path, sequence_length, tokenizer
        self.dtype = np.dtype("<u2" if tokenizer.size <= 1 << 16 else "<u4")
        self.limit = max(1, SHARD_BYTES // (sequence_length * self.dtype.itemsize))
        self.shards = 0
        self.file: BinaryIO | None = None
        self.here = self.before = Counts()

    def __enter__(self) -> "_Writer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.file is not None:
            self.file.close()

    def write(self, rows: np.ndarray) -> None:
        """Appends rows [N, T]."""
        while len(rows):
            if self.file is None:
                self.file = open(self.path / _name(self.shards), "wb")  # noqa: SIM115 - closed by _seal or __exit__
                self.file.write(bytes(HEADER_BYTES))
            now = rows[: self.limit - self.here.rows].astype(self.dtype, copy=False)
            self.file.write(now.tobytes())
            self.here += Counts(rows=len(now), tokens=now.size, useful_tokens=int(np.count_nonzero(now)))
            rows = rows[len(now) :]
            if self.here.rows == self.limit:
                self._seal()

    def count(self, documents: int, bytes_in: int) -> None:
        """Notes what was read, in the header of the shard that is being written."""
        self.here += Counts(documents=documents, bytes_in=bytes_in)

    def close(self) -> Counts:
        if self.file is not None:
            self._seal()
        return self.before

    def _seal(self) -> None:
        assert self.file is not None
        self.file.flush()
        os.fsync(self.file.fileno())
        here = self.here
        header = HEADER.pack(
            *(MAGIC, VERSION, self.dtype.itemsize, here.rows, self.sequence_length, self.tokenizer.size),
            *(here.useful_tokens, here.documents, here.bytes_in, bytes.fromhex(self.tokenizer.hash)),
        ).ljust(HEADER_BYTES - 4, b"\0")
        self.file.seek(0)
        self.file.write(header + struct.pack("<I", zlib.crc32(header)))
        self.file.flush()
        os.fsync(self.file.fileno())
        self.file.close()
        self.before, self.here, self.file, self.shards = self.before + here, Counts(), None, self.shards + 1


class _Shard:
    """One file, its header checked and its rows mapped [N, T]."""

    def __init__(self, file: Path) -> None:
        with open(file, "rb") as stream:
            head = stream.read(HEADER_BYTES)
        if len(head) < HEADER_BYTES or not head.startswith(MAGIC):
            raise _damaged(file, "it does not begin as a shard of rows does")
        _, version, itemsize, rows, length, vocabulary, useful, documents, bytes_in, tokenizer = HEADER.unpack_from(
            head
        )
        if version > VERSION:
            raise LspError(
                f"{file} was written by a newer lsp.", hint="Upgrade: pip install --upgrade lsp.", code=Exit.ARTIFACT
            )
        if struct.pack("<I", zlib.crc32(head[:-4])) != head[-4:] or version < 1 or itemsize not in (2, 4) or not length:
            raise _damaged(file, "its header does not match its own checksum")
        expected = HEADER_BYTES + rows * length * itemsize
        if not rows or file.stat().st_size != expected:
            raise _damaged(file, f"it has {file.stat().st_size} bytes and its header promises {expected}")
        self.kind = (itemsize, length, vocabulary, tokenizer)
        self.sequence_length, self.vocab_size, self.tokenizer = length, vocabulary, tokenizer.hex()
        self.counts = Counts(rows, rows * length, useful, documents, bytes_in)
        self.tokens = np.memmap(file, f"<u{itemsize}", "r", HEADER_BYTES, (rows, length))


def _nothing(files: Sequence[str]) -> LspError:
    named = ", ".join(map(text.title, files[:3])) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
    return LspError(f"There is no text in {named}.", hint="Give files with text in them.", code=Exit.DATA)


def _name(index: int) -> str:
    return f"{index:05d}.rows"


def _damaged(file: Path, what: str) -> LspError:
    return LspError(f"{file} is damaged: {what}.", hint="Run lsp prepare again with --overwrite.", code=Exit.ARTIFACT)
