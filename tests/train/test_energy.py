"""Energy as counters of the machine give it."""

import ctypes
from pathlib import Path
from typing import Any

import pytest

from lsp.train.energy import Energy, nvml, rapl

RANGE = 262_143_328_850  # microjoules, of a server's package


def domain(root: Path, folder: str, name: str, microjoules: int) -> Path:
    place = root / folder
    place.mkdir(parents=True)
    for file, text in (("name", name), ("energy_uj", microjoules), ("max_energy_range_uj", RANGE)):
        (place / file).write_text(f"{text}\n")
    return place / "energy_uj"


def test_packages_and_memory_are_added_and_nothing_twice(tmp_path: Path) -> None:
    first = domain(tmp_path, "intel-rapl:0", "package-0", 5_000_000)
    domain(tmp_path, "intel-rapl:0:0", "core", 1_000_000)  # part of the package
    memory = domain(tmp_path, "intel-rapl:0:1", "dram", 7_000_000)
    second = domain(tmp_path, "intel-rapl:1", "package-1-die-0", RANGE - 1_000_000)
    domain(tmp_path, "intel-rapl:2", "psys", 0)
    domain(tmp_path, "intel-rapl-mmio:0", "package-0", 5_000_000)
    energy = Energy([*rapl(tmp_path)])
    first.write_text("15000000\n")
    memory.write_text("8000000\n")
    energy.sample()
    second.write_text("3000000\n")  # it went round: 1 J to the end of its range, 3 J after it
    found = energy.summary()
    assert found["energy_joules"] == pytest.approx(10 + 1 + 4)
    assert found["energy_counters"] == ["package-0", "dram", "package-1-die-0"]


def test_a_machine_that_tells_nothing_has_no_number(tmp_path: Path) -> None:
    assert Energy([*rapl(tmp_path)]).summary() == {}
    counter = domain(tmp_path, "intel-rapl:0", "package-0", 1)
    energy = Energy([*rapl(tmp_path)])
    counter.write_text("nothing")
    counter.unlink()
    assert energy.summary() == {}, "a count with a hole is no count"
    assert Energy([*rapl(tmp_path)]).summary() == {}, "a counter that cannot be read from the start"


class Library:
    """NVML with two GPUs, as its C interface; the second is of a kind that does not count."""

    def __init__(self) -> None:
        self.millijoules = 1000

    def nvmlInit_v2(self) -> int:
        return 0

    def nvmlDeviceGetCount_v2(self, count: Any) -> int:
        count._obj.value = 2
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: int, device: Any) -> int:
        device._obj.value = index + 1
        return 0

    def nvmlDeviceGetHandleByUUID(self, uuid: bytes, device: Any) -> int:
        device._obj.value = 1
        return 0 if uuid == b"GPU-1" else 6

    def nvmlDeviceGetTotalEnergyConsumption(self, device: ctypes.c_void_p, total: Any) -> int:
        total._obj.value = self.millijoules
        return 0 if device.value == 1 else 3


@pytest.mark.parametrize(("visible", "counted"), [(None, ["gpu 0"]), ("GPU-1", ["gpu GPU-1"]), ("1", []), ("", [])])
def test_gpus_are_those_that_are_visible(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, counted: list[str]
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    library = Library()
    energy = Energy([*nvml(library)])
    library.millijoules = 3500
    assert energy.summary() == ({"energy_joules": 2.5, "energy_counters": counted} if counted else {})


def test_a_machine_without_nvml_has_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError("cannot open shared object file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert [*nvml()] == []
