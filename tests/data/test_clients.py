"""Text by client: what is split, and which clients a round has, against plain lists."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lsp import Exit, LspError, recipe
from lsp.console import Progress
from lsp.data import clients, parts
from lsp.data.clients import Rounds
from lsp.data.shards import Rows
from lsp.data.tokenizer import CLS, Tokenizer

LETTERS = np.random.default_rng(0).choice(list("defghijklmnop"), (60, 8, 4))
TEXTS = [(f"user{i % 3}", " ".join(["abc"[i % 3], *map("".join, LETTERS[i])])) for i in range(60)]


def write(path: Path, records: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


@pytest.fixture
def file(tmp_path: Path) -> str:
    records: list[dict[str, Any]] = [{"text": text, "who": name} for name, text in TEXTS]
    records[7:7] = [{"text": "   ", "who": "nobody"}, {"text": "x", "who": None}, {"text": None, "who": "nobody"}]
    return write(tmp_path / "all.jsonl", records)


def test_each_client_is_a_source_with_its_own_text_in_order(file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(clients, "HELD", 100)  # several goes at each file
    place = tmp_path / "split"
    place.mkdir()
    (place / "000000.jsonl").write_text("what a killed call left\n")
    found = clients.split([file], place, "who", "text")
    assert [source.name for source in found] == ["user0", "user1", "user2"]
    for source in found:
        own = [json.loads(line)["text"] for line in Path(source.paths[0]).read_text().splitlines()]
        assert own == [text for name, text in TEXTS if name == source.name]
    assert clients.split(["not read again"], place, "who", "text") == found


def test_rows_hold_text_of_one_client_each(file: str, tmp_path: Path):
    data = recipe.Text(vocab_size=320, sequence_length=128, client_field="who")
    parts.prepare([file], tmp_path / "out", data, None, 0, Progress(quiet=True))
    rows, words = Rows.open(tmp_path / "out"), Tokenizer.load(tmp_path / "out")
    assert [source["name"] for source in rows.sources] == ["user0", "user1", "user2"]
    assert {source["weight"] for source in rows.sources} == {None}
    assert rows.epoch().tolist() == list(range(len(rows)))
    for source, own in zip(rows.sources, rows.owned(np.arange(len(rows))), strict=True):
        assert len(own) == source["rows"]
        texts = [words.decode(text) for row in rows.take(own) for text in np.split(row, np.flatnonzero(row == CLS))[1:]]
        assert {text.strip()[0] for text in texts} == {"abc"[int(source["name"][-1])]}
    # Without the rows that are held back, by places among what is left.
    left = np.setdiff1d(np.arange(len(rows)), [0, len(rows) - 1])
    owned = rows.owned(left)
    assert np.concatenate(owned).tolist() == list(range(len(left)))
    assert [len(own) for own in owned] == [
        rows.sources[0]["rows"] - 1,
        rows.sources[1]["rows"],
        rows.sources[2]["rows"] - 1,
    ]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", "plain text\n", "plain text, which has no field 'who'"),
        ("a.jsonl", '{"text": "x", "wh": 1}\n', "line 1: no field 'who'. Did you mean 'wh'?"),
        ("a.jsonl", '{"text": 3, "who": 1}\n', "record 1: field 'text' holds int"),
    ],
)
def test_text_that_says_nothing_of_clients_is_named(tmp_path: Path, name: str, content: str, said: str):
    (tmp_path / name).write_text(content)
    with pytest.raises(LspError) as caught:
        clients.split([str(tmp_path / name)], tmp_path / "split", "who", "text")
    assert said in caught.value.message and caught.value.code == Exit.DATA


def test_weighted_sources_and_clients_do_not_go_together(tmp_path: Path, file: str):
    with pytest.raises(LspError, match="each client is a source"):
        clients.split([f"a=0.5:{file}"], tmp_path, "who", "text")


def test_tables_have_clients_too(tmp_path: Path):
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = arrow.table({"body": ["one", None, "two", "three"], "id": [7, 7, 8, 7], "more": [1, 2, 3, 4]})
    parquet.write_table(table, tmp_path / "t.parquet")
    found = clients.split([str(tmp_path / "t.parquet")], tmp_path, "id", "body")
    texts = {s.name: [json.loads(line)["body"] for line in Path(s.paths[0]).read_text().splitlines()] for s in found}
    assert texts == {"7": ["one", "three"], "8": ["two"]}


def test_a_round_draws_clients_and_a_copy_reads_one_of_them():
    owned = [np.arange(10), np.arange(10, 13), np.arange(0), np.arange(13, 40), np.arange(40, 44)]
    rounds = Rounds(owned, share=0.5, every=5, batch_size=8, seed=3)
    assert rounds.copies == 2  # of four that have rows
    seen: Counter[int] = Counter()
    masks = set()
    for step in range(200):
        rows, passes, examples = rounds(step)
        assert rows.shape == passes.shape == examples.shape == (8,) and examples.dtype == np.float32
        whose = [next(client for client, own in enumerate(owned) if row in own) for row in rows.tolist()]
        assert len({*whose[:4]}) == len({*whose[4:]}) == 1 and whose[0] != whose[4], "a copy is one client"
        assert examples.tolist() == [len(owned[client]) for client in whose]
        seen.update(whose[::4])
        masks |= set(zip(rows.tolist(), passes.tolist(), strict=True))
    assert len(masks) == 200 * 8, "no row is masked twice in the same way"
    assert set(seen) == {0, 1, 3, 4} and min(seen.values()) > 200 * 2 / 4 * 0.6
    np.testing.assert_array_equal(rounds(77)[0], rounds(77)[0])
    # In a round a client's rows come once before any comes again.
    alone = Rounds(owned[:1], share=1.0, every=5, batch_size=4, seed=0)
    first = np.concatenate([alone(step)[0] for step in range(5)])
    assert sorted(first[:10].tolist()) == sorted(first[10:].tolist()) == list(range(10))
    assert first[:10].tolist() != first[10:].tolist()


def test_clients_that_can_not_share_a_batch_are_refused():
    with pytest.raises(LspError, match="3 clients a round can't share") as caught:
        Rounds([np.arange(3)] * 6, share=0.5, every=2, batch_size=16, seed=0)
    assert "train.batch_size=18" in caught.value.hint
    with pytest.raises(LspError, match="say whose they are"):
        Rounds([], share=0.5, every=2, batch_size=16, seed=0)
