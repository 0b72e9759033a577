"""The tasks of GLUE (Wang et al., 2019) by name: which files a folder of one holds, what their columns mean, what the
labels are called."""

from pathlib import Path
from typing import NamedTuple

from lsp import Exit, LspError, nearest
from lsp.recipe import Problem

ENDINGS = ("", ".gz", ".xz")


class Task(NamedTuple):
    """`texts` and `label` are columns: names, or numbers from 1 where the files have no header. `names` are the classes
    in the order of their numbers in the files, or of the published models where the files have words. A score of GLUE
    is the mean of the `metrics`."""

    texts: tuple[str, ...]
    label: str
    names: tuple[str, ...]
    metrics: tuple[str, ...] = ("accuracy",)
    problem: Problem = "single_label"
    dev: tuple[str, ...] = ("dev",)


ENTAILMENT = ("entailment", "not_entailment")
TASKS = {
    "cola": Task(("4",), "2", ("unacceptable", "acceptable"), ("matthews",)),
    "sst2": Task(("sentence",), "label", ("negative", "positive")),
    "mrpc": Task(("#1 String", "#2 String"), "Quality", ("not_equivalent", "equivalent"), ("f1", "accuracy")),
    "stsb": Task(("sentence1", "sentence2"), "score", (), ("pearson", "spearman"), "regression"),
    "qqp": Task(("question1", "question2"), "is_duplicate", ("not_duplicate", "duplicate"), ("f1", "accuracy")),
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


def folders(data: Path) -> dict[str, Path]:
    """The tasks whose folders are under `data`, called as GLUE's download calls them (`SST-2`) or as here (`sst2`).
    Raises LspError (exit 3) where there are none."""
    there = sorted(path for path in data.iterdir() if path.is_dir()) if data.is_dir() else []
    named = {path.name.lower().replace("-", ""): path for path in there}
    if found := {name: named[name] for name in TASKS if name in named}:
        return found
    held = f"It holds: {', '.join(path.name for path in there[:10])}." if there else "It holds no folders."
    raise LspError(
        f"{data} holds no task of GLUE.", hint=f"Each has a folder there, such as SST-2. {held}", code=Exit.DATA
    )


def split(folder: Path, name: str) -> Path:
    """`name`.tsv in the folder, compressed or not. Raises LspError (exit 3)."""
    for ending in ENDINGS:
        if (path := folder / f"{name}.tsv{ending}").is_file():
            return path
    there = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    found = f"It holds: {', '.join(there[:10])}." if there else "Is it a folder?"
    raise LspError(f"{folder} holds no {name}.tsv.", hint=f"--data is a folder of GLUE. {found}", code=Exit.DATA)
