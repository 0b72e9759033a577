"""What the commands have in common: their options, and the mistakes that can be named before jax is loaded."""

import importlib.util
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from lsp import Exit, LspError, directory, lacking, nearest

OutOpt = Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the result goes.", show_default=False)]
FromOpt = Annotated[Path, typer.Option("--from", metavar="RUN", help="The run to read.", show_default=False)]
EncoderOpt = Annotated[
    str, typer.Option("--from", metavar="RUN|HF_DIR|scratch", help="Encoder, or 'scratch' for random weights.")
]
RunArg = Annotated[Path, typer.Argument(metavar="RUN", help="A run, or prepared data.", show_default=False)]
TRAIN = typer.Option("--train", metavar="FILE", help="Labelled .tsv, .csv or .jsonl to train on.", show_default=False)
DEV = typer.Option("--dev", metavar="FILE", help="Labelled examples to measure with.", show_default=False)
TrainOpt = Annotated[Path, TRAIN]
DevOpt = Annotated[Path, DEV]
TaskOpt = Annotated[
    str, typer.Option("--task", metavar="NAME", help="A task of GLUE, as in sst2, with its files in --data.")
]
TaskDataOpt = Annotated[Path | None, typer.Option("--data", metavar="DIR", help="The folder with the task's files.")]
OldOpt = Annotated[
    Path | None, typer.Option("--old", metavar="FILE", help="Examples learnt before, some to be seen again.")
]
OldDevOpt = Annotated[
    Path | None, typer.Option("--old-dev", metavar="FILE", help="Examples of what was learnt before, to measure.")
]
SeedsOpt = Annotated[
    int,
    typer.Option("--seeds", metavar="N", help="Train N times with other seeds, and keep the best.", min=1, max=1000),
]
SweepOpt = Annotated[
    list[str],
    typer.Option(
        "--sweep",
        metavar="KEY=A,B,…",
        help="Train with each of the values, and keep the best; repeatable.",
        default_factory=list,
        show_default=False,
    ),
]
RecipeOpt = Annotated[
    Path | None, typer.Option("--recipe", metavar="FILE", help="TOML with settings; see docs/recipes.md.")
]
ModelOpt = Annotated[
    Path,
    typer.Option("--from", metavar="RUN", help="A run, or an ONNX or StableHLO export of one.", show_default=False),
]
SetOpt = Annotated[
    list[str],
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Change one setting; repeatable.", default_factory=list, show_default=False
    ),
]
TokenizerOpt = Annotated[
    Path | None, typer.Option("--tokenizer", metavar="DIR", help="A tokenizer, or a run or data that holds one.")
]
TextColumnOpt = Annotated[
    list[str],
    typer.Option(
        "--text-column",
        metavar="NAME",
        help="Column with the text, by name, or by number from 1 of a file without header; twice for a pair.",
        default_factory=list,
        show_default=False,
    ),
]
LabelColumnOpt = Annotated[
    str, typer.Option("--label-column", metavar="NAME", help="Column with the label.", show_default=False)
]
MeasuredOpt = Annotated[
    Path | None, typer.Option("--dev", metavar="FILE", help="Labelled examples to measure before and after with.")
]
CalibratedOpt = Annotated[
    Path | None, typer.Option("--train", metavar="FILE", help="Examples to calibrate or to train with.")
]
MethodOpt = Annotated[
    str,
    typer.Option(
        "--method",
        metavar="NAME",
        help="dynamic (if left out), static, weights (weight-only) or trained (QAT).",
        show_default=False,
    ),
]
KeptOpt = Annotated[
    float | None,
    typer.Option(
        "--max-drop",
        metavar="POINTS",
        help="Percent points that the metric may fall: parts stay float for it.",
        show_default=False,
    ),
]
BudgetOpt = Annotated[
    str,
    typer.Option("--budget", metavar="TIME", help="Train for 90s, 30m or 2h: the learning rate lands then."),
]
CoordinatorOpt = Annotated[
    str, typer.Option("--coordinator", metavar="HOST:PORT", help="Where several processes meet: at the first of them.")
]
ProcessesOpt = Annotated[
    int | None, typer.Option("--processes", metavar="N", help="How many train together; Slurm and Open MPI say it too.")
]
ProcessIdOpt = Annotated[
    int | None, typer.Option("--process-id", metavar="I", help="Which of them this is, from 0.", min=0)
]
TrackerOpt = Annotated[
    list[str],
    typer.Option(
        "--tracker",
        metavar="tensorboard|wandb",
        help="Where the metrics go as well; repeatable.",
        default_factory=list,
        show_default=False,
    ),
]
OverwriteOpt = Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier lsp run left in --out.")]
JsonOpt = Annotated[bool, typer.Option("--json", help="Print exactly one JSON object on stdout.")]
QuietOpt = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr, only warnings and errors.")]


def spread(words: Sequence[str]) -> list[str]:
    """`--data a b` of `lsp pretrain` as `--data a --data b`: a shell's globs give the first, Typer reads the second.
    And `verify resume`, a command with two words, as one word, since what follows `verify` is else a run."""
    if list(words[:2]) == ["verify", "resume"]:
        words = ["verify resume", *words[2:]]
    if words[:1] not in (["pretrain"], ["verify resume"]):
        return list(words)
    written: list[str] = []
    option, first = "", True
    for word in words:
        if word.startswith("-") and word != "-":
            option, first = word if word in ("--data", "--valid") else "", True
            written.append(word)
        else:
            written += [word] if first or not option else [option, word]
            first = False
    return written


def need(*paths: Path | str | None, code: Exit = Exit.ARTIFACT) -> None:
    """Raises LspError when a path (not '-', not a glob) is missing, with the nearest name in its folder."""
    for path in paths:
        if path is None or str(path) == "-" or os.path.lexists(path) or re.search(r"[*?\[]", str(path)):
            continue
        parent = Path(path).parent
        names = [str(parent / name) for name in os.listdir(parent)] if parent.is_dir() else []
        raise LspError(
            f"{path} does not exist.{nearest(str(path), names)}",
            hint="Check the path." if parent.is_dir() else f"There is no folder {parent} either: check the path.",
            code=code,
        )


def need_tables(train: Path | None, dev: Path | None, *others: Path | None) -> None:
    """Raises LspError where a file of examples is missing (3), or one to train or to measure on is a stream (2), which
    could be read only once."""
    need(train, dev, *others, code=Exit.DATA)
    for option, path in (("--train", train), ("--dev", dev)):
        if path is not None and (str(path) == "-" or path.is_fifo()):
            raise LspError(f"{option} {path}: a stream can be read once only.", hint="Save it to a file first.")


def parse_part(text: str, tokenizer: Path | None, overwrite: bool) -> tuple[int, int] | None:
    """(2, 8) for `2/8`, None for an empty text. Raises LspError for what is no share, or can't be shared out."""
    if not text:
        return None
    match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text.strip())
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise LspError(f"--part {text} is no share.", hint="Write K/N with K from 1 to N, as in --part 2/8.")
    if tokenizer is None:
        raise LspError(
            "--part has no tokenizer, and all parts need the same.",
            hint="Add --tokenizer DIR: any run or prepared data has one, made from a part of the text perhaps.",
        )
    if overwrite:
        raise LspError(
            "--overwrite would take away what the other parts made.",
            hint="Leave --overwrite out; to start over, delete --out first.",
        )
    return int(match[1]), int(match[2])


def need_package(package: str, extra: str, wanted_by: str) -> None:
    """Raises LspError (exit 5) when a Python package of one of the extras is not installed."""
    if importlib.util.find_spec(package) is None:
        raise lacking(f"{wanted_by} needs the Python package {package}.", extra)


def need_trackers(names: Sequence[str]) -> None:
    """Raises LspError for a tracker that lsp does not know (exit 2) or whose package is not installed (exit 5)."""
    packages = {"tensorboard": "tensorboardX", "wandb": "wandb"}
    for name in names:
        if name not in packages:
            raise LspError(
                f"--tracker {name}: no such tracker.{nearest(name, packages)}",
                hint=f"There are {' and '.join(packages)}.",
            )
        need_package(packages[name], name, f"--tracker {name}")


def apart(out: Path, begin: Path | None, option: str = "--from") -> None:
    """Raises LspError when a command would write over what it reads: a run, or what lsp wrote in it."""
    if begin is None:
        return
    place, read = out.resolve(), begin.resolve()
    if place == read:
        raise LspError(f"--out and {option} are the same folder, {out}.", hint="Give --out another one.")
    if read.is_relative_to(place) and read.relative_to(place).parts[0] in (*directory.WRITTEN, *directory.UNSEALED):
        raise LspError(f"{option} {begin} is a part of --out {out}.", hint="Give --out another folder.")


def parse_duration(text: str) -> float:
    """Seconds in `90`, `90s`, `30m`, `1h30m` or `2d`; 0 for an empty text, which sets no limit. Raises LspError."""
    units = {"d": 86400, "h": 3600, "m": 60, "s": 1, "": 1}
    if not re.fullmatch(r"(\d+(\.\d+)?[dhms])*|\d+", text.strip()):
        raise LspError(f"--budget {text} is not a length of time.", hint="Write it as in --budget 30m, 90s or 1h30m.")
    seconds = sum(float(count) * units[unit] for count, _, unit in re.findall(r"(\d+(\.\d+)?)([dhms]?)", text))
    if text.strip() and not seconds:
        raise LspError(f"--budget {text} leaves no time.", hint="Leave it out where there is no limit.")
    return seconds


def parse_size(text: str) -> float:
    """Bytes in `800kB`, `20MB`, `1.5GB` or `20000000`; 0 for an empty text. Raises LspError."""
    units = {"": 1, "b": 1, "kb": 1e3, "mb": 1e6, "gb": 1e9, "kib": 2**10, "mib": 2**20, "gib": 2**30}
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([a-z]*)", text.strip().lower())
    if text and (found is None or found[2] not in units):
        raise LspError(f"--max-size {text} is not a size.", hint="Write it as in --max-size 20MB.")
    size = float(found[1]) * units[found[2]] if found else 0.0
    if text and size < 1000:
        raise LspError(
            f"--max-size {text} is {size:g} bytes, and no model is that small.",
            hint="Write the unit too, as in --max-size 20MB.",
        )
    return size
