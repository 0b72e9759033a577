"""All of GLUE that is there: folders as its download has them, metrics as it names them."""

import dataclasses
from functools import partial
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import pytest

from lsp import LspError, recipe
from lsp.commands import evaluate, finetune
from lsp.console import Progress
from lsp.data import glue
from lsp.data.tokenizer import train
from lsp.train.labelled import Files
from lsp.train.options import Options
from lsp.trials import expand

QUIET = Progress(quiet=True)
WORDS = ["sun", "rain", "wind", "snow", "the", "day"]
PLAN = recipe.Finetune(
    model=recipe.Model(layers=1, width=16, heads=2, max_length=32),
    train=recipe.Train(steps=4, batch_size=8, learning_rate=5e-3),
    data=recipe.Labelled(sequence_length=32),
)


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """CoLA, STS-B and MNLI, twelve rows each, and a folder that is none of GLUE's."""
    random = np.random.default_rng(0)

    def table(name: str, header: str, row: str) -> None:
        place = tmp_path / "glue" / f"{name}.tsv"
        place.parent.mkdir(parents=True, exist_ok=True)
        rows = [header] if header else []
        for number in range(12):
            one, two = (" ".join(random.choice(WORDS, 4)) for _ in range(2))
            which = ["entailment", "neutral", "contradiction"][number % 3]
            rows.append(row.format(one=one, two=two, mark=number % 2, number=random.integers(0, 6), which=which))
        place.write_text("\n".join(rows) + "\n")

    for part in ("train", "dev"):
        table(f"CoLA/{part}", "", "x\t{mark}\t\t{one}")
        table(f"STS-B/{part}", "sentence1\tsentence2\tscore", "{one}\t{two}\t{number}")
    for part in ("train", "dev_matched", "dev_mismatched"):
        table(f"MNLI/{part}", "sentence1\tsentence2\tgold_label", "{one}\t{two}\t{which}")
    table("other/train", "text\tlabel", "{one}\t{mark}")
    text = [" ".join(random.choice(WORDS, 9)) for _ in range(100)]
    train(text, vocab_size=275, kind="unigram", lowercase=False, seed=0).save(tmp_path / "words")
    return tmp_path


def test_every_task_that_is_there(tasks: Path) -> None:
    out = tasks / "out"
    inputs = ("scratch", tasks / "glue", out, PLAN, tasks / "words", Options(QUIET))
    made = finetune.run_suite(*inputs, partial(expand, seeds=2))
    names = [row["task"] for row in made["tasks"]]
    assert names == ["cola", "stsb", "mnli", "mnli_mismatched"]
    assert made["missing"] == ["sst2", "mrpc", "qqp", "qnli", "rte", "wnli"]
    assert made["average"] == pytest.approx(mean(row["score"] for row in made["tasks"]))
    cola, stsb, _, other = made["tasks"]
    plan = dataclasses.replace(PLAN, head=recipe.NewHead(problem="regression"))
    files = Files(tasks / "glue/STS-B/train.tsv", tasks / "glue/STS-B/dev.tsv", (("sentence1", "sentence2"), "score"))
    scores = []
    for seed in (0, 1):
        alone = dataclasses.replace(plan, train=dataclasses.replace(plan.train, seed=seed))
        found = finetune.run("scratch", tasks / f"alone-{seed}", alone, files, tasks / "words", Options(QUIET))
        scores.append((found["metrics"]["pearson"] + found["metrics"]["spearman"]) / 2)
    assert stsb["score"] == pytest.approx(mean(scores), abs=1e-3) and stsb["deviation"] == pytest.approx(
        stdev(scores), abs=1e-3
    )
    assert {"matthews", "seeds", "deviation"} <= cola.keys()
    mismatched = [tasks / "glue/MNLI/dev_mismatched.tsv"]
    measured = evaluate.run(out / "mnli", mismatched, (("sentence1", "sentence2"), "gold_label"), [], QUIET)
    assert other["score"] == measured["metrics"]["accuracy"]
    again = finetune.run_suite(*inputs, partial(expand, seeds=2))
    assert again["tasks"] == made["tasks"] and again["status"] == "already complete"


def test_both_dev_files_of_mnli_are_read_as_training_reads_them(tasks: Path) -> None:
    place = tasks / "mnli" / "MNLI"
    place.mkdir(parents=True)
    rows = [f"{'the ' * 12}{word}\tday\t{label}" for word, label in (("sun", "entailment"), ("rain", "neutral"))] * 6
    rows.append("snow\tday\tcontradiction")
    for name in ("train", "dev_matched", "dev_mismatched"):
        (place / f"{name}.tsv").write_text("\n".join(["sentence1\tsentence2\tgold_label", *rows]) + "\n")
    plan = dataclasses.replace(PLAN, data=recipe.Labelled(sequence_length=10))
    made = finetune.run_suite(
        "scratch", place.parent, tasks / "cut", plan, tasks / "words", Options(QUIET), partial(expand, seeds=1)
    )
    one, other = made["tasks"]
    assert other["score"] == one["accuracy"]


def test_what_can_not_be_is_said_before_the_first_task_is_trained(tasks: Path) -> None:
    plan = dataclasses.replace(PLAN, head=recipe.NewHead(calibrate=True))
    given = ("scratch", tasks / "glue", tasks / "never", plan, tasks / "words", Options(QUIET))
    with pytest.raises(LspError, match="calibrate does not go together with regression"):
        finetune.run_suite(*given, partial(expand, seeds=1))
    assert not (tasks / "never").exists()


def test_a_folder_without_tasks_is_said(tasks: Path) -> None:
    assert [*glue.folders(tasks / "glue")] == ["cola", "stsb", "mnli"]
    with pytest.raises(LspError, match="holds no task of GLUE"):
        glue.folders(tasks / "glue" / "other")
