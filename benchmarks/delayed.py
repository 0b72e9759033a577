"""Delayed synchronisation against synchronous training on the same tokens: held-out loss, and what crosses.

    .venv/bin/python benchmarks/delayed.py --data-root DATA --out delayed [--start 1000] [--only sync,average]

DATA holds corpora/enwiki/{train,valid}.txt.xz. Four copies that meet every 20 steps, each with a quarter of the batch
that `sync` has, everything else as in recipes/pretrain/tiny.toml but for 8,192 pieces and what CHANGES say. `--start N`
has all of them go on from an encoder that was trained synchronously for N steps, as in DiLoCo's own experiments. All
through the real command line; the results are kept in OUT, and a second call goes on where the first one stopped.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from spine import LENGTH, RECIPES, Bench

COPIES: dict[str, Any] = {"replicas.count": 4, "replicas.every": 20, "replicas.outer": "average"}
START_ROWS = 32  # a step of the synchronous beginning
NESTEROV = COPIES | {"replicas.outer": "nesterov"}
CHANGES: dict[str, dict[str, Any]] = {
    "sync": {},
    "average": COPIES,
    "rate-double": COPIES | {"train.learning_rate": 4e-3},
    "rate-half": COPIES | {"train.learning_rate": 1e-3},
    "nesterov-mild": NESTEROV | {"replicas.rate": 1.0, "replicas.momentum": 0.5},
    "nesterov-half": NESTEROV | {"replicas.rate": 1.0, "replicas.momentum": 0.5, "train.learning_rate": 1e-3},
    "diloco": NESTEROV,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--start", type=int, default=0, help="synchronous steps before")
    parser.add_argument("--steps", type=int, default=1000, help="steps that are compared")
    parser.add_argument("--rate", type=float, default=2e-3, help="learning rate, where CHANGES name none")
    parser.add_argument("--batch", type=int, default=32, help="rows a step, of all copies together")
    parser.add_argument("--only", default=",".join(CHANGES), help="names of CHANGES, with commas")
    parser.add_argument("--lsp", default=str(Path(sys.executable).with_name("lsp")), help="the command to measure")
    args = parser.parse_args()
    bench = Bench(args.lsp, args.out)
    corpus = args.data_root / "corpora" / "enwiki"
    data = bench.run("data", "prepare", corpus / "train.txt.xz", "--vocab-size", "8192", "--seq-len", str(LENGTH))
    common = ["pretrain", "--data", data, "--valid", corpus / "valid.txt.xz"]
    common += ["--recipe", RECIPES / "pretrain" / "tiny.toml"]
    fixed = {"train.learning_rate": args.rate, "train.steps": args.steps, "train.batch_size": args.batch}
    if args.start:
        alone = [f"--set=train.steps={args.start}", f"--set=train.batch_size={START_ROWS}"]
        common += ["--from", bench.run(f"start-{START_ROWS}-{args.start}", *common, *alone)]
        fixed["train.seed"] = 1  # other batches and masks than before
    table: dict[str, Any] = {}
    for name in args.only.split(","):
        changes = fixed | CHANGES[name]
        run = f"{name}-{args.batch}-{args.start}-{args.steps}-{args.rate}"
        bench.run(run, *common, *(f"--set={key}={value}" for key, value in changes.items()))
        metrics = bench.results[run]["metrics"]
        meetings = args.steps // changes.get("replicas.every", 1)
        table[name] = {"changes": CHANGES[name], "parameters_sent": meetings} | metrics
        if "sync" in table:
            table[name]["loss_over_sync"] = metrics["loss"] / table["sync"]["loss"] - 1
    print(json.dumps({"steps": args.steps, "batch": args.batch, "runs": table}, indent=1))


if __name__ == "__main__":
    main()
