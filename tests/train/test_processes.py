"""Two real processes over Gloo: the same losses as one process with two devices, one end for both."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from lsp import Exit, LspError
from lsp.launch import LAUNCHERS, Launch, launched

SIZES = ["model.layers=1", "model.width=32", "model.heads=2", "data.vocab_size=320", "data.sequence_length=32"]


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    letters = np.random.default_rng(0).choice(list("abdegilmnoprstu"), (4000, 5))
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n\n".join(" ".join("".join(word) for word in letters[i::50]) for i in range(50)))
    return path


def start(text: Path, out: Path, steps: int, more: list[str], devices: int = 1) -> subprocess.Popen:
    changes = [*SIZES, f"train.steps={steps}", "train.log_every=1", "train.checkpoint_every=10"]
    command = [sys.executable, "-m", "lsp", "pretrain", "--data", str(text), "--out", str(out), "--json", *more]
    return subprocess.Popen(
        [*command, *(word for change in changes for word in ("--set", change))],
        env=os.environ | {"XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def pair(text: Path, out: Path, steps: int) -> list[subprocess.Popen]:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        place = f"localhost:{free.getsockname()[1]}"
    meeting = ["--coordinator", place, "--processes", "2", "--process-id"]
    return [start(text, out, steps, [*meeting, str(index)]) for index in range(2)]


def losses(run: Path) -> dict[int, float]:
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


def wait_for_steps(run: Path, lines: int) -> None:
    for _ in range(600):
        if (run / "metrics.jsonl").exists() and len(losses(run)) >= lines:
            return
        time.sleep(0.1)
    raise AssertionError("training never began")


def test_two_processes_train_as_one_with_two_devices_and_stop_together(text: Path, tmp_path: Path):
    both = pair(text, tmp_path / "two", 60)
    wait_for_steps(tmp_path / "two", 12)
    both[1].send_signal(signal.SIGTERM)  # one is told, both stop after the same step
    ends = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [Exit.STOPPED] * 2, ends
    step = int(ends[0][1].rpartition("stopping after step ")[2].split()[0])
    assert (tmp_path / "two" / "train" / f"{step:08}" / "manifest.json").exists(), "neither leaves before it is written"
    both = pair(text, tmp_path / "two", 60)
    ends = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], ends
    assert json.loads(ends[0][0])["status"] == "complete"
    assert ends[1][0] == "", "the first process alone speaks on stdout"

    alone = start(text, tmp_path / "one", 60, [], devices=2)
    assert alone.communicate(timeout=120) and alone.returncode == 0
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)


@pytest.mark.slow
def test_a_run_that_moves_from_one_device_to_four_to_two_goes_down_the_same_curve(text: Path, tmp_path: Path):
    for devices, lines in ((1, 12), (4, 30)):
        process = start(text, tmp_path / "moved", 60, [], devices)
        wait_for_steps(tmp_path / "moved", lines)
        process.send_signal(signal.SIGTERM)
        said = process.communicate(timeout=60)
        assert process.returncode == Exit.STOPPED, said
        assert len(losses(tmp_path / "moved")) < 60
    last = start(text, tmp_path / "moved", 60, [], devices=2)
    still = start(text, tmp_path / "still", 60, [])
    assert all(process.communicate(timeout=120) and process.returncode == 0 for process in (last, still))
    assert losses(tmp_path / "moved") == pytest.approx(losses(tmp_path / "still"), rel=1e-5)


def test_a_process_that_ends_with_an_error_ends_the_other_with_its_words(text: Path, tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.doc").write_text("mine")
    both = pair(text, tmp_path / "out", 60)
    ends = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [Exit.USAGE] * 2, ends
    assert "Process 0 ended" in json.loads(ends[1][0])["error"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_or_hung_process_is_named_within_a_minute(text: Path, tmp_path: Path, number: signal.Signals):
    both = pair(text, tmp_path / "out", 1_000_000)
    wait_for_steps(tmp_path / "out", 12)
    both[1].send_signal(number)
    began = time.monotonic()
    said, _ = both[0].communicate(timeout=90)
    both[1].kill()
    both[1].communicate()
    assert time.monotonic() - began < 60
    assert both[0].returncode == Exit.MACHINE
    assert f"process {both[1].pid}) has not answered" in json.loads(said)["error"]


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in {"SLURM_STEP_NODELIST", *(name for _, *names in LAUNCHERS for name in names)}:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    "environment, options, expected",
    [
        ({}, ("", None, None), None),
        ({}, ("", 1, None), None),
        ({}, ("a:1", 2, 1), Launch("a:1", 2, 1)),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, ("", None, None), None),  # the batch script itself, without srun
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "3", "SLURM_STEP_NODELIST": "n1"}, ("", None, None), Launch("", 4, 3)),
        ({"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_STEP_NODELIST": "n1"}, ("", None, None), None),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "1"}, ("b:2", None, None), Launch("b:2", 2, 1)),
        ({"JOB_COMPLETION_INDEX": "5"}, ("c:3", 8, None), Launch("c:3", 8, 5)),
        ({"JOB_COMPLETION_INDEX": "5"}, ("", None, None), None),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": ""}, ("", None, None), None),
        ({"SLURM_NTASKS": "x", "SLURM_PROCID": "y", "SLURM_STEP_NODELIST": "n1"}, ("a:1", 2, 1), Launch("a:1", 2, 1)),
    ],
)
def test_options_and_launchers_say_who_a_process_is(bare, environment, options, expected):
    for name, value in environment.items():
        bare.setenv(name, value)
    assert launched(*options) == expected


@pytest.mark.parametrize(
    "options, said", [(("a:1", 2, None), "--process-id"), (("a:1", None, 0), "--processes"), (("a", 2, 0), "no port")]
)
def test_half_a_place_is_refused(bare, options, said):
    with pytest.raises(LspError) as caught:
        launched(*options)
    assert said in caught.value.message + caught.value.hint


@pytest.mark.parametrize(
    "environment, said",
    [
        ({"SLURM_NTASKS": "abc", "SLURM_PROCID": "0", "SLURM_STEP_NODELIST": "n1"}, "SLURM_NTASKS is 'abc'"),
        ({"OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_RANK": "9" * 5000}, "OMPI_COMM_WORLD_RANK is '999"),
    ],
    ids=["word", "digits"],
)
def test_what_a_launcher_says_must_be_a_number(bare, environment, said):
    for name, value in environment.items():
        bare.setenv(name, value)
    with pytest.raises(LspError, match=said) as caught:
        launched("", None, None)
    assert len(caught.value.message) < 200


def test_a_number_beyond_the_last_process_is_refused(bare):
    with pytest.raises(LspError, match="not one of 2"):
        launched("a:1", 2, 2)
