"""An encoder to a classifier, smaller, measured and used."""

import os
import re
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from lsp import Exit, LspError, console, recipe, trials
from lsp.arguments import (
    DEV,
    TRAIN,
    BudgetOpt,
    EncoderOpt,
    FromOpt,
    JsonOpt,
    LabelColumnOpt,
    ModelOpt,
    OldDevOpt,
    OldOpt,
    OutOpt,
    OverwriteOpt,
    QuietOpt,
    RecipeOpt,
    SeedsOpt,
    SetOpt,
    SweepOpt,
    TaskDataOpt,
    TaskOpt,
    TextColumnOpt,
    TokenizerOpt,
    TrackerOpt,
    apart,
    need,
    need_tables,
)
from lsp.cli.app import app, report, training
from lsp.data import glue

GATE = re.compile(r"\w+=[-+]?\d*\.?\d+(e[-+]?\d+)?")


@app.command(short_help="An encoder and labelled examples to a classifier.")
def finetune(
    *,
    begin: EncoderOpt,
    train: Annotated[Path | None, TRAIN] = None,
    dev: Annotated[Path | None, DEV] = None,
    task: TaskOpt = "",
    data: TaskDataOpt = None,
    old: OldOpt = None,
    old_dev: OldDevOpt = None,
    out: OutOpt,
    text_column: TextColumnOpt,
    label_column: LabelColumnOpt = "",
    tokenizer: TokenizerOpt = None,
    recipe_file: RecipeOpt = None,
    changes: SetOpt,
    seeds: SeedsOpt = 1,
    sweeps: SweepOpt,
    budget: BudgetOpt = "",
    tracker: TrackerOpt,
    overwrite: OverwriteOpt = False,
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> int:
    """\b
    lsp finetune --from runs/mini --train train.tsv --dev dev.tsv --out runs/sst2

    Train a classifier on top of an encoder; one sentence or a pair. --task NAME
    --data DIR takes the files of a GLUE task instead. With --from scratch it
    starts from random weights and needs --tokenizer. With --set adapt.grow=true
    a classifier learns new classes and keeps the old ones, better with --old.
    With --seeds and --sweep several are trained, together where only seed and
    learning rate differ; the best on --dev is kept, and all are reported. Their p
    is the chance of answers so different from the best's if neither were better.
    --task glue trains every task whose folder is in --data.
    """
    plan = recipe.load(recipe.Finetune, recipe_file, changes)
    need_tables(train, dev, data, old, old_dev)
    if (old or old_dev) and not plan.adapt.grow:
        raise LspError("--old and --old-dev are for a classifier that grows.", hint="Add --set adapt.grow=true.")
    several = partial(trials.expand, seeds=seeds, sweeps=sweeps)
    several(plan)  # what can't be is said before anything is read
    suite = task.lower() == "glue"
    if suite and (data is None or train or dev or old or old_dev or text_column or label_column):
        raise LspError("--task glue takes all of GLUE.", hint="Write it as in --task glue --data DIR, without files.")
    known = glue.task(task) if task and not suite else None
    if known:
        plan = replace(plan, head=replace(plan.head, problem=known.problem))
    files = None if suite else labelled_files(train, dev, task, data, (tuple(text_column), label_column))
    need_start(begin, tokenizer, out)
    if begin != "scratch" and any(sweep.strip().startswith("model.") for sweep in sweeps):
        raise LspError("--sweep model.…: the model is the one that --from names.", hint="Sweep what trains it.")
    options = training(quiet, overwrite, budget, tracker)
    from lsp.commands import finetune as verb
    from lsp.train.labelled import Files

    if files is None:
        assert data is not None
        return report(verb.run_suite(begin, data, out, plan, tokenizer, options, several), as_json)
    metric = known.metrics[0] if known else ""
    given = Files(*files, old, old_dev)
    return report(verb.run(begin, out, plan, given, tokenizer, options, several(plan), metric), as_json)


def need_start(begin: str, tokenizer: Path | None, out: Path) -> None:
    """Raises LspError where there is nothing to begin with, or the result would go over it."""
    need(tokenizer)
    if begin != "scratch":
        need(begin)
        apart(out, Path(begin))
        if tokenizer is not None:
            raise LspError("--tokenizer is for --from scratch: any other start has its own.", hint="Leave it out.")
    elif tokenizer is not None:
        apart(out, tokenizer, "--tokenizer")
    else:
        raise LspError(
            "--from scratch has no tokenizer.", hint="Add --tokenizer DIR: prepared data or any run has one."
        )


def labelled_files(
    train: Path | None, dev: Path | None, task: str, data: Path | None, columns: tuple[tuple[str, ...], str]
) -> tuple[Path, Path, tuple[tuple[str, ...], str], tuple[str, ...] | None]:
    """The files to train and to measure on, their columns, and the names of the classes where a task knows them."""
    if task:
        if data is None or train or dev or columns != ((), ""):
            raise LspError(
                "--task knows files and columns itself, and where they are only --data says.",
                hint=f"Write it as in --task {task} --data DIR, without --train, --dev and columns.",
            )
        known = glue.task(task)
        train, dev = glue.split(data, "train"), glue.split(data, known.dev[0])
        return train, dev, (known.texts, known.label), known.names or None
    if data is not None:
        raise LspError("--data is the folder of a --task.", hint=f"Add --task: {', '.join(glue.TASKS)}.")
    missing = [option for option, path in (("--train", train), ("--dev", dev)) if path is None]
    if train is None or dev is None:
        raise LspError(f"Missing option {' and '.join(missing)}.", hint="Or give --task NAME --data DIR.")
    return train, dev, columns, None


def task_files(
    data: Path, task: str, columns: tuple[tuple[str, ...], str]
) -> tuple[list[Path], tuple[tuple[str, ...], str]]:
    """The files to measure on of a task, whose folder or file `data` is, and their columns."""
    known = glue.task(task)
    if columns != ((), ""):
        raise LspError("--task knows the columns itself.", hint="Leave --text-column and --label-column out.")
    files = [glue.split(data, name) for name in known.dev] if data.is_dir() else [data]
    return files, (known.texts, known.label)


@app.command(short_help="Metrics on labelled examples, and a gate for CI.")
def evaluate(
    *,
    begin: ModelOpt,
    data: Annotated[
        Path, typer.Option("--data", metavar="FILE", help="Labelled .tsv, .csv or .jsonl.", show_default=False)
    ],
    task: TaskOpt = "",
    gates: Annotated[
        list[str],
        typer.Option(
            "--min",
            metavar="METRIC=VALUE",
            help="Exit 1 when the metric is lower; repeatable.",
            default_factory=list,
            show_default=False,
        ),
    ],
    errors: Annotated[
        Path | None,
        typer.Option("--errors", metavar="FILE", help="New .jsonl for the wrong ones, the surest first."),
    ] = None,
    slices: Annotated[
        list[str],
        typer.Option(
            "--slice",
            metavar="COLUMN",
            help="Metrics of each group of rows with the same there; repeatable.",
            default_factory=list,
            show_default=False,
        ),
    ],
    text_column: TextColumnOpt,
    label_column: LabelColumnOpt = "",
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> int:
    """\b
    lsp evaluate --from runs/sst2 --data dev.tsv --min accuracy=0.9

    Measure a classifier, a run or what lsp export made for ONNX or StableHLO, on
    labelled examples: metrics with 95 % intervals, each class, what is taken for
    what. With --task NAME, --data may be the folder of a GLUE task. Exits 1 when
    a --min is missed.
    """
    if bad := next((gate for gate in gates if not GATE.fullmatch(gate)), None):
        raise LspError(f"--min {bad} is not METRIC=VALUE.", hint="Write it as in --min accuracy=0.9.")
    need(data, code=Exit.DATA)
    files, columns = [data], (tuple(text_column), label_column)
    if task:
        files, columns = task_files(data, task, columns)
    need(begin)
    if errors is not None:
        need(errors.parent, code=Exit.USAGE)
    from lsp.commands import evaluate as verb

    measured = verb.run(begin, files, columns, gates, console.Progress(quiet), errors, slices)
    report(measured, as_json)
    return Exit.DONE if all(gate["passed"] for gate in measured["gates"]) else Exit.NO


@app.command(short_help="Labels and probabilities, or guessed words, row by row.")
def predict(
    *,
    begin: ModelOpt,
    source: Annotated[str, typer.Argument(metavar="FILE", help="A table of texts; - is stdin.")] = "-",
    top: Annotated[
        int | None,
        typer.Option("--top-k", metavar="N", min=1, help="Only the N likeliest classes (with --json), or words."),
    ] = None,
    text_column: TextColumnOpt,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a row.")] = False,
    quiet: QuietOpt = False,
) -> int:
    """\b
    lsp predict --from runs/sst2 reviews.tsv > labels.tsv

    Labels and probabilities on stdout, a row for each row read, in order, then its
    other columns. An encoder without labels guesses the words behind [MASK]. On a
    GPU an int8 run answers in int8 or bfloat16, whichever is faster there.
    """
    if source == "-" and sys.stdin is not None and sys.stdin.isatty():
        raise LspError("There is nothing to read.", hint="Name a file, or pipe one in: lsp predict --from RUN < FILE")
    need(source, code=Exit.DATA)
    need(begin)
    from lsp.commands import predict as verb

    try:
        output = verb.Output(sys.stdout, as_json, top or 0)
        verb.run(begin, source, (tuple(text_column), ""), output, console.Progress(quiet))
        sys.stdout.flush()
    except BrokenPipeError:
        os._exit(Exit.DONE)  # an orderly end would wait for the thread that reads stdin, which may stay open
    return Exit.DONE


@app.command(short_help="Which words drove each answer.")
def explain(
    *,
    begin: FromOpt,
    source: Annotated[str, typer.Argument(metavar="FILE", help="A table of texts; - is stdin.")] = "-",
    label: Annotated[
        str, typer.Option("--label", metavar="NAME", help="Explain this class, not the likeliest one.")
    ] = "",
    page: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="A page to look at and to send.")] = None,
    text_column: TextColumnOpt,
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> int:
    """\b
    lsp explain --from runs/sst2 reviews.tsv --html why.html

    Integrated gradients: what each word adds to the log odds of the answer, from
    a text of [MASK]s to the text, and how much of it the words miss together.
    """
    if source == "-" and sys.stdin is not None and sys.stdin.isatty():
        raise LspError("There is nothing to read.", hint="Name a file, or pipe one in: lsp explain --from RUN < FILE")
    need(source, code=Exit.DATA)
    need(begin)
    if page is not None:
        need(page.parent, code=Exit.USAGE)
    from lsp.commands import explain as verb

    found = verb.run(begin, source, (tuple(text_column), ""), label, page, console.Progress(quiet))
    if as_json:
        return report(found, as_json)
    console.to_stdout(verb.render(found))
    return Exit.DONE
