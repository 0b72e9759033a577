"""`lsp compress quantize` by every method, through the CLI: what is on disk answers, and the next stage takes it."""

import io
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from lsp import Exit, checkpoint, cli, recipe
from lsp.commands import finetune, predict, prune_weights
from lsp.compress.prune import sparsity
from lsp.console import Progress
from lsp.data.tokenizer import train
from lsp.model.int8 import Int8
from lsp.model.weightonly import WeightOnly, is_quantized
from lsp.train.labelled import Files
from lsp.train.options import Options

AUTO: tuple[tuple[str, ...], str] = ((), "")
QUIET = Progress(quiet=True)
WORDS = ["sun", "rain", "wind", "snow", "the", "day", "was", "and", "we", "saw"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier that tells texts with more rain than sun, and the files that it learnt from."""
    top, random = tmp_path_factory.mktemp("weather"), np.random.default_rng(0)
    for name, count in (("train", 200), ("dev", 60)):
        rows = []
        for _ in range(count):
            words = random.choice(WORDS, 6).tolist()
            rows.append(f"{' '.join(words)}\t{'wet' if words.count('rain') > words.count('sun') else 'dry'}")
        (top / f"{name}.tsv").write_text("\n".join(["sentence\tlabel", *rows]) + "\n")
    text = [" ".join(random.choice(WORDS, 9)) for _ in range(200)]
    train(text, vocab_size=285, kind="unigram", lowercase=False, seed=0).save(top / "words")
    plan = recipe.Finetune(
        model=recipe.Model(layers=1, width=32, heads=2, max_length=16),
        head=recipe.NewHead("mean", 0.0),
        train=recipe.Train(steps=60, batch_size=16, learning_rate=5e-3),
    )
    files = Files(top / "train.tsv", top / "dev.tsv")
    finetune.run("scratch", top / "run", plan, files, top / "words", Options(QUIET))
    return top / "run"


def leaves(path: Path) -> list[Any]:
    return [x for x in jax.tree.leaves(checkpoint.open(path).params, is_leaf=is_quantized) if is_quantized(x)]


def probabilities(path: Path, source: Path) -> list[dict]:
    output = io.StringIO()
    predict.run(path, str(source), AUTO, predict.Output(output, True), QUIET)
    return [json.loads(line) for line in output.getvalue().splitlines()]


METHODS = {
    "dynamic": [],
    "static": ["--method", "static", "--set", "quantize.calibration=kl", "--set", "quantize.smooth=0.5"],
    "gptq": ["--set", "quantize.rounding=gptq", "--set", "quantize.sensitivity=true"],
    "weights": ["--method", "weights", "--set", "quantize.bits=4", "--set", "quantize.group=8"],
    "trained": ["--method", "trained", "--set", "train.steps=5", "--set", "train.batch_size=16"],
}


@pytest.mark.parametrize("name", METHODS)
def test_each_method_makes_a_model_that_answers(
    name: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dev, out = run.with_name("dev.tsv"), tmp_path / name
    words = ["--from", str(run), "--out", str(out), "--dev", str(dev), "--train", str(run.with_name("train.tsv"))]
    command = ["compress", "quantize", *words, *METHODS[name], "--json", "--quiet"]
    assert cli.main(command) == Exit.DONE
    made = json.loads((out / "result.json").read_text())
    assert made["before"]["metrics"]["accuracy"] > 0.85
    assert made["paired"]["points_lost"] < 6 and made["kept_float"] == []
    assert made["metrics"] == made["after"]["metrics"], "of what was written, on whole texts"
    assert ("sensitivity" in made) == ("outliers" in made) == (name == "gptq")
    held = leaves(out)
    kind = WeightOnly if name == "weights" else Int8
    assert len(held) == 7 and all(isinstance(leaf, kind) for leaf in held), "tables, kernels and the pooler"
    assert any(getattr(leaf, "limit", None) is not None for leaf in held) == (name == "static")
    assert any(getattr(leaf, "factor", None) is not None for leaf in held) == (name == "static")
    told = checkpoint.open(out).manifest["compression"][-1]
    assert told["stage"] == "quantize" and told["bits"] == (4 if name == "weights" else 8)
    assert told.get("method", "dynamic") == (name if name in ("static", "weights", "trained") else "dynamic")
    answers = probabilities(out, dev)
    right = [row["label"] for row in answers]
    labels = [line.split("\t")[1] for line in dev.read_text().splitlines()[1:]]
    assert np.mean([a == b for a, b in zip(right, labels, strict=True)]) == made["after"]["metrics"]["accuracy"]
    assert cli.main(command) == Exit.DONE, "already complete"
    again = ["compress", "quantize", "--from", str(out), "--out", str(tmp_path / "again"), "--quiet"]
    assert cli.main(again) == Exit.USAGE and "is quantised already" in capsys.readouterr().err


def test_what_is_weight_only_can_be_pruned_and_zeros_outlive_training_in_int8(run: Path, tmp_path: Path) -> None:
    words = ["--from", str(run), "--out", str(tmp_path / "small"), "--method", "weights", "-q"]
    assert cli.main(["compress", "quantize", *words]) == Exit.DONE
    files = Files(run.with_name("train.tsv"), run.with_name("dev.tsv"))
    plan = recipe.Prune(train=recipe.Train(steps=10, batch_size=16, learning_rate=1e-3))
    made = prune_weights.run(tmp_path / "small", tmp_path / "pruned", plan, files, Options(QUIET))
    assert made["after"]["sparsity"] == pytest.approx(0.5, abs=1e-3) and not leaves(tmp_path / "pruned")
    words = ["--from", str(tmp_path / "pruned"), "--out", str(tmp_path / "learnt"), *METHODS["trained"], "-q"]
    files = ["--train", str(run.with_name("train.tsv")), "--dev", str(run.with_name("dev.tsv"))]
    assert cli.main(["compress", "quantize", *words, *files]) == Exit.DONE
    assert sparsity(checkpoint.open(tmp_path / "learnt").params) >= made["after"]["sparsity"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--method", "statik"], "Did you mean 'static'?"),
        (["--method", "static"], "fix: Add --train FILE"),
        (["--set", "quantize.smooth=0.5"], "fix: Add --train FILE"),
        (["--method", "trained", "--train", "TRAIN"], "fix: Add --dev FILE"),
        (["--set", "quantize.bits=4"], "fix: Add --method weights"),
        (["--set", "quantize.bits=3"], "must be 4 or 8"),
        (["--method", "weights", "--set", "quantize.smooth=0.5", "--train", "TRAIN"], "fix: Leave quantize.smooth out"),
        (["--method", "trained", "--set", "quantize.rounding=gptq"], "fix: Leave them out"),
        (["--method", "trained", "--set", "quantize.sample=64"], "and nothing does"),
        (["--max-drop", "0.5"], "fix: Add --dev FILE"),
        (["--set", "quantize.sensitivity=true"], "fix: Add --dev FILE"),
        (["--set", "quantize.calibration=kl"], "fix: Add --method static"),
        (["--set", "quantize.hard=0.5"], "fix: Add --method trained"),
        (["--max-drop", "nan"], "must be -1 or at least 0"),
        (["--set", "quantize.max_drop=-2"], "must be -1 or at least 0"),
    ],
)
def test_what_does_not_go_together_is_said_before_any_work(
    words: list[str], said: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = [word.replace("TRAIN", str(run.with_name("train.tsv"))) for word in words]
    code = cli.main(["compress", "quantize", "--from", str(run), "--out", str(tmp_path / "out"), *given])
    assert code == Exit.USAGE
    assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
