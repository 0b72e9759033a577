"""What a run says of its devices and of its plan, against hand arithmetic; and the step that fits the memory."""

from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest

from lsp import recipe
from lsp.model.config import Layer, ModelConfig
from lsp.model.encoder import initialise
from lsp.train import accelerators, account, compiled, memory
from lsp.train import mesh as meshes
from lsp.train.accelerators import Accelerator
from lsp.train.compiled import Compiled, build
from lsp.train.log import Meter
from lsp.train.memory import Memory
from lsp.train.objectives import Objective, masked_lm
from lsp.train.step import Signals, begin

CHIP = Accelerator(bf16=2e9, fp32=1e9, memory=1e9, bandwidth=1e6, link=1e6, mfu=0.5)
TAKEN = Memory(parameters=100, optimizer=200, batch=10, gradients=100, activations=590, program=0, start=0)


def metered(steps: int, seconds: float, needed: int) -> Meter:
    meter = Meter()
    meter.steps, meter.seconds, meter.needed, meter.resident, meter.peak = steps, seconds, needed, 0, 700
    return meter


def test_utilisation_and_the_errors_of_a_plan_are_hand_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accelerators, "here", lambda: CHIP)
    monkeypatch.setattr(account, "jax", SimpleNamespace(device_count=lambda: 1))
    monkeypatch.setattr(Meter, "summary", lambda self: {"peak_memory_bytes": 800})
    step: Any = SimpleNamespace(planned=TAKEN)
    meter = metered(10, 20.0, 4 * 10**9)
    made = account.summary(meter, step, recipe.Train(), planned=True)
    assert made["mfu"] == pytest.approx(4e9 / 20 / 1e9)
    # 0.4 GFLOP a step at half of 1 GFLOP/s take longer than 2·300 + 2·790 bytes at a megabyte a second.
    assert made["planned"]["step_milliseconds"] == pytest.approx(800)
    assert made["planned"]["step_error"] == pytest.approx(0.8 / 2 - 1)
    assert made["planned"]["memory_bytes"] == 1000
    assert made["planned"]["memory_error"] == pytest.approx(0.25)
    said = "a plan says 800 ms a step (-60%) and 0.00 GB (+25%), beside what was measured"
    assert account.compared(made["planned"]) == said
    assert "planned" not in account.summary(meter, step, recipe.Train(), planned=False)
    meter.peak = 800  # reached before
    assert account.summary(meter, step, recipe.Train(), planned=True)["planned"]["memory_error"] is None
    assert account.summary(metered(1, 1.0, 10**9), step, recipe.Train(), planned=True) == {"peak_memory_bytes": 800}


def test_a_device_is_found_by_its_name_or_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def called(name: str) -> Accelerator:
        monkeypatch.setattr(accelerators.jax, "devices", lambda: [SimpleNamespace(device_kind=name)])
        return accelerators.here()

    monkeypatch.setattr(accelerators, "measure", lambda devices: CHIP)
    table = accelerators.ACCELERATORS
    assert called("NVIDIA H100 80GB HBM3") == table["h100"] and called("NVIDIA A100-SXM4-40GB") == table["a100"]
    assert called("TPU v5 lite") == table["v5e"] and called("TPU v5p") == table["v5p"] and called("cpu") == CHIP
    assert set(accelerators.TPU_NAMES.values()) == set(accelerators.TPUS)


def test_a_step_that_does_not_fit_computes_more_again(monkeypatch: pytest.MonkeyPatch) -> None:
    config = ModelConfig("modern", 300, 16, (Layer(2, 8, 64),) * 4, max_length=64)
    train, mesh, said = recipe.Train(steps=10), meshes.make(recipe.Mesh(), jax.devices()[:1]), []
    rng = np.random.default_rng(0)
    batch = {
        "tokens": rng.integers(5, 300, (16, 64), np.int32),
        "segments": np.ones((16, 64), np.int32),
        "slots": np.ones((16, 4), np.int32),
        "targets": np.full((16, 4), 7, np.int32),
        "weights": np.ones((16, 4), np.float32),
    }

    def step(remat: str, room: float) -> tuple[Compiled, float]:
        """The step that is compiled where a device has so much room, and its loss."""
        monkeypatch.setattr(memory, "usable", lambda: room)
        objective = Objective(masked_lm)
        with jax.set_mesh(mesh):
            make = {each: build(config, objective, train, recipe.Replicas(), mesh, each) for each in compiled.REMAT}
            state = begin(make["none"][0], initialise(config, 0))
            state = meshes.spread(state, meshes.place(state, mesh))
            made = Compiled(lambda policy: make[policy][1], remat, mesh, Meter(), said.append)
            metrics = made(state, None, batch, np.int32(0), meshes.each(Signals(0.5), mesh))[1]
            return made, float(metrics["loss"].total)

    alone, loss = step("auto", np.inf)
    assert alone.policies == ("none", "dots", "full") and not said
    assert alone.planned is not None
    smallest, again = step("auto", 1.0)
    assert smallest.policies == ("full",) and again == pytest.approx(loss, rel=1e-6)
    assert smallest.planned is not None and smallest.planned.activations < alone.planned.activations
    assert [line.split()[3] for line in said] == ["train.remat=none", "train.remat=dots"]
    given, _ = step("dots", 1.0)
    assert given.policies == ("dots",) and len(said) == 2
