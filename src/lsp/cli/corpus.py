"""Raw text to rows of tokens, and to an encoder."""

from pathlib import Path
from typing import Annotated

import typer

from lsp import Exit, console, recipe
from lsp.arguments import (
    BudgetOpt,
    CoordinatorOpt,
    JsonOpt,
    OutOpt,
    OverwriteOpt,
    ProcessesOpt,
    ProcessIdOpt,
    QuietOpt,
    RecipeOpt,
    SetOpt,
    TokenizerOpt,
    TrackerOpt,
    apart,
    need,
    need_trackers,
    parse_duration,
    parse_part,
)
from lsp.cli.app import app, data, need_text, report
from lsp.launch import launched
from lsp.recipe import together


@app.command(short_help="The whole story on this machine in minutes, with no download.")
def demo(
    *,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the runs go.")] = Path("lsp-demo"),
    overwrite: OverwriteOpt = False,
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> int:
    """\b
    lsp demo

    The whole story on this machine in minutes, with no download: the text is the
    docstrings of the installed Python packages, the label is the package. Ends
    with a table of stage, size, accuracy and speed.
    """
    from lsp.commands import demo as verb

    return report(verb.run(out, overwrite=overwrite, progress=console.Progress(quiet)), as_json)


@app.command(short_help="Raw text to packed rows of tokens.")
def prepare(
    *,
    text: Annotated[
        list[str],
        typer.Argument(
            metavar="TEXT",
            help=".txt .jsonl .parquet, also .gz .xz .zst; gs://… s3://…; - is stdin; or NAME=WEIGHT:TEXT.",
        ),
    ],
    out: OutOpt,
    tokenizer: TokenizerOpt = None,
    part: Annotated[
        str, typer.Option("--part", metavar="K/N", help="Make the K-th of N shares only, beside other processes.")
    ] = "",
    vocab_size: Annotated[int | None, typer.Option("--vocab-size", metavar="N", help="Sets data.vocab_size.")] = None,
    seq_len: Annotated[int | None, typer.Option("--seq-len", metavar="N", help="Sets data.sequence_length.")] = None,
    recipe_file: RecipeOpt = None,
    changes: SetOpt,
    overwrite: OverwriteOpt = False,
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> int:
    """\b
    lsp prepare corpus/ --vocab-size 8192 --seq-len 128 --out data/corpus

    Train a tokenizer on raw text, unless one is given, and pack the text into
    rows of tokens for pretraining. TEXT is files, folders or globs, datasets
    saved to disk, or addresses; with NAME=WEIGHT:TEXT each source fills its
    share of an epoch. The same command continues what was stopped, and finishes
    what processes with --part K/N and the same --out began.
    """
    sizes = {"data.vocab_size": vocab_size, "data.sequence_length": seq_len}
    given = [f"{key}={value}" for key, value in sizes.items() if value is not None]
    plan = recipe.load(recipe.Prepare, recipe_file, [*given, *changes])
    share = parse_part(part, tokenizer, overwrite)
    need_text(*text, out=out, option="TEXT")
    need(tokenizer)
    apart(out, tokenizer, "--tokenizer")
    from lsp.commands import prepare as verb

    made = verb.run(text, out, plan, tokenizer, overwrite=overwrite, progress=console.Progress(quiet), part=share)
    return report(made, as_json)


@data.command(short_help="What training reads, as text with the masks marked.")
def peek(
    *,
    path: Annotated[Path, typer.Argument(metavar="DATA", help="What lsp prepare made.", show_default=False)],
    rows: Annotated[int, typer.Option("--rows", metavar="N", help="Rows to show.", min=1, max=100_000)] = 3,
    step: Annotated[
        int, typer.Option("--step", metavar="S", help="The batch to begin with.", min=0, max=2**31 - 1)
    ] = 0,
    recipe_file: RecipeOpt = None,
    changes: SetOpt,
    as_json: JsonOpt = False,
) -> int:
    """\b
    lsp data peek data/corpus --rows 2 --set data.masking=word

    Show rows of prepared data as text, documents apart, with what is hidden and
    what stands there instead, as step S of lsp pretrain with the same recipe
    reads them (with --valid; without, it holds some rows back).
    """
    plan = recipe.load(recipe.Pretrain, recipe_file, changes)
    need(path, code=Exit.DATA)
    from lsp.commands import peek as verb

    found = verb.run(path, plan, rows, step)
    if as_json:
        return report(found, as_json)
    console.to_stdout(verb.render(found))
    return Exit.DONE


@app.command(short_help="Text to an encoder: masked language modelling.")
def pretrain(
    *,
    data: Annotated[
        list[str],
        typer.Option("--data", metavar="PATH...", help="Prepared data, or text as for lsp prepare; - is stdin."),
    ],
    out: OutOpt,
    valid: Annotated[
        list[str],
        typer.Option(
            "--valid", metavar="PATH...", help="Held-out text to measure on.", default_factory=list, show_default=False
        ),
    ],
    begin: Annotated[
        Path | None, typer.Option("--from", metavar="RUN", help="Start from these weights and their tokenizer.")
    ] = None,
    teacher: Annotated[
        Path | None, typer.Option("--teacher", metavar="RUN", help="Learn to guess as this encoder does.")
    ] = None,
    tokenizer: TokenizerOpt = None,
    recipe_file: RecipeOpt = None,
    changes: SetOpt,
    budget: BudgetOpt = "",
    coordinator: CoordinatorOpt = "",
    count: ProcessesOpt = None,
    index: ProcessIdOpt = None,
    tracker: TrackerOpt,
    overwrite: OverwriteOpt = False,
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> int:
    """\b
    lsp pretrain --data corpus --recipe recipes/pretrain/mini.toml --out runs/mini

    Train an encoder on raw text by guessing masked words. The same command
    continues a run that was stopped.
    """
    seconds = parse_duration(budget)
    # The default number of steps gives way to a budget; one that was asked for does not.
    plan = recipe.load(recipe.Pretrain, recipe_file, changes, recipe.ENDLESS if seconds else None)
    together.pretrain(changes, teacher is not None)
    need_text(*data, out=out)
    need_text(*valid, out=out, option="--valid")
    need(begin, tokenizer, teacher)
    for option, path in (("--from", begin), ("--teacher", teacher), ("--tokenizer", tokenizer)):
        apart(out, path, option)
    need_trackers(tracker)
    launch = launched(coordinator, count, index)
    progress = console.Progress(quiet or (launch is not None and launch.index > 0))
    from lsp.commands import pretrain as verb
    from lsp.train import processes
    from lsp.train.options import Options

    options = Options(progress, overwrite, seconds, tracker)
    with processes.joined(launch, lambda error: console.fail(error, as_json, "pretrain")):
        made = verb.run(data, out, plan, tokenizer, begin, valid, options, teacher)
    return report(made, as_json) if made else Exit.DONE
