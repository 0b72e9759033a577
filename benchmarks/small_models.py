"""Small classifiers beside PyTorch: the whole dev set of SST-2, answered in turns, from tokens to logits.

    .venv/bin/python benchmarks/small_models.py --data DATA/sst2/dev.tsv --whole RUN --small RUN [--small RUN]… \\
        --peer .peers/bin/python --out OUT

`--whole` is the classifier that the small ones were made from; PyTorch runs its `lsp export --format huggingface`, in
fp32, eager, 32 texts a batch padded to the longest, once in the file's order and once sorted by length. lsp batches as
`lsp predict` does. Every model has a process of its own that waits for its turn; two threads each, tokens ready before.
Prints JSON: of each model the accuracy, the bytes, the seconds of every round, and times as fast as PyTorch in the
file's order, by the medians and by the best.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

BATCH, LENGTH, THREADS, ROUNDS = 32, 128, 2, 9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--whole", type=Path)
    parser.add_argument("--small", type=Path, action="append", default=[])
    parser.add_argument("--peer", default="", help="a Python with transformers")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument(
        "--one", default="", help=argparse.SUPPRESS
    )  # lsp:RUN, torch:DIR or sorted:DIR, a model's process
    args = parser.parse_args()
    if args.one:
        kind, _, place = args.one.partition(":")
        answer_in_turn(lsp(Path(place), args.data) if kind == "lsp" else torch(place, args.data, kind == "sorted"))
        return
    exported = args.out / "huggingface"
    if not (exported / "manifest.json").exists():
        line = [Path(sys.executable).with_name("lsp"), "export", "--from", args.whole, "--format", "huggingface"]
        subprocess.run([*map(str, line), "--out", str(exported), "--quiet"], check=True, stdout=sys.stderr)
    models = {"torch": f"torch:{exported}", "torch sorted": f"sorted:{exported}", "whole": f"lsp:{args.whole}"}
    models |= {run.name: f"lsp:{run}" for run in args.small}
    print(json.dumps(compared(args, models), indent=1))


def compared(args: argparse.Namespace, models: dict[str, str]) -> dict[str, Any]:
    workers = {name: started(args, one) for name, one in models.items()}
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in models}
    for number in range(args.rounds + 1):
        for name, worker in workers.items():
            worker.stdin.write("go\n")
            worker.stdin.flush()
            found = json.loads(worker.stdout.readline())
            rounds[name] += [found] if number else []  # the first one compiles
    table = {}
    for name, one in models.items():
        seconds = [each["seconds"] for each in rounds[name]]
        base = [each["seconds"] for each in rounds["torch"]]
        table[name] = {
            "accuracy": rounds[name][0]["accuracy"],
            "examples_per_second": rounds[name][0]["examples"] / statistics.median(seconds),
            "times_median": statistics.median(base) / statistics.median(seconds),
            "times_best": min(base) / min(seconds),
            "bytes": json.loads((Path(one.partition(":")[2]) / "result.json").read_text())["bytes"],
            "seconds": seconds,
        }
    return table


def started(args: argparse.Namespace, one: str) -> Any:
    python = sys.executable if one.startswith("lsp:") else args.peer
    line = [python, __file__, "--data", args.data, "--one", one]
    settings = os.environ | {"OMP_NUM_THREADS": str(THREADS)}
    pipe = subprocess.PIPE
    return subprocess.Popen([*map(str, line)], stdin=pipe, stdout=pipe, text=True, env=settings)


def answer_in_turn(once: Callable[[], float]) -> None:
    """One pass over the data for each line that comes in; `once` returns the accuracy."""
    examples = once.__annotations__["examples"]
    for _ in sys.stdin:
        began = time.perf_counter()
        accuracy = once()
        print(
            json.dumps({"seconds": time.perf_counter() - began, "accuracy": accuracy, "examples": examples}), flush=True
        )


def rows_of(path: Path) -> list[tuple[str, str]]:
    lines = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")[1:]
    return [(text, label) for text, label in (line.split("\t") for line in lines)]


def lsp(run: Path, data: Path) -> Callable[[], list[bool]]:
    import jax

    from lsp import checkpoint
    from lsp.train import labelled
    from lsp.train.evaluate import Classifier

    base = checkpoint.open(run)
    how = labelled.Reading(base.tokenizer, min(LENGTH, base.config.max_length))
    examples = labelled.read(data, ((), ""), base.labels, how)
    classifier, params = Classifier(base.config), jax.device_put(base.params)

    return lambda: (classifier.logits(params, examples).argmax(1) == examples.labels).tolist()


def torch(folder: str, data: Path, by_length: bool) -> Callable[[], list[bool]]:
    import torch as library
    import transformers

    library.set_num_threads(THREADS)
    words = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(folder).eval()
    rows = rows_of(data)
    encoded = words([text for text, _ in rows], truncation=True, max_length=LENGTH)["input_ids"]
    labels = [model.config.label2id[label] for _, label in rows]
    order = list(range(len(rows)))
    if by_length:
        order.sort(key=lambda row: len(encoded[row]))

    def right() -> list[bool]:
        marks: list[bool] = []
        with library.inference_mode():
            for at in range(0, len(order), BATCH):
                some = order[at : at + BATCH]
                batch = words.pad({"input_ids": [encoded[row] for row in some]}, return_tensors="pt")
                found = model(**batch).logits.argmax(1).tolist()
                marks += [guess == labels[row] for guess, row in zip(found, some, strict=True)]
        return marks

    return right


if __name__ == "__main__":
    main()
