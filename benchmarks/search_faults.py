"""`lsp compress search`, killed at random moments and begun again: is anything lost? Prints one JSON object.

    python benchmarks/search_faults.py --kills 20 --seed 0

A small classifier is made, and a search for 350 kB goes through in peace. Then the same search is sent SIGKILL
(and every third time SIGINT, which it answers with 130) at random moments, up to five times, and goes on to its end.
Each must end with 0, every byte of its result as the manifest says, and no stage that was finished made again. Every
second one is the chain that the first search left as a recipe, in which nothing is measured or chosen: it must end with
the same bits as the model in peace. `violations` lists what did not; exit 1 when there are any.
"""

import argparse
import json
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lsp import Exit, LspError, checkpoint, directory

LSP = (sys.executable, "-m", "lsp")
WORDS = {"good": "bright warm kind gentle sunny", "bad": "dull cold rude harsh gloomy"}
FILLER = "the a day dog house road was is very and then came old new there"
MODEL = "model.layers=3 model.width=64 model.heads=4 model.max_length=64"
KILLS = 5  # of one search, at most


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    began, chance = time.monotonic(), random.Random(options.seed)
    report: dict[str, Any] = {"kills": 0, "interrupts": 0, "searches": 0, "equal": 0, "violations": []}
    with tempfile.TemporaryDirectory() as folder:
        top = Path(folder)
        make(top, chance)
        free = search(top)
        lasted = [ended(free, top / "calm", report)]
        if report["violations"]:
            sys.exit(report["violations"][0])  # nothing to compare with
        chain = [*search(top), "--recipe", str(top / "calm" / "chain.toml")]
        lasted.append(ended(chain, top / "calm-chain", report))
        while report["kills"] + report["interrupts"] < options.kills:
            number = report["searches"]
            command, out = (free, chain)[number % 2], top / f"killed-{number}"
            kill(command, out, lasted[number % 2], chance, report)
            ended(command, out, report)
            if number % 2:
                same = equal(top / "calm-chain", out)
                report["equal"] += same
                report["violations"] += [] if same else [f"{out.name} is not what the chain makes in peace"]
            report["searches"] += 1
            shutil.rmtree(out)
    report |= {"seconds_in_peace": [round(each, 1) for each in lasted], "seed": options.seed}
    print(json.dumps(report | {"seconds": round(time.monotonic() - began)}))
    return 1 if report["violations"] else 0


def make(top: Path, chance: random.Random) -> None:
    """A classifier of two kinds of sentences, and their files."""

    def row(label: str) -> str:
        words = [*chance.choices(FILLER.split(), k=chance.randint(3, 20)), *chance.choices(WORDS[label].split(), k=2)]
        return " ".join(chance.sample(words, len(words))) + f"\t{label}\n"

    for name, count in (("train", 1500), ("dev", 300)):
        rows = [row(chance.choice(list(WORDS))) for _ in range(count)]
        (top / f"{name}.tsv").write_text("text\tlabel\n" + "".join(rows))
    (top / "text.txt").write_text("\n\n".join(line.split("\t")[0] for line in (top / "train.tsv").open()))
    sets = [word for change in MODEL.split() for word in ("--set", change)]
    run("pretrain", "--data", top / "text.txt", *sets, "--set", "data.vocab_size=300", "--set", "train.steps=5",
        "--set", "data.sequence_length=64", "--out", top / "encoder")  # fmt: skip
    run("finetune", "--from", top / "encoder", "--train", top / "train.tsv", "--dev", top / "dev.tsv",
        "--set", "train.epochs=4", "--set", "train.learning_rate=2e-3", "--out", top / "classifier")  # fmt: skip


def run(*words: Any) -> None:
    subprocess.run([*LSP, *map(str, words), "--quiet"], check=True, stdout=subprocess.DEVNULL)


def search(top: Path) -> list[str]:
    """The command, but for where its result goes. Speed is not asked for: on a busy machine a small model has none."""
    words = ["compress", "search", "--from", top / "classifier", "--train", top / "train.tsv", "--dev", top / "dev.tsv"]
    words += ["--max-drop", "20", "--max-size", "350KB", "--set", "data.sequence_length=32", "--quiet", "--json"]
    return [*LSP, *map(str, words)]


def ended(command: list[str], out: Path, report: dict[str, Any]) -> float:
    """The seconds in which a search comes to its end. What was finished before it began must still be there as it was,
    and the result be whole."""
    before, began = finished(out), time.monotonic()
    done = subprocess.run([*command, "--out", str(out)], capture_output=True, text=True)
    seconds = time.monotonic() - began
    if done.returncode != Exit.DONE:
        report["violations"].append(f"{out.name} ends with {done.returncode}: {done.stdout}{done.stderr[-500:]}")
        return seconds
    after = finished(out)
    again = [name for name, self in before.items() if after.get(name) != self]
    report["violations"] += [f"{out.name}: {name} was made again" for name in again]
    try:
        directory.read(out)
    except LspError as error:
        report["violations"].append(f"{out.name}: {error.message}")
    result = json.loads((out / "result.json").read_text())
    if abs(result["paired"]["points_lost"] - result["after"]["points_lost"]) > 1e-9:
        report["violations"].append(f"{out.name} says two things of what was lost")
    return seconds


def finished(out: Path) -> dict[str, str]:
    """The identity of each stage that is complete."""
    return {
        path.parent.name: directory.identity(json.loads(path.read_text())) for path in out.glob("*/*/manifest.json")
    }


def kill(command: list[str], out: Path, lasted: float, chance: random.Random, report: dict[str, Any]) -> None:
    """Begins a search and ends it, several times, at moments over all of the time that one takes."""
    for _ in range(chance.randint(1, KILLS)):
        politely = (report["kills"] + report["interrupts"]) % 3 == 2
        began = subprocess.Popen(
            [*command, "--out", str(out)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        try:
            began.wait(chance.uniform(0.5, 1.1 * lasted / 2))
            return  # it was faster
        except subprocess.TimeoutExpired:
            began.send_signal(signal.SIGINT if politely else signal.SIGKILL)
        code = began.wait()
        report["interrupts" if politely else "kills"] += 1
        if politely and code not in (Exit.INTERRUPTED, Exit.DONE):
            report["violations"].append(f"{out.name}: SIGINT ends with {code}")


def equal(one: Path, other: Path) -> bool:
    """Whether two runs hold the same bits."""
    left, right = (jax.tree.leaves(checkpoint.open(path).params) for path in (one, other))
    return len(left) == len(right) and all(map(np.array_equal, left, right))


if __name__ == "__main__":
    sys.exit(main())
