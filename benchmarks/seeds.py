"""What three seeds cost beside one: `lsp finetune` with `--seeds 1` and `--seeds 3` in turns, from random weights.

    .venv/bin/python benchmarks/seeds.py --data-root DATA --out seeds

DATA holds sst2/{train.tsv.gz,dev.tsv}. A tokenizer of 8,192 pieces from its sentences, an encoder of 2 layers of 128,
`--examples` of the examples for `--epochs`. The whole command's time is the first of each with an empty compilation
cache, the later ones with a warm one. Prints JSON: seconds of each command, of its steps and of compiling, and the
ratios of three seeds to one.
"""

import argparse
import gzip
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SHAPE = {"model.layers": 2, "model.width": 128, "model.heads": 2, "model.max_length": 64, "data.sequence_length": 64}
FIRST = 20  # steps before the clock of steps starts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--examples", type=int, default=6400)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--lsp", default=str(Path(sys.executable).with_name("lsp")))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    lines = gzip.decompress((args.data_root / "sst2" / "train.tsv.gz").read_bytes()).decode().split("\n")
    (args.out / "train.tsv").write_text("\n".join(lines[: 1 + args.examples]) + "\n", encoding="utf-8")
    (args.out / "text.txt").write_text("\n".join(line.split("\t")[0] for line in lines[1:]), encoding="utf-8")
    words = args.out / "words"
    if not words.exists():
        run(args, ["prepare", args.out / "text.txt", "--vocab-size", 8192, "--seq-len", 64, "--out", words], "caches")
    found: dict[int, list[dict[str, float]]] = {1: [], 3: []}
    for number in range(args.rounds):
        for seeds, rows in found.items():
            rows.append(timed(args, seeds, number))
    ratios = {
        key: statistics.median(row[key] for row in found[3][1:]) / statistics.median(row[key] for row in found[1][1:])
        for key in ("command_seconds", "step_seconds")
    }
    ratios["first_command_seconds"] = found[3][0]["command_seconds"] / found[1][0]["command_seconds"]
    print(json.dumps({"runs": found, "ratios": ratios}, indent=1))


def timed(args: argparse.Namespace, seeds: int, number: int) -> dict[str, float]:
    out, settings = args.out / f"run-{seeds}-{number}", SHAPE | {"train.epochs": args.epochs, "train.log_every": 1}
    words: list[Any] = ["finetune", "--from", "scratch", "--tokenizer", args.out / "words", "--out", out]
    words += ["--train", args.out / "train.tsv", "--dev", args.data_root / "sst2" / "dev.tsv", "--seeds", seeds]
    words += [f"--set={key}={value}" for key, value in settings.items()]
    began = time.monotonic()
    made = run(args, words, f"cache-{seeds}")
    seconds = time.monotonic() - began
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    at = {row["step"]: row["seconds"] for row in rows if "loss" in row}
    return {
        "command_seconds": seconds,
        "step_seconds": at[made["step"]] - at[FIRST],
        "compile_seconds": made["compile_seconds"],
    }


def run(args: argparse.Namespace, words: list[Any], cache: str) -> dict[str, Any]:
    environment = os.environ | {"XDG_CACHE_HOME": str(args.out.absolute() / cache)}
    line = [args.lsp, *map(str, words), "--json", "--quiet"]
    made = subprocess.run(line, stdout=subprocess.PIPE, check=True, text=True, env=environment)
    return json.loads(made.stdout)


if __name__ == "__main__":
    main()
