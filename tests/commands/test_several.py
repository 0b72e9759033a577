"""Several trainings at once: each comes to what it comes to alone, and the best is kept."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from lsp import Exit, LspError, Stopped, checkpoint, recipe
from lsp.commands import finetune
from lsp.console import Progress
from lsp.data.tokenizer import train
from lsp.train import loop
from lsp.train.labelled import Files
from lsp.train.options import Options
from lsp.trials import Trial, expand

OPTIONS = Options(Progress(quiet=True))
WORDS = ["sun", "rain", "wind", "snow", "the", "day", "was", "and", "we", "saw"]
PLAN = recipe.Finetune(
    model=recipe.Model(layers=1, width=16, heads=2, max_length=16),
    head=recipe.NewHead(dropout=0.1),
    train=recipe.Train(steps=12, batch_size=8, learning_rate=3e-3, seed=5, checkpoint_every=4, log_every=4),
)


@pytest.fixture(scope="module")
def weather(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Does it rain? Texts of 3 to 12 words, and a tokenizer."""
    top, random = tmp_path_factory.mktemp("weather"), np.random.default_rng(0)
    for name, count in (("train", 90), ("dev", 40)):
        texts = [random.choice(WORDS, random.integers(3, 12)).tolist() for _ in range(count)]
        rows = [f"{' '.join(words)}\t{'wet' if 'rain' in words else 'dry'}" for words in texts]
        (top / f"{name}.tsv").write_text("\n".join(["text\tlabel", *rows]) + "\n")
    text = [" ".join(random.choice(WORDS, 9)) for _ in range(200)]
    train(text, vocab_size=285, kind="unigram", lowercase=False, seed=0).save(top / "words")
    return top


def made(top: Path, name: str, plan: recipe.Finetune, trials: list[Trial] | None = None, **more: Any) -> dict[str, Any]:
    files = Files(top / "train.tsv", top / "dev.tsv")
    return finetune.run("scratch", top / name, plan, files, top / "words", OPTIONS._replace(**more), trials or [])


def test_together_each_is_what_it_is_alone(weather: Path) -> None:
    trials = expand(PLAN, 2, ["train.learning_rate=1e-3,3e-3"])
    together = made(weather, "together", PLAN, trials)
    assert [row["seed"] for row in together["trials"]] == [5, 6, 5, 6]
    for number, (trial, row) in enumerate(zip(trials, together["trials"], strict=True)):
        alone = made(weather, f"alone-{number}", trial.recipe)
        for metric, value in alone["metrics"].items():
            assert row[metric] == pytest.approx(value, rel=1e-4, abs=1e-6), (trial.named(), metric)
        if trial.named() == together["chosen"]:
            pair = (checkpoint.open(weather / name).params for name in ("together", f"alone-{number}"))
            jax.tree.map(lambda one, other: np.testing.assert_allclose(one, other, atol=2e-4), *pair)
    accuracies = [row["accuracy"] for row in together["trials"]]
    assert together["metrics"]["accuracy"] == max(accuracies) and together["chosen_by"] == "accuracy"
    means = [row["mean_accuracy"] for row in together["settings"]]
    assert means == sorted(means, reverse=True) and sum(means) == pytest.approx(sum(accuracies) / 2)
    rows = [json.loads(line) for line in (weather / "together" / "metrics.jsonl").read_text().splitlines()]
    assert all("learning_rate" not in row for row in rows) and "dev_accuracy" in rows[-1]
    assert made(weather, "together", PLAN, trials)["status"] == "already complete"


def test_killed_they_go_on_where_they_were(weather: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trials = expand(PLAN, 2, ["head.dropout=0,0.1"])
    whole = made(weather, "whole", PLAN, trials)
    assert [row["head.dropout"] for row in whole["trials"]] == [0.0, 0.0, 0.1, 0.1]
    plain, calls = loop._Loop.advance, 0

    def killed(self: Any) -> bool:
        nonlocal calls
        calls += 1
        if calls == 18:  # in the second program
            raise Stopped(Exit.STOPPED)
        return plain(self)

    monkeypatch.setattr(loop._Loop, "advance", killed)
    with pytest.raises(Stopped):
        made(weather, "killed", PLAN, trials)
    again = made(weather, "killed", PLAN, trials)
    assert calls < 18 + 12, "steps that were saved are not made again"
    assert [again[key] for key in ("trials", "settings", "chosen")] == [
        whole[key] for key in ("trials", "settings", "chosen")
    ]
    assert not (weather / "killed" / "train").exists()
    pair = (checkpoint.open(weather / name).params for name in ("whole", "killed"))
    jax.tree.map(np.testing.assert_array_equal, *pair)


def test_one_that_diverges_leaves_the_others_alone(weather: Path) -> None:
    trials = expand(PLAN, 1, ["train.learning_rate=1e-3,1e30"])
    found = made(weather, "diverged", PLAN, trials)
    sound, lost = found["trials"]
    assert lost.keys() == {"seed", "train.learning_rate", "diverged_at_step"} and 1 < lost["diverged_at_step"] <= 12
    assert found["chosen"]["train.learning_rate"] == 1e-3
    alone = made(weather, "sound", dataclasses.replace(trials[0].recipe))
    assert sound["loss"] == pytest.approx(alone["metrics"]["loss"], rel=1e-4)
    assert "NaN" not in (weather / "diverged" / "metrics.jsonl").read_text()
    assert "NaN" not in (weather / "diverged" / "result.json").read_text()


def test_what_differs_in_more_than_seed_and_rate_is_compared_too(weather: Path) -> None:
    """Each is a program of its own, and one that comes to nothing leaves the other."""
    plan = dataclasses.replace(PLAN, train=dataclasses.replace(PLAN.train, steps=4))
    trials = expand(plan, 1, ["train.warmup=0.5,0"])
    found = made(weather, "apart", plan, trials, track=("tensorboard",))
    assert [row["train.warmup"] for row in found["trials"]] == [0.5, 0.0] and len(found["settings"]) == 2
    assert found["metrics"]["accuracy"] == max(row["accuracy"] for row in found["trials"])
    assert {place.name for place in (weather / "apart" / "tensorboard").iterdir()} == {"00", "01"}
    hot = expand(dataclasses.replace(plan, train=dataclasses.replace(plan.train, learning_rate=1e30)))
    hot = [trials[0], hot[0]._replace(settings={"train.warmup": 0.0})]
    found = made(weather, "one-left", plan, hot)
    assert "accuracy" in found["trials"][0] and found["trials"][1]["diverged_at_step"] > 1
    with pytest.raises(LspError, match="diverged") as lost:
        made(weather, "none-left", plan, [hot[1], hot[1]._replace(settings={"again": 1})])
    assert lost.value.code == Exit.DIVERGED


def test_what_was_to_be_read_is_part_of_what_was_asked(weather: Path) -> None:
    plan = dataclasses.replace(PLAN, train=dataclasses.replace(PLAN.train, steps=2))
    made(weather, "asked", plan)
    files = Files(weather / "train.tsv", weather / "dev.tsv", (("label",), "text"))
    with pytest.raises(LspError, match="asked for something else: columns"):
        finetune.run("scratch", weather / "asked", plan, files, weather / "words", OPTIONS)
    train(["a word or two"] * 99, vocab_size=270, kind="unigram", lowercase=True, seed=0).save(weather / "others")
    with pytest.raises(LspError, match="asked for something else: tokenizer"):
        finetune.run("scratch", weather / "asked", plan, files._replace(columns=((), "")), weather / "others", OPTIONS)


def test_parts_of_a_model_are_trained_for_several_seeds(weather: Path) -> None:
    made(weather, "base", PLAN)
    plan = dataclasses.replace(PLAN, adapt=recipe.Adapt(lora_rank=2), train=dataclasses.replace(PLAN.train, steps=3))
    files = Files(weather / "train.tsv", weather / "dev.tsv")
    found = finetune.run(str(weather / "base"), weather / "lora", plan, files, None, OPTIONS, expand(plan, 2))
    base, model = (checkpoint.open(weather / name).params for name in ("base", "lora"))
    np.testing.assert_array_equal(base["embeddings"]["tokens"]["table"], model["embeddings"]["tokens"]["table"])
    away = model["layers"][0]["attention"]["qkv"]["kernel"] - base["layers"][0]["attention"]["qkv"]["kernel"]
    assert np.linalg.matrix_rank(away, tol=1e-6) == 2
    assert len(found["trials"]) == 2 and "deviation" in found["settings"][0]
    trials = expand(plan, 1, ["adapt.lora_rank=2,99"])
    for given, says in (
        (trials, "lora_rank = 99"),
        (expand(dataclasses.replace(plan, train=dataclasses.replace(plan.train, best="f2"))), "best = f2"),
    ):
        with pytest.raises(LspError, match=says):
            finetune.run(str(weather / "base"), weather / "swept", plan, files, None, OPTIONS, given)
        assert not (weather / "swept" / "metrics.jsonl").exists(), "nothing was trained"
