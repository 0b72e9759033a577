"""`lsp verify resume`: on this machine and with this recipe, does a killed run equal one that was left alone?"""

import dataclasses
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lsp import Exit, LspError, checkpoint, directory
from lsp import recipe as recipes
from lsp import steps as saved
from lsp.data import files, shards
from lsp.data.tokenizer import Tokenizer

GLANCE = 0.002  # seconds between two looks at a run


def run(
    data: list[str],
    out: Path,
    recipe: recipes.Pretrain,
    tokenizer: Path | None,
    *,
    steps: int,
    kills: int,
    overwrite: bool,
    progress: Any,
) -> dict[str, Any]:
    """Pretrains twice for `steps` steps in processes of their own, saving each: once left alone, once killed `kills`
    times and continued. `equal` in the result says whether every saved state and the finished model have the same
    bits, else `difference` names the first step and tensor that do not. Needs room for 2·steps saved states.

    Raises LspError: what a run ended with, and exit 5 when none could be killed.
    """
    train = dataclasses.replace(recipe.train, steps=steps, checkpoint_every=1, keep=steps + 1)
    dumped = recipes.dump(dataclasses.replace(recipe, train=train))
    inputs = {"data": shards.prepared(data) or files.digest(data), "kills": str(kills)}
    if tokenizer:
        inputs["tokenizer"] = Tokenizer.load(tokenizer).hash
    with directory.claim(out, command="verify resume", recipe=dumped, inputs=inputs, overwrite=overwrite) as held:
        if held.complete:
            return held.result()
        began = time.monotonic()
        work = out / "train"
        shutil.rmtree(work, ignore_errors=True)  # a proof is made in one piece
        command = [
            *(sys.executable, "-m", "lsp", "pretrain", "--quiet", "--json", "--recipe", str(out / "recipe.toml"))
        ]
        command += [word for path in data for word in ("--data", path)]
        command += ["--tokenizer", str(tokenizer)] if tokenizer else []
        calm = Watched(command, work / "calm", work / "calm-steps")
        with progress.task("left alone", steps) as task:
            first = calm.until(lambda: calm.newest() > 0, task)
            calm.finish(task)
        killed = Watched(command, work / "killed", work / "killed-steps")
        with progress.task(f"killed {kills} times", steps) as task:
            made, in_save = _kill(killed, steps, kills, first, random.Random(train.seed), task)
        common = sorted(set(calm.kept()) & set(killed.kept()))
        with progress.task("comparing", len(common)) as task:
            found, tensors = compare(calm, killed, common, task)
        result = {
            "command": "verify resume",
            "out": str(out),
            "status": "complete",
            "equal": found is None,
            "difference": found,
            "steps": steps,
            "kills": made,
            "kills_in_a_save": in_save,
            "states_compared": len(common),
            "tensors": tensors,
            "seconds": round(time.monotonic() - began, 1),
        }
        directory.write_atomically(out / "result.json", json.dumps(result, indent=1) + "\n")
        if found is None:
            directory.seal(out, {"stage": "verify resume", "step": steps})
            shutil.rmtree(work, ignore_errors=True)
        return result


def _kill(run: "Watched", steps: int, kills: int, first: float, chance: random.Random, task: Any) -> tuple[int, int]:
    """Ends a run at `kills` random moments, half of them in a save, and has it go on to the end: how many kills met it
    alive, and how many in a save. `first` are the seconds to the first save. Raises LspError (exit 5) when none did."""
    made = in_save = 0
    for number, target in enumerate(sorted(chance.choices(range(steps), k=kills))):
        delay = chance.uniform(0, 0.2 if target else first)
        alive, saving = run.kill(target, delay, number % 2 == 1, task)
        made, in_save = made + alive, in_save + saving
    run.finish(task)
    if kills and not made:
        raise LspError(
            f"The run of {steps} steps was over before it could be killed.",
            hint="Give it more: --steps 100.",
            code=Exit.MACHINE,
        )
    return made, in_save


class Watched:
    """A run in a process of its own. Its steps are kept (as hard links) in `steps` when they become whole."""

    def __init__(self, command: Sequence[str], out: Path, steps: Path) -> None:
        self.command, self.out, self.steps = [*command, "--out", str(out)], out, steps
        self.process: subprocess.Popen[str] | None = None
        self.seen = 0
        steps.mkdir(parents=True, exist_ok=True)

    def start(self) -> "subprocess.Popen[str]":
        """The process that runs now, or a new one."""
        if self.process is None:
            self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, text=True)
        return self.process

    def until(self, done: Callable[[], bool], task: Any) -> float:
        """Waits until `done()` or the end of the process; the seconds it took. The process dies with this one."""
        began, process = time.monotonic(), self.start()
        try:
            while process.poll() is None and not done():
                self.keep()
                task.update(self.newest())
                time.sleep(GLANCE)
        except BaseException:
            process.kill()
            process.communicate()
            raise
        return time.monotonic() - began

    def kill(self, step: int, delay: float, in_a_save: bool, task: Any) -> tuple[bool, bool]:
        """SIGKILL `delay` seconds after this step is saved; with `in_a_save` as soon as another save is seen.

        Says whether the run was alive then, and whether it was saving.
        """
        process = self.start()
        self.until(lambda: self.newest() >= step, task)
        end = time.monotonic() + delay
        self.until(lambda: time.monotonic() >= end, task)
        if in_a_save:
            self.until(self.saving, task)
        saving, alive = self.saving(), process.poll() is None
        if not alive:
            return False, False  # it is finished, or has failed: `finish` will tell
        process.kill()
        process.communicate()
        self.process = None
        self.keep()
        return True, saving

    def finish(self, task: Any) -> dict[str, Any]:
        """The result of the finished run. Raises LspError with what it ended with instead."""
        process = self.start()
        self.until(lambda: False, task)
        printed = process.communicate()[0]
        if process.returncode == Exit.DONE:
            return dict(json.loads(printed))
        try:
            said = json.loads(printed)
            code, hint = {int(each): each for each in Exit}[said["code"]], said["hint"]
        except (ValueError, KeyError):
            code, hint, said = Exit.BUG, "", {"error": f"it ended with {process.returncode}"}
        raise LspError(f"`lsp pretrain` failed: {said['error']}", hint=hint, code=code)

    def newest(self) -> int:
        """The newest step that was seen whole, 0 for none. (A finished run removes them.)"""
        self.seen = max(self.seen, *numbers(self.out / "train"), 0)
        return self.seen

    def saving(self) -> bool:
        return any((self.out / "train").glob("tmp.*"))

    def kept(self) -> list[int]:
        return numbers(self.steps)

    def keep(self) -> None:
        """Links the steps that are new: a finished run removes its own."""
        for step in set(numbers(self.out / "train")) - set(self.kept()):
            place, half = self.out / "train" / f"{step:08d}", self.steps / "half"
            try:
                shutil.copytree(place, half, copy_function=_link)
                half.rename(self.steps / place.name)
            except (shutil.Error, FileNotFoundError):  # just being removed
                shutil.rmtree(half, ignore_errors=True)


def compare(one: Watched, other: Watched, steps: list[int], task: Any) -> tuple[dict[str, Any] | None, int]:
    """The first difference between two runs, or None, and how many tensors of states and models were compared."""
    compared = 0
    for done, step in enumerate(steps, 1):
        left, right = (saved.read_step(run.steps / f"{step:08d}") for run in (one, other))
        states = {name: leaf for name, leaf in left.items() if name.startswith(".state")}  # not the time they took
        found, compared = difference(states, right), compared + len(states)
        if found:
            return {"step": step} | found, compared
        task.update(done)
    left, right = (dict(_named(checkpoint.open(run.out).params)) for run in (one, other))
    found = difference(left, right)
    return ({"step": None} | found if found else None), compared + len(left)


def difference(left: dict[str, Any], right: dict[str, Any]) -> dict[str, Any] | None:
    """The first tensor whose bits differ and its largest difference, None where that is not a number."""
    for name, one in left.items():
        other = right[name]
        if one.shape != other.shape or one.tobytes() != other.tobytes():
            same_form = one.shape == other.shape
            apart = float(np.abs(one.astype(np.float64) - other.astype(np.float64)).max()) if same_form else np.nan
            name = name.removeprefix(".state").removeprefix(".")
            return {"tensor": name, "largest": apart if np.isfinite(apart) else None}
    return None


def numbers(folder: Path) -> list[int]:
    """The steps that are whole in a folder, ascending."""
    names = os.listdir(folder) if folder.is_dir() else []
    return sorted(int(name) for name in names if name.isdecimal())


def _named(params: Any) -> list[tuple[str, np.ndarray]]:
    leaves = jax.tree_util.tree_flatten_with_path(params)[0]
    return [(f"params{jax.tree_util.keystr(path)}", np.asarray(leaf)) for path, leaf in leaves]


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except PermissionError:  # a file system without links
        shutil.copy2(source, target)
