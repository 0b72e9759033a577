"""lsp on lines 2 and 3 of docs/benchmarks.md, through the real command line: text, encoder, SST-2, small classifiers.

    .venv/bin/python benchmarks/spine.py --data-root DATA --minutes 25 --out spine

DATA holds corpora/enwiki/{train,valid}.txt.xz and sst2/{train.tsv.gz,dev.tsv}. The number of pretraining steps that fit
into `--minutes` is found by a short run first. Every command's `--json` result goes to OUT/results/NAME.json, the
commands to OUT/commands.sh, the summary to OUT/summary.json and stdout. Run it again and it continues where it stopped.
Needs nothing but lsp.
"""

import argparse
import gzip
import json
import os
import shlex
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

RECIPES = Path(__file__).resolve().parent.parent / "recipes"
BATCH, LENGTH = 32, 128  # of recipes/pretrain/mini.toml
CALIBRATION = 60  # steps of the short run
SPEED_RUNS = 3  # the median of so many is reported


def main() -> None:
    args = arguments()
    bench = Bench(args.lsp, args.out)
    dev, train = args.data_root / "sst2" / "dev.tsv", args.data_root / "sst2" / "train.tsv.gz"
    encoder = pretrain(bench, args)
    task: list[str | Path] = ["--train", train, "--dev", dev, "--set", f"train.seed={args.seed}"]
    recipe: list[str | Path] = ["--recipe", RECIPES / "finetune" / "sst2.toml"]
    classifier = bench.run("classifier", "finetune", "--from", encoder, *task, *recipe)
    shape = [f"--set=model.{k}={v}" for k, v in {"layers": 4, "width": 256, "heads": 4, "max_length": LENGTH}.items()]
    bench.run("scratch", "finetune", "--from", "scratch", "--tokenizer", encoder, *task, *recipe, *shape)
    int8 = bench.run("int8", "compress", "quantize", "--from", classifier, "--dev", dev)
    for name in ("prune", "distill"):
        recipe = ["--recipe", RECIPES / "compress" / f"{name}.toml"]
        bench.run(name, "compress", name, "--from", classifier, *task, *recipe)
    full = full_rows(dev, args.out / "full.tsv")
    runs = [("fp32", classifier), ("int8", int8)]
    for i in range(SPEED_RUNS):
        for name, run in runs:
            bench.evaluate(f"speed-{name}-{i}", run, full)
    for name, run in runs:
        bench.evaluate(f"dev-{name}", run, dev)
    weights = {name: folder_bytes(run / "params") for name, run in runs}
    text = json.dumps(
        summary(bench.results) | {"int8_share_of_parameter_bytes": weights["int8"] / weights["fp32"]}, indent=1
    )
    (args.out / "summary.json").write_text(text + "\n")
    print(text)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=25.0, help="time for the steps of pretraining")
    parser.add_argument("--steps", type=int, default=0, help="pretraining steps; 0 means as many as --minutes allow")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--lsp", default=str(Path(sys.executable).with_name("lsp")), help="the command to measure")
    return parser.parse_args()


class Bench:
    """Runs lsp, keeps what it printed and what was typed."""

    def __init__(self, lsp: str, out: Path) -> None:
        self.lsp, self.out = shlex.split(lsp), out
        self.results: dict[str, dict[str, Any]] = {}
        (out / "results").mkdir(parents=True, exist_ok=True)
        (out / "commands.sh").write_text("")

    def run(self, name: str, *words: str | Path) -> Path:
        """A command that makes a run; returns its directory."""
        made = self.out / name
        self._call(name, [*words, "--out", made])
        return made

    def evaluate(self, name: str, run: Path, data: Path) -> None:
        self._call(name, ["evaluate", "--from", run, "--data", data])

    def _call(self, name: str, words: Sequence[str | Path]) -> None:
        line = shlex.join(["lsp", *map(str, words)])
        with open(self.out / "commands.sh", "a") as file:
            file.write(line + "\n")
        print(f"$ {line}", file=sys.stderr, flush=True)
        made = subprocess.run([*self.lsp, *map(str, words), "--json"], stdout=subprocess.PIPE, text=True)
        if made.returncode:
            sys.exit(f"exit {made.returncode}: {made.stdout}")
        self.results[name] = json.loads(made.stdout)
        (self.out / "results" / f"{name}.json").write_text(made.stdout)


def pretrain(bench: Bench, args: argparse.Namespace) -> Path:
    corpus = args.data_root / "corpora" / "enwiki"
    sizes = ["--vocab-size", "8192", "--seq-len", str(LENGTH)]
    data = bench.run("data", "prepare", corpus / "train.txt.xz", *sizes)
    common = ["pretrain", "--data", data, "--valid", corpus / "valid.txt.xz"]
    common += ["--recipe", RECIPES / "pretrain" / "mini.toml", "--set", f"train.seed={args.seed}"]
    steps = args.steps
    if not steps:
        bench.run("calibration", *common, "--set", f"train.steps={CALIBRATION}")
        speed, rows = bench.results["calibration"], bench.results["data"]
        seconds = args.minutes * 60 - speed["compile_seconds"]
        steps = int(seconds * speed["useful_tokens_per_second"] / (BATCH * rows["useful_tokens"] / rows["rows"]))
    return bench.run("encoder", *common, "--set", f"train.steps={steps}")


def full_rows(dev: Path, path: Path) -> Path:
    """As many examples as dev has, each with more than LENGTH tokens, for measuring speed at full length."""
    content = gzip.decompress(dev.read_bytes()) if dev.suffix == ".gz" else dev.read_bytes()
    lines = [line.split("\t") for line in content.decode().split("\n")[1:] if line]
    texts = [text.strip() for text, _ in lines]
    with open(path, "w", encoding="utf-8") as file:
        file.write("sentence\tlabel\n")
        for i, (_, label) in enumerate(lines):
            words: list[str] = []
            while len(words) <= LENGTH:  # a word has at least one token
                words += texts[i % len(texts)].split()
                i += 1
            file.write(f"{' '.join(words)}\t{label}\n")
    return path


def folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def summary(results: dict[str, dict[str, Any]]) -> dict[str, Any]:
    speed = {
        name: statistics.median(results[f"speed-{name}-{i}"]["examples_per_second"] for i in range(SPEED_RUNS))
        for name in ("fp32", "int8")
    }
    accuracy = {
        "finetuned": results["classifier"]["metrics"]["accuracy"],
        "from_scratch": results["scratch"]["metrics"]["accuracy"],
        "int8": results["dev-int8"]["metrics"]["accuracy"],
        "pruned": results["prune"]["after"]["metrics"]["accuracy"],
        "distilled": results["distill"]["after"]["metrics"]["accuracy"],
    }
    return {
        "cores": os.cpu_count(),
        "prepare_megabytes_per_second": results["data"]["megabytes_per_second"],
        "pretrain": {
            key: results["encoder"][key]
            for key in ("step", "metrics", "seconds", "compile_seconds", "useful_tokens_per_second", "parameters")
        },
        "sst2_dev_accuracy": accuracy,
        "points_lost": {
            name: 100 * (accuracy["finetuned"] - accuracy[name]) for name in ("int8", "pruned", "distilled")
        },
        "finetune_seconds": results["classifier"]["seconds"],
        "bytes": {name: results[name]["bytes"] for name in ("classifier", "int8", "prune", "distill")},
        "examples_per_second_at_full_length": speed,
        "int8_speedup_at_full_length": speed["int8"] / speed["fp32"],
    }


if __name__ == "__main__":
    main()
