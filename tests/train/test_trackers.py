"""Where metrics go besides `metrics.jsonl`, and that no tracker can stop a training."""

import importlib
import json
import sys
import types
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lsp import Exit, LspError, Stopped, arguments, directory
from lsp.console import Progress
from lsp.train import trackers
from lsp.train.log import Log, Meter
from lsp.train.metrics import Mean
from lsp.train.step import Signals

BATCH = {"segments": np.array([[1] * 30 + [0] * 2])}  # 30 useful tokens of 32
QUIET = Progress(quiet=True)


class Wandb(types.ModuleType):
    """Stands for the package: what it was asked, and a run whose server can be away."""

    def __init__(self) -> None:
        super().__init__("wandb")
        self.__spec__ = ModuleSpec("wandb", None)
        self.asked: dict[str, Any] = {}
        self.rows: list[dict[str, float]] = []
        self.ended: list[int] = []
        self.fault: Exception | None = None

    def Settings(self, **options: Any) -> dict[str, Any]:
        return options

    def init(self, **asked: Any) -> "Wandb":
        self.asked = asked
        return self

    def define_metric(self, name: str, step_metric: str) -> None:
        assert (name, step_metric) == ("*", "step")

    def log(self, row: dict[str, float]) -> None:
        if self.fault:
            raise self.fault
        self.rows.append(row)

    def finish(self, exit_code: int) -> None:
        self.ended.append(exit_code)


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Wandb:
    module = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", module)
    (tmp_path / "recipe.toml").write_text("[train]\nsteps = 3\n")
    return module


def scalars(run: Path) -> dict[int, dict[str, float]]:
    """What a reader of the event files knows in the end: by step, read in the order of the files' first steps."""
    tensorboardX = importlib.import_module("tensorboardX.proto.event_pb2")
    known: dict[int, dict[str, float]] = {}
    for file in sorted((run / "tensorboard").iterdir(), key=lambda file: int(file.suffix[1:])):
        data = file.read_bytes()
        while data:  # a record: length, its checksum, the event, its checksum
            size = int.from_bytes(data[:8], "little")
            event, data = tensorboardX.Event.FromString(data[12 : 12 + size]), data[16 + size :]
            if event.HasField("session_log"):
                known = {step: row for step, row in known.items() if step < event.step}
            for value in event.summary.value:
                known.setdefault(event.step, {})[value.tag] = value.simple_value
    return known


def metrics(loss: Mean) -> dict[str, Any]:
    """What a training step returns."""
    return {"loss": loss, "gradient_norm": np.float32(1), "ok": True, "signals": Signals(0.0)}


def log(path: Path, start: int, steps: int, followers: list[trackers.Tracker]) -> list[dict[str, float]]:
    """A log that continues from `start`, with a line every other step; the lines that are then in the file."""
    book = Log(path / "metrics.jsonl", start, Meter(), followers)
    for step in range(start + 1, start + steps + 1):
        book.add(step, metrics(Mean(float(step), 2.0)), BATCH, 0)
        assert book.settle() is None
        if step % 2 == 0:
            book.write(step)
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_tensorboard_has_the_lines_of_the_file_also_after_a_resume(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    with trackers.opened(["tensorboard"], tmp_path, QUIET) as followers:
        log(tmp_path, 0, 6, followers)
    with trackers.opened(["tensorboard"], tmp_path, QUIET) as followers:
        log(tmp_path, 3, 5, followers)  # steps 4 to 6 were done and are done again
        lines = log(tmp_path, 6, 4, followers)  # and 7 and 8 in the same process, as after a rewind
    assert [line["step"] for line in lines] == [2, 4, 6, 8, 10]
    found = scalars(tmp_path)
    assert list(found) == [2, 4, 6, 8, 10]
    for line in lines:
        assert found[line.pop("step")] == pytest.approx(line)


def test_lines_count_tokens_and_seconds_over_all_processes(tmp_path: Path) -> None:
    first = log(tmp_path, 0, 4, [])
    assert [line["tokens"] for line in first] == [60, 120]
    (tmp_path / "metrics.jsonl").write_text('{"step": 4, "tokens": 120, "seconds": 100.0}\n')
    lines = log(tmp_path, 5, 1, [])  # 4 of the 5 steps before have a line: 120 tokens and 100 s of them
    assert lines[-1]["tokens"] == 120 * 5 / 4 + 30
    assert lines[-1]["seconds"] == pytest.approx(125, abs=5)


def test_a_run_that_stopped_before_its_first_line_loses_no_tokens_and_seconds(tmp_path: Path) -> None:
    book = Log(tmp_path / "metrics.jsonl", 5, Meter(), [], 100.0)
    book.evaluated(5, {"loss": 1.0})  # nothing tells yet what the steps took
    for step in (6, 7):
        book.add(step, metrics(Mean(float(step), 2.0)), BATCH, 0)
        assert book.settle() is None
        book.write(step)
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["tokens"] for line in lines] == [0, 6 * 30, 7 * 30]
    assert all(line["seconds"] == pytest.approx(100, abs=5) for line in lines)


def test_a_run_that_goes_on_from_before_its_first_line_reads_that(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 8, "tokens": 160, "seconds": 80.0}\n{"step": 9, "tok')
    lines = log(tmp_path, 3, 1, [])
    assert [line["step"] for line in lines] == [4]
    assert lines[0]["tokens"] == 160 * 3 / 8 + 30
    assert lines[0]["seconds"] == pytest.approx(30, abs=5)


def test_wandb_gets_the_recipe_and_the_lines_and_nothing_of_the_machine(wandb: Wandb, tmp_path: Path) -> None:
    with trackers.opened(["wandb", "wandb"], tmp_path, QUIET) as followers:
        lines = log(tmp_path, 0, 4, followers)
    assert wandb.rows == lines
    assert wandb.ended == [0]
    assert wandb.asked["config"] == {"train": {"steps": 3}}
    assert (wandb.asked["dir"], wandb.asked["resume"]) == (str(tmp_path), "auto")
    assert wandb.asked["settings"]["x_disable_stats"] and not wandb.asked["settings"]["save_code"]


def test_a_run_that_ends_early_is_closed_as_failed(wandb: Wandb, tmp_path: Path) -> None:
    with pytest.raises(Stopped), trackers.opened(["wandb"], tmp_path, QUIET):
        raise Stopped(Exit.STOPPED)
    assert wandb.ended == [1]


def test_a_tracker_that_fails_says_so_once_and_stops_nothing(
    wandb: Wandb, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wandb.fault = ConnectionError("the server\nis away")
    (tmp_path / "tensorboard").write_text("in the way")
    with trackers.opened(["wandb", "tensorboard"], tmp_path, QUIET) as followers:
        lines = log(tmp_path, 0, 6, followers)
    assert len(lines) == 3
    said = capsys.readouterr().err.splitlines()
    assert [line.split(" (")[0] for line in said] == [
        f"warning: {name} no longer follows this run" for name in ("wandb", "tensorboard")
    ]
    assert wandb.ended == [], "nothing more is asked of it"


def test_a_tracker_that_cannot_begin_stops_nothing(
    wandb: Wandb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(**asked: Any) -> None:
        raise ValueError("no API key")

    monkeypatch.setattr(wandb, "init", refuse)
    with trackers.opened(["wandb"], tmp_path, QUIET) as followers:
        assert len(log(tmp_path, 0, 4, followers)) == 2
    assert capsys.readouterr().err.count("no API key") == 1


def test_a_missing_package_is_named_before_any_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name, package in (("tensorboard", "tensorboardX"), ("wandb", "wandb")):
        with pytest.raises(LspError, match=package) as caught:
            arguments.need_trackers([name])
        assert (caught.value.code, caught.value.hint) == (
            Exit.MACHINE,
            f"Install it, in lsp's own folder: bash scripts/setup.sh {name}",
        )
    with pytest.raises(LspError, match="Did you mean 'wandb'") as caught:
        arguments.need_trackers(["wandbd"])
    assert caught.value.code == Exit.USAGE


def test_what_trackers_keep_is_no_part_of_the_run(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with directory.claim(run, command="pretrain", recipe="", inputs={}) as held:
        (run / "result.json").write_text("{}")
        (run / "wandb").mkdir()
        (run / "wandb" / "latest").symlink_to("nowhere")
        sealed = directory.seal(held.path, {"stage": "pretrain"})
    assert "result.json" in sealed["files"] and not [name for name in sealed["files"] if "wandb" in name]
    (run / "wandb" / "more").write_text("")
    directory.read(run)
    with directory.claim(run, command="pretrain", recipe="", inputs={}, overwrite=True):
        assert not (run / "wandb").exists()


def test_numbers_of_jax_are_plain_ones(tmp_path: Path) -> None:
    seen: list[Any] = []
    book = Log(tmp_path / "metrics.jsonl", 0, Meter(), [lambda step, row: seen.extend(row.values())])
    book.add(1, metrics(Mean(np.float32(3), np.float32(2))), BATCH, 0)
    assert book.settle() is None
    book.write(1, learning_rate=0.1)
    assert {type(value) for value in seen} <= {int, float}
