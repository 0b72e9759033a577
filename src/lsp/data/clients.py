"""Text by whom it is from, for federated averaging (McMahan et al., 2017): rows that hold text of one client each, and
which clients train in a round.

    records ──split──▶ PATH/000000.jsonl, … one a client ──parts──▶ rows, one client after another ──Rounds──▶ batches

Suffixes: B rows of a batch, R copies of the model.
"""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lsp import Exit, LspError, directory, nearest
from lsp.data import columns, files, text
from lsp.data.files import Source, title, unusable

HELD = 8 << 20  # characters that are held before they go to the clients' files


def split(arguments: Sequence[str], place: Path, client: str, field: str) -> list[Source]:
    """Each client's text as a source of its own, in files under `place`, in the order in which clients first come.

    `client` and `field` are fields of records or columns of tables: whose text it is, and the text. What a killed call
    left is made again. Raises LspError: 2 for sources that have weights, 3 for text that says nothing of clients.
    """
    done = place / "clients.json"
    if not done.exists():
        [source, *others] = files.sources(arguments)
        if others or source.name:
            raise LspError(
                "With data.client_field each client is a source: there are no others to weigh.",
                hint="Give the files alone, without NAME=WEIGHT:",
            )
        names: dict[str, int] = {}
        for old in place.glob("*.jsonl"):
            old.unlink()
        held: dict[int, list[str]] = {}
        length = 0
        for name, document in _documents(files.expand(source.paths), client, field):
            held.setdefault(names.setdefault(name, len(names)), []).append(document)
            length += len(document)
            if length >= HELD:
                _write(place, held, field)
                held, length = {}, 0
        _write(place, held, field)
        directory.write_atomically(done, json.dumps(list(names)) + "\n")
    return [Source(name, 1.0, (str(_file(place, i)),)) for i, name in enumerate(json.loads(done.read_bytes()))]


def _documents(paths: Sequence[str], client: str, field: str) -> Iterator[tuple[str, str]]:
    """Whose text it is, and the text, of every record that has both."""
    for path in paths:
        found: Iterator[tuple[int, Any]]
        if files.begins(path, files.TABLES):
            found = enumerate(columns.values(path, (field, client)), 1)
        elif files.kind(path) in text.RECORDS:
            found = ((number, (record.get(field), record[client])) for number, record in _named(path, client))
        else:
            raise unusable(
                f"{title(path)} is plain text, which has no field '{client}'.",
                "Clients are told apart in .jsonl files and in tables.",
            )
        for number, (document, name) in found:
            if document is None or name is None:
                continue
            document = text.string(document, f"{title(path)}, record {number}: field '{field}'")
            if document.strip():
                yield str(name), document


def _named(path: str, client: str) -> Iterator[tuple[int, dict[str, object]]]:
    for number, record in text.records(path, text.lines(path)):
        if client not in record:
            raise unusable(
                f"{title(path)}, line {number}: no field '{client}'.{nearest(client, record)}",
                f"Fields there: {', '.join(record) or 'none'}. Name one with --set data.client_field=NAME.",
            )
        yield number, record


def _write(place: Path, held: dict[int, list[str]], field: str) -> None:
    for number, documents in held.items():
        with open(_file(place, number), "a", encoding="utf-8") as file:
            file.writelines(json.dumps({field: document}) + "\n" for document in documents)


def _file(place: Path, number: int) -> Path:
    return place / f"{number:06d}.jsonl"


class Rounds:
    """Batches for copies of the model that are a client each, from one meeting to the next: a round.

    A round's clients are drawn without replacement, from all of them. A copy reads its client's rows in a new order
    each time, again and again if there are few. Everything is a function of the step.
    """

    def __init__(self, owned: Sequence[np.ndarray], share: float, every: int, batch_size: int, seed: int) -> None:
        """`owned` are each client's rows, by number; `share` of the clients take part, at least one."""
        self.owned = [rows for rows in owned if len(rows)]
        self.copies = max(1, round(share * len(self.owned)))
        self.every, self.seed, self.rows = every, seed, batch_size // self.copies
        if not self.owned:
            raise LspError(
                "replicas.clients needs rows that say whose they are.",
                hint="Prepare the text with --set data.client_field=NAME.",
            )
        if batch_size % self.copies:
            raise LspError(
                f"{self.copies} clients a round can't share train.batch_size = {batch_size}.",
                hint=f"Use --set train.batch_size={math.ceil(batch_size / self.copies) * self.copies}.",
                code=Exit.USAGE,
            )

    def __call__(self, step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of a step: rows [B], how often each was read before (a number for new masks) [B], and how many rows the
        client of each has, float32 [B]."""
        number, index = divmod(int(step), self.every)
        drawn = np.random.default_rng([self.seed, number]).permutation(len(self.owned))[: self.copies]
        taken = [self._taken(client, number, index) for client in drawn.tolist()]
        examples = [len(self.owned[client]) for client in drawn.tolist()]
        rows, passes = (np.concatenate(arrays) for arrays in zip(*taken, strict=True))
        return rows, passes, np.repeat(np.array(examples, np.float32), self.rows)

    def _taken(self, client: int, number: int, index: int) -> tuple[np.ndarray, np.ndarray]:
        """The rows of a client at step `index` of round `number`, and their passes."""
        rows = self.owned[client]
        places = index * self.rows + np.arange(self.rows)
        passes = places // len(rows)
        orders = {p: np.random.default_rng([self.seed, number, client, p]) for p in set(passes.tolist())}
        shuffled = {p: random.permutation(rows) for p, random in orders.items()}
        chosen = np.array([shuffled[p][i] for p, i in zip(passes.tolist(), places % len(rows), strict=True)])
        most = self.every * self.rows  # no round has more passes
        return chosen, number * most + passes
