"""`lsp plan`: what a pretraining recipe takes in memory, traffic, time, money and disk, before any of it is spent."""

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lsp import LspError
from lsp import recipe as recipes
from lsp.console import Progress

if TYPE_CHECKING:
    from lsp.train.accelerators import Time
    from lsp.train.forecast import Step


class Hardware(NamedTuple):
    """What a plan is for: `devices` of an `accelerator` (of the table, or this machine's processor when empty) that are
    imitated on the CPU, or the chips of a `topology`, for which the TPU compiler compiles. `mfu` 0 is the table's share
    of the peak, `price` money for an hour of one device."""

    devices: int = 1
    accelerator: str = ""
    topology: str = ""
    mfu: float = 0.0
    price: float = 0.0


def run(path: Path, recipe: recipes.Pretrain, hardware: Hardware, tokens: float, progress: Progress) -> dict[str, Any]:
    """Compiles the recipe's step and says what it takes; `tokens` 0 means the recipe's steps."""
    rows = recipe.train.batch_size * recipe.data.sequence_length
    steps = max(1, round(tokens / rows)) if tokens else recipe.train.steps
    if not steps:
        raise LspError(
            "The recipe counts no steps.", hint="Add --tokens N, as in --tokens 1e9, or --set train.steps=N."
        )
    imitate(1 if hardware.topology else hardware.devices)
    import jax

    from lsp.train import accelerators, forecast
    from lsp.train.memory import USABLE, machine

    accelerator = hardware.accelerator
    if hardware.topology:
        accelerator, places = accelerators.kind(hardware.topology), forecast.tpu_slice(hardware.topology)
    else:
        places = jax.devices()[: hardware.devices]
    known = accelerators.find(accelerator) if accelerator else None
    limit = round(USABLE * (known.memory if known else machine() / hardware.devices))
    accelerator = accelerator or "this processor"

    def compiled(changed: recipes.Pretrain, what: str) -> "Step":
        progress.say(f"compiling the step for {len(places)} × {accelerator}{what}")
        return forecast.compile_step(changed, places, limit, here=known is None)

    step = compiled(recipe, "")
    chip = known or accelerators.measure(hardware.devices)  # after compiling, which counts what the process grows by
    time = forecast.time(recipe, step, len(places), chip, hardware.mfu or chip.mfu)
    made = {"command": "plan", "recipe": str(path), "devices": len(places), "accelerator": accelerator}
    made |= _taken(recipe, step, limit) | _times(recipe, time, steps, hardware, len(places))
    made |= {"mfu": hardware.mfu or chip.mfu, "compile_seconds": step.compile_seconds}
    if not made["fits"]:
        made["fixes"] = [
            {"fix": fix, "bytes": found.memory.total, "saves_bytes": step.memory.total - found.memory.total}
            for fix, changed in fixes(recipe, step, limit)
            for found in [compiled(changed, f" with {fix}")]
        ]
    for warning in step.warnings:
        progress.warn(warning)
    return {name: value for name, value in made.items() if value not in (None, [])}


def _taken(recipe: recipes.Pretrain, step: "Step", limit: int) -> dict[str, Any]:
    """Memory, traffic and disk."""
    from lsp.model import cost
    from lsp.train import forecast
    from lsp.train.collectives import by_kind

    parameters = cost.parameters(forecast.model(recipe))
    return {
        "mesh": step.mesh,
        "remat": step.remat,
        "parameters": parameters,
        "memory_bytes": step.memory.total,
        "usable_bytes": limit,
        "fits": step.memory.total <= limit,
        "checkpoint_bytes": step.checkpoint,
        "disk_bytes": step.checkpoint * (recipe.train.keep + 1) + 4 * parameters,
        "memory": [{"kind": kind, "bytes": count} for kind, count in step.memory._asdict().items() if count],
        "collectives": by_kind(step.collectives),
    }


def _times(recipe: recipes.Pretrain, time: "Time", steps: int, hardware: Hardware, devices: int) -> dict[str, Any]:
    """Time and money."""
    from lsp.train import forecast

    hours = steps * time.step * devices / 3600
    return {
        "flops_per_step": forecast.flops(recipe),
        "step_milliseconds": 1000 * time.step,
        "bound_by": time.bound,
        "compute_milliseconds": 1000 * time.compute,
        "memory_milliseconds": 1000 * time.memory,
        "network_milliseconds": 1000 * time.network,
        "tokens_per_second": recipe.train.batch_size * recipe.data.sequence_length / time.step,
        "steps": steps,
        "seconds": steps * time.step,
        "device_hours": hours,
        "cost": hours * hardware.price if hardware.price else None,
    }


def imitate(devices: int) -> None:
    """Has jax, which must not have started yet, offer so many devices on the CPU and say what its compilers warn of."""
    flags = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{flags} --xla_force_host_platform_device_count={devices}".strip()
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["TF_CPP_MIN_LOG_LEVEL"] = "1"
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "0"  # what was kept is not compiled again, and nothing warned of


def fixes(recipe: recipes.Pretrain, step: "Step", limit: int) -> Iterator[tuple[str, recipes.Pretrain]]:
    """Changes that make a step smaller, the cheapest first: more micro-batches cost next to nothing, state that is
    split costs traffic, recomputing costs a quarter of the time."""
    train, mesh = recipe.train, step.mesh
    room = limit - (step.memory.total - step.memory.activations)
    parts = train.accumulate
    while train.batch_size % (2 * parts * mesh["data"] * mesh["fsdp"]) == 0:
        parts *= 2
        if step.memory.activations * train.accumulate <= room * parts:
            break
    if parts > train.accumulate:
        yield f"--set train.accumulate={parts}", _with(recipe, "train", accumulate=parts)
    if mesh["data"] > 1:
        split = mesh["data"] * mesh["fsdp"]
        yield f"--set mesh.fsdp={split}", _with(recipe, "mesh", data=-1, fsdp=split)
    if train.remat in ("none", "dots"):
        yield "--set train.remat=full", _with(recipe, "train", remat="full")
    if train.precision == "fp32":
        yield "--set train.precision=bf16", _with(recipe, "train", precision="bf16")


def _with(recipe: recipes.Pretrain, section: str, **changes: Any) -> recipes.Pretrain:
    return dataclasses.replace(recipe, **{section: dataclasses.replace(getattr(recipe, section), **changes)})
