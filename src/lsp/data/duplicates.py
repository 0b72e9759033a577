"""Which documents came before: exact duplicates, found by hashes of 128 bits, however large the corpus.

    documents ──write──▶ one table of hashes a slice ──repeats──▶ which documents of each slice to leave out

Two documents are the same when they are after white space at their ends is taken off. That two different ones share a
hash has a chance of 1 in 10^18 for 10^10 documents.
"""

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from lsp import manifest

BUCKET = 1 << 21  # documents compared at a time: about 100 MB


def write(documents: Iterable[str], file: Path) -> None:
    """Writes a table [documents, 3] of uint64, sorted: the two halves of each hash, and the place of the document."""
    hashes = bytearray()
    for document in documents:
        hashes += hashlib.blake2b(document.strip().encode(), digest_size=16).digest()
    halves = np.frombuffer(hashes, "<u8").reshape(-1, 2)
    order = np.argsort(halves[:, 0], kind="stable")
    stored = io.BytesIO()
    np.save(stored, np.column_stack([halves[order], order.astype("<u8")]))
    manifest.write_atomically(file, stored.getvalue())


def repeats(tables: Sequence[Path]) -> list[np.ndarray]:
    """For each table, in corpus order, which of its documents came earlier, there or in a table before: bool.

    Holds a byte a document, and 100 MB.
    """
    hashes = [np.load(table, mmap_mode="r") for table in tables]
    counts = [len(each) for each in hashes]
    starts = np.cumsum([0, *counts])
    found = np.zeros(starts[-1], bool)
    bits = max(0, int(starts[-1] // BUCKET).bit_length())
    for bucket in range(1 << bits):
        low, high = bucket << (64 - bits), (bucket + 1 << (64 - bits)) - 1
        parts = []
        for each, start in zip(hashes, starts, strict=False):
            first, last = (
                np.searchsorted(each[:, 0], np.uint64(low)),
                np.searchsorted(each[:, 0], np.uint64(high), "right"),
            )
            parts.append(each[first:last] + np.array([0, 0, start], np.uint64))
        one, other, place = np.concatenate(parts).T if parts else np.zeros((3, 0), np.uint64)
        order = np.lexsort((place, other, one))
        again = (np.diff(one[order]) == 0) & (np.diff(other[order]) == 0)
        found[place[order][1:][again].astype(np.int64)] = True
    return np.split(found, starts[1:-1])


def left_out(documents: Iterable[str], again: np.ndarray) -> Iterator[str]:
    """The documents, an empty one in the place of each that came before."""
    return ("" if repeat else document for document, repeat in zip(documents, again.tolist(), strict=True))
