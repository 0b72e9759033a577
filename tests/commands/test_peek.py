"""What `lsp data peek` shows is what training reads, and it is safe to print."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from lsp import Exit, LspError, cli, recipe
from lsp.commands import peek, prepare
from lsp.console import Progress
from lsp.data.batches import row_numbers
from lsp.data.shards import Rows
from lsp.data.tokenizer import SPECIALS, Tokenizer

DOCUMENTS = [f"the {n % 7} cats and {n} dogs " * (1 + n % 5) for n in range(120)]
ANSI = re.compile("\x1b\\[[0-9;]*m")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("peek")
    (folder / "text.txt").write_text("\n\n".join(DOCUMENTS))
    plan = recipe.load(recipe.Prepare, None, ["data.vocab_size=300", "data.sequence_length=64", "data.tokenizer=bpe"])
    out = folder / "data"
    prepare.run([str(folder / "text.txt")], out, plan, None, overwrite=False, progress=Progress(quiet=True))
    return out


def peeked(data: Path, *changes: str, rows: int = 5, step: int = 0) -> dict[str, Any]:
    return peek.run(data, recipe.load(recipe.Pretrain, None, ["train.batch_size=4", *changes]), rows, step)


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("masking", ["token", "word", "span"])
def test_rows_are_those_of_the_data_and_masks_those_of_the_rate(data: Path, masking: str) -> None:
    found = peeked(data, f"data.masking={masking}", "data.mask_rate=0.3", rows=40, step=2)
    rows, words = Rows.open(data), Tokenizer.load(data)
    assert [row["step"] for row in found["rows"]] == [2 + n // 4 for n in range(40)]
    hidden = ordinary = 0
    for row in found["rows"]:
        assert row["pieces"] == words.pieces(rows[row["row"]])
        assert all(row["pieces"][mask["position"]] == mask["hidden"] for mask in row["masks"])
        assert all(any(text in document for document in DOCUMENTS) for text in row["texts"])
        assert row["padding_share"] == pytest.approx(row["pieces"].count("[PAD]") / 64, abs=1e-4)
        here = sum(piece not in SPECIALS for piece in row["pieces"])
        assert row["mask_share"] == pytest.approx(len(row["masks"]) / here, abs=1e-4)
        hidden, ordinary = hidden + len(row["masks"]), ordinary + here
    # Words of some three tokens and spans of some ten at most widen the error of single tokens as their roots do.
    assert (
        abs(hidden / ordinary - 0.3) < 4 * (0.3 * 0.7 * {"token": 1, "word": 3, "span": 30}[masking] / ordinary) ** 0.5
    )


def test_the_rate_is_that_of_the_step(data: Path) -> None:
    changes = ("data.mask_rate=0.3", "data.mask_rate_end=0.1", "train.steps=101")
    assert [peeked(data, *changes, rows=1, step=step)["mask_rate"] for step in (0, 50, 100)] == [0.3, 0.2, 0.1]


@pytest.mark.usefixtures("plain")
def test_without_a_terminal_brackets_say_what_was_hidden(data: Path) -> None:
    found = peeked(data, "data.mask_rate=0.3")
    shown = peek.render(found)
    assert "\x1b" not in shown
    assert max(map(len, shown.splitlines())) <= 80
    assert shown.startswith(
        "step 0 of 1,000 · rows of 64 tokens · 30 % hidden, by token\n[what stands there←what it was]\n"
    )
    assert shown.count("[MASK←") == sum(mask["shown"] == "[MASK]" for row in found["rows"] for mask in row["masks"])
    assert shown.count("[CLS]") == shown.count("[SEP]") == sum(len(row["texts"]) for row in found["rows"])
    for row, block in zip(found["rows"], shown.split("\n\n")[1:], strict=True):
        heading, body = block.split("\n", 1)
        texts = re.sub(r"\[CLS\]|\[SEP\]|\[PAD\] × \d+|\[[^]]*?←|\]|\s|▁", "", body)
        assert texts == re.sub(r"\s", "", "".join(row["texts"]))
        assert f"row {row['row']:,} · " in heading
        assert ("padding" in heading) and (("[PAD]" in body) == ("no padding" not in heading))


def test_on_a_terminal_colours_say_it(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    found = peeked(data, "data.mask_rate=0.3")
    coloured = peek.render(found)
    masks = [mask for row in found["rows"] for mask in row["masks"]]
    assert coloured.count("\x1b[30;43m") >= sum(mask["shown"] == "[MASK]" for mask in masks) + 1  # and the legend
    assert coloured.count("\x1b[1;36m[CLS]") == sum(len(row["texts"]) for row in found["rows"])
    assert "[MASK←" not in ANSI.sub("", coloured)
    monkeypatch.setenv("NO_COLOR", "1")
    assert "[MASK←" in peek.render(found)


def test_text_cannot_command_the_terminal() -> None:
    assert peek._text("▁caf<0xC3><0xA9>▁<0x1B>[2J<0xE2><0x80><0xAE>x<0x0A>\u009b<0xFF>") == (
        " café \\x1b[2J\\u202ex\\n\\x9b\\xff"
    )
    assert peek._hidden("<0x1B>", "▁\x1b", False).plain == "[\\x1b←\\x1b]"


def test_the_command_prints_one_object_or_text(data: Path, capsys: pytest.CaptureFixture[str], plain: None) -> None:
    assert cli.main(["data", "peek", str(data), "--rows", "2", "--json"]) == Exit.DONE
    found = json.loads(capsys.readouterr().out)
    assert (found["command"], len(found["rows"])) == ("data peek", 2)
    assert cli.main(["data", "peek", str(data), "--rows", "2"]) == Exit.DONE
    assert capsys.readouterr().out == peek.render(found) + "\n"


@pytest.mark.usefixtures("plain")
def test_batches_and_rows_grow_as_in_training(data: Path) -> None:
    changes = ("train.batch_start=1", "train.batch_warmup=0.5", "train.steps=12")
    found = peeked(data, *changes, rows=24)
    assert [row["step"] for row in found["rows"]] == [0, 1, 2, 3, 3, 4, 4, 5, 5, *sorted([*range(6, 10)] * 4)][:24]
    order = row_numbers(Rows.open(data), batch_size=1, seed=recipe.Train().seed)
    assert [row["row"] for row in found["rows"]] == [int(order[unit][0]) for unit in range(24)]
    changes = ("data.length_start=16", "data.length_warmup=0.5", "train.steps=12")
    assert [peeked(data, *changes, step=step)["seen_at_once"] for step in (0, 2, 3, 5, 6)] == [16, 16, 32, 32, 64]
    assert "rows of 64 tokens in pieces of 32 · " in peek.render(peeked(data, *changes, step=4))


def test_weights_choose_the_rows_as_in_training(tmp_path: Path) -> None:
    for name, word in (("much", "cats"), ("little", "dogs")):
        (tmp_path / f"{name}.txt").write_text("\n\n".join(f"the {n} {word} and more {word}" for n in range(300)))
    plan = recipe.load(recipe.Prepare, None, ["data.vocab_size=300", "data.sequence_length=64", "data.tokenizer=bpe"])
    given = [f"much=0.9:{tmp_path}/much.txt", f"little=0.1:{tmp_path}/little.txt"]
    prepare.run(given, tmp_path / "data", plan, None, overwrite=False, progress=Progress(quiet=True))
    rows = Rows.open(tmp_path / "data")
    found = peeked(tmp_path / "data", rows=len(rows.epoch()))
    dogs = sum("dogs" in "".join(row["texts"]) for row in found["rows"])
    assert dogs == pytest.approx(0.1 * len(found["rows"]), abs=1)
    assert sorted(row["row"] for row in found["rows"]) == sorted(rows.epoch().tolist())


@pytest.mark.usefixtures("plain")
def test_a_pair_is_shown_as_two_texts(tmp_path: Path) -> None:
    stories = ["\n".join(f"the {n} cats saw {line} dogs" for line in range(2 + n % 7)) for n in range(60)]
    (tmp_path / "text.txt").write_text("\n\n".join(stories))
    changes = ["data.vocab_size=300", "data.sequence_length=64", "data.tokenizer=bpe", "data.next_sentence=true"]
    plan = recipe.load(recipe.Prepare, None, changes)
    out = tmp_path / "data"
    prepare.run([str(tmp_path / "text.txt")], out, plan, None, overwrite=False, progress=Progress(quiet=True))
    found = peeked(out, rows=40)
    lined = [re.sub(r"\s+", " ", story) for story in stories]
    for row in found["rows"]:
        assert row["pieces"][0] == "[CLS]"
        first, second = (text.strip() for text in row["texts"])
        together = any(first in story and second in story for story in lined)
        assert together or not row["next"]
    assert {row["next"] for row in found["rows"]} == {True, False}
    for row, block in zip(found["rows"], peek.render(found).split("\n\n")[1:], strict=True):
        heading, *lines = block.split("\n")
        assert ("a text and the next" if row["next"] else "a text and a random one") in " ".join(heading.split())
        assert sum(line.endswith("[SEP]") for line in lines) == 2, "each text ends a line of its own"


def test_raw_text_is_no_data(tmp_path: Path) -> None:
    with pytest.raises(LspError, match="is not prepared data") as raised:
        peeked(tmp_path)
    assert raised.value.hint.startswith("Prepare it: lsp prepare")


@pytest.mark.parametrize("words", [["--rows", "9" * 23], ["--step", "9" * 400]], ids=["rows", "step"])
def test_more_than_there_can_be_is_refused(data: Path, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["data", "peek", str(data), *words]) == Exit.USAGE
    assert "Input should be less than or equal to" in capsys.readouterr().err


def test_the_last_step_that_may_be_asked_for_is_shown(data: Path) -> None:
    assert peeked(data, rows=1, step=2**31 - 1)["rows"]
