"""What a run made of its devices, and how wrong a plan of it would have been."""

from typing import Any

import jax

from lsp import recipe as recipes
from lsp.train import accelerators
from lsp.train.collectives import collectives
from lsp.train.compiled import Compiled
from lsp.train.log import Meter

ENOUGH = 5.0  # seconds of steps; shorter runs say nothing of a device


def summary(meter: Meter, step: Compiled, train: recipes.Train, *, planned: bool) -> dict[str, Any]:
    """`Meter.summary` and: `mfu`, the share of the devices' peak that needed FLOPs have used (Chowdhery et al., 2022),
    those of a plain step: not more for the second pass of R-Drop and FGM, nor fewer where parts are frozen or LoRA's;
    `planned`, where one can be, what `lsp plan` expects of this step on these devices, each with its `error`, planned /
    measured - 1. The memory has none if this process had more before the run.

    Runs of a few seconds have none of both. A processor's peak is measured when the run is over: if it is busy with
    something else then, the share comes out too high.
    """
    made = meter.summary()
    if meter.seconds < ENOUGH or step.planned is None:
        return made
    chip, devices = accelerators.here(), jax.device_count()
    needed, seconds = meter.needed / meter.steps, meter.seconds / meter.steps
    made |= {"mfu": needed / seconds / (devices * chip.peak(train.precision))}
    if not planned:
        return made
    sent = sum(each.bytes for each in collectives(step.text(), devices)) if devices > 1 else 0
    time = accelerators.roofline(chip, train, needed / devices, step.planned, sent, chip.mfu)
    memory, peak = step.planned.total, made["peak_memory_bytes"]
    return made | {
        "planned": {
            "step_milliseconds": 1000 * time.step,
            "step_error": time.step / seconds - 1,
            "memory_bytes": memory,
            "memory_error": memory / (peak - meter.resident) - 1 if peak > meter.peak else None,
        },
    }


def compared(planned: dict[str, Any]) -> str:
    """How wrong a plan is, as a sentence."""
    time = f"{planned['step_milliseconds']:,.0f} ms a step ({planned['step_error']:+.0%})"
    error = planned["memory_error"]
    memory = f"{planned['memory_bytes'] / 1e9:,.2f} GB" + ("" if error is None else f" ({error:+.0%})")
    return f"a plan says {time} and {memory}, beside what was measured"
