"""The energy that a run took, where the machine counts it: processors and memory by RAPL, NVIDIA's GPUs by NVML."""

import ctypes
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

POWERCAP = Path("/sys/class/powercap")
# Packages, and memory that is not part of them. Cores and graphics are; `psys` is all of it once more.
DOMAINS = re.compile(r"package-\d+(-die-\d+)?|dram")


class Counter(NamedTuple):
    """`read` gives joules since some moment, and begins again at 0 after `range` of them; 0 means that it never does.
    Raises OSError."""

    name: str
    read: Callable[[], float]
    range: float


class Energy:
    """Joules since it was made, of everything that ran on the counted devices, other programs included.

    `sample` must be called more often than a counter goes round: some 20 minutes for a busy package.
    """

    def __init__(self, counters: Sequence[Counter]) -> None:
        self.joules = 0.0
        self.last: list[tuple[Counter, float]] = []
        for counter in counters:
            with suppress(OSError):  # the kernel lets root alone read RAPL, unless an administrator opened it
                self.last.append((counter, counter.read()))

    def sample(self) -> None:
        """Adds what has been used since the last call. A counter that can't be read any more ends the count of all."""
        try:
            now = [(counter, counter.read()) for counter, _ in self.last]
        except OSError:
            self.last = []
            return
        for (counter, after), (_, before) in zip(now, self.last, strict=True):
            self.joules += after - before + (counter.range if after < before else 0.0)
        self.last = now

    def summary(self) -> dict[str, Any]:
        """`energy_joules` and what was counted, or nothing where no counter could be read from beginning to end."""
        self.sample()
        counted = [counter.name for counter, _ in self.last]
        return {"energy_joules": self.joules, "energy_counters": counted} if counted else {}


def counters(gpus: bool) -> list[Counter]:
    """Every counter of this machine, with those of GPUs when the run uses `gpus`."""
    return [*rapl(), *(nvml() if gpus else ())]


def rapl(root: Path = POWERCAP) -> Iterator[Counter]:
    """The kernel's counters of processor packages and memory, Intel's and AMD's (its power/powercap/powercap.rst)."""
    for folder in sorted(root.glob("intel-rapl:*")):  # `intel-rapl-mmio:*` counts the same packages again
        with suppress(OSError, ValueError):
            name = (folder / "name").read_text().strip()
            if DOMAINS.fullmatch(name):
                yield Counter(name, partial(_joules, folder / "energy_uj"), _joules(folder / "max_energy_range_uj"))


def _joules(file: Path) -> float:
    return int(file.read_text()) / 1e6


def nvml(library: Any = None) -> Iterator[Counter]:
    """The counters of the GPUs in CUDA_VISIBLE_DEVICES, of all when that is not set. NVML comes with the driver."""
    try:
        library = library or ctypes.CDLL("libnvidia-ml.so.1")
        count = ctypes.c_uint()
        if library.nvmlInit_v2() or library.nvmlDeviceGetCount_v2(ctypes.byref(count)):
            return
    except (OSError, AttributeError):
        return
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    for name in range(count.value) if visible is None else visible.split(","):
        device = ctypes.c_void_p()
        if str(name).isdecimal():
            refused = library.nvmlDeviceGetHandleByIndex_v2(int(name), ctypes.byref(device))
        else:
            refused = library.nvmlDeviceGetHandleByUUID(str(name).encode(), ctypes.byref(device))
        if not refused:
            yield Counter(f"gpu {name}", partial(_total, library, device), 0.0)


def _total(library: Any, device: ctypes.c_void_p) -> float:
    millijoules = ctypes.c_ulonglong()
    if error := library.nvmlDeviceGetTotalEnergyConsumption(device, ctypes.byref(millijoules)):
        raise OSError(f"NVML error {error}")
    return millijoules.value / 1e3
