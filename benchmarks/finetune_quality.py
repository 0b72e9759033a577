"""Classifiers on all-MiniLM-L6-v2 beside those of the Hugging Face Trainer: dev metrics, same settings, three seeds.

    .venv/bin/python benchmarks/finetune_quality.py --data-root DATA --model MINILM --peer .peers/bin/python --out OUT

MINILM is a folder with all-MiniLM-L6-v2; DATA holds sst2, cola, mrpc, qnli_small, ag_news and chnsenticorp. The Chinese
run begins on both sides with random weights, of BERT's shape with 2 layers of 128, over the vocabulary in
DATA/bert_vocab/bert-base-chinese. Both sides: AdamW with betas 0.9 and 0.999, weight decay 0.01, 6 % warm-up and a line
to 0, gradients clipped at 1, dropout 0.1, 32 examples a step, fp32. Run again, it goes on where it stopped. Prints
JSON: of each task and side the metric of every seed, the mean and the standard deviation; the difference of the means
and its standard error.
"""

import argparse
import gzip
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

BATCH, SEEDS = 32, (1, 2, 3)
BETAS, DECAY, WARMUP, DROPOUT = (0.9, 0.999), 0.01, 0.06, 0.1


class Task(NamedTuple):
    """Files under DATA, columns of texts and label, the metric, and how long and how fast to train."""

    train: str
    dev: str
    texts: tuple[str, ...]
    label: str
    metric: str
    epochs: int
    rate: float = 5e-5
    length: int = 128
    header: bool = True


TASKS = {
    "cola": Task("cola/train.tsv", "cola/dev.tsv", ("4",), "2", "matthews", 3, header=False),
    "mrpc": Task("mrpc/train.tsv", "mrpc/dev.tsv", ("#1 String", "#2 String"), "Quality", "f1", 3),
    "qnli_small": Task(
        "qnli_small/train.tsv.gz", "qnli_small/dev.tsv", ("question", "sentence"), "label", "accuracy", 3
    ),
    "ag_news": Task("ag_news/train.tsv.gz", "ag_news/dev.tsv", ("sentence",), "label", "accuracy", 1),
    "chnsenticorp": Task(
        "chnsenticorp/train_dedup.tsv.gz", "chnsenticorp/dev.tsv", ("sentence",), "label", "accuracy", 3, 5e-4
    ),
    "sst2": Task("sst2/train.tsv.gz", "sst2/dev.tsv", ("sentence",), "label", "accuracy", 1),
}
CHINESE = {"layers": 2, "width": 128, "heads": 2}  # the shape of the Chinese run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--peer", default="", help="a Python with transformers")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tasks", default=",".join(TASKS))
    parser.add_argument("--one", default="", help=argparse.SUPPRESS)  # TASK:SEED, in the peer's environment
    parser.add_argument("--lsp", default=str(Path(sys.executable).with_name("lsp")))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if args.one:
        print(json.dumps(trainer(args, *args.one.split(":"))))
        return
    table = {}
    for name in args.tasks.split(","):
        rows: dict[str, list[float]] = {"lsp": [], "trainer": []}
        for seed in SEEDS:
            rows["lsp"].append(ours(args, name, seed)[TASKS[name].metric])
            rows["trainer"].append(kept(args, name, seed)[TASKS[name].metric])
        table[name] = {"metric": TASKS[name].metric} | rows | compared(rows["lsp"], rows["trainer"])
        print(json.dumps({name: table[name]}), file=sys.stderr, flush=True)
    print(json.dumps(table, indent=1))


def compared(one: list[float], other: list[float]) -> dict[str, float]:
    spread = [statistics.variance(each) / len(each) for each in (one, other)]
    return {
        "lsp_mean": statistics.mean(one),
        "trainer_mean": statistics.mean(other),
        "lsp_deviation": statistics.stdev(one),
        "trainer_deviation": statistics.stdev(other),
        "difference": statistics.mean(one) - statistics.mean(other),
        "standard_error": sum(spread) ** 0.5,
    }


def ours(args: argparse.Namespace, name: str, seed: int) -> dict[str, float]:
    task, run = TASKS[name], args.out / f"lsp-{name}-{seed}"
    words: list[Any] = ["finetune", "--train", args.data_root / task.train, "--dev", args.data_root / task.dev]
    words += [word for text in task.texts for word in ("--text-column", text)] + ["--label-column", task.label]
    settings: dict[str, Any] = {
        "train.epochs": task.epochs,
        "train.learning_rate": task.rate,
        "train.warmup": WARMUP,
        "train.weight_decay": DECAY,
        "train.batch_size": BATCH,
        "train.seed": seed,
        "head.dropout": DROPOUT,
        "data.sequence_length": task.length,
    }
    words += ["--from", chinese(args) if name == "chnsenticorp" else args.model]
    words += ["--out", run, *(f"--set={key}={value}" for key, value in settings.items()), "--json", "--quiet"]
    made = subprocess.run([args.lsp, *map(str, words)], stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(made.stdout)["metrics"]


def kept(args: argparse.Namespace, name: str, seed: int) -> dict[str, float]:
    """What the peer makes of it, from disk where it was made before."""
    place = args.out / f"trainer-{name}-{seed}.json"
    if not place.exists():
        line = [args.peer, __file__, "--data-root", args.data_root, "--model", args.model, "--out", args.out]
        line += ["--one", f"{name}:{seed}"]
        made = subprocess.run([*map(str, line)], stdout=subprocess.PIPE, check=True, text=True)
        place.write_text(made.stdout.splitlines()[-1])
    return json.loads(place.read_text())


def chinese(args: argparse.Namespace) -> Path:
    """A published folder with random weights, that both sides begin with; made by the peer."""
    place = args.out / "chinese"
    if not (place / "model.safetensors").exists():
        script = (
            "import sys, transformers as t; words = t.BertTokenizer(sys.argv[1]); t.set_seed(0); "
            f"c = t.BertConfig(vocab_size=len(words), num_hidden_layers={CHINESE['layers']}, "
            f"hidden_size={CHINESE['width']}, num_attention_heads={CHINESE['heads']}, "
            f"intermediate_size={4 * CHINESE['width']}); "
            "t.BertModel(c).save_pretrained(sys.argv[2]); words.save_pretrained(sys.argv[2])"
        )
        vocabulary = args.data_root / "bert_vocab" / "bert-base-chinese" / "vocab.txt"
        subprocess.run([args.peer, "-c", script, vocabulary, place], check=True)
    return place


def rows_of(path: Path, task: Task) -> list[tuple[list[str], str]]:
    raw = path.read_bytes()
    lines = (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode().removesuffix("\n").split("\n")
    cells = [line.split("\t") for line in lines]
    if task.header:
        texts, label = [cells[0].index(text) for text in task.texts], cells[0].index(task.label)
    else:
        texts, label = [int(text) - 1 for text in task.texts], int(task.label) - 1
    return [([row[text] for text in texts], row[label]) for row in cells[task.header :]]


def trainer(args: argparse.Namespace, name: str, seed: str) -> dict[str, float]:
    """The same by transformers' Trainer."""
    import hf_trainer

    task, start = TASKS[name], args.out / "chinese" if name == "chnsenticorp" else args.model
    train, dev = (rows_of(args.data_root / file, task) for file in (task.train, task.dev))
    classes = sorted({label for _, label in train})
    made = hf_trainer.make(
        start,
        *([(texts, classes.index(label)) for texts, label in rows] for rows in (train, dev)),
        length=task.length,
        out=args.out / f"trainer-{name}-{seed}",
        seed=int(seed),
        learning_rate=task.rate,
        weight_decay=DECAY,
        adam_beta1=BETAS[0],
        adam_beta2=BETAS[1],
        max_grad_norm=1.0,
        warmup_steps=round(WARMUP * task.epochs * -(-len(train) // BATCH)),
        num_train_epochs=task.epochs,
    )
    made.train()
    return {key.removeprefix("eval_"): value for key, value in made.evaluate().items()}


if __name__ == "__main__":
    main()
