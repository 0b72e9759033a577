"""`lsp prepare` from files to a sealed directory, and what it refuses."""

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from lsp import Exit, LspError, directory, recipe
from lsp.commands import prepare, pretrain
from lsp.console import Progress
from lsp.data import shards
from lsp.data.tokenizer import Tokenizer
from lsp.train.options import Options

RECIPE = recipe.Prepare(data=recipe.Text(vocab_size=300, tokenizer="bpe", sequence_length=32))
WORDS = "\n\n".join(f"The {n} cats of street {n * n} saw {n % 7} dogs and went home again." for n in range(300))


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    (tmp_path / "corpus.txt").write_text(WORDS, "utf-8")
    return str(tmp_path / "corpus.txt")


def run(paths: list[str], out: Path, plan: recipe.Prepare = RECIPE, **given: Any) -> dict[str, Any]:
    return prepare.run(paths, out, plan, given.get("tokenizer"), given.get("overwrite", False), Progress(quiet=True))


def test_the_directory_is_sealed_and_the_result_is_what_is_in_it(corpus: str, tmp_path: Path) -> None:
    result = run([corpus], tmp_path / "out")
    manifest = directory.read(tmp_path / "out")
    rows = shards.Rows.open(tmp_path / "out")
    assert manifest["stage"] == "prepare"
    assert manifest["tokenizer"] == rows.tokenizer_hash == Tokenizer.load(tmp_path / "out").hash
    assert (result["documents"], result["rows"], result["tokens"]) == (300, len(rows), 32 * len(rows))
    assert result["useful_tokens"] == rows.useful_tokens
    assert result["bytes"] == sum(
        path.stat().st_size for part in ("rows", "tokenizer") for path in (tmp_path / "out" / part).iterdir()
    )
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == result
    assert shards.prepared([str(tmp_path / "out")]) == directory.identity(manifest)
    assert shards.prepared([corpus]) == ""


def test_the_same_command_again_does_nothing_and_another_is_refused(corpus: str, tmp_path: Path) -> None:
    result = run([corpus], tmp_path / "out")
    assert run([corpus], tmp_path / "out") == result | {"status": "already complete"}
    longer = recipe.Prepare(data=recipe.Text(vocab_size=300, tokenizer="bpe", sequence_length=64))
    with pytest.raises(LspError, match=r"data\.sequence_length: 32 → 64") as error:
        run([corpus], tmp_path / "out", longer)
    assert error.value.code == Exit.USAGE
    assert run([corpus], tmp_path / "out", longer, overwrite=True)["tokens"] % 64 == 0


def test_a_model_has_the_pieces_and_rows_of_the_data_whatever_its_recipe_says(
    corpus: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run([corpus], tmp_path / "out")
    for asked, warned in ((recipe.Text(), False), (recipe.Text(vocab_size=4096, sequence_length=32), True)):
        resolved = pretrain._as_prepared(recipe.Pretrain(data=asked), tmp_path / "out", Progress())
        pieces = Tokenizer.load(tmp_path / "out").size
        assert resolved == recipe.Pretrain(data=recipe.Text(vocab_size=pieces, sequence_length=32))
        said = capsys.readouterr().err
        assert ("out was prepared with data.vocab_size = " in said) == ("4096 is not read" in said) == warned
        assert "sequence_length" not in said


def test_a_second_tokenizer_and_a_metric_that_pretraining_lacks_are_refused(corpus: str, tmp_path: Path) -> None:
    run([corpus], tmp_path / "out")
    options = Options(Progress(quiet=True))
    with pytest.raises(LspError, match="out has a tokenizer, which its tokens are of"):
        pretrain.run([str(tmp_path / "out")], tmp_path / "run", recipe.Pretrain(), tmp_path / "out", None, [], options)
    wrong = recipe.Pretrain(train=recipe.Train(steps=4, evaluate_every=2, best="f1"))
    with pytest.raises(LspError, match=r"train\.best = f1: no such metric here"):
        pretrain.run([str(tmp_path / "out")], tmp_path / "run", wrong, None, None, [], options)
    assert not (tmp_path / "run").exists()


def test_text_that_masks_nothing_measures_nothing(corpus: str, tmp_path: Path) -> None:
    """And says so before training; a metric of nothing would be NaN, which no result holds."""
    run([corpus], tmp_path / "out")
    (tmp_path / "short.txt").write_text("a\n")
    plan = recipe.Pretrain(model=recipe.Model(layers=1, width=16, heads=2), train=recipe.Train(steps=1))
    with pytest.raises(LspError, match=r"short\.txt is so short that no token of it is masked") as error:
        short, options = [str(tmp_path / "short.txt")], Options(Progress(quiet=True))
        pretrain.run([str(tmp_path / "out")], tmp_path / "run", plan, None, None, short, options)
    assert error.value.code == Exit.DATA


def test_another_tokenizer_is_used_as_it_is(corpus: str, tmp_path: Path) -> None:
    run([corpus], tmp_path / "first")
    run([corpus], tmp_path / "second", tokenizer=tmp_path / "first")
    first, second = (tmp_path / name / "rows" / "00000.rows" for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()


def test_standard_input_is_packed_as_the_file_would_be(
    corpus: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stdin:
        buffer = io.BufferedReader(io.BytesIO(WORDS.encode()))

    run([corpus], tmp_path / "file")
    monkeypatch.setattr(sys, "stdin", Stdin)
    run(["-"], tmp_path / "piped")
    file, piped = (tmp_path / name / "rows" / "00000.rows" for name in ("file", "piped"))
    assert file.read_bytes() == piped.read_bytes()


def test_unusable_text_leaves_a_result_and_room_for_another_try(corpus: str, tmp_path: Path) -> None:
    bad = tmp_path / "bad.txt"
    bad.write_bytes(b"fine\n\xff\n")
    for path, said in ((bad, "line 2: not UTF-8"), (tmp_path / "empty.txt", "no text")):
        path.touch()
        with pytest.raises(LspError, match=said) as error:
            run([str(path)], tmp_path / "out")
        assert error.value.code == Exit.DATA
        assert json.loads((tmp_path / "out" / "result.json").read_text())["status"] == "failed"
    assert run([corpus], tmp_path / "out")["status"] == "complete"


def test_a_model_is_no_text(tmp_path: Path) -> None:
    directory.seal(tmp_path, {"stage": "finetune"})
    with pytest.raises(LspError, match=r"holds a model \(finetune\)"):
        shards.prepared([str(tmp_path)])
