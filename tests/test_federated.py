"""Pretraining that begins with short pieces, and by clients, from raw text to a model: killed, it goes on as before."""

import contextlib
import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from lsp import LspError, checkpoint, recipe
from lsp.commands import pretrain
from lsp.console import Progress
from lsp.train.compiled import Compiled
from lsp.train.options import Options

QUIET = Progress(quiet=True)
PLAIN = recipe.Pretrain(
    model=recipe.Model(layers=1, width=32, heads=2, max_length=32),
    data=recipe.Text(vocab_size=320, sequence_length=32),
    train=recipe.Train(steps=12, batch_size=8, log_every=1, checkpoint_every=4),
)
CLIENTS = dataclasses.replace(
    PLAIN,
    data=dataclasses.replace(PLAIN.data, client_field="who"),
    replicas=recipe.Replicas(clients=0.5, every=2, outer="average"),
)
SHORT = dataclasses.replace(PLAIN, data=dataclasses.replace(PLAIN.data, length_start=8, length_warmup=0.5))


class Killed(BaseException):
    """Raised in the middle of a run."""


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> str:
    letters = np.random.default_rng(0).choice(list("abdegilmnoprstu"), (3000, 5))
    texts = [" ".join(map("".join, letters[i::200])) for i in range(200)]
    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    path.write_text("".join(json.dumps({"text": t, "who": i % 4}) + "\n" for i, t in enumerate(texts)))
    return str(path)


def train(text: str, out: Path, plan: recipe.Pretrain) -> dict[str, Any]:
    return pretrain.run([text], out, plan, None, None, [], Options(QUIET))


def losses(out: Path) -> list[float]:
    rows = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [row["loss"] for row in rows if "loss" in row]


@pytest.mark.parametrize("plan", [CLIENTS, SHORT], ids=["clients", "short"])
def test_a_killed_run_goes_on_as_one_that_was_left_alone(
    text: str, tmp_path: Path, plan: recipe.Pretrain, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = train(text, tmp_path / "calm", plan)
    assert ("sent_bytes" in made) == bool(plan.replicas.clients)
    assert made["step"] == 12 and 4 < losses(tmp_path / "calm")[-1] < np.log(320)
    whole, calls = Compiled.__call__, iter(range(100))

    def dying(self: Any, *arguments: Any) -> Any:
        if next(calls) == 7:
            raise Killed
        return whole(self, *arguments)

    with monkeypatch.context() as patch, contextlib.suppress(Killed):
        patch.setattr(Compiled, "__call__", dying)
        train(text, tmp_path / "killed", plan)
    train(text, tmp_path / "killed", plan)
    assert losses(tmp_path / "killed") == losses(tmp_path / "calm") and len(losses(tmp_path / "calm")) == 12
    params = [checkpoint.open(tmp_path / name).params for name in ("calm", "killed")]
    jax.tree.map(np.testing.assert_array_equal, *params)


@pytest.mark.parametrize(
    ("section", "changes", "said"),
    [
        ("data", {"client_field": ""}, "say whose they are"),
        ("train", {"batch_start": 2, "batch_warmup": 0.5}, "batch_start does not go together"),
        ("train", {"batch_size": 9}, "2 clients a round can't share"),
    ],
)
def test_clients_that_can_not_be_are_refused(
    text: str, tmp_path: Path, section: str, changes: dict[str, Any], said: str
) -> None:
    plan = dataclasses.replace(CLIENTS, **{section: dataclasses.replace(getattr(CLIENTS, section), **changes)})
    with pytest.raises(LspError, match=said):
        train(text, tmp_path / "out", plan)


def test_pairs_are_not_cut_into_pieces(text: str, tmp_path: Path) -> None:
    data = dataclasses.replace(SHORT.data, next_sentence=True)
    bert = dataclasses.replace(SHORT, data=data, model=dataclasses.replace(SHORT.model, preset="bert"))
    with pytest.raises(LspError, match=r"would cut the pairs"):
        train(text, tmp_path / "out", bert)


@pytest.mark.parametrize(
    ("section", "changes"),
    [
        ("data", {"length_start": 8}),
        ("data", {"mask_rate": 0.3, "mask_rate_end": 0.15}),
        ("train", {"batch_start": 2}),
    ],
)
def test_what_follows_the_steps_needs_some_beside_a_budget(
    text: str, tmp_path: Path, section: str, changes: dict[str, Any]
) -> None:
    endless = dataclasses.replace(PLAIN, train=dataclasses.replace(PLAIN.train, steps=0))
    plan = dataclasses.replace(endless, **{section: dataclasses.replace(getattr(endless, section), **changes)})
    with pytest.raises(LspError, match="with --budget alone no step is known to be the last") as caught:
        pretrain.run([text], tmp_path / "out", plan, None, None, [], Options(QUIET, budget=60.0))
    assert caught.value.code == 2 and "train.steps=N" in caught.value.hint
    assert not (tmp_path / "out").exists(), "said before anything is read"


def test_a_length_that_is_no_doubling_is_refused_with_one_that_is(text: str, tmp_path: Path) -> None:
    plan = dataclasses.replace(SHORT, data=dataclasses.replace(SHORT.data, length_start=12))
    with pytest.raises(LspError, match=r"data.sequence_length = 32 is no doubling of data.length_start = 12") as caught:
        train(text, tmp_path / "out", plan)
    assert "data.length_start=8" in caught.value.hint
