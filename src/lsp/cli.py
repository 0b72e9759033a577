"""The front door: parse, load the recipe, call one verb, print its result, and turn whatever goes wrong into a sentence
and an exit code.

Typer and the recipes are imported here, verbs inside the commands: `lsp --help` and every mistake in the command or the
recipe answer before jax is loaded.
"""

import io
import os
import platform
import re
import sys
import traceback
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from lsp import Exit, LspError, Stopped, __version__, console, interrupt, recipe
from lsp.allocator import keep_freed_memory
from lsp.arguments import (
    BudgetOpt,
    CoordinatorOpt,
    DevOpt,
    FromOpt,
    JsonOpt,
    LabelColumnOpt,
    OutOpt,
    OverwriteOpt,
    ProcessesOpt,
    ProcessIdOpt,
    QuietOpt,
    RecipeOpt,
    RunArg,
    SetOpt,
    TextColumnOpt,
    TokenizerOpt,
    TrackerOpt,
    TrainOpt,
    apart,
    need,
    need_package,
    need_trackers,
    parse_duration,
    parse_part,
    spread,
)
from lsp.failures import explain
from lsp.launch import launched

app = typer.Typer(
    name="lsp",
    help="Raw text to a small, fast, well-measured text classifier.\n\nA first look, without a download: lsp demo",
    add_completion=False,
    rich_markup_mode=None,  # plain help: quick, and the same in a terminal, a pipe and docs/cli.md
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)
compress = typer.Typer(help="Make a classifier smaller or faster. Every stage reads a run and writes one: they chain.")
app.add_typer(compress, name="compress")
data = typer.Typer(help="Look at prepared data.")
app.add_typer(data, name="data")


@app.callback(invoke_without_command=True)
def start(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    if version:
        console.to_stdout(f"lsp {__version__}")
    elif context.invoked_subcommand is None:
        console.to_stdout(context.get_help())


@compress.callback(invoke_without_command=True)
@data.callback(invoke_without_command=True)
def start_group(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        console.to_stdout(context.get_help())


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
    need_text(*text)
    need(tokenizer)
    from lsp.commands import prepare as verb

    made = verb.run(text, out, plan, tokenizer, overwrite=overwrite, progress=console.Progress(quiet), part=share)
    return report(made, as_json)


@data.command(short_help="What training reads, as text with the masks marked.")
def peek(
    *,
    path: Annotated[Path, typer.Argument(metavar="DATA", help="What lsp prepare made.", show_default=False)],
    rows: Annotated[int, typer.Option("--rows", metavar="N", help="Rows to show.", min=1)] = 3,
    step: Annotated[int, typer.Option("--step", metavar="S", help="The batch to begin with.", min=0)] = 0,
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
    if seconds and not plan.train.steps and plan.data.mask_rate_end not in (0, plan.data.mask_rate):
        raise LspError(
            "data.mask_rate_end is reached at the last step, and with --budget alone no step is known to be the last.",
            hint="Add --set train.steps=N, or leave out data.mask_rate_end.",
        )
    need_text(*data)
    need_text(*valid, weights=False)
    need(begin, tokenizer)
    apart(out, begin)
    need_trackers(tracker)
    launch = launched(coordinator, count, index)
    progress = console.Progress(quiet or (launch is not None and launch.index > 0))
    from lsp.commands import pretrain as verb
    from lsp.train import processes

    with processes.joined(launch, lambda error: console.fail(error, as_json, "pretrain")):
        made = verb.run(
            data,
            out,
            plan,
            tokenizer,
            begin,
            valid,
            budget=seconds,
            track=tracker,
            overwrite=overwrite,
            progress=progress,
        )
    return report(made, as_json) if made else Exit.DONE


@app.command(short_help="An encoder and labelled examples to a classifier.")
def finetune(
    *,
    begin: Annotated[
        str,
        typer.Option("--from", metavar="RUN|scratch", help="Encoder, or 'scratch' for random weights."),
    ],
    train: TrainOpt,
    dev: DevOpt,
    out: OutOpt,
    text_column: TextColumnOpt,
    label_column: LabelColumnOpt = "",
    tokenizer: TokenizerOpt = None,
    recipe_file: RecipeOpt = None,
    changes: SetOpt,
    budget: BudgetOpt = "",
    tracker: TrackerOpt,
    overwrite: OverwriteOpt = False,
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> int:
    """\b
    lsp finetune --from runs/mini --train train.tsv --dev dev.tsv --out runs/sst2

    Train a classifier on top of an encoder; one sentence or a pair. With
    --from scratch it starts from random weights and needs --tokenizer.
    """
    plan = recipe.load(recipe.Finetune, recipe_file, changes)
    columns = (tuple(text_column), label_column)
    need(train, dev, code=Exit.DATA)
    need(tokenizer)
    if begin != "scratch":
        need(begin)
        apart(out, Path(begin))
    elif tokenizer is None:
        raise LspError(
            "--from scratch has no tokenizer.", hint="Add --tokenizer DIR: prepared data or any run has one."
        )
    seconds = parse_duration(budget)
    need_trackers(tracker)
    from lsp.commands import finetune as verb

    progress = console.Progress(quiet)
    made = verb.run(
        begin,
        train,
        dev,
        out,
        plan,
        columns,
        tokenizer,
        budget=seconds,
        track=tracker,
        overwrite=overwrite,
        progress=progress,
    )
    return report(made, as_json)


@compress.command(short_help="Int8 weights and activations: smaller and faster.")
def quantize(
    *,
    begin: FromOpt,
    out: OutOpt,
    dev: Annotated[
        Path | None, typer.Option("--dev", metavar="FILE", help="Labelled examples to measure before and after with.")
    ] = None,
    text_column: TextColumnOpt,
    label_column: LabelColumnOpt = "",
    recipe_file: RecipeOpt = None,
    changes: SetOpt,
    overwrite: OverwriteOpt = False,
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> int:
    """\b
    lsp compress quantize --from runs/sst2 --dev dev.tsv --out runs/sst2-int8

    Int8 weights and activations: a quarter of the bytes, and faster where the
    processor multiplies int8.
    """
    plan = recipe.load(recipe.Quantize, recipe_file, changes)
    columns = (tuple(text_column), label_column)
    need(dev, code=Exit.DATA)
    need(begin)
    apart(out, begin)
    from lsp.commands import quantize as verb

    return report(
        verb.run(begin, out, plan, dev, columns, overwrite=overwrite, progress=console.Progress(quiet)), as_json
    )


@compress.command(short_help="Zeros in the encoder's matrices: smaller, not faster.")
def prune(
    *,
    begin: FromOpt,
    train: TrainOpt,
    dev: DevOpt,
    out: OutOpt,
    text_column: TextColumnOpt,
    label_column: LabelColumnOpt = "",
    recipe_file: RecipeOpt = None,
    changes: SetOpt,
    budget: BudgetOpt = "",
    tracker: TrackerOpt,
    overwrite: OverwriteOpt = False,
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> int:
    """\b
    lsp compress prune --from runs/sst2 --train train.tsv --dev dev.tsv \\
        --set prune.sparsity=0.5 --out runs/sst2-pruned

    Set the smallest weights of the encoder to zero, little by little, training
    on. Zeros are stored packed: smaller, not faster.
    """
    plan = recipe.load(recipe.Prune, recipe_file, changes)
    columns = (tuple(text_column), label_column)
    need(train, dev, code=Exit.DATA)
    need(begin)
    apart(out, begin)
    seconds = parse_duration(budget)
    need_trackers(tracker)
    from lsp.commands import prune as verb

    progress = console.Progress(quiet)
    made = verb.run(
        begin, out, plan, train, dev, columns, budget=seconds, track=tracker, overwrite=overwrite, progress=progress
    )
    return report(made, as_json)


@compress.command(short_help="A smaller student that learns a classifier's answers.")
def distill(
    *,
    begin: FromOpt,
    train: TrainOpt,
    dev: DevOpt,
    out: OutOpt,
    text_column: TextColumnOpt,
    label_column: LabelColumnOpt = "",
    recipe_file: RecipeOpt = None,
    changes: SetOpt,
    budget: BudgetOpt = "",
    tracker: TrackerOpt,
    overwrite: OverwriteOpt = False,
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> int:
    """\b
    lsp compress distill --from runs/sst2 --train train.tsv --dev dev.tsv \\
        --recipe recipes/compress/distill.toml --out runs/sst2-small

    Train a smaller student, described by the recipe's [model], to give the
    answers of the run in --from.
    """
    plan = recipe.load(recipe.Distill, recipe_file, changes)
    columns = (tuple(text_column), label_column)
    need(train, dev, code=Exit.DATA)
    need(begin)
    apart(out, begin)
    seconds = parse_duration(budget)
    need_trackers(tracker)
    from lsp.commands import distill as verb

    progress = console.Progress(quiet)
    made = verb.run(
        begin, out, plan, train, dev, columns, budget=seconds, track=tracker, overwrite=overwrite, progress=progress
    )
    return report(made, as_json)


@app.command(short_help="Metrics on labelled examples, and a gate for CI.")
def evaluate(
    *,
    begin: FromOpt,
    data: Annotated[
        Path, typer.Option("--data", metavar="FILE", help="Labelled .tsv, .csv or .jsonl.", show_default=False)
    ],
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
    text_column: TextColumnOpt,
    label_column: LabelColumnOpt = "",
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> int:
    """\b
    lsp evaluate --from runs/sst2 --data dev.tsv --min accuracy=0.9

    Measure a classifier on labelled examples. Exits 1 when a --min is missed.
    """
    for gate in gates:
        if not re.fullmatch(r"\w+=[-+]?\d*\.?\d+(e[-+]?\d+)?", gate):
            raise LspError(f"--min {gate} is not METRIC=VALUE.", hint="Write it as in --min accuracy=0.9.")
    columns = (tuple(text_column), label_column)
    need(data, code=Exit.DATA)
    need(begin)
    from lsp.commands import evaluate as verb

    measured = verb.run(begin, data, columns, gates, progress=console.Progress(quiet))
    report(measured, as_json)
    return Exit.DONE if all(gate["passed"] for gate in measured["gates"]) else Exit.NO


@app.command(short_help="Labels and probabilities, or guessed words, row by row.")
def predict(
    *,
    begin: FromOpt,
    source: Annotated[str, typer.Argument(metavar="FILE", help="A table of texts; - is stdin.")] = "-",
    text_column: TextColumnOpt,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a row.")] = False,
    quiet: QuietOpt = False,
) -> int:
    """\b
    lsp predict --from runs/sst2 reviews.tsv > labels.tsv

    Labels and probabilities on stdout, a row for each row read, in order. An
    encoder without labels guesses the words behind [MASK].
    """
    if source == "-" and sys.stdin is not None and sys.stdin.isatty():
        raise LspError("There is nothing to read.", hint="Name a file, or pipe one in: lsp predict --from RUN < FILE")
    need(source, code=Exit.DATA)
    need(begin)
    from lsp.commands import predict as verb

    try:
        verb.run(begin, source, (tuple(text_column), ""), sys.stdout, as_json, progress=console.Progress(quiet))
        sys.stdout.flush()
    except BrokenPipeError:
        console.hang_up()
    return Exit.DONE


@app.command(short_help="What a run holds and what it was made from.")
def inspect(*, run: RunArg, as_json: JsonOpt = False) -> int:
    """\b
    lsp inspect runs/sst2

    Stage, model, size, labels, metrics, compression so far, and the hashes of
    the runs it was made from.
    """
    need(run)
    from lsp.commands import inspect as verb

    return report(verb.run(run), as_json)


@app.command(short_help="What a pretraining recipe takes, before any of it is spent.")
def plan(
    *,
    recipe_file: Annotated[Path, typer.Argument(metavar="RECIPE", help="TOML for lsp pretrain.", show_default=False)],
    devices: Annotated[int, typer.Option("--devices", metavar="N", min=1, help="Devices that share the work.")] = 1,
    accelerator: Annotated[
        str,
        typer.Option("--accelerator", metavar="NAME", help="As in h200 or v5e; this processor if left out."),
    ] = "",
    topology: Annotated[
        str, typer.Option("--topology", metavar="KIND:SHAPE", help="A TPU slice, as in v5e:16x16; needs lsp[tpu].")
    ] = "",
    mfu: Annotated[
        float, typer.Option("--mfu", metavar="SHARE", min=0.0, max=1.0, help="Share of the peak that is reached.")
    ] = 0.0,
    price: Annotated[float, typer.Option("--price", metavar="MONEY", min=0.0, help="Of a device for an hour.")] = 0.0,
    tokens: Annotated[
        float, typer.Option("--tokens", metavar="N", min=0.0, help="Train on so many, as in 1e12, not train.steps.")
    ] = 0.0,
    changes: SetOpt,
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> int:
    """\b
    lsp plan recipes/pretrain/base.toml --devices 8 --accelerator h200 --price 3.5

    Memory by kind, traffic between devices, time, cost and disk of a recipe, from
    compiling its real training step, with nothing allocated: for devices imitated
    on this one, or for the chips of a TPU slice with the TPU compiler, which needs
    no TPU.
    """
    chosen = recipe.load(recipe.Pretrain, recipe_file, changes)
    if topology and (accelerator or devices > 1):
        raise LspError("--topology says kind and number of devices itself.", hint="Leave out the other two options.")
    from lsp.commands import plan as verb

    made = verb.run(
        recipe_file, chosen, devices, accelerator, topology, mfu, price, tokens, progress=console.Progress(quiet)
    )
    return report(made, as_json)


@app.command(short_help="Curves of one or several runs on one chart.")
def plot(
    *,
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Runs that train or trained.")],
    metric: Annotated[
        str, typer.Option("--metric", metavar="NAME", help="What to draw; held-out values come with it.")
    ] = "loss",
    axis: Annotated[Literal["step", "tokens", "seconds"], typer.Option("--x", help="What to draw it over.")] = "step",
    log: Annotated[bool, typer.Option("--log", help="A logarithmic scale for the metric.")] = False,
    smooth: Annotated[
        int, typer.Option("--smooth", metavar="N", min=0, help="Lines to take the mean of; 1 is none, 0 chooses.")
    ] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="A picture as well: .png, .svg or .pdf.")
    ] = None,
    as_json: JsonOpt = False,
) -> int:
    """\b
    lsp plot runs/mini runs/base --out curves.png

    Curves of a metric on one chart, here and as a picture. Lines are what was
    logged in training, points what evaluations on held-out data found.
    """
    need(*runs)
    if out is not None:
        if out.suffix.lower() not in (".png", ".svg", ".pdf"):
            raise LspError(f"--out {out} is no kind of picture.", hint="End its name in .png, .svg or .pdf.")
        need(out.parent, code=Exit.USAGE)
        need_package("matplotlib", "plots", f"--out {out}")
        # matplotlib keeps a list of the fonts it found.
        os.environ.setdefault("MPLCONFIGDIR", str(cache_folder("matplotlib")))
    from lsp.commands import plot as verb

    made, lines = verb.run(runs, metric, axis, log, smooth, out)
    if as_json:
        return report(made, as_json)
    console.to_stdout("\n".join(lines))
    return Exit.DONE


@app.command(short_help="Is every byte of a run as it was written?")
def verify(*, run: RunArg, as_json: JsonOpt = False) -> int:
    """\b
    lsp verify runs/sst2

    Read every file of a run and compare it with the manifest. Exits 4 and names
    the file when one differs.
    """
    need(run)
    from lsp.commands import verify as verb

    return report(verb.run(run), as_json)


@app.command("verify resume", short_help="Does a killed run equal one that was left alone?")
def verify_resume(
    *,
    data: Annotated[
        list[str], typer.Option("--data", metavar="PATH...", help="As for lsp pretrain; prepared data is quicker.")
    ],
    out: OutOpt,
    tokenizer: TokenizerOpt = None,
    recipe_file: RecipeOpt = None,
    changes: SetOpt,
    steps: Annotated[int, typer.Option("--steps", metavar="N", min=2, help="Length of the runs; each is saved.")] = 20,
    kills: Annotated[int, typer.Option("--kills", metavar="N", min=1, help="How often to kill.")] = 3,
    overwrite: OverwriteOpt = False,
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> int:
    """\b
    lsp verify resume --data data/corpus --recipe mini.toml --out proof

    Pretrain twice on this machine, for a few steps: once left alone, once killed
    at random moments, also in the middle of a save, and continued. Exits 0 when
    every saved state and the finished model are equal bit by bit, else 1, naming
    the first step and tensor that differ. Needs room for 2N saved states. (A run
    that is called resume is verified as ./resume.)
    """
    plan = recipe.load(recipe.Pretrain, recipe_file, changes)
    need_text(*data)
    need(tokenizer)
    if "-" in data:
        raise LspError("--data - can be read only once, and two runs need it.", hint="Write it to a file first.")
    from lsp.commands import verify_resume as verb

    progress = console.Progress(quiet)
    found = verb.run(data, out, plan, tokenizer, steps=steps, kills=kills, overwrite=overwrite, progress=progress)
    report(found, as_json)
    return Exit.DONE if found["equal"] else Exit.NO


@app.command(short_help="A training step that went wrong, again, in fp32.")
def replay(
    *,
    box: Annotated[Path, typer.Argument(metavar="BOX", help="RUN/blackbox/STEP.", show_default=False)],
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> int:
    """\b
    lsp replay runs/mini/blackbox/00001234

    Do a refused step again, as it was and in fp32: loss, norms part by part, the
    first part whose output or gradient is not finite, the texts with the largest
    loss. A run that stumbles prints this line.
    """
    need(box)
    from lsp.commands import replay as verb

    return report(verb.run(box, progress=console.Progress(quiet)), as_json)


@app.command(short_help="Is this machine set up?")
def doctor(*, as_json: JsonOpt = False) -> int:
    """\b
    lsp doctor

    Python, jax and its partner, devices, cores, memory, disk, the int8
    instructions and the cache folder, each with a fix where one is needed.
    Exits 5 when lsp cannot work here.
    """
    from lsp.commands import doctor as verb

    found = verb.run()
    report(found, as_json)
    return Exit.MACHINE if found["status"] == "failed" else Exit.DONE


def need_text(*arguments: str, weights: bool = True) -> None:
    """Raises LspError when an argument that names raw text is badly weighted, or a path on this machine is missing."""
    from lsp.data import files, remote

    sources = files.sources(arguments)
    if sources[0].name and not weights:
        raise LspError(
            f"Text to measure on has no weight, and {sources[0].name} has one.", hint="Give --valid paths alone."
        )
    paths = [path for source in sources for path in source.paths]
    need(*(path for path in paths if not remote.is_remote(path)), code=Exit.DATA)


def report(made: dict[str, Any], as_json: bool) -> int:
    """Print a result; the exit code of a command that did its work."""
    console.result(made, as_json)
    return Exit.DONE


# --- the one place where failures become a sentence and a code ------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code. Nothing but a bug under LSP_DEBUG shows a traceback."""
    words = spread(sys.argv[1:] if arguments is None else arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # texts are UTF-8 in every locale, and nothing is unprintable
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    # Both are read when jax is loaded: XLA's own chatter off, compiled programs kept between runs.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache_folder("jax") / processor()))
    keep_freed_memory()
    try:
        with interrupt.listening():
            return int(typer.main.get_command(app).main(words, prog_name="lsp", standalone_mode=False) or 0)
    except SystemExit as leave:  # how Typer leaves when the reader of its help went away
        return Exit.DONE if isinstance(leave.__context__, BrokenPipeError) else Exit.BUG
    except BaseException as error:
        if os.environ.get("LSP_DEBUG"):
            traceback.print_exc()
        failure = explain(error)
        status = "stopped" if isinstance(error, Stopped | KeyboardInterrupt | typer.Abort) else "failed"
        console.fail(failure, "--json" in words, command_in(words), status)
        return int(failure.code)


def cache_folder(name: str) -> Path:
    """The place for what is kept between runs and can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "lsp" / name


def processor() -> str:
    """The kind of processor, as a name: compiled programs of another kind do not run here, and a home may be shared."""
    kind = platform.machine()
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
        flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
        kind += f"-{zlib.crc32(flags.encode()):08x}"
    return kind


def command_in(words: Sequence[str]) -> str:
    """The command that was asked for, as in `compress quantize`; empty when none can be made out."""
    names = [word for word in words if not word.startswith("-")]  # "verify resume" is one word by now
    return " ".join(names[:2] if names[:1] in (["compress"], ["data"]) else names[:1])
