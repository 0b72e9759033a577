"""`benchmarks/gpu.py` at toy size, as it runs without a GPU."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

FILE = Path(__file__).parent.parent / "benchmarks" / "gpu.py"


@pytest.mark.slow
def test_it_runs_and_says_that_it_is_a_toy() -> None:
    command = [sys.executable, str(FILE), "--models", "base,modern-base", "--lengths", "128", "--ways", "fused"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    machine, attention, *steps, forward = map(json.loads, done.stdout.splitlines())
    assert machine["toy"] and machine["product_tflops"] > 0
    for name in ("plain", "plain, window 64"):
        assert attention[name]["ms"] > 0 and all(0 < error < 0.01 for error in attention[name]["errors"])
        assert attention[name]["same_bits_twice"]
    assert [step["model"] for step in steps] == ["base", "modern-base"]
    for step in steps:
        assert step["rows"] * step["length"] == 1024 and step["precision"] == "bf16" and step["remat"] == "none"
        assert step["first_and_last_loss"][0] == pytest.approx(6.2, abs=0.5)  # ln 512 for guesses at random
        assert step["useful_tokens_per_second"] > 0 < step["mfu_of_product"]
        assert step["kernels"].startswith("XLA") and step["same_bits_twice"]
    for answers in (forward, forward["many"]):
        assert set(answers["examples_per_second"]) == {"bf16", "int8", "int8 and bf16"}
        assert min(answers["examples_per_second"].values()) > 0 and min(answers["same_label"].values()) > 0.9
