"""How a process learns that it is one of several: from its options, or from what started it. No jax."""

import os
from dataclasses import dataclass

from lsp import LspError

# What launchers call the number of processes, and the number of this one. Kubernetes' indexed jobs tell the second.
LAUNCHERS = (
    ("Slurm", "SLURM_NTASKS", "SLURM_PROCID"),
    ("Open MPI", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"),
    ("Kubernetes", "", "JOB_COMPLETION_INDEX"),
)


@dataclass(frozen=True)
class Launch:
    """Where the processes meet (HOST:PORT; empty: JAX finds it), how many there are, and which one this is."""

    coordinator: str
    count: int
    index: int


def launched(coordinator: str, count: int | None, index: int | None) -> Launch | None:
    """This process's place among others: as the options say, else as the launcher does; None when it is alone.

    Raises LspError (exit 2) when the three do not make a place.
    """
    environment = os.environ
    step = "SLURM_STEP_NODELIST" in environment  # set by srun; a batch script that starts one process has none
    for launcher, counts, numbers in LAUNCHERS:
        if environment.get(numbers) and (launcher != "Slurm" or step) and (launcher != "Kubernetes" or coordinator):
            count = count if count is not None else _number(counts) or None
            index = index if index is not None else _number(numbers)
            break
    if count == 1 or (count is None and not coordinator and index is None):
        return None
    if count is None or index is None:
        missing = "--processes N" if count is None else "--process-id I"
        raise LspError(
            "Processes that train together need their number and that of this one.",
            hint=f"Add {missing}, as in --coordinator host0:1234 --processes 2 --process-id 0 on the first of two.",
        )
    if not 0 <= index < count:
        raise LspError(
            f"--process-id {index} is not one of {count} processes.", hint=f"They count from 0 to {count - 1}."
        )
    if coordinator and not coordinator.rpartition(":")[2].isdecimal():
        raise LspError(f"--coordinator {coordinator} has no port.", hint="Write it as HOST:PORT, as in host0:1234.")
    return Launch(coordinator, count, index)


def _number(name: str) -> int:
    """What a launcher set a variable to; 0 where it set none. Raises LspError (exit 2) where that is no number."""
    text = os.environ.get(name) or "0"
    try:
        return int(text)
    except ValueError:
        raise LspError(
            f"{name} is {text[:40]!r}, which is no number of processes.",
            hint="A launcher sets it; unset it, or say the place yourself with --processes and --process-id.",
        ) from None
