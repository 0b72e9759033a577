"""Signals in every phase: an exit code, a sentence, and nothing lost."""

import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from lsp import Exit, Stopped, interrupt


def test_where_nothing_is_unsaved_a_signal_ends_the_work_at_once():
    with interrupt.listening(), pytest.raises(Stopped) as caught:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(1)
    assert caught.value.code == Exit.STOPPED


def test_inside_holding_the_work_decides_when_and_a_second_signal_does_not_wait():
    with interrupt.listening(), interrupt.holding():
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)  # still here
        with pytest.raises(Stopped) as caught:
            interrupt.check()
        assert caught.value.code == Exit.INTERRUPTED
        with pytest.raises(Stopped):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)


def test_an_import_is_never_cut_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "slow_module.py").write_text(
        "import os, signal, time\nos.kill(os.getpid(), signal.SIGTERM)\ntime.sleep(0.2)\nwhole = True\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with interrupt.listening(), pytest.raises(Stopped):
        importlib.import_module("slow_module")
        time.sleep(1)
    assert sys.modules["slow_module"].whole


def test_a_signal_in_a_function_that_would_swallow_it_is_heard_after_it():
    finished = []

    def _xla_gc_callback():  # jax's runs within any allocation, and Python passes over what is raised in it
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.2)
        finished.append(True)

    with interrupt.listening(), pytest.raises(Stopped):
        _xla_gc_callback()
        time.sleep(1)
    assert finished


def test_what_would_swallow_a_signal_is_called_so_in_jax():
    from jax._src import compiler, lib

    names = {name for module in (compiler, lib) for name in vars(module)}
    assert names >= set(interrupt.DEAF)


@pytest.mark.parametrize("number, code", [(signal.SIGINT, Exit.INTERRUPTED), (signal.SIGTERM, Exit.STOPPED)])
def test_a_signal_before_the_command_line_is_loaded_shows_no_traceback(number: int, code: Exit):
    program = f"""
import os, sys
from lsp.__main__ import run
class Finder:
    def find_spec(self, name, *rest):
        if name == "lsp.cli":
            os.kill(os.getpid(), {int(number)})
sys.meta_path.insert(0, Finder())
run()
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (ended.returncode, ended.stderr) == (code, "Stopped before anything was begun.\n")


def test_work_in_a_thread_is_left_when_a_signal_comes():
    assert interrupt.apart(lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        interrupt.apart(lambda: 1 // 0)
    with interrupt.listening(), interrupt.holding(), pytest.raises(Stopped):
        interrupt.apart(lambda: (os.kill(os.getpid(), signal.SIGTERM), time.sleep(0.5)))


@pytest.mark.parametrize("after", [0.5, 2.0, 4.0, 7.0])
def test_a_training_command_saves_and_says_so_in_whatever_phase_it_is(tmp_path: Path, after: float):
    letters = np.random.default_rng(0).choice(list("abdegilmnoprstu"), (4000, 5))
    (tmp_path / "text.txt").write_text(
        "\n\n".join(" ".join("".join(word) for word in letters[i::50]) for i in range(50))
    )
    sizes = ["model.layers=1", "model.width=32", "model.heads=2", "data.vocab_size=320", "data.sequence_length=32"]
    changes = [word for change in [*sizes, "train.steps=1000000"] for word in ("--set", change)]
    command = [sys.executable, "-m", "lsp", "pretrain", "--data", tmp_path / "text.txt", "--out", tmp_path / "run"]
    run = subprocess.Popen([*map(str, command), *changes], stderr=subprocess.PIPE, text=True)
    time.sleep(after)
    run.send_signal(signal.SIGTERM)
    _, said = run.communicate(timeout=30)
    assert run.returncode == Exit.STOPPED, said
    early = not (tmp_path / "run").exists() and said == "Stopped before anything was begun.\n"  # on a busy machine
    assert early or "Run the same command again" in said
