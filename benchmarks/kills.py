"""SIGKILL a training run again and again, continue it, and compare what it ends with. Prints one JSON object.

    python benchmarks/kills.py --kills 20 --seed 0

One run is left alone. Others are killed at random moments, every second kill while a save is under way (a temporary
step directory is seen), and continued with the same command. Exits 1 unless every run ends with the same `params/`.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from lsp import checkpoint

LETTERS = "abdegilmnoprstu"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--per-run", type=int, default=4, help="kills before a run is left to finish")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        words = ["".join(chance.choices(LETTERS, k=chance.randint(3, 9))) for _ in range(300)]
        lines = (" ".join(chance.choices(words, k=chance.randint(5, 40))) for _ in range(4000))
        (top / "text.txt").write_text("\n\n".join(lines))
        finish(start(top, "whole"))  # fills the compile cache
        began = time.monotonic()
        finish(start(top, "timed"))
        usual = time.monotonic() - began
        whole = checkpoint.open(top / "whole").params
        kills = in_save = runs = equal = 0
        while kills < options.kills:
            name = f"killed-{runs}"
            for _ in range(min(options.per_run, options.kills - kills)):
                alive, saving = kill(start(top, name), top / name, kills % 2 == 1, chance.uniform(0, usual))
                kills, in_save = kills + alive, in_save + saving
            finish(start(top, name))
            runs, equal = runs + 1, equal + same(whole, checkpoint.open(top / name).params)
    report = {"kills": kills, "in_a_save": in_save, "runs": runs, "runs_with_equal_params": equal, "seed": options.seed}
    print(json.dumps(report | {"seconds_of_an_unkilled_run": round(usual, 1)}))
    return 0 if equal == runs else 1


def start(top: Path, name: str) -> subprocess.Popen[bytes]:
    sizes = ["model.layers=2", "model.width=64", "model.heads=2", "data.vocab_size=320", "data.sequence_length=64"]
    steps = ["train.steps=60", "train.checkpoint_every=3", "train.batch_size=16"]
    changes = [word for change in [*sizes, *steps] for word in ("--set", change)]
    command = [sys.executable, "-m", "lsp", "pretrain", "--data", top / "text.txt", "--out", top / name, "--quiet"]
    return subprocess.Popen([*map(str, command), *changes], stdout=subprocess.DEVNULL)


def kill(run: subprocess.Popen[bytes], out: Path, in_a_save: bool, wait: float) -> tuple[int, int]:
    """Kills after `wait` seconds; with `in_a_save` when next a save is seen. Says if it lived, and if a save was on."""
    wait_until = time.monotonic() + wait
    while run.poll() is None and time.monotonic() < wait_until:
        time.sleep(0.002)
    while in_a_save and run.poll() is None and not list(out.glob("train/tmp.*")):
        time.sleep(0.0005)
    saving = bool(list(out.glob("train/tmp.*")))
    alive = run.poll() is None
    run.send_signal(signal.SIGKILL)
    run.wait()
    return int(alive), int(alive and saving)


def finish(run: subprocess.Popen[bytes]) -> None:
    if run.wait() != 0:
        raise SystemExit(f"the run ended with {run.returncode}")


def same(one: object, other: object) -> bool:
    leaves, others = jax.tree.leaves(one), jax.tree.leaves(other)
    return len(leaves) == len(others) and all(map(np.array_equal, leaves, others))


if __name__ == "__main__":
    sys.exit(main())
