"""`lsp demo`: the whole road on this machine, from docstrings to a small int8 classifier, without a download."""

import dataclasses
import json
import re
import shlex
import time
from pathlib import Path
from typing import Any

from lsp import directory
from lsp import recipe as recipes
from lsp.commands import distill, finetune, pretrain, prune_weights, quantize
from lsp.data import baselines, docstrings
from lsp.train import labelled
from lsp.train.options import Options

# Sizes for about five minutes on two cores. In code rather than in recipes/, which an installed wheel doesn't have;
# OUT/*/recipe.toml holds each of them afterwards.
ENCODER = recipes.Pretrain(
    model=recipes.Model(layers=4, width=128, heads=4, max_length=128),
    data=recipes.Text(vocab_size=4096, sequence_length=128),
    train=recipes.Train(steps=500, batch_size=32, learning_rate=3e-3, log_every=50),
)
CLASSIFIER = recipes.Finetune(train=recipes.Train(epochs=3.0, learning_rate=2e-3, weight_decay=0.1, beta2=0.999))
STUDENT = recipes.Distill(
    model=recipes.Model(layers=2, width=128, heads=4, max_length=128),
    train=recipes.Train(epochs=3.0, learning_rate=1e-3, beta2=0.999),
)
PRUNED = recipes.Prune(train=dataclasses.replace(recipes.Prune().train, epochs=2.0, learning_rate=3e-4))
INT8 = recipes.Quantize()
TEXTS = ("corpus.jsonl", "train.tsv", "dev.tsv", "harvest.json")
RECIPES = {"encoder": ENCODER, "classifier": CLASSIFIER, "student": STUDENT, "pruned": PRUNED, "int8": INT8}


def run(out: Path, overwrite: bool, progress: Any) -> dict[str, Any]:
    """Makes OUT/{text,encoder,classifier,student,pruned,int8}; what is there already is not made again.

    The result's `stages` begin with the two baselines, so that the table shows what the model adds to them.
    """
    began = time.monotonic()
    recipe = "\n".join(_under(name, recipes.dump(stage)) for name, stage in RECIPES.items())
    with directory.claim(out, command="demo", recipe=recipe, inputs={}, overwrite=overwrite):
        text = out / "text"
        if overwrite or not all((text / name).is_file() for name in TEXTS):
            write(text, docstrings.harvest())
        described = json.loads((text / "harvest.json").read_text())
        progress.say(
            f"{described['documents']} docstrings from {described['files']} files; the task: which of "
            f"{', '.join(described['packages'])} wrote a docstring"
        )
        pairs = [read(text / name) for name in ("train.tsv", "dev.tsv")]
        progress.say(f"{len(pairs[0])} labelled docstrings to learn from, {len(pairs[1])} of other files to measure on")
        rows = [row("majority class", baselines.majority(*pairs)), row("bag of words", baselines.bag_of_words(*pairs))]
        made = stages(out, overwrite, progress)
        statuses = {each["status"] for each in made.values()}
        result = {
            "command": "demo",
            "out": str(out),
            "status": "already complete" if statuses == {"already complete"} else "complete",
            "seconds": round(time.monotonic() - began, 1),
            "stages": rows + [measured(name, made) for name in made],
            "commands": [{"the commands that were run": line} for line in commands(out)],
        }
        directory.write_atomically(out / "result.json", json.dumps(result, indent=1) + "\n")
        return result


def stages(out: Path, overwrite: bool, progress: Any) -> dict[str, dict[str, Any]]:
    """The result of every stage, by the name of its directory."""
    corpus, train, dev = (out / "text" / name for name in ("corpus.jsonl", "train.tsv", "dev.tsv"))
    encoder, classifier, student, pruned, int8 = (out / name for name in RECIPES)
    files, options = labelled.Files(train, dev), Options(progress, overwrite)
    made: dict[str, dict[str, Any]] = {}
    progress.say("1/5 pretrain: an encoder that guesses masked words")
    made["encoder"] = pretrain.run([str(corpus)], encoder, ENCODER, None, None, [], options)
    progress.say("2/5 finetune: a classifier on top of it")
    made["classifier"] = finetune.run(str(encoder), classifier, CLASSIFIER, files, None, options)
    progress.say("3/5 compress distill: a student with half the layers")
    made["student"] = distill.run(classifier, student, STUDENT, files, options)
    progress.say("4/5 compress prune: half of its weights set to zero")
    made["pruned"] = prune_weights.run(student, pruned, PRUNED, files, options)
    progress.say("5/5 compress quantize: int8 weights and activations")
    made["int8"] = quantize.run(pruned, int8, INT8, dev, files.columns, options)
    return made


def commands(out: Path) -> list[str]:
    """What was run, as lines of a shell script: each command answers "already complete" until --out is another."""
    script = f"""\
cd {shlex.quote(str(out))}
lsp pretrain --data text/corpus.jsonl --recipe encoder/recipe.toml --out encoder
lsp finetune --from encoder --train text/train.tsv --dev text/dev.tsv \\
    --recipe classifier/recipe.toml --out classifier
lsp compress distill --from classifier --train text/train.tsv \\
    --dev text/dev.tsv --recipe student/recipe.toml --out student
lsp compress prune --from student --train text/train.tsv --dev text/dev.tsv \\
    --recipe pruned/recipe.toml --out pruned
lsp compress quantize --from pruned --dev text/dev.tsv \\
    --recipe int8/recipe.toml --out int8
lsp evaluate --from int8 --data text/dev.tsv"""
    return script.split("\n")


def measured(name: str, made: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A stage's line of the table. The classifier's speed is the one measured beside its student's."""
    result = made[name]
    timed = made["student"]["before"] if name == "classifier" else result.get("after", {})
    metrics = timed.get("metrics", result["metrics"])
    return row(name, metrics.get("accuracy") if name != "encoder" else None, result, timed.get("examples_per_second"))


def row(
    stage: str, accuracy: float | None, size: dict[str, Any] | None = None, speed: float | None = None
) -> dict[str, Any]:
    """`accuracy` is on the held-out docstrings; the encoder has none, since it only guesses masked words."""
    size = size or {}
    return {
        "stage": stage,
        "parameters": size.get("parameters"),
        "bytes": size.get("bytes"),
        "accuracy": accuracy,
        "examples_per_second": speed,
    }


def write(folder: Path, harvest: docstrings.Harvest) -> None:
    """corpus.jsonl, train.tsv, dev.tsv, and last harvest.json, which says that the others are whole."""
    folder.mkdir(exist_ok=True)
    (folder / "harvest.json").unlink(missing_ok=True)
    corpus = "".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in harvest.corpus)
    directory.write_atomically(folder / "corpus.jsonl", corpus)
    for name, pairs in (("train.tsv", harvest.train), ("dev.tsv", harvest.dev)):
        lines = "".join(f"{text}\t{label}\n" for text, label in pairs)  # the texts have no tabs or line ends
        directory.write_atomically(folder / name, "text\tlabel\n" + lines)
    described = {
        "documents": len(harvest.corpus),
        "files": harvest.files,
        "packages": harvest.packages,
        "dev_files": harvest.dev_files,
    }
    directory.write_atomically(folder / "harvest.json", json.dumps(described, indent=1) + "\n")


def read(path: Path) -> list[tuple[str, str]]:
    """(text, label) of each line, as `write` wrote them."""
    lines = path.read_text(encoding="utf-8").split("\n")[1:-1]
    return [(text, label) for text, _, label in (line.partition("\t") for line in lines)]


def _under(name: str, recipe: str) -> str:
    """The recipe's sections as sections of `name`, so that five recipes make one TOML file."""
    return re.sub(r"^\[", f"[{name}.", recipe, flags=re.MULTILINE)
