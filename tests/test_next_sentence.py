"""Next-sentence prediction through the verbs, on stories in which it can be decided."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from lsp import Exit, LspError, checkpoint, recipe
from lsp.commands import finetune, prepare, pretrain
from lsp.console import Progress
from lsp.data.shards import Rows
from lsp.model.encoder import initialise
from lsp.train import classifier, loop
from lsp.train.labelled import Files
from lsp.train.options import Options

QUIET = Progress(quiet=True)
MODEL = recipe.Model(preset="bert", layers=2, width=64, heads=2, max_length=32)
DATA = recipe.Text(vocab_size=300, tokenizer="bpe", sequence_length=32, next_sentence=True)
TRAIN = recipe.Train(steps=350, batch_size=32, learning_rate=2e-3, log_every=50, checkpoint_every=1000)
RECIPE = recipe.Pretrain(model=MODEL, data=DATA, train=TRAIN)


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stories of one animal each, in text and prepared as pairs; and an encoder of them."""
    top = tmp_path_factory.mktemp("stories")
    pick = np.random.default_rng(0)
    for name, count in (("text", 600), ("valid", 80)):
        stories = []
        for _ in range(count):
            hero = pick.choice(["cat", "dog", "owl", "fox", "bee", "cow", "hen", "rat"])
            lines = [f"{hero} {hero} {pick.choice(['ran', 'sat', 'ate'])}" for _ in range(pick.integers(6, 14))]
            stories.append("\n".join(lines))
        (top / f"{name}.txt").write_text("\n\n".join(stories))
    prepare.run([str(top / "text.txt")], top / "data", recipe.Prepare(data=DATA), None, False, QUIET)
    pretrain.run([str(top / "data")], top / "encoder", RECIPE, None, None, [str(top / "valid.txt")], Options(QUIET))
    return top


def again(road: Path, out: Path, plan: recipe.Pretrain, start: Path | None = None) -> dict:
    return pretrain.run([str(road / "data")], out, plan, None, start, [], Options(QUIET))


def test_a_tiny_model_learns_to_tell_next_from_random(road: Path) -> None:
    metrics = json.loads((road / "encoder" / "result.json").read_text())["metrics"]
    labels = Rows.open(road / "data").take(np.arange(len(Rows.open(road / "data"))))[:, 0] == 2
    # One random text in eight tells of the same animal and can't be told apart.
    assert metrics["next_sentence_accuracy"] > 0.8 > max(labels.mean(), 1 - labels.mean()) + 0.1
    assert metrics["loss"] == pytest.approx(metrics["masked_lm_loss"] + metrics["next_sentence_loss"], rel=0.02)
    row = json.loads((road / "encoder" / "metrics.jsonl").read_text().splitlines()[0])
    assert {"accuracy", "masked_lm_loss", "next_sentence_loss", "next_sentence_accuracy"} <= set(row)


def test_the_pooler_goes_on_into_a_classifier(road: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    monkeypatch.setattr(
        classifier, "fit", lambda plan, *_: started.append(plan.params) or (_ for _ in ()).throw(KeyError)
    )
    (tmp_path / "train.tsv").write_text("sentence\tlabel\ncat ran\ta\ndog sat\tb\n")
    plan = recipe.Finetune(head=recipe.NewHead(pooling="cls"), train=dataclasses.replace(TRAIN, steps=1))
    with pytest.raises(KeyError):
        files = Files(tmp_path / "train.tsv", tmp_path / "train.tsv")
        finetune.run(str(road / "encoder"), tmp_path / "out", plan, files, None, Options(QUIET))
    base = checkpoint.open(road / "encoder")
    assert (base.config.head, base.config.classes, base.config.pooling) == ("words", 2, "cls")
    np.testing.assert_array_equal(started[0]["pooler"]["kernel"], base.params["pooler"]["kernel"])
    fresh = initialise(base.config.classifier(2, "cls", 0.1), plan.train.seed)
    np.testing.assert_array_equal(started[0]["classifier"]["kernel"], fresh["classifier"]["kernel"])
    assert "words" not in started[0]


def test_a_resumed_run_equals_an_uninterrupted_one(road: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plan = dataclasses.replace(RECIPE, train=dataclasses.replace(TRAIN, steps=6, checkpoint_every=2))
    again(road, tmp_path / "calm", plan)
    whole, calls = loop.Compiled.__call__, iter(range(100))

    def dying(self, *arguments):
        if next(calls) == 3:
            raise KeyError
        return whole(self, *arguments)

    monkeypatch.setattr(loop.Compiled, "__call__", dying)
    with pytest.raises(KeyError):
        again(road, tmp_path / "killed", plan)
    again(road, tmp_path / "killed", plan)
    calm, killed = (checkpoint.open(tmp_path / name).params for name in ("calm", "killed"))
    jax.tree.map(np.testing.assert_array_equal, calm, killed)


def test_an_encoder_goes_on_with_or_without_pairs(road: Path, tmp_path: Path) -> None:
    short = dataclasses.replace(TRAIN, steps=1)
    (tmp_path / "text.txt").write_text((road / "text.txt").read_text()[:3000])
    plan = dataclasses.replace(RECIPE, train=short, data=dataclasses.replace(DATA, next_sentence=False))
    pretrain.run([str(tmp_path / "text.txt")], tmp_path / "alone", plan, None, road / "encoder", [], Options(QUIET))
    assert "pooler" not in checkpoint.open(tmp_path / "alone").params
    again(road, tmp_path / "paired", dataclasses.replace(RECIPE, train=short), tmp_path / "alone")
    assert checkpoint.open(tmp_path / "paired").config == checkpoint.open(road / "encoder").config


def test_what_does_not_fit_together_is_said(road: Path, tmp_path: Path) -> None:
    for plan, text in (
        (dataclasses.replace(RECIPE, data=dataclasses.replace(DATA, next_sentence=False)), "holds pairs of texts"),
        (dataclasses.replace(RECIPE, model=recipe.Model()), "this model has no embeddings"),
    ):
        with pytest.raises(LspError, match=text) as refused:
            again(road, tmp_path / "out", plan)
        assert refused.value.code == Exit.USAGE and refused.value.hint
