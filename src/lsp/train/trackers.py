"""Where else the lines of `metrics.jsonl` go while a run trains: TensorBoard, Weights & Biases.

They are for watching. Everything is in `metrics.jsonl` too, so a tracker that fails says so once and is left alone.
"""

import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from lsp import Stopped
from lsp.train import processes

Tracker = Callable[[int, Mapping[str, float]], None]  # takes a step and the numbers of its line


@contextmanager
def opened(names: Sequence[str], path: Path, progress: Any) -> Iterator[list[Tracker]]:
    """The trackers of the run at `path`, by name; they are closed, and told whether the run ended well, after it.

    Of several processes the first has them.
    """
    names = names if processes.first() else ()
    with ExitStack() as stack:
        yield [stack.enter_context(_surviving(name, path, progress)) for name in dict.fromkeys(names)]


@contextmanager
def _surviving(name: str, path: Path, progress: Any) -> Iterator[Tracker]:
    """A tracker none of whose failures reaches the training: a server may be away, a disk full."""
    failed = False

    def attempt(action: Callable[..., Any], *arguments: Any) -> Any:
        nonlocal failed
        if failed:
            return None
        try:
            return action(*arguments)
        except Stopped:  # a signal, not a failure
            raise
        except Exception as error:
            failed = True
            said = f"{type(error).__name__}: {error}".splitlines()[0]
            progress.warn(f"{name} no longer follows this run ({said}); {path}/metrics.jsonl still has every line.")

    tracker = attempt(TensorBoard if name == "tensorboard" else Wandb, path)
    complete = False
    try:
        yield partial(attempt, tracker)
        complete = True
    finally:
        if tracker is not None:
            attempt(tracker.close, complete)


class TensorBoard:
    """Event files under RUN/tensorboard. Every line is on disk at once; what an earlier process wrote of steps that are
    done again is taken back."""

    def __init__(self, path: Path) -> None:
        import tensorboardX  # noqa: F401  a broken installation shows here, not at the first line

        self.folder = path / "tensorboard"
        self.writer: Any = None
        self.last = sys.maxsize  # step

    def __call__(self, step: int, row: Mapping[str, float]) -> None:
        # Not `SummaryWriter`: its thread dies on a full disk, and the training would then wait for it for ever.
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto.event_pb2 import Event, SessionLog
        from tensorboardX.proto.summary_pb2 import Summary

        if self.writer is None:
            self.folder.mkdir(exist_ok=True)
            self.writer = EventsWriter(str(self.folder / "events"), f".{step}")
        if step < self.last:
            # To a reader a start at this step means that all it has seen from there on is void.
            again = Event(wall_time=time.time(), step=step, session_log=SessionLog(status=SessionLog.START))
            self.writer.write_event(again)
        self.last = step
        values = [Summary.Value(tag=name, simple_value=number) for name, number in row.items()]
        self.writer.write_event(Event(wall_time=time.time(), step=step, summary=Summary(value=values)))
        self.writer.flush()

    def close(self, complete: bool) -> None:
        if self.writer is not None:
            self.writer.close()


class Wandb:
    """A run of Weights & Biases, with its files under RUN/wandb. Project, entity, key and mode come from WANDB_PROJECT
    and its like; only the recipe and the lines are sent, nothing of the machine, its code or its terminal."""

    def __init__(self, path: Path) -> None:
        import wandb

        quiet: dict[str, Any] = {"x_disable_stats": True, "x_disable_meta": True, "x_disable_machine_info": True}
        quiet |= {"x_save_requirements": False, "console": "off", "disable_git": True, "save_code": False}
        recipe = tomllib.loads((path / "recipe.toml").read_text(encoding="utf-8"))
        settings = wandb.Settings(**quiet, finish_timeout=30)  # seconds; what is not sent by then is still on disk
        # "auto" finds the run of an earlier process in RUN/wandb.
        self.run = wandb.init(dir=str(path), name=path.name, config=recipe, resume="auto", settings=settings)
        # Its own step may only rise. Ours is a number in the line, so that steps done again are taken as well.
        self.run.define_metric("*", step_metric="step")

    def __call__(self, step: int, row: Mapping[str, float]) -> None:
        self.run.log({"step": step, **row})

    def close(self, complete: bool) -> None:
        self.run.finish(exit_code=0 if complete else 1)
