"""Zeros among a classifier's weights: what each score of prune.score loses at 50, 80 and 90 %, and how near the bytes
come to the least that the places of the zeros can take.

    .venv/bin/python benchmarks/unstructured.py --from RUN --train TRAIN --dev DEV --out unstructured [--set K=V]…

RUN is a finetuned classifier, TRAIN and DEV its examples. `--sparsity` and `--score` may be given several times, in the
place of the usual ones; `--pattern 2:4` adds a run of that pattern with each score. Every run recovers as
recipes/compress/prune.toml has it, with `--set` on top. Results as in spine.py; run again, it goes on where it stopped.
Prints JSON: of each run accuracy before and after, bytes of the model before and after, and of the encoder's matrices
their bytes before the store compresses them and the bound (docs/checkpoint.md, `params/`).
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from spine import RECIPES, Bench

SCORES = ("magnitude", "movement", "fisher")
SPARSITIES = (0.5, 0.8, 0.9)


def main() -> None:
    args = arguments()
    bench = Bench(args.lsp, args.out)
    common: list[str | Path] = ["--from", args.start, "--train", args.train, "--dev", args.dev]
    common += ["--recipe", RECIPES / "compress" / "prune.toml"]
    common += [word for change in args.changes for word in ("--set", change)]
    goals = [(f"{sparsity:g}", f"prune.sparsity={sparsity}") for sparsity in args.sparsity or SPARSITIES]
    goals += [(args.pattern.replace(":", "of"), f"prune.pattern={args.pattern}")] if args.pattern else []
    table: dict[str, dict[str, Any]] = {}
    for goal, change in goals:
        for score in args.score or SCORES:
            name = f"{score}-{goal}"
            bench.run(name, "compress", "prune", *common, "--set", f"prune.score={score}", "--set", change)
            table[name] = row(bench.results[name])
    text = json.dumps(table, indent=1)
    (args.out / "summary.json").write_text(text + "\n")
    print(text)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--from", dest="start", required=True)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--dev", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--sparsity", type=float, action="append", default=[])
    parser.add_argument("--score", choices=SCORES, action="append", default=[])
    parser.add_argument("--pattern", default="")
    parser.add_argument("--set", dest="changes", action="append", default=[])
    parser.add_argument("--lsp", default=str(Path(sys.executable).with_name("lsp")))
    return parser.parse_args()


def row(result: dict[str, Any]) -> dict[str, Any]:
    """What a run lost and saved."""
    before, after = result["before"], result["after"]
    accuracy = [each["metrics"]["accuracy"] for each in (before, after)]
    return {
        "accuracy": {"before": accuracy[0], "after": accuracy[1], "points_lost": 100 * (accuracy[0] - accuracy[1])},
        "bytes": {"before": before["bytes"], "after": after["bytes"]},
        **{key: after[key] for key in ("sparsity", "matrix_bytes", "matrix_bound_bytes")},
        "over_bound": after["matrix_bytes"] / after["matrix_bound_bytes"],
        "seconds": result["seconds"],
    }


if __name__ == "__main__":
    main()
