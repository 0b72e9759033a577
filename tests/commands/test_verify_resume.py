"""`lsp verify resume`: the proof on a real run, and what it says of a difference."""

import json
import random
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from lsp import Exit, LspError, arguments, cli, recipe
from lsp.commands import verify_resume
from lsp.console import Progress
from lsp.steps import Steps
from lsp.train.loop import Saved

QUIET = Progress(quiet=True)
SMALL = ["model.layers=1", "model.width=16", "model.heads=2", "data.vocab_size=320", "data.sequence_length=32"]


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    chance = random.Random(0)
    words = ["".join(chance.choices("abdegilmnoprstu", k=chance.randint(3, 9))) for _ in range(300)]
    (tmp_path / "text.txt").write_text("\n\n".join(" ".join(chance.choices(words, k=30)) for _ in range(500)))
    return tmp_path / "text.txt"


def test_a_killed_run_is_proved_equal_and_the_proof_is_kept(
    corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["verify", "resume", "--data", str(corpus), "--out", str(tmp_path / "proof"), "--steps", "4"]
    words += ["--kills", "2", "--json", "--quiet", *(word for change in SMALL for word in ("--set", change))]
    assert cli.main(words) == Exit.DONE
    found = json.loads(capsys.readouterr().out)
    assert found["equal"] and found["difference"] is None
    assert found["kills"] >= 1 and found["states_compared"] == 4 and found["tensors"] > 100
    assert not (tmp_path / "proof" / "train").exists()
    assert cli.main(["verify", str(tmp_path / "proof")]) == Exit.DONE
    capsys.readouterr()
    assert cli.main(words) == Exit.DONE
    assert json.loads(capsys.readouterr().out) == found | {"status": "already complete"}


def test_what_the_runs_end_with_is_said(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("one\n\ntwo\n")
    with pytest.raises(LspError, match=r"`lsp pretrain` failed: .*text") as caught:
        verify_resume.run(
            [str(tmp_path / "text.txt")],
            tmp_path / "proof",
            recipe.load(recipe.Pretrain, None, SMALL),
            None,
            steps=3,
            kills=1,
            overwrite=False,
            progress=QUIET,
        )
    assert caught.value.code == Exit.DATA


def test_the_first_tensor_that_differs_is_named(tmp_path: Path) -> None:
    runs = [verify_resume.Watched([], tmp_path / name, tmp_path / f"{name}-steps") for name in ("a", "b")]
    kernel = np.linspace(-1, 1, 12, dtype=np.float32).reshape(3, 4)
    for run, change in zip(runs, (0.0, 0.25), strict=True):
        kept = Steps(run.out / "train", 9, pytest.fail)
        for step in (1, 2):
            moved = kernel.copy()
            moved[1, 2] += change if step == 2 else 0.0
            state: Any = {"a": jnp.full(3, jnp.nan, jnp.bfloat16), "kernel": moved}
            kept.save(step, Saved(state, np.array(change)))
        kept.wait()
        run.keep()
        assert run.kept() == [1, 2] and run.newest() == 2
    with QUIET.task("comparing", 2) as task:
        found, tensors = verify_resume.compare(*runs, [1, 2], task)
    assert found == {"step": 2, "tensor": "['kernel']", "largest": 0.25}
    assert tensors == 4


def test_a_run_called_resume_can_still_be_verified() -> None:
    assert arguments.spread(["verify", "./resume"]) == ["verify", "./resume"]
    assert arguments.spread(["verify", "resume", "--data", "a", "b"]) == ["verify resume", "--data", "a", "--data", "b"]
