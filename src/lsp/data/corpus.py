"""A corpus cut into slices of stored text, by names and sizes alone: the same whoever asks, and whatever for.

    sources ──slices──▶ many small files together, or a stretch of a large one ──read──▶ documents

A compressed file and a table can't be entered in the middle, so such a file is in one slice however large it is.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from lsp.data import files, packing, text
from lsp.data.files import Source
from lsp.data.pairs import Pairs
from lsp.data.text import Stretch
from lsp.data.tokenizer import Tokenizer

# Stored bytes of a slice: a thousandth of the corpus within these bounds. Each slice ends with rows that are not full:
# at 16 MiB of English, that is 0.07 % of all tokens more padding than in one piece, for rows of 128 and of 512.
SMALLEST, LARGEST = 16 << 20, 256 << 20
PROBES = 16  # places from which the size of the result is foretold
PROBE = 64 << 10  # characters encoded of each
AHEAD = 16  # times as many are read where the places can't be chosen


class Slice(NamedTuple):
    """What one process makes in one go: stretches of files of one source, by number, and their stored bytes.

    Stretches begin and end at round numbers; `read` looks up which documents those are.
    """

    source: int
    stretches: tuple[Stretch, ...]
    stored: int


def slices(sources: Sequence[Source]) -> list[Slice]:
    """The corpus in order. Raises LspError as `files.expand` does."""
    found = [[(file, files.size([file])) for file in files.expand(source.paths)] for source in sources]
    total = sum(size for files_in in found for _, size in files_in)
    aim = min(max(SMALLEST, total // 1024), LARGEST)
    return [made for number, files_in in enumerate(found) for made in _slices(number, files_in, aim)]


def read(work: Slice, field: str, heard: Callable[[int], object] | None = None) -> Iterator[str]:
    """The documents of a slice; `heard` is told how many of its stored bytes were read. Raises as `text.documents`."""
    return text.documents([_exact(stretch) for stretch in work.stretches], field, heard)


def expected(
    corpus: Sequence[Slice], field: str, words: Tokenizer, sequence_length: int, next_sentence: bool = False
) -> tuple[int, int]:
    """About how many rows, and tokens in them that are not padding, `corpus` will become, packed or as pairs.

    Plain text is looked at in 16 places; of compressed files and tables, up to 16 are read from the beginning on, 16 M
    characters in all. What is encoded is a million of each.
    """
    stretches = [stretch for work in corpus for stretch in work.stretches]
    lengths = [(stretch.end or files.size([stretch.path])) - stretch.begin for stretch in stretches]
    groups: dict[str, list[int]] = {}
    for index, stretch in enumerate(stretches):
        plain = stretch.end is not None
        groups.setdefault("plain" if plain else stretch.path.rpartition(".")[2], []).append(index)
    shelf = Pairs(sequence_length, "a guess") if next_sentence else packing.Shelf(sequence_length)
    tokens, full = 0.0, [np.zeros((0, sequence_length), np.int32)]
    for name, members in groups.items():
        stored = [lengths[index] for index in members]
        pick = _windows if name == "plain" else _heads
        held, seen = pick([stretches[index] for index in members], stored, field)
        encoded = packing.encode(held, words)
        made = shelf.add(encoded)
        if isinstance(shelf, Pairs):
            made = np.concatenate([made, shelf.rest()])
            useful = np.count_nonzero(made)
        else:
            useful = packing.frame(encoded.tokens, encoded.lengths(), sequence_length)[1].sum()
        full.append(made)
        tokens += useful * sum(stored) / max(seen, 1)
    rows = np.concatenate(full)
    rows = rows if len(rows) > packing.OPEN_ROWS else np.concatenate([rows, shelf.rest()])
    share = np.count_nonzero(rows) / rows.size if rows.size else 1.0
    return round(tokens / share / sequence_length), round(tokens)


def _slices(source: int, sized: Sequence[tuple[str, int]], aim: int) -> Iterator[Slice]:
    held: list[Stretch] = []
    stored = 0
    for file, size in sized:
        plain = size > 0 and text.can_be_cut(file)
        parts = max(1, round(size / aim)) if plain else 1
        if held and (stored + size > aim or parts > 1):
            yield Slice(source, tuple(held), stored)
            held, stored = [], 0
        bounds = [size * part // parts for part in range(parts + 1)]
        if parts > 1:
            for begin, end in itertools.pairwise(bounds):
                yield Slice(source, (Stretch(file, begin, end),), end - begin)
        else:
            held.append(Stretch(file, 0, size if plain else None))
            stored += size
    if held:
        yield Slice(source, tuple(held), stored)


def _exact(stretch: Stretch) -> Stretch:
    """The stretch with its ends moved on to where a document begins."""
    if stretch.end is None:
        return stretch
    length = files.size([stretch.path])
    return Stretch(stretch.path, *(text.cut(stretch.path, near, length) for near in (stretch.begin, stretch.end)))


def _windows(stretches: Sequence[Stretch], lengths: Sequence[int], field: str) -> tuple[list[str], int]:
    """Documents from evenly spaced windows on plain text, all of it when it is little; and their stored bytes."""
    ends = np.cumsum(lengths)
    if ends[-1] <= PROBES * PROBE:
        chosen = [*stretches]
    else:
        chosen = []
        for near in (ends[-1] * (2 * np.arange(PROBES) + 1) // (2 * PROBES)).tolist():
            index = int(np.searchsorted(ends, near, "right"))
            begin = stretches[index].begin + near - int(ends[index] - lengths[index])
            begin = max(stretches[index].begin, min(begin, stretches[index].begin + lengths[index] - PROBE))
            chosen.append(
                Stretch(stretches[index].path, begin, min(begin + PROBE, stretches[index].begin + lengths[index]))
            )
    exact = [_exact(stretch) for stretch in chosen]
    return list(text.documents(exact, field)), sum(stretch[2] - stretch[1] for stretch in exact if stretch[2])


def _heads(stretches: Sequence[Stretch], lengths: Sequence[int], field: str) -> tuple[list[str], float]:
    """Documents from the beginnings of evenly spaced files that can be read from there only; and their stored bytes."""
    chosen = np.unique(np.linspace(0, len(stretches) - 1, min(PROBES, len(stretches))).round().astype(int))
    held: list[str] = []
    seen = 0.0
    for index in chosen.tolist():
        documents, stored = _head(stretches[index], lengths[index], field, PROBES * PROBE // len(chosen))
        held += documents
        seen += stored
    return held, seen


def _head(stretch: Stretch, length: int, field: str, limit: int) -> tuple[list[str], float]:
    """Up to `limit` characters, evenly from the first 16 · `limit`, and how many stored bytes hold as much."""
    held: list[str] = []
    read, kept, every = 0, 0, 1
    known, fetched = (0, 0), 0  # characters read, and the stored bytes that they took; bytes fetched so far

    def heard(stored: int) -> None:
        nonlocal known, fetched
        if stored > fetched:  # only then what was fetched before is used up: up to 128 KB (Python 3.14) are at once
            known, fetched = (read, fetched), stored

    for number, document in enumerate(text.documents([stretch], field, heard)):
        if read >= AHEAD * limit and known[0]:
            break
        read += len(document)
        if number % every == 0:
            held.append(document)
            kept += len(document)
        if kept > limit:  # every second of them is enough, from here on too
            held, every = held[::2], 2 * every
            kept = sum(map(len, held))
    else:
        known = read, length
    return held, known[1] * kept / max(known[0], 1)
