"""Which part costs most, and which stay float so that a budget holds, with a bad part planted."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from lsp import Exit, checkpoint, cli, directory
from lsp.compress import sensitivity
from lsp.compress.quantize import quantize
from lsp.data import tokenizer
from lsp.data.examples import Examples
from lsp.data.tasks import Table
from lsp.model.config import Layer, ModelConfig
from lsp.model.int8 import Int8, present
from lsp.train.evaluate import Classifier

Draw = Callable[[ModelConfig, int], dict]
Invent = Callable[..., Examples]
CONFIG = ModelConfig("bert", 300, 16, (Layer(2, 8, 24),) * 3, 32).classifier(3, "mean", 0.0)
BAD = "layers.1.feedforward"


def planted(draw: Draw, config: ModelConfig = CONFIG) -> dict:
    """A model in whose second feed-forward block one channel is so loud that a token's scale drowns the others: its
    input comes from a bias and meets zeros, so that the float model does not notice."""
    params = draw(config, 0)
    block = params["layers"][1]["feedforward"]
    up, down = block["up"], block["down"]
    block |= {
        "up": {"kernel": up["kernel"].at[:, 0].set(0.0), "bias": up["bias"].at[0].set(3000.0)},
        "down": down | {"kernel": down["kernel"].at[0].set(0.0)},
    }
    return params


def rightly(params: dict, some: Examples) -> np.ndarray:
    """Labels as the model answers, which is made to have no favourite first: its accuracy is 1 then."""
    logits_NC = Classifier(CONFIG).logits(params, some)
    params["classifier"]["bias"] = -jnp.asarray(logits_NC.mean(0))
    return (logits_NC - logits_NC.mean(0)).argmax(1).astype(np.int32)


def test_the_planted_part_is_most_harmful_and_stays_float(draw: Draw, invent: Invent) -> None:
    params = planted(draw)
    some = invent(60, lengths=(9,))
    some.labels = rightly(params, some)
    small, classifier = quantize(params), Classifier(CONFIG)
    heard: list[int] = []
    rows = sensitivity.sensitivity(classifier, params, small, some, heard.append)
    assert heard == list(range(1, 9))
    names = {f"layers.{i}.{block}" for i in range(3) for block in ("attention", "feedforward")} | {"pooler"}
    assert {row["part"] for row in rows} == names | {"embeddings"}
    assert rows[0]["part"] == BAD and rows[0]["divergence"] > 3 * rows[1]["divergence"]
    # Against the model with this part alone quantised for real.
    alone = sensitivity.mixed(params, small, {row["part"] for row in rows} - {BAD})
    before, after = classifier.score(params, some), classifier.score(alone, some)
    assert rows[0]["points_lost"] == pytest.approx(100 * (before.metrics["accuracy"] - after.metrics["accuracy"]))
    ranked = [row["part"] for row in rows]

    def within(most: float | None) -> sensitivity.Within:
        return sensitivity.within(classifier, params, small, some, before, ranked, most)

    loose, tight, free = within(100.0), within(rows[0]["points_lost"] / 2), within(None)
    assert loose.kept == free.kept == [] and free.points == loose.points > rows[0]["points_lost"] / 2
    assert tight.kept[0] == BAD and tight.points <= rows[0]["points_lost"] / 2
    block = tight.params["layers"][1]["feedforward"]
    assert block["up"]["kernel"] is params["layers"][1]["feedforward"]["up"]["kernel"]
    assert isinstance(tight.params["layers"][0]["attention"]["qkv"]["kernel"], Int8)
    assert tight.after.metrics["accuracy"] > loose.after.metrics["accuracy"]
    impossible = within(-1e-9)  # nothing is better than all right
    assert impossible.kept == [] and impossible.points > 0


def test_parts_that_are_quantised_already_are_not_judged(draw: Draw) -> None:
    params = draw(CONFIG, 0)
    params["embeddings"] = quantize({"embeddings": params["embeddings"]})["embeddings"]
    assert sensitivity.parts(params, quantize(params))[:1] == ["layers.0.attention"]
    lstm = draw(ModelConfig("bilstm", 300, 16, (Layer(2, 8, 24),), 32).classifier(3, "mean", 0.0), 0)
    assert sensitivity.parts(lstm, quantize(lstm)) == ["embeddings", "layers.0", "pooler"]


@pytest.fixture
def run(draw: Draw, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished classifier with the planted part, and beside it dev.tsv, which it answers rightly."""
    top, random = tmp_path_factory.mktemp("planted"), np.random.default_rng(0)
    words = ["".join(random.choice(list("aeioubdgklmn"), 4)) for _ in range(40)]
    texts = [" ".join(random.choice(words, 6)) for _ in range(100)]
    own = tokenizer.train(texts, vocab_size=300, kind="unigram", lowercase=False, seed=0)
    params = planted(draw)
    some = Examples(Table([(each,) for each in texts], [], ()), own, 32)
    labels = rightly(params, some)
    rows = [f"{each}\t{'abc'[label]}" for each, label in zip(texts, labels, strict=True)]
    (top / "dev.tsv").write_text("\n".join(["sentence\tlabel", *rows]) + "\n")
    with directory.claim(top / "run", command="finetune", recipe="", inputs={}, overwrite=False) as held:
        model = checkpoint.Model(CONFIG, params, own, ("a", "b", "c"))
        checkpoint.finish(held, model, stage="finetune", step=1, metrics={}, result={})
    return top / "run"


def quantized(run: Path, out: Path, *words: str) -> tuple[int, dict]:
    given = ["compress", "quantize", "--from", str(run), "--out", str(out), "--dev", str(run.with_name("dev.tsv"))]
    code = cli.main([*given, *words, "--quiet", "--json"])
    return code, json.loads((out / "result.json").read_text())


def test_a_drop_that_may_not_be_keeps_the_part_float_on_disk(run: Path, tmp_path: Path) -> None:
    free, loose = quantized(run, tmp_path / "free", "--set", "quantize.sensitivity=true")
    assert free == Exit.DONE and loose["gates"] == [] and loose["kept_float"] == []
    drop, rows = loose["paired"], loose["sensitivity"]
    assert (
        drop["points_lost"] > 3 and drop["interval"][0] < drop["points_lost"] < drop["interval"][1] and drop["p"] < 0.05
    )
    assert drop["flips"]["right_to_wrong"] == round(drop["points_lost"]), "100 examples, all right before"
    assert rows[0]["part"] == BAD and "layers.1.feedforward.down.kernel" in {row["kernel"] for row in loose["outliers"]}
    code, made = quantized(run, tmp_path / "held", "--max-drop", str(drop["points_lost"] - 1))
    assert code == Exit.DONE and made["gates"][0]["passed"] and made["kept_float"][0] == BAD
    opened = checkpoint.open(tmp_path / "held")
    assert opened.manifest["compression"] == [{"stage": "quantize", "bits": 8, "float": made["kept_float"]}]
    assert not present(opened.params["layers"][1]["feedforward"]) and present(opened.params["layers"][0])


def test_a_budget_that_nothing_meets_is_exit_1_each_time(run: Path, tmp_path: Path) -> None:
    for status in ("complete", "already complete"):
        code, made = quantized(run, tmp_path / "out", "--max-drop", "0")
        assert code == Exit.NO and made["gates"][0]["passed"] is False, status
        assert min(row["points_lost"] for row in made["sensitivity"]) > 0, "each part alone costs answers"
    assert made["kept_float"] == [] and made["gates"][0]["value"] == made["paired"]["points_lost"] > 0
    opened = checkpoint.open(tmp_path / "out")
    assert present(opened.params["layers"][1]["feedforward"]), "all quantised: a copy of the model would be no answer"
    assert opened.manifest["compression"] == [{"stage": "quantize", "bits": 8}]


def test_a_budget_needs_something_to_measure_with(run: Path, tmp_path: Path, capsys: Any) -> None:
    words = ["compress", "quantize", "--from", str(run), "--out", str(tmp_path / "out"), "--max-drop", "1"]
    assert cli.main(words) == Exit.USAGE
    assert "fix: Add --dev FILE" in capsys.readouterr().err
