"""An LSTM that learns from a transformer, through the verb: what it starts with, what is asked, what is written."""

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from lsp import LspError, checkpoint, directory, recipe
from lsp.commands import distill, finetune
from lsp.compress import augment
from lsp.compress.distill import narrowed
from lsp.console import Progress
from lsp.data.tokenizer import train
from lsp.model.config import ModelConfig
from lsp.model.encoder import initialise
from lsp.train import labelled, loop
from lsp.train.evaluate import Classifier
from lsp.train.options import Options

WORDS = ["sun", "rain", "wind", "snow", "the", "day", "was", "and", "we", "saw"]
OPTIONS = Options(Progress(quiet=True))
LSTM = recipe.Distill(
    model=recipe.Model(preset="bilstm", layers=1, width=8, heads=1, max_length=32),
    head=recipe.Head(dropout=0.0),
    train=recipe.Train(steps=120, batch_size=16, learning_rate=1e-2),
)


def files(top: Path) -> labelled.Files:
    return labelled.Files(top / "train.tsv", top / "dev.tsv")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts that are sunny or not, a teacher that knows, and a masked LM that nobody trained, over the same tokens."""
    top, random = tmp_path_factory.mktemp("distill"), np.random.default_rng(0)
    for name, count in (("train", 96), ("dev", 32)):
        texts = [random.choice(WORDS, 6).tolist() for _ in range(count)]
        rows = [f"{' '.join(text)}\t{int('sun' in text)}" for text in texts]
        (top / f"{name}.tsv").write_text("\n".join(["text\tlabel", *rows]) + "\n")
    text = [" ".join(random.choice(WORDS, 9)) for _ in range(200)]
    words = train(text, vocab_size=285, kind="unigram", lowercase=False, seed=0)
    words.save(top / "tokenizer")
    model = recipe.Model(preset="bert", layers=2, width=16, heads=2, max_length=32)
    plan = recipe.Finetune(model=model, head=recipe.NewHead(dropout=0.0), train=LSTM.train)
    finetune.run("scratch", top / "teacher", plan, files(top), top / "tokenizer", OPTIONS)
    config = ModelConfig.from_recipe(model, words.size)
    with directory.claim(top / "words", command="pretrain", recipe="", inputs={}) as held:
        encoder = checkpoint.Model(config, initialise(config, 0), words)
        checkpoint.finish(held, encoder, stage="pretrain", step=0, metrics={}, result={})
    return top


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_an_augmenter_of_other_tokens_is_refused(place: Path, tmp_path: Path) -> None:
    words = train([" ".join(WORDS)] * 50, vocab_size=284, kind="bpe", lowercase=False, seed=0)
    config = ModelConfig.from_recipe(LSTM.model, words.size)
    with directory.claim(tmp_path / "words", command="pretrain", recipe="", inputs={}) as held:
        encoder = checkpoint.Model(config, initialise(config, 0), words)
        checkpoint.finish(held, encoder, stage="pretrain", step=0, metrics={}, result={})
    with pytest.raises(LspError, match="another tokenizer") as caught:
        augment.proposer(tmp_path / "words", checkpoint.open(place / "teacher"))
    assert caught.value.code == 4


def run(top: Path, name: str, plan: recipe.Distill, augmenter: str = "") -> dict[str, Any]:
    return distill.run(top / "teacher", top / name, plan, files(top), OPTIONS, top / augmenter if augmenter else None)


def test_an_lstm_learns_from_a_transformer_and_a_masked_lm(place: Path, monkeypatch: Any) -> None:
    seen = {}
    plan_of = labelled.plan

    def spy(config: ModelConfig, params: Any, objective: Any, sets: labelled.Sets, *others: Any) -> Any:
        seen["sets"], seen["table"] = sets, np.array(params["embeddings"]["tokens"]["table"])
        return plan_of(config, params, objective, sets, *others)

    monkeypatch.setattr(labelled, "plan", spy)
    plan = dataclasses.replace(LSTM, distill=recipe.Distillation(augment=2))
    result = run(place, "student", plan, "words")
    examples, teacher = seen["sets"].train, checkpoint.open(place / "teacher")
    assert len(examples) == 3 * 96 and examples.known.sum() == 96 and result["step"] == 120
    logits = Classifier(teacher.config).logits(teacher.params, examples)
    np.testing.assert_allclose(examples.wanted, logits, atol=1e-5)  # copies in the teacher's words, not the texts'
    words = np.asarray(teacher.params["embeddings"]["tokens"]["table"])
    assert np.array_equal(seen["table"], narrowed(words, 8))
    student = checkpoint.open(place / "student")
    assert student.config.preset == "bilstm" and student.manifest["parents"] == [
        directory.identity(directory.read(place / name)) for name in ("teacher", "words")
    ]
    mine = Classifier(student.config).logits(student.params, examples)
    assert (mine.argmax(1) == logits.argmax(1)).mean() > 0.85 > max(np.bincount(logits.argmax(1))) / len(logits)
    assert result["after"]["parameters"] < result["before"]["parameters"]


def test_an_augmenter_without_copies_is_refused(place: Path) -> None:
    with pytest.raises(LspError, match="no copies") as caught:
        run(place, "refused", LSTM, "words")
    assert caught.value.code == 2
    with pytest.raises(LspError, match="is a classifier, not an encoder with a masked-word head"):
        run(place, "refused", dataclasses.replace(LSTM, distill=recipe.Distillation(augment=1)), "teacher")


def test_a_students_dropout_is_the_heads(place: Path) -> None:
    asked = dataclasses.replace(LSTM, model=dataclasses.replace(LSTM.model, dropout=0.3))
    with pytest.raises(LspError, match="is for pretraining") as caught:
        run(place, "refused", asked)
    assert caught.value.hint == "Write --set head.dropout=0.3" and caught.value.code == 2


class Killed(Exception):
    """Stands for a process that ends between two steps."""


@pytest.mark.parametrize("preset", ["modern", "bilstm"])
def test_a_student_that_looks_inside_comes_nearer_and_leaves_the_maps_behind(
    place: Path, preset: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = dataclasses.replace(LSTM.model, preset=preset, layers=2, width=8)
    wish = recipe.Distillation(hidden=1.0, relations=float(preset == "modern"), match="nearest")
    train = dataclasses.replace(LSTM.train, steps=60, log_every=10, checkpoint_every=30)
    plan = dataclasses.replace(LSTM, model=model, distill=wish, train=train)
    result = run(place, preset, plan)
    lines = [json.loads(line) for line in (place / preset / "metrics.jsonl").read_text().splitlines()]
    steps = [line for line in lines if "hidden" in line]
    assert steps[-1]["hidden"] < 0.9 * steps[0]["hidden"]
    assert ("relations" in steps[-1]) == (preset == "modern")
    if preset == "modern":
        assert steps[-1]["relations"] < steps[0]["relations"]
    student = checkpoint.open(place / preset)  # refuses parameters that are not the model's
    assert set(student.params) >= {"embeddings", "layers", "classifier"} and "maps" not in student.params
    assert result["after"]["parameters"] == sum(leaf.size for leaf in jax.tree.leaves(student.params))
    if preset == "bilstm":
        calls = iter(range(200))

        def dying(self: Any, *arguments: Any) -> Any:
            if next(calls) == 40:
                raise Killed
            return whole(self, *arguments)

        whole = loop.Compiled.__call__
        monkeypatch.setattr(loop.Compiled, "__call__", dying)
        with contextlib.suppress(Killed):
            run(place, "killed", plan)
        run(place, "killed", plan)
        assert next(calls) == 41 + 30, "the maps are among what is saved after 30 steps"
        jax.tree.map(np.testing.assert_array_equal, checkpoint.open(place / "killed").params, student.params)


def test_the_same_student_without_a_teacher_is_told_of(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The labels say all that the teacher knows, so that it can't help. The other student is the finetuned one."""
    train = dataclasses.replace(LSTM.train, steps=30)
    wish = recipe.Distillation(compare=True, start="random", augment=1)
    result = run(place, "beside", dataclasses.replace(LSTM, train=train, distill=wish))
    assert "without a teacher the same student does as well: accuracy" in capsys.readouterr().err
    assert result["plain"]["p"] > 0.05 and result["step"] == 30
    assert not (place / "beside" / "train").exists()
    plan = recipe.Finetune(model=LSTM.model, head=recipe.NewHead(dropout=0.0), train=train)
    tuned = finetune.run("scratch", place / "tuned", plan, files(place), place / "tokenizer", OPTIONS)
    assert result["plain"]["metrics"] == tuned["metrics"] != result["metrics"]
