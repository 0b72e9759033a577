"""`benchmarks/faults.py`, small: kills, a full disk, a damaged step, a jumping clock, two writers; nothing is lost."""

import importlib.util
import json
from pathlib import Path

import pytest

FILE = Path(__file__).parent.parent / "benchmarks" / "faults.py"


def test_no_fault_loses_anything(capsys: pytest.CaptureFixture[str]) -> None:
    spec = importlib.util.spec_from_file_location("faults", FILE)
    assert spec is not None and spec.loader is not None
    faults = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(faults)
    code = faults.main(["--kills", "2", "--steps", "15"])
    report = json.loads(capsys.readouterr().out)
    assert report["violations"] == [] and code == 0
    assert report["kills"]["made"] >= 2 and report["kills"]["equal"] == report["kills"]["runs"] >= 1
    assert report["corrupted"]["said"] and report["two"]["named"]
