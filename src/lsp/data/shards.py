"""Rows of tokens on disk: packed once, then memory-mapped, so that any row is one look-up away.

    documents ──packing, or pairs──▶ rows of T tokens ──▶ DIRECTORY/rows/00000.rows, … ──▶ Rows: rows[i]

A shard is a header of 128 bytes and then its rows, `uint16` while the ids fit, else `uint32`, all little-endian. Shards
are written in `rows.tmp`, each header last; it becomes `rows` when every shard in it is whole and synced. A killed
process leaves nothing that reads as rows, and whole shards need not be made again.

Suffixes: T tokens of a row, N rows.
"""

import json
import os
import struct
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from lsp import Exit, LspError, manifest
from lsp.data import files, packing
from lsp.data.pairs import Pairs
from lsp.data.tokenizer import CLS, PAD, Tokenizer

MAGIC = b"LSPROWS\n"
VERSION = 2  # written as 1 where the rows are no pairs, which 1 did not know
# Magic, version, bytes a token, rows, T, vocabulary, useful tokens, documents, bytes of text, tokenizer's SHA-256,
# duplicates that were left out, and 1 where each row is a pair of texts (`pairs`).
HEADER = struct.Struct("<8sIIQIIQQQ32sQI")
HEADER_BYTES = 128  # the header, zeros, and the CRC-32 of both in the last four bytes
SHARD = 512 << 20  # characters of text that end a shard
OPEN = 512  # shards mapped at a time: a process may have 1,024 files open
MIXTURE = "mixture.json"
MOST_REPEATS = 100  # of a row in an epoch: more asks for other weights


@dataclass(frozen=True)
class Counts:
    """What was packed. `tokens` counts padding, `useful_tokens` does not; `bytes_in` is UTF-8 text.

    `documents` counts those that were packed, `duplicates` those that were left out.
    """

    rows: int = 0
    tokens: int = 0
    useful_tokens: int = 0
    documents: int = 0
    bytes_in: int = 0
    duplicates: int = 0

    @property
    def padding_share(self) -> float:
        return 1 - self.useful_tokens / self.tokens if self.tokens else 0.0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(Counts)))


def prepared(arguments: Sequence[str]) -> str:
    """The identity of the prepared data that `arguments` name, or an empty string when they name raw text.

    Raises LspError: exit 4 for a damaged directory, 2 for one of another stage or for several.
    """
    paths = [path for source in files.sources(arguments) for path in source.paths]
    sealed = [path for path in paths if (Path(path) / "manifest.json").exists() or (Path(path) / "run.json").exists()]
    if not sealed:
        return ""
    if len(paths) > 1 or sealed != list(arguments):
        raise LspError(
            f"{sealed[0]} is prepared data, which stands alone.", hint="Prepare all the text together with lsp prepare."
        )
    sealed_as = manifest.read(Path(sealed[0]))
    if sealed_as.get("stage") != "prepare":
        raise LspError(
            f"{sealed[0]} holds a model ({sealed_as.get('stage')}), not text.",
            hint="Give what lsp prepare made, or, to lsp pretrain, raw text.",
        )
    return manifest.identity(sealed_as)


def pack(
    documents: Iterable[str],
    tokenizer: Tokenizer,
    path: Path,
    sequence_length: int,
    size: int = SHARD,
    pairs: str | None = None,
) -> Counts:
    """Writes `path/rows`: documents as `[CLS] text [SEP]`, long ones in several pieces, padding only where none fits.
    With `pairs`, the seed of what is drawn, each row is a pair of texts for next-sentence prediction instead.

    A shard ends after `size` characters. Shards that an earlier call with the same arguments finished before it was
    killed are kept. An empty document stands for a duplicate. Without any text there are no rows, only the folder.
    """
    temporary = path / "rows.tmp"
    temporary.mkdir(parents=True, exist_ok=True)
    counts = Counts()
    for number, chunks in packing.shares(documents, size):
        file = temporary / name(number)
        if not _is_whole(file):
            shelf = packing.Shelf(sequence_length) if pairs is None else Pairs(sequence_length, f"{pairs} {number}")
            _write(file, packing.rows(chunks, tokenizer, shelf), tokenizer, shelf)
        counts += Shard(file).counts
    manifest.sync(temporary)
    os.rename(temporary, path / "rows")
    manifest.sync(path)
    return counts


def filled(sources: Sequence[dict[str, Any]]) -> list[int]:
    """How many rows of each weighted source are in an epoch: in the shortest that has each row at least once.

    Raises LspError (exit 2) when rows would come more than 100 times.
    """
    length = max(source["rows"] / source["weight"] for source in sources)
    shares = [round(source["weight"] * length) for source in sources]
    for share, source in zip(shares, sources, strict=True):
        if share > MOST_REPEATS * source["rows"]:
            raise LspError(
                f"An epoch would hold each of the {source['rows']} rows of {source['name']} more than {MOST_REPEATS} "
                f"times to fill {source['weight']:.4g} of it.",
                hint=f"Give {source['name']} a smaller weight, or more text.",
            )
    return shares


def segments(tokens: np.ndarray) -> np.ndarray:
    """Which piece of its row each token belongs to: 1, 2, … counted at each [CLS], 0 on padding; int32 [..., T].

    No text encodes to [CLS] or [PAD], so segments are read off the tokens and never stored.
    """
    return np.cumsum(tokens == CLS, axis=-1, dtype=np.int32) * (tokens != PAD)


class Rows:
    """The packed rows of a directory, memory-mapped: `rows[i]` is [T], `rows.take(indices)` [N, T], both int32.

    `sources` says of each weighted source its name, its weight and how many of the rows are its own, in their order;
    of a client the weight is None.
    Where `pairs` is true each row is a pair of texts, to be read with `pairs.parted`.
    """

    def __init__(self, path: Path, shards: list["Shard"], sources: list[dict[str, Any]]) -> None:
        head = shards[0]
        self.path, self.sources = path, sources
        self.sequence_length, self.vocab_size, self.tokenizer_hash, self.pairs = (
            head.sequence_length,
            head.vocab_size,
            head.tokenizer,
            head.pairs,
        )
        self.counts = sum((shard.counts for shard in shards), Counts())
        self._ends = np.cumsum([shard.counts.rows for shard in shards])
        self._tokens = lru_cache(maxsize=OPEN)(lambda index: shards[index].tokens())

    @classmethod
    def open(cls, path: Path) -> "Rows":
        """The rows in `path/rows`; a header is believed only if it fits its file. Raises LspError (exit 4)."""
        found = sorted((path / "rows").glob("*.rows"))
        if not found:
            raise LspError(
                f"{path} holds no packed rows.", hint=f"Make them: lsp prepare TEXT --out {path}", code=Exit.ARTIFACT
            )
        shards = [Shard(file) for file in found]
        for index, (file, shard) in enumerate(zip(found, shards, strict=True)):
            if file.name != name(index):
                raise _damaged(file, f"the shard before it, {name(index)}, is missing")
            if shard.kind != shards[0].kind:
                raise _damaged(file, f"it has another kind of rows or tokenizer than {found[0].name}")
        return cls(path, shards, _sources(path / "rows" / MIXTURE, sum(shard.counts.rows for shard in shards)))

    @property
    def useful_tokens(self) -> int:
        return self.counts.useful_tokens

    def __len__(self) -> int:
        return self.counts.rows

    def __getitem__(self, index: int) -> np.ndarray:
        return self.take(np.array([index]))[0]

    def numbers(self, indices: np.ndarray) -> np.ndarray:
        """As of `Subset`: these rows have no other names."""
        return indices

    def take(self, indices: np.ndarray) -> np.ndarray:
        """The rows at `indices` [N] from 0 as int32 [N, T]. Raises IndexError."""
        if len(indices) and not (indices.min() >= 0 and indices.max() < len(self)):
            raise IndexError(f"row {indices.min()} or {indices.max()} of {len(self)}")
        taken = np.empty((len(indices), self.sequence_length), np.int32)
        shards = np.searchsorted(self._ends, indices, side="right")
        for shard in np.unique(shards):
            here = shards == shard
            tokens = self._tokens(int(shard))
            taken[here] = tokens[indices[here] - (self._ends[shard] - len(tokens))]
        return taken

    def epoch(self, without: Sequence[int] | np.ndarray = ()) -> np.ndarray:
        """The rows [N] of one epoch, all but those in `without`.

        With weights, each source fills its share and every row comes at least once: the epoch is the shortest of that
        kind, in which the source that has the most rows for its weight comes once and the rows of the others again and
        again (the last time round perhaps not all). Raises LspError (exit 2) when that would be over 100 times.
        """
        kept = np.setdiff1d(np.arange(len(self)), without)
        if not self.sources or self.sources[0]["weight"] is None:
            return kept
        ends = np.cumsum([source["rows"] for source in self.sources])
        own = np.split(kept, np.searchsorted(kept, ends[:-1]))
        shares = filled([source | {"rows": len(rows)} for source, rows in zip(self.sources, own, strict=True)])
        return np.concatenate([np.resize(rows, share) for rows, share in zip(own, shares, strict=True)])

    def owned(self, among: np.ndarray) -> list[np.ndarray]:
        """Of the rows `among` [N], ascending, those of each source, by their places in `among`."""
        ends = np.cumsum([source["rows"] for source in self.sources])
        return np.split(np.arange(len(among)), np.searchsorted(among, ends[:-1])) if self.sources else []


class Subset:
    """Some rows of `rows`, in the order of `indices` [N], read as `Rows` is."""

    def __init__(self, rows: Rows, indices: np.ndarray) -> None:
        self.rows, self.indices = rows, indices
        self.sequence_length, self.vocab_size, self.tokenizer_hash, self.pairs = (
            rows.sequence_length,
            rows.vocab_size,
            rows.tokenizer_hash,
            rows.pairs,
        )

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> np.ndarray:
        return self.rows[int(self.indices[index])]

    def take(self, indices: np.ndarray) -> np.ndarray:
        """As `Rows.take`."""
        return self.rows.take(self.indices[indices])

    def numbers(self, indices: np.ndarray) -> np.ndarray:
        """What these rows are called in `rows`."""
        return self.indices[indices]


class Shard:
    """One file, its header checked against it. Raises LspError (exit 4)."""

    def __init__(self, file: Path) -> None:
        with open(file, "rb") as stream:
            head = stream.read(HEADER_BYTES)
        if len(head) < HEADER_BYTES or not head.startswith(MAGIC):
            raise _damaged(file, "it does not begin as a shard of rows does")
        _, version, itemsize, rows, length, vocabulary, useful, documents, bytes_in, tokenizer, duplicates, pairs = (
            HEADER.unpack_from(head)
        )
        if version > VERSION:
            raise manifest.from_the_future(file)
        if struct.pack("<I", zlib.crc32(head[:-4])) != head[-4:] or version < 1 or itemsize not in (2, 4) or not length:
            raise _damaged(file, "its header does not match its own checksum")
        expected = HEADER_BYTES + rows * length * itemsize
        if file.stat().st_size != expected:
            raise _damaged(file, f"it has {file.stat().st_size} bytes and its header promises {expected}")
        self.file, self.itemsize = file, itemsize
        self.kind = (itemsize, length, vocabulary, tokenizer, pairs)
        self.sequence_length, self.vocab_size, self.tokenizer = length, vocabulary, tokenizer.hex()
        self.pairs = bool(pairs)
        self.counts = Counts(rows, rows * length, useful, documents, bytes_in, duplicates)

    def tokens(self) -> np.ndarray:
        """The rows [N, T], mapped; N is not 0."""
        shape = (self.counts.rows, self.sequence_length)
        return np.memmap(self.file, f"<u{self.itemsize}", "r", HEADER_BYTES, shape)


def _write(file: Path, packed: Iterable[packing.Packed], tokenizer: Tokenizer, shelf: packing.Shelf | Pairs) -> None:
    """One shard of what `shelf` makes, its header last, when its rows are on the disk."""
    pairs = isinstance(shelf, Pairs)
    dtype = np.dtype("<u2" if tokenizer.size <= 1 << 16 else "<u4")
    here = Counts()
    with open(file, "wb") as stream:
        stream.write(bytes(HEADER_BYTES))
        for rows, documents, duplicates, bytes_in in packed:
            stream.write(rows.astype(dtype).tobytes())
            here += Counts(len(rows), rows.size, int(np.count_nonzero(rows)), documents, bytes_in, duplicates)
        stream.flush()
        os.fsync(stream.fileno())
        header = HEADER.pack(
            *(MAGIC, VERSION if pairs else 1, dtype.itemsize, here.rows, shelf.length, tokenizer.size),
            *(here.useful_tokens, here.documents, here.bytes_in, bytes.fromhex(tokenizer.hash), here.duplicates, pairs),
        ).ljust(HEADER_BYTES - 4, b"\0")
        stream.seek(0)
        stream.write(header + struct.pack("<I", zlib.crc32(header)))
        stream.flush()
        os.fsync(stream.fileno())


def _is_whole(file: Path) -> bool:
    try:
        return file.exists() and bool(Shard(file))
    except LspError:
        return False


def _sources(file: Path, rows: int) -> list[dict[str, Any]]:
    """The weighted sources of rows, or none."""
    if not file.exists():
        return []
    try:
        sources = json.loads(file.read_bytes())
        whole = sum(source["rows"] for source in sources) == rows
        whole = whole and all(source["rows"] > 0 and source["name"] for source in sources)
        whole = whole and (all(s["weight"] is None for s in sources) or all(s["weight"] > 0 for s in sources))
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        raise _damaged(file, "it does not fit the rows beside it")
    return sources


def name(index: int) -> str:
    return f"{index:05d}.rows"


def _damaged(file: Path, what: str) -> LspError:
    return LspError(f"{file} is damaged: {what}.", hint="Run lsp prepare again with --overwrite.", code=Exit.ARTIFACT)
