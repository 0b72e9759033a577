"""Faults against `lsp prepare` and `lsp pretrain`: after each, is anything lost? Prints one JSON object.

    python benchmarks/faults.py --kills 50 --seed 0

Data are prepared and a model is trained once in peace. Then the same commands meet: SIGKILL at random moments, every
second one in a save; a disk that is full, then read-only, then mended; a newest step with a flipped bit; a clock that
jumps by a day and to 1970 and 2038; two processes that want the same --out. Each fault must end with the exit code
that is documented for it, and each run, continued with the same command, with the same bits as the one in peace.
`violations` lists what did not; exit 1 when there are any. A small disk is a tmpfs in a mount namespace of our own;
where the kernel allows none, `disk` says so and nothing is measured.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lsp import Exit, LspError, checkpoint, directory, manifest
from lsp.commands.verify_resume import Watched, numbers
from lsp.console import Progress

LETTERS = "abdegilmnoprstu"
MODEL = ("model.layers=2", "model.width=64", "model.heads=2", "train.batch_size=16", "train.checkpoint_every=3")
LSP = (sys.executable, "-m", "lsp")
# Each look at the clock gives another day, 1970 or 2038; files keep the kernel's.
JUMPING = """
import itertools, time
jumps = itertools.cycle([0, 86400, -86400, -time.time(), 2**31 - time.time()])
real = time.time
time.time = lambda: max(0.0, real() + next(jumps))
time.time_ns = lambda: int(time.time() * 1e9)
from lsp.__main__ import run
run()
"""
# In a mount namespace of its own; $1 is where the disk goes, $2 its megabytes, the rest the command.
DISK = """
disk=$1; size=$2; shift 2
mount -t tmpfs -o size=$size none "$disk" || exit 99
"$@" > "$disk.full"; echo $? > "$disk.full.code"
[ ! -d "$disk/run/train" ] || "$LSP_PYTHON" -m lsp verify "$disk/run" --json > "$disk.steps"
mount -o remount,ro "$disk"
"$@" > "$disk.readonly"; echo $? > "$disk.readonly.code"
mount -o remount,rw,size=1g "$disk"
"$@" > "$disk.mended"; echo $? > "$disk.mended.code"
cp -r "$disk/run" "$disk.run"
"""


class Peace:
    """Data and a model that were made without a fault, and all that goes wrong when others are compared with them."""

    def __init__(self, top: Path, steps: int, seed: int) -> None:
        self.top, self.steps, self.chance = top, steps, random.Random(seed)
        self.violations: list[str] = []
        words = ["".join(self.chance.choices(LETTERS, k=self.chance.randint(3, 9))) for _ in range(300)]
        lines = (" ".join(self.chance.choices(words, k=self.chance.randint(5, 40))) for _ in range(4000))
        (top / "text.txt").write_text("\n\n".join(lines))
        began = time.monotonic()
        self.finish(self.prepare("data"))
        self.prepare_seconds = time.monotonic() - began
        self.finish(self.pretrain("model"))
        self.step_bytes = max(manifest.bytes_under(place) for place in (top / "model-steps").iterdir())

    def prepare(self, name: str) -> Watched:
        sizes = ["--vocab-size", "320", "--seq-len", "64", "--quiet", "--json"]
        return Watched(
            [*LSP, "prepare", str(self.top / "text.txt"), *sizes], self.top / name, self.top / f"{name}-steps"
        )

    def pretrain(self, name: str) -> Watched:
        changes = [word for change in (*MODEL, f"train.steps={self.steps}") for word in ("--set", change)]
        command = [*LSP, "pretrain", "--data", str(self.top / "data"), *changes, "--quiet", "--json"]
        return Watched(command, self.top / name, self.top / f"{name}-steps")

    def finish(self, run: Watched) -> None:
        with Progress(quiet=True).task(run.out.name, None) as task:
            run.finish(task)

    def expect(self, holds: bool, what: str) -> bool:
        if not holds:
            self.violations.append(what)
        return holds

    def same(self, out: Path, calm: str) -> bool:
        """Whether a run holds the bits of the calm one: the rows and the tokenizer, or the parameters."""
        try:
            directory.read(out)
        except LspError as error:
            return self.expect(False, error.message)
        if calm == "model":
            left, right = (jax.tree.leaves(checkpoint.open(path).params) for path in (self.top / calm, out))
            equal = len(left) == len(right) and all(map(np.array_equal, left, right))
        else:
            files = [{n: f for n, f in directory.read(p)["files"].items() if "/" in n} for p in (self.top / calm, out)]
            equal = files[0] == files[1]
        return self.expect(equal, f"{out.name} is not equal to {calm}")


def kills(peace: Peace, count: int, per_run: int = 5) -> dict[str, Any]:
    """SIGKILL, half of them while preparing, half while training."""
    report = dict.fromkeys(("made", "in_a_save", "runs", "equal"), 0)
    chance = peace.chance
    with Progress(quiet=True).task("kills", None) as task:
        for verb, wanted in (("prepare", count // 2), ("pretrain", count - count // 2)):
            made = runs = 0
            while made < wanted:
                name, calm = f"{verb}-{runs}", "data" if verb == "prepare" else "model"
                run = peace.prepare(name) if verb == "prepare" else peace.pretrain(name)
                targets = sorted(chance.choices(range(peace.steps - 3), k=min(per_run, wanted - made)))
                for target in targets:
                    # A run that prepares has no steps: all that counts is the time since it began.
                    target, seconds = (
                        (0, peace.prepare_seconds) if verb == "prepare" else (target, 0.1 if target else 3)
                    )
                    alive, saving = run.kill(target, chance.uniform(0, seconds), made % 2 == 1 and target > 0, task)
                    made, report["in_a_save"] = made + alive, report["in_a_save"] + saving
                peace.finish(run)
                runs, report["equal"] = runs + 1, report["equal"] + peace.same(run.out, calm)
            report["made"], report["runs"] = report["made"] + made, report["runs"] + runs
    return report


def disk(peace: Peace) -> dict[str, Any]:
    """A disk that is full in the middle, then read-only, then mended."""
    report: dict[str, Any] = {}
    sizes = {"prepare": 100_000, "pretrain": int(2.5 * peace.step_bytes)}  # two steps are kept, a third does not fit
    for verb, size in sizes.items():
        place = peace.top / f"disk-{verb}"
        place.mkdir()
        run = peace.prepare("unused") if verb == "prepare" else peace.pretrain("unused")
        command = ["sh", "-c", DISK, "sh", str(place), str(size), *run.command[:-1], str(place / "run")]
        ended = subprocess.run(
            ["unshare", "-rm", *command],
            env=os.environ | {"LSP_PYTHON": sys.executable},
            capture_output=True,
            text=True,
        )
        if ended.returncode and ("unshare" in ended.stderr or ended.returncode == 99):
            return {"not measured": "this machine lets nobody mount a small disk"}
        codes = {fault: int(Path(f"{place}.{fault}.code").read_text()) for fault in ("full", "readonly", "mended")}
        said = {fault: json.loads(Path(f"{place}.{fault}").read_text()) for fault in codes}
        expected = {"full": Exit.MACHINE, "readonly": Exit.MACHINE, "mended": Exit.DONE}
        peace.expect(codes == expected, f"{verb} on a small disk: {codes} {said}")
        peace.expect("free" in said["full"].get("error", ""), f"{verb} does not say that the disk is full")
        report[verb] = {"codes": codes, "full": said["full"].get("error", "").replace(str(peace.top), "")}
        if verb == "pretrain":
            whole = json.loads(Path(f"{place}.steps").read_text())
            report[verb]["steps_left"] = whole.get("steps")
            peace.expect(bool(whole.get("steps")), f"a full disk left no step: {whole}")
        report[verb]["equal"] = peace.same(Path(f"{place}.run"), "data" if verb == "prepare" else "model")
    return report


def corrupted(peace: Peace) -> dict[str, Any]:
    """A flipped bit in the newest step of a killed run."""
    run = peace.pretrain("corrupted")
    with Progress(quiet=True).task("corrupted", None) as task:
        run.kill(6, 0.0, False, task)
    newest = run.out / "train" / f"{numbers(run.out / 'train')[-1]:08d}"
    file = max((p for p in (newest / "state").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 16
    file.unlink()  # it is linked elsewhere
    file.write_bytes(data)
    ended = subprocess.run(run.command, capture_output=True, text=True)
    said = "set aside" in ended.stderr and newest.name in ended.stderr
    peace.expect(ended.returncode == Exit.DONE and said, f"a damaged step: {ended.returncode} {ended.stderr}")
    return {"said": said, "equal": peace.same(run.out, "model")}


def clock(peace: Peace) -> dict[str, Any]:
    """A clock that jumps, over a kill and a continuation, with the newest step's files dated to 1970."""
    run = peace.pretrain("clock")
    run.command[:3] = [sys.executable, "-c", JUMPING]
    with Progress(quiet=True).task("clock", None) as task:
        run.kill(6, 0.0, True, task)
        newest = run.out / "train" / f"{numbers(run.out / 'train')[-1]:08d}"
        os.utime(newest, (0, 0))
        result = run.finish(task)
    peace.expect(0 <= result["seconds"] < 3600, f"the clock reached the result: {result['seconds']} s")
    return {"jumps": ["+1 day", "-1 day", "1970", "2038"], "equal": peace.same(run.out, "model")}


def two(peace: Peace) -> dict[str, Any]:
    """Two processes with the same --out: one that comes later, and one that starts together with the first."""
    run = peace.pretrain("two")
    pid = run.start().pid
    with Progress(quiet=True).task("two", None) as task:
        run.until(lambda: run.newest() > 0, task)
        os.kill(pid, signal.SIGSTOP)  # or it might be over before the other one has started
        late = subprocess.run(run.command, capture_output=True, text=True)
        os.kill(pid, signal.SIGCONT)
        run.finish(task)
    named = f"process {pid} " in late.stdout
    peace.expect(late.returncode == Exit.STOPPED and named, f"a second writer: {late.returncode} {late.stdout}")
    equal = peace.same(run.out, "model")
    both = peace.pretrain("together")
    pair = [subprocess.Popen(both.command, stdout=subprocess.DEVNULL) for _ in range(2)]
    codes = sorted(each.wait() for each in pair)
    # On a busy machine one may start so late that it finds the other's run finished.
    allowed = ([Exit.DONE, Exit.STOPPED], [Exit.DONE, Exit.DONE])
    peace.expect(codes in allowed, f"two that start together end with {codes}")
    return {
        "second": late.returncode,
        "named": named,
        "together": codes,
        "equal": equal and peace.same(both.out, "model"),
    }


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        peace = Peace(Path(folder), options.steps, options.seed)
        report: dict[str, Any] = {"kills": kills(peace, options.kills)}
        report |= {f.__name__: f(peace) for f in (disk, corrupted, clock, two)}
    report |= {"violations": peace.violations, "seed": options.seed, "seconds": round(time.monotonic() - began)}
    print(json.dumps(report))
    return 1 if peace.violations else 0


if __name__ == "__main__":
    sys.exit(main())
