"""The tasks of GLUE (Wang et al., 2019) by name: which files a folder of one holds, what their columns mean, what the
labels are called."""

from pathlib import Path
from typing import NamedTuple

from lsp import Exit, LspError, nearest
from lsp.recipe import Problem

ENDINGS = ("", ".gz", ".xz")


class Task(NamedTuple):
    """`texts` and `label` are columns: names, or numbers from 1 where the files have no header. `names` are the classes
    in the order of their numbers in the files, or of the published models where the files have words."""

    texts: tuple[str, ...]
    label: str
    names: tuple[str, ...]
    problem: Problem = "single_label"
    dev: tuple[str, ...] = ("dev",)


ENTAILMENT = ("entailment", "not_entailment")
TASKS = {
    "cola": Task(("4",), "2", ("unacceptable", "acceptable")),
    "sst2": Task(("sentence",), "label", ("negative", "positive")),
    "mrpc": Task(("#1 String", "#2 String"), "Quality", ("not_equivalent", "equivalent")),
    "stsb": Task(("sentence1", "sentence2"), "score", (), "regression"),
    "qqp": Task(("question1", "question2"), "is_duplicate", ("not_duplicate", "duplicate")),
    "mnli": Task(
        ("sentence1", "sentence2"),
        "gold_label",
        ("entailment", "neutral", "contradiction"),
        dev=("dev_matched", "dev_mismatched"),
    ),
    "qnli": Task(("question", "sentence"), "label", ENTAILMENT),
    "rte": Task(("sentence1", "sentence2"), "label", ENTAILMENT),
    "wnli": Task(("sentence1", "sentence2"), "label", ("not_entailment", "entailment")),
}


def task(name: str) -> Task:
    """Raises LspError (exit 2) for a name that is none."""
    known = name.lower().replace("-", "")
    if known not in TASKS:
        raise LspError(f"--task {name}: no such task.{nearest(name, TASKS)}", hint=f"There are: {', '.join(TASKS)}.")
    return TASKS[known]


def split(folder: Path, name: str) -> Path:
    """`name`.tsv in the folder, compressed or not. Raises LspError (exit 3)."""
    for ending in ENDINGS:
        if (path := folder / f"{name}.tsv{ending}").is_file():
            return path
    there = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    found = f"It holds: {', '.join(there[:10])}." if there else "Is it a folder?"
    raise LspError(f"{folder} holds no {name}.tsv.", hint=f"--data is a folder of GLUE. {found}", code=Exit.DATA)
