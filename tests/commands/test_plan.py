"""`lsp plan`: what it counts, against counting by hand, and what it refuses."""

import dataclasses
import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import pytest

from lsp import Exit, recipe
from lsp.commands.plan import fixes
from lsp.train import accelerators, forecast, watch
from lsp.train.forecast import Step
from lsp.train.memory import Memory

TINY = str(Path(__file__).parents[2] / "recipes" / "pretrain" / "tiny.toml")
SMALL = ["model.layers=1", "model.width=64", "model.feedforward=128", "data.vocab_size=512", "train.batch_size=16"]


def plan(*words: str, path: Path | None = None) -> tuple[int, dict[str, Any], str]:
    """Exit code, result and stderr of `lsp plan` on a small recipe, in a process of its own, which looks for modules in
    `path` first."""
    changes = [word for change in SMALL for word in ("--set", change)]
    command = [sys.executable, "-m", "lsp", "plan", TINY, *changes, *words, "--json"]
    environment = os.environ | {"LSP_DEBUG": ""} | ({"PYTHONPATH": str(path)} if path else {})
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    return done.returncode, json.loads(done.stdout), done.stderr


def test_a_plan_adds_up() -> None:
    words = ["--devices", "4", "--accelerator", "h200", "--price", "2", "--tokens", "2048000", "--mfu", "0.5"]
    code, made, said = plan(*words, "--set", "mesh.fsdp=2", "--set", "mesh.tensor=2")
    assert code == Exit.DONE
    assert "warning" not in said
    memory = {row["kind"]: row["bytes"] for row in made["memory"]}
    # 512·64 words; 64·192 + 64·64 of attention and 3·64·128 of GeGLU are cut in four; norms and the head are whole.
    split, whole = 512 * 64 + 4 * 64 * 64 + 3 * 64 * 128, 64 * 3 + 64 * 64 + 64
    assert made["parameters"] == split + whole + 512
    assert memory["parameters"] == 4 * (split // 4 + whole + 512 // 2)  # the head's bias is cut by words only
    assert memory["optimizer"] == 2 * memory["parameters"] + 2 * 4  # Adam's count, and the peak of the learning rate
    assert memory["batch"] == 4 * 16 * (2 * 128 + 3 * 20) // 2
    assert made["memory_bytes"] == sum(memory.values())
    flops = 3 * 2 * 16 * (128 * (4 * 64 * 64 + 3 * 64 * 128) + 2 * 128 * 128 * 64 + 20 * 64 * (64 + 512))
    assert made["flops_per_step"] == flops
    assert made["compute_milliseconds"] == pytest.approx(1000 * flops / 4 / (494e12 * 0.5))
    assert made["steps"] == 1000
    assert made["step_milliseconds"] == max(made[f"{name}_milliseconds"] for name in ("compute", "memory", "network"))
    assert made["cost"] == pytest.approx(4 * 2 * made["seconds"] / 3600)
    # A copy of parameters and two moments, the counters of AdamW and of the step, and the window of the watch.
    window = sum(leaf.nbytes for leaf in watch.FRESH)
    assert made["checkpoint_bytes"] == 3 * 4 * made["parameters"] + 3 * 4 + 2 * 4 + window
    assert {row["collective"] for row in made["collectives"]} >= {"all-reduce", "all-gather"}


def test_copies_that_are_clients_can_be_planned() -> None:
    words = ["--set", "replicas.count=4", "--set", "replicas.clients=0.5", "--set", "replicas.outer=average"]
    code, made, _ = plan(*words, "--devices", "4", "--accelerator", "h200")
    assert code == Exit.DONE and made["mesh"]["replica"] == 4 and made["fits"]


def test_without_a_split_nothing_crosses() -> None:
    code, made, _ = plan()
    assert code == Exit.DONE and made["fits"] and "collectives" not in made and made["network_milliseconds"] == 0
    # On this machine's processor the weights that the run begins with are there too.
    assert {"kind": "start", "bytes": 4 * made["parameters"]} in made["memory"]


@pytest.mark.parametrize(
    ("words", "code", "text"),
    [
        (["--accelerator", "h20"], Exit.USAGE, "Did you mean 'h200'?"),
        (["--topology", "v5e-16"], Exit.USAGE, "is not KIND:SHAPE"),
        (["--set", "train.steps=0"], Exit.USAGE, "counts no steps"),
        (["--devices", "99999999"], Exit.USAGE, "--devices': Input should be less than or equal to 2048"),
        (["--price", "inf"], Exit.USAGE, "--price': Input should be less than or equal to"),
        (["--tokens", "inf"], Exit.USAGE, "--tokens': Input should be less than or equal to"),
        (["--devices", "3"], Exit.USAGE, "can't be split over 3"),
        (["--topology", "v5e:2x2", "--devices", "4"], Exit.USAGE, "--topology says"),
    ],
)
def test_what_can_not_be_planned_is_refused(words: list[str], code: Exit, text: str) -> None:
    found, made, _ = plan(*words)
    assert found == code and text in made["error"]


def test_the_cheapest_fixes_come_first() -> None:
    step = Step(Memory(10, 20, 1, 10, 70, 0, 0), {"data": 4, "fsdp": 1, "tensor": 1}, [], 40, [], 1.0, "none")
    found = dict(fixes(recipe.Pretrain(), step, 80))
    # 41 are fixed, so the 70 must shrink to 39: two parts suffice. What to compute again was tried already.
    assert list(found) == ["--set train.accumulate=2", "--set mesh.fsdp=4", "--set train.precision=bf16"]
    assert found["--set mesh.fsdp=4"].mesh == recipe.Mesh(data=-1, fsdp=4)
    kept = dataclasses.replace(recipe.Pretrain(), train=recipe.Train(remat="none"))
    assert "--set train.remat=full" in dict(fixes(kept, step, 80))


def test_a_step_that_does_not_fit_is_planned_with_more_computed_again() -> None:
    changes = [*SMALL, "model.layers=4"]
    made = {}
    for remat in ("none", "dots", "full"):
        chosen = recipe.load(recipe.Pretrain, Path(TINY), [*changes, f"train.remat={remat}"])
        made[remat] = forecast.compile_step(chosen, jax.devices()[:1], math.inf)
    taken = {name: step.memory.activations for name, step in made.items()}
    assert taken["full"] < taken["dots"] < taken["none"]
    fitting = recipe.load(recipe.Pretrain, Path(TINY), changes)
    room = made["dots"].memory.total
    assert forecast.compile_step(fitting, jax.devices()[:1], room).remat == "dots"
    h200 = accelerators.find("h200")
    compute = {name: forecast.time(fitting, step, 1, h200, 0.5).compute for name, step in made.items()}
    assert compute["full"] == pytest.approx(4 / 3 * compute["none"])
    assert compute["none"] < compute["dots"] < compute["full"]


def test_every_accelerator_sends_slower_than_it_reads() -> None:
    for row in accelerators.ACCELERATORS.values():
        assert row.link < row.bandwidth < row.memory * 1000 and row.fp32 <= row.bf16


HAS_LIBTPU = importlib.util.find_spec("libtpu") is not None


def test_a_missing_tpu_compiler_is_named_with_the_line_that_installs_it(tmp_path: Path) -> None:
    (tmp_path / "libtpu.py").write_text("raise ImportError('as if it were not installed')\n")
    code, made, _ = plan("--topology", "v5e:2x4", path=tmp_path)
    assert code == Exit.MACHINE and "libtpu" in made["error"] and "setup.sh tpu" in made["hint"]


@pytest.mark.skipif(not HAS_LIBTPU, reason="the TPU compiler is not installed: bash scripts/setup.sh tpu")
def test_a_step_compiles_for_eight_chips_with_no_array_moved_for_want_of_a_place() -> None:
    code, made, said = plan("--topology", "v5e:2x4", "--set", "mesh.fsdp=2", "--set", "mesh.tensor=2")
    assert (
        code == Exit.DONE and made["devices"] == 8 and made["mesh"] == {"replica": 1, "data": 2, "fsdp": 2, "tensor": 2}
    )
    assert "warning" not in said
    kinds = {row["collective"] for row in made["collectives"]}
    assert kinds >= {"all-reduce", "all-gather"} and "all-to-all" not in kinds
