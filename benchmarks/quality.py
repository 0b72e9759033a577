"""What each change to a pretraining recipe does for the same wall clock: masked-LM loss, and accuracy on SST-2.

    .venv/bin/python benchmarks/quality.py --data-root DATA --minutes 25 --out quality [--only plain,muon]

DATA holds corpora/enwiki/{train,valid}.txt.xz and sst2/{train.tsv.gz,dev.tsv}. Changes are made to `PLAIN`, a fixed
copy of what recipes/pretrain/mini.toml was before it had the best of them. How many steps fit into `--minutes` is found
first, in short runs that take turns, and then that many are made: so jobs beside a long run make it longer, not worse.
`--steps` gives the steps of the first change instead, and the others as many as fit into its time. Each encoder is
finetuned on SST-2 with `--seeds` seeds. Commands, results and summary as in spine.py; run again, it goes on where it
stopped.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

from spine import BATCH, LENGTH, RECIPES, Bench

PLAIN = {
    "model.preset": "modern",
    "data.mask_rate": 0.15,
    "data.mask_rate_end": 0.0,
    "train.batch_size": BATCH,
    "train.learning_rate": 2e-3,
    "train.warmup": 0.06,
    "train.schedule": "linear",
    "train.optimizer": "adamw",
    "train.checkpoint_every": 1000,
    "train.seed": 0,
}
CHANGES: dict[str, dict[str, Any]] = {
    "plain": {},
    "muon": {"train.optimizer": "muon", "train.learning_rate": 2.5e-3},
    "masks": {"data.mask_rate": 0.3, "data.mask_rate_end": 0.15},
    "length": {"data.length_start": 32},
    "bert": {"model.preset": "bert", "train.learning_rate": 1e-3},
    "wsd": {"train.schedule": "wsd"},
    "batch": {"train.batch_start": 8, "train.batch_warmup": 0.5},
    "rate-double": {"train.learning_rate": 4e-3},
    "muon-double": {"train.optimizer": "muon", "train.learning_rate": 5e-3},
    "rows-16": {"train.batch_size": 16, "train.learning_rate": 1.4e-3},
}
FINETUNE = {"data.sequence_length": 64, "train.steps": 1000, "train.learning_rate": 5e-4}
CALIBRATION, ROUNDS = 45, 3  # steps of a short run, and short runs of each change; the fastest counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=25.0, help="time for the steps of pretraining")
    parser.add_argument("--steps", type=int, default=0, help="of the first change; 0 means as many as --minutes allow")
    parser.add_argument("--only", default="plain,muon,masks,length,bert", help="names of CHANGES, with commas")
    parser.add_argument("--seeds", type=int, default=2, help="finetuning runs of each encoder; 0 means none")
    parser.add_argument("--lsp", default=str(Path(sys.executable).with_name("lsp")), help="the command to measure")
    args = parser.parse_args()
    bench, names = Bench(args.lsp, args.out), args.only.split(",")
    corpus, sst2 = args.data_root / "corpora" / "enwiki", args.data_root / "sst2"
    sizes = ["--vocab-size", "8192", "--seq-len", str(LENGTH)]
    data = bench.run("data", "prepare", corpus / "train.txt.xz", *sizes)
    useful = bench.results["data"]["useful_tokens"] / bench.results["data"]["rows"]  # a row
    common = ["pretrain", "--data", data, "--valid", corpus / "valid.txt.xz"]
    common += ["--recipe", RECIPES / "pretrain" / "mini.toml"]

    def pretrain(run: str, change: str, steps: int) -> Path:
        return bench.run(run, *common, *changes(PLAIN | CHANGES[change] | {"train.steps": steps}))

    speed: dict[str, float] = {}
    for turn in range(ROUNDS):
        for name in names:
            pretrain(f"calibration-{name}-{turn}", name, CALIBRATION)
            measured = bench.results[f"calibration-{name}-{turn}"]["useful_tokens_per_second"]
            speed[name] = max(speed.get(name, 0.0), measured)
    rate = {name: speed[name] / (useful * mean_batch(PLAIN | CHANGES[name])) for name in names}  # steps a second
    seconds = args.steps / rate[names[0]] if args.steps else args.minutes * 60
    for name in names:
        encoder = pretrain(name, name, round(seconds * rate[name]))
        for seed in range(args.seeds):
            task = ["--train", sst2 / "train.tsv.gz", "--dev", sst2 / "dev.tsv"]
            task += ["--recipe", RECIPES / "finetune" / "sst2.toml", *changes(FINETUNE | {"train.seed": seed})]
            bench.run(f"{name}-sst2-{seed}", "finetune", "--from", encoder, *task)
        report(bench, args.out, names, speed, args.seeds)


def changes(values: dict[str, Any]) -> list[str]:
    return [f"--set={key}={value}" for key, value in values.items()]


def mean_batch(recipe: dict[str, Any]) -> float:
    """Rows a step: of a batch that doubles in equal stages, over the whole run."""
    full, start = recipe["train.batch_size"], recipe.get("train.batch_start", 0)
    if not start:
        return float(full)
    sizes = [start << stage for stage in range((full // start).bit_length() - 1)]
    warmup = recipe["train.batch_warmup"]
    return warmup * statistics.mean(sizes) + (1 - warmup) * full


def report(bench: Bench, out: Path, names: list[str], speed: dict[str, float], seeds: int) -> None:
    """Every change that is measured so far, to OUT/summary.json and stdout."""
    table = {}
    for name in names:
        if name not in bench.results:
            continue
        result = bench.results[name]
        task = [bench.results[f"{name}-sst2-{seed}"]["metrics"]["accuracy"] for seed in range(seeds)]
        table[name] = {
            "changes": CHANGES[name],
            "steps": result["step"],
            "useful_tokens_per_second": round(speed[name]),
            "metrics": result["metrics"],
            "sst2_dev_accuracy": task,
            "sst2_mean": statistics.mean(task) if task else None,
        }
    text = json.dumps(table, indent=1)
    (out / "summary.json").write_text(text + "\n")
    print(text, flush=True)


if __name__ == "__main__":
    main()
