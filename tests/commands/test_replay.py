"""The black box of a refused step, and the step again."""

import dataclasses
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lsp import Exit, LspError, recipe
from lsp.commands import finetune, pretrain, replay
from lsp.console import Progress
from lsp.data.shards import Rows
from lsp.data.tokenizer import Tokenizer
from lsp.train.labelled import Files
from lsp.train.options import Options

QUIET = Progress(quiet=True)
PLAN = recipe.Pretrain(
    model=recipe.Model(layers=2, width=16, heads=2, max_length=32),
    data=recipe.Text(vocab_size=320, sequence_length=32),
    train=recipe.Train(steps=60, batch_size=8, learning_rate=1e30, warmup=0.0, checkpoint_every=50, clip=0.0),
)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    chance, path = random.Random(0), tmp_path_factory.mktemp("corpus") / "text.txt"
    words = ["".join(chance.choices("abdegilmnoprstuß", k=chance.randint(3, 9))) for _ in range(300)]
    path.write_text("\n\n".join(" ".join(chance.choices(words, k=30)) for _ in range(500)))
    return path


def diverged(corpus: Path, out: Path, **changes: Any) -> LspError:
    plan = dataclasses.replace(PLAN, train=dataclasses.replace(PLAN.train, **changes))
    with pytest.raises(LspError) as caught:
        pretrain.run([str(corpus)], out, plan, None, None, [], Options(QUIET))
    assert caught.value.code == Exit.DIVERGED
    return caught.value


@pytest.mark.parametrize("changes", [{}, {"precision": "bf16", "accumulate": 2}])
def test_a_poisoned_learning_rate_is_replayed_exactly(corpus: Path, tmp_path: Path, changes: dict[str, Any]) -> None:
    error = diverged(corpus, tmp_path / "run", **changes)
    (place,) = (tmp_path / "run" / "blackbox").iterdir()
    assert f"lsp replay {place}" in error.hint
    found = replay.run(place, QUIET)
    assert found["exact"] and found["fp32_diverges"] and f"at step {found['step']}:" in error.message
    assert not np.isfinite(found["recorded"]["loss"]) or not np.isfinite(found["recorded"]["gradient_norm"])
    names = ["embeddings", "layers.0", "layers.1", "norm", "words"]
    assert [row["part"] for row in found["layers"]] == names
    assert found["first_output_not_finite"] in names or found["first_gradient_not_finite"] in names
    facts = json.loads((place / "box.json").read_text())
    assert len(facts["texts"]) == len(facts["rows"]) == 8 and (place / "box.json").read_bytes().isascii()
    assert "ß" in "".join(facts["texts"])
    assert set(facts["parameter_norms"]) == set(names)
    # The rows are those of the data, and the texts theirs with nothing hidden.
    rows = Rows.open(tmp_path / "run" / "train" / "data")
    words = Tokenizer.load(tmp_path / "run" / "train" / "data")
    assert [words.decode(row) for row in rows.take(np.array(facts["rows"])).tolist()] == facts["texts"]


def test_a_damaged_or_missing_box_is_refused_and_overwriting_takes_it_away(corpus: Path, tmp_path: Path) -> None:
    diverged(corpus, tmp_path / "run")
    (place,) = (tmp_path / "run" / "blackbox").iterdir()
    with pytest.raises(LspError, match=r"no box\.json") as caught:
        replay.run(place.parent, QUIET)
    data = bytearray((place / "arrays.npz").read_bytes())
    data[len(data) // 2] ^= 1
    (place / "arrays.npz").write_bytes(data)
    with pytest.raises(LspError, match="do not fit together") as caught:
        replay.run(place, QUIET)
    assert caught.value.code == Exit.ARTIFACT
    calm = dataclasses.replace(PLAN, train=dataclasses.replace(PLAN.train, learning_rate=1e-3, steps=2))
    pretrain.run([str(corpus)], tmp_path / "run", calm, None, None, [], Options(QUIET, overwrite=True))
    assert not place.parent.exists()


def test_a_classifier_is_replayed_with_the_worst_text_first(corpus: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    small = dataclasses.replace(PLAN, train=dataclasses.replace(PLAN.train, learning_rate=1e-3, steps=2))
    pretrain.run([str(corpus)], data, small, None, None, [], Options(QUIET))
    lines = [f"{text.split()[0]} {text.split()[1]}\t{i % 2}" for i, text in enumerate(corpus.read_text().split("\n\n"))]
    (tmp_path / "train.tsv").write_text("\n".join(["sentence\tlabel", *lines[:64]]) + "\n")
    plan = recipe.Finetune(train=PLAN.train, data=recipe.Labelled(sequence_length=32), head=recipe.NewHead(dropout=0.0))
    files = (tmp_path / "train.tsv", tmp_path / "train.tsv")
    with pytest.raises(LspError, match="diverged"):
        finetune.run(str(data), tmp_path / "run", plan, Files(*files), None, Options(QUIET))
    (place,) = (tmp_path / "run" / "blackbox").iterdir()
    found = replay.run(place, QUIET)
    assert found["exact"] and len(found["texts"]) == 5
    texts = {number: line.split("\t")[0] for number, line in enumerate(lines)}
    for row in found["texts"]:
        assert row["text"].strip() == texts[row["row"]]
    part = dataclasses.replace(plan, adapt=recipe.Adapt(freeze=1))
    with pytest.raises(LspError, match="diverged") as stopped:
        finetune.run(str(data), tmp_path / "part", part, Files(*files), None, Options(QUIET))
    (place,) = (tmp_path / "part" / "blackbox").iterdir()
    assert f"What it read is in {place / 'box.json'}" in f"{stopped.value}{stopped.value.hint}"
    assert [each.name for each in place.iterdir()] == ["box.json"] and "lsp replay" not in stopped.value.hint
    with pytest.raises(LspError, match="needs more than a box holds") as refused:
        replay.run(place, QUIET)
    assert refused.value.code == 2
