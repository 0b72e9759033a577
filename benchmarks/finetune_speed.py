"""Finetuning and evaluating on SST-2 beside the Hugging Face Trainer: examples a second, in turns.

    .venv/bin/python benchmarks/finetune_speed.py --data-root DATA --model MINILM --peer .peers/bin/python --out speed

MINILM is a folder with all-MiniLM-L6-v2; DATA holds sst2/{train.tsv.gz,dev.tsv}. Both sides train with AdamW at 5e-5 in
fp32 on two threads, 32 examples a step, of the same 32 · steps, padded to the longest of a batch: `--steps` steps, and
`--peer-steps` of the peer, whose steps all take as long. Then they measure the dev set; `--rounds` times in turn. Rates
of training leave out the first tenth of the steps, and nothing else. The peer's environment is that of
benchmarks/peers.txt. Prints JSON: every round, and the ratios of the best and of the medians.
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

BATCH, LENGTH, RATE, SKIPPED = 32, 128, 5e-5, 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--peer", default="", help="a Python with transformers")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--peer-steps", type=int, default=150)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--lsp", default=str(Path(sys.executable).with_name("lsp")))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if hasattr(os, "sched_setaffinity"):  # lsp takes as many threads as there are processors
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    if not args.peer:
        print(json.dumps(trainer(args)))
        return
    lines = gzip.decompress((args.data_root / "sst2" / "train.tsv.gz").read_bytes()).decode().split("\n")
    (args.out / "train.tsv").write_text("\n".join(lines[: 1 + BATCH * args.steps]) + "\n", encoding="utf-8")
    found: dict[str, list[dict[str, float]]] = {"lsp": [], "trainer": []}
    for number in range(args.rounds):
        found["lsp"].append(ours(args, number))
        line = [args.peer, __file__, "--data-root", args.data_root, "--model", args.model, "--out", args.out]
        line += ["--steps", args.peer_steps]
        made = subprocess.run([*map(str, line)], stdout=subprocess.PIPE, check=True, text=True)
        found["trainer"].append(json.loads(made.stdout.splitlines()[-1]))
    ratios = {
        f"{what}_{name}": of([each[what] for each in found["lsp"]]) / of([each[what] for each in found["trainer"]])
        for what in ("train", "evaluate")
        for name, of in (("best", max), ("median", statistics.median))
    }
    print(json.dumps({"examples_per_second": found, "ratios": ratios}, indent=1))


def ours(args: argparse.Namespace, number: int) -> dict[str, float]:
    run, dev = args.out / f"lsp-{number}", args.data_root / "sst2" / "dev.tsv"
    settings = {
        "train.steps": args.steps,
        "train.batch_size": BATCH,
        "train.learning_rate": RATE,
        "train.log_every": 1,
        "train.checkpoint_every": 10 * args.steps,
        "data.sequence_length": LENGTH,
    }
    words = ["finetune", "--from", args.model, "--train", args.out / "train.tsv", "--dev", dev, "--out", run]
    words += [f"--set={key}={value}" for key, value in settings.items()]
    made = json.loads(called(args, words))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = {row["step"]: row["seconds"] for row in rows if "loss" in row}
    first = round(SKIPPED * args.steps)
    measured = json.loads(called(args, ["evaluate", "--from", run, "--data", dev]))
    taken = steps[args.steps] - steps[first]  # with what is compiled for lengths that come up later
    return {
        "train": BATCH * (args.steps - first) / taken,
        "evaluate": measured["examples_per_second"],
        "accuracy": made["metrics"]["accuracy"],
        "seconds": made["seconds"],
    }


def called(args: argparse.Namespace, words: list[Any]) -> str:
    line = [args.lsp, *map(str, words), "--json", "--quiet"]
    return subprocess.run(line, stdout=subprocess.PIPE, check=True, text=True).stdout


def trainer(args: argparse.Namespace) -> dict[str, float]:
    """The same by transformers' Trainer."""
    import hf_trainer
    import transformers

    def read(path: Path) -> list[tuple[list[str], int]]:
        rows = [line.split("\t") for line in path.read_text(encoding="utf-8").split("\n")[1:] if line]
        return [([text], int(label)) for text, label in rows]

    at: dict[int, float] = {}

    class Watch(transformers.TrainerCallback):
        def on_step_end(self, arguments: Any, state: Any, control: Any, **others: Any) -> None:
            at[state.global_step] = time.perf_counter()

    train, dev = read(args.out / "train.tsv"), read(args.data_root / "sst2" / "dev.tsv")
    where = {"length": LENGTH, "out": args.out / "trainer"}
    made = hf_trainer.make(args.model, train, dev, **where, watch=[Watch()], learning_rate=RATE, max_steps=args.steps)
    made.train()
    first = round(SKIPPED * args.steps)
    began = time.perf_counter()
    measured = made.evaluate()
    seconds = time.perf_counter() - began
    return {
        "train": BATCH * (args.steps - first) / (at[args.steps] - at[first]),
        "evaluate": len(dev) / seconds,
        "accuracy": measured["eval_accuracy"],
    }


if __name__ == "__main__":
    main()
