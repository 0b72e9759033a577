"""What a classifier forgets when it learns new classes: half of AG News first, then the other half.

    .venv/bin/python benchmarks/incremental.py --data-root DATA --from ENCODER --out incremental [--set train.epochs=1]…

DATA holds ag_news/{train.tsv.gz,dev.tsv}. ENCODER is a run, a published checkpoint, or `scratch` with --tokenizer. The
first classifier learns World and Sports. The second goes on with Business and Sci/Tech: once with no measure against
forgetting, once answering for the old classes as before, once with `--replay` of the old examples besides and old and
new counting alike, and once so that the old classes lose two points at most. Every second row of dev is what lsp is
given to choose by; each classifier is measured on the others, of the old and of the new classes, where it may answer
any of the four. Results as in spine.py; run again, it goes on where it stopped. Prints JSON.
"""

import argparse
import gzip
import json
import sys
from pathlib import Path
from typing import Any

from spine import Bench

OLD, NEW = ("0", "1"), ("2", "3")
NAMES = {"0": "World", "1": "Sports", "2": "Business", "3": "Sci/Tech"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--from", dest="start", required=True)
    parser.add_argument("--tokenizer", default="")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--replay", type=float, default=0.01)
    parser.add_argument("--set", dest="changes", action="append", default=[])
    parser.add_argument("--lsp", default=str(Path(sys.executable).with_name("lsp")))
    args = parser.parse_args()
    bench = Bench(args.lsp, args.out)
    for part, labels in (("old", OLD), ("new", NEW)):
        for name, file, rows in (
            ("train", "train.tsv.gz", slice(None)),
            ("dev", "dev.tsv", slice(0, None, 2)),
            ("test", "dev.tsv", slice(1, None, 2)),
        ):
            halve(args.data_root / "ag_news" / file, labels, rows, args.out / f"{part}-{name}.tsv")

    def files(part: str) -> list[str | Path]:
        return ["--train", args.out / f"{part}-train.tsv", "--dev", args.out / f"{part}-dev.tsv"]

    changes = [word for change in args.changes for word in ("--set", change)]
    start = [*(["--tokenizer", args.tokenizer] if args.tokenizer else [])]
    first = bench.run("first", "finetune", "--from", args.start, *start, *files("old"), *changes)
    old = ["--old", args.out / "old-train.tsv", "--old-dev", args.out / "old-dev.tsv", "--set", "adapt.grow=true"]
    table: dict[str, Any] = {}

    def accuracy(run: Path, part: str) -> float:
        name = f"{run.name}-{part}"
        bench.evaluate(name, run, args.out / f"{part}-test.tsv")
        return float(bench.results[name]["metrics"]["accuracy"])

    before = accuracy(first, "old")
    for name, keep, replay, lose in (
        ("nothing", 0, 0, 2),
        ("keep", 1, 0, 2),
        ("balanced", 1, args.replay, 100),
        ("kept", 1, args.replay, 2),
    ):
        measures = [f"--set=adapt.remember={keep}", f"--set=adapt.replay={replay}", f"--set=adapt.lose={lose}"]
        run = bench.run(name, "finetune", "--from", first, *files("new"), *old, *changes, *measures)
        after = accuracy(run, "old")
        table[name] = {"old_before": before, "old": after, "lost": before - after, "new": accuracy(run, "new")}
    text = json.dumps(table, indent=1)
    (args.out / "summary.json").write_text(text + "\n")
    print(text)


def halve(source: Path, labels: tuple[str, ...], rows: slice, out: Path) -> None:
    """Those `rows` of the ones with these labels, by their names."""
    raw = source.read_bytes()
    lines = (gzip.decompress(raw) if source.suffix == ".gz" else raw).decode().removesuffix("\n").split("\n")
    cells = (line.split("\t") for line in lines[1:])
    kept = [f"{text}\t{NAMES[label]}" for text, label in cells if label in labels]
    out.write_text("\n".join(["sentence\tlabel", *kept[rows]]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
