"""Raw text to rows, slice by slice: what is done is kept, and several processes can share the work.

    corpus ──slices──▶ PATH/parts/00000/rows, PATH/parts/00001/rows, … ──▶ PATH/rows

Which slices there are does not depend on who makes them, a slice is made by one process at a time (each has a lock),
and becomes `rows` in one step. So a killed run goes on at the first shard that is not whole, and processes on any hosts
that share PATH end up with the bytes that one process would have written.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lsp import Exit, LspError, interrupt, lock, manifest, recipe
from lsp.data import clients, corpus, duplicates, files, shards
from lsp.data.corpus import Slice
from lsp.data.shards import MIXTURE, Counts, Rows, Shard
from lsp.data.tokenizer import Tokenizer, learn, sample

PATIENCE = 600.0  # seconds that a process waits for one that is hashing the same slice


def prepare(
    arguments: Sequence[str],
    path: Path,
    data: recipe.Text,
    tokenizer: Path | None,
    seed: int,
    progress: Any,
    part: tuple[int, int] | None = None,
) -> Counts:
    """Raw text to `path/tokenizer` and `path/rows`; done parts are kept, so a killed call can be made again.

    `arguments` is what `files.sources` takes, standard input spooled. The tokenizer is that of the directory
    `tokenizer`, else one trained with `seed`. The same arguments give the same bytes. With `part` = (k, n) only the
    k-th of n shares of the slices is made, and `path/rows` is left to a call without. `progress` is `console.Progress`.
    Raises LspError: 3 for unusable text, 5 when the disk lacks the room, 75 when other processes are making the rest.
    """
    place = path / "parts"
    if (path / "rows").is_dir():
        shutil.rmtree(place, ignore_errors=True)
        return Rows.open(path).counts
    place.mkdir(parents=True, exist_ok=True)
    given = _sources(arguments, place / "clients", data)
    slices = corpus.slices(given)
    number, of = part or (1, 1)
    first, last = len(slices) * (number - 1) // of, len(slices) * number // of
    words = _tokenizer(slices, path, data, tokenizer, seed, progress)
    there = sum(_counts(folder).tokens for folder in (place, *(place / _name(number) for number in range(first, last))))
    _foretell(slices[first:last], path, there, data, words, progress)
    again = _repeats(slices, (first, last), place, data, progress) if data.deduplicate else None
    busy = []
    with progress.task("tokenizing and packing (MB)", sum(each.stored for each in slices[first:last]) / 1e6) as task:
        before = 0
        for number in range(first, last):
            heard = partial(_heard, task, before)
            made = _make(slices[number], place / _name(number), data, words, seed, again and again[number], heard)
            if not made:
                busy.append(number)
            before += slices[number].stored
    if busy:
        raise LspError(
            f"{len(busy)} of the {len(slices)} slices of {path} are still being made by other processes.",
            hint="Run the same command again when they have ended.",
            code=Exit.STOPPED,
        )
    if part is not None:
        return sum((_counts(place / _name(number)) for number in range(first, last)), Counts())
    if data.next_sentence and not (place / "rows").is_dir():  # else a call that was killed has moved some
        _refuse_one(sum((_counts(place / _name(number)) for number in range(len(slices))), Counts()))
    _join(slices, given, place, path, weighted=not data.client_field)
    return Rows.open(path).counts


def _sources(arguments: Sequence[str], place: Path, data: recipe.Text) -> list[files.Source]:
    """What the arguments name, or each client in it."""
    if not data.client_field:
        return files.sources(arguments)
    place.mkdir(exist_ok=True)
    with lock.only_writer(place, patience=PATIENCE):
        return clients.split(arguments, place, data.client_field, data.text_field)


def _tokenizer(
    slices: Sequence[Slice], path: Path, data: recipe.Text, given: Path | None, seed: int, progress: Any
) -> Tokenizer:
    """The tokenizer, now in `path/tokenizer`: the given one, the one that is there already, or a new one."""
    if words := Tokenizer.find(path / "tokenizer"):  # a full disk leaves the folder alone
        return words
    if given is not None:
        words = Tokenizer.load(given)
        with lock.only_writer(path / "parts", patience=PATIENCE):  # others may be saving the same one
            words.save(path / "tokenizer")
        return words
    with progress.task("sampling text (MB)", sum(each.stored for each in slices) / 1e6) as task:
        lines = sample(_documents(slices, data.text_field, task), data.vocab_size, seed)
    if not lines:
        raise _nothing(slices)
    progress.say(f"training a tokenizer of {data.vocab_size} pieces on {sum(map(len, lines)) / 1e6:.1f} M characters")
    words = interrupt.apart(
        partial(learn, lines, vocab_size=data.vocab_size, kind=data.tokenizer, lowercase=data.lowercase)
    )
    words.save(path / "tokenizer")
    return words


def _documents(slices: Sequence[Slice], field: str, task: Any) -> Iterator[str]:
    before = 0
    for work in slices:
        yield from corpus.read(work, field, partial(_heard, task, before))
        before += work.stored


def _heard(task: Any, before: int, stored: int) -> None:
    task.update((before + stored) / 1e6)


def _foretell(
    mine: Sequence[Slice], path: Path, there: int, data: recipe.Text, words: Tokenizer, progress: Any
) -> None:
    """Says how much disk the rows will take; refuses (exit 5) when there is less for those beyond `there` tokens."""
    rows, tokens = corpus.expected(mine, data.text_field, words, data.sequence_length, data.next_sentence)
    width = 2 if words.size <= 1 << 16 else 4
    needed = rows * data.sequence_length * width
    free = shutil.disk_usage(path).free
    progress.say(
        f"about {needed / 1e6:,.1f} MB for {tokens / 1e6:,.1f} M tokens in {rows:,} rows; {free / 1e6:,.0f} MB are free"
    )
    missing = needed - there * width
    if missing > free:
        raise LspError(
            f"{path} needs about {missing / 1e6:,.1f} MB for the rows, and {free / 1e6:,.1f} MB are free there.",
            hint="Free some space and run the same command again, or give another --out.",
            code=Exit.MACHINE,
        )


def _repeats(
    slices: Sequence[Slice], mine: tuple[int, int], place: Path, data: recipe.Text, progress: Any
) -> list[np.ndarray]:
    """Which documents of each slice, up to the last of mine, came before. Reads what no process has hashed yet."""
    first, last = mine
    tables = [place / _name(number) / "hashes.npy" for number in range(last)]
    with progress.task("looking for duplicates (MB)", sum(each.stored for each in slices[:last]) / 1e6) as task:
        before = 0
        for number in (*range(first, last), *range(first)):  # others begin with their own
            heard = partial(_heard, task, before)
            before += slices[number].stored
            tables[number].parent.mkdir(exist_ok=True)
            if tables[number].exists():
                continue
            with lock.only_writer(tables[number].parent, patience=PATIENCE):
                if not tables[number].exists():
                    duplicates.write(corpus.read(slices[number], data.text_field, heard), tables[number])
    return duplicates.repeats(tables)


def _make(
    work: Slice,
    folder: Path,
    data: recipe.Text,
    words: Tokenizer,
    seed: int,
    again: Any,
    heard: Callable[[int], object],
) -> bool:
    """Makes `folder/rows` unless it is there; False when another process is about it."""
    if (folder / "rows").is_dir():
        return True
    try:
        folder.mkdir(exist_ok=True)
        with lock.only_writer(folder):
            if not (folder / "rows").is_dir():
                documents = corpus.read(work, data.text_field, heard)
                documents = documents if again is None else duplicates.left_out(documents, again)
                pairs = f"{seed} {folder.name}" if data.next_sentence else None
                shards.pack(documents, words, folder, data.sequence_length, max(corpus.SMALLEST, work.stored), pairs)
    except LspError as error:
        if error.code == Exit.STOPPED:
            return False
        raise
    except FileNotFoundError:
        if not (folder.parent.parent / "rows").is_dir():
            raise
        # Another process has made the rest meanwhile, and joined it.
    return True


def _refuse_one(counts: Counts) -> None:
    """Raises LspError (exit 3) when random texts for next-sentence prediction have no other document to come from."""
    if counts.documents == 1:
        raise LspError(
            "The text is a single document, and next-sentence prediction takes half of its texts from other ones.",
            hint="Put an empty line between documents, or leave out data.next_sentence.",
            code=Exit.DATA,
        )


def _counts(folder: Path) -> Counts:
    return sum((Shard(file).counts for file in sorted((folder / "rows").glob("*.rows"))), Counts())


def _join(slices: Sequence[Slice], given: Sequence[files.Source], place: Path, path: Path, *, weighted: bool) -> None:
    """The shards of all slices as `path/rows`, numbered through. Raises LspError (exit 3) when a source has no text.

    Shards move one by one, in order, so that what a killed process left is continued: those that moved are numbered.
    """
    folders = [place / _name(number) for number in range(len(slices))]
    joined = place / "rows"
    if not joined.is_dir():
        rows = [0] * len(given)
        for work, folder in zip(slices, folders, strict=True):
            rows[work.source] += _counts(folder).rows
        for source, own in zip(given, rows, strict=True):
            if not own:
                shutil.rmtree(place)
                raise _nothing([work for work in slices if given[work.source] is source])
        joined.with_suffix(".tmp").mkdir(exist_ok=True)
        if given[0].name:
            mixture = [
                {"name": each.name, "weight": each.weight if weighted else None, "rows": own}
                for each, own in zip(given, rows, strict=True)
            ]
            if weighted:
                shards.filled(mixture)  # may refuse
            manifest.write_atomically(joined.with_suffix(".tmp") / MIXTURE, json.dumps(mixture, indent=1) + "\n")
        joined.with_suffix(".tmp").rename(joined)
    number = len(list(joined.glob("*.rows")))
    for folder in folders:
        for file in sorted((folder / "rows").glob("*.rows")):
            if Shard(file).counts.rows:
                file.rename(joined / shards.name(number))
                number += 1
    manifest.sync(joined)
    joined.rename(path / "rows")
    manifest.sync(path)
    shutil.rmtree(place, ignore_errors=True)


def _name(number: int) -> str:
    return f"{number:05d}"


def _nothing(slices: Sequence[Slice]) -> LspError:
    paths = list(dict.fromkeys(stretch.path for work in slices for stretch in work.stretches))
    named = ", ".join(map(files.title, paths[:3])) + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
    return LspError(f"There is no text in {named}.", hint="Give files with text in them.", code=Exit.DATA)
