"""Commands that look: at a run, at what one would take, at this machine."""

import math
import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from lsp import Exit, LspError, console, recipe
from lsp.arguments import (
    JsonOpt,
    OutOpt,
    OverwriteOpt,
    QuietOpt,
    RecipeOpt,
    RunArg,
    SetOpt,
    TextColumnOpt,
    TokenizerOpt,
    apart,
    need,
    need_package,
    parse_size,
)
from lsp.cli.app import app, need_text, report


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
    devices: Annotated[  # jax imitates no more than 2,048 in one process
        int, typer.Option("--devices", metavar="N", min=1, max=2048, help="Devices that share the work.")
    ] = 1,
    accelerator: Annotated[
        str,
        typer.Option("--accelerator", metavar="NAME", help="As in h200 or v5e; this processor if left out."),
    ] = "",
    topology: Annotated[
        str, typer.Option("--topology", metavar="KIND:SHAPE", help="A TPU slice, as in v5e:16x16; needs the extra tpu.")
    ] = "",
    mfu: Annotated[
        float, typer.Option("--mfu", metavar="SHARE", min=0.0, max=1.0, help="Share of the peak that is reached.")
    ] = 0.0,
    price: Annotated[
        float, typer.Option("--price", metavar="MONEY", min=0.0, max=1e9, help="Of a device for an hour.")
    ] = 0.0,
    tokens: Annotated[
        float,
        typer.Option("--tokens", metavar="N", min=0.0, max=1e18, help="Train on so many, as in 1e12, not train.steps."),
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

    hardware = verb.Hardware(devices, accelerator, topology, mfu, price)
    return report(verb.run(recipe_file, chosen, hardware, tokens, console.Progress(quiet)), as_json)


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
        need_picture("--out", out)
    from lsp.commands import plot as verb

    made, lines = verb.run(runs, metric, axis, log, smooth, out)
    if as_json:
        return report(made, as_json)
    console.to_stdout("\n".join(lines))
    return Exit.DONE


@app.command("report", short_help="One page: from text to the run, with all that was measured.")
def report_page(
    *,
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Runs, and folders to look for their parents in.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="The page; RUN.html beside the first run if left out.")
    ] = None,
    max_drop: Annotated[
        float | None,
        typer.Option("--max-drop", metavar="POINTS", help="Exit 1 where more is lost beside the parent, beyond noise."),
    ] = None,
    min_speedup: Annotated[
        float | None, typer.Option("--min-speedup", metavar="N", help="Exit 1 where it is not as many times as fast.")
    ] = None,
    max_size: Annotated[str, typer.Option("--max-size", metavar="SIZE", help="Exit 1 where larger, as in 20MB.")] = "",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the page of an earlier call.")] = False,
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> int:
    """\b
    lsp report runs/sst2-int8

    One HTML file to read, print or send: the run and all it was made from, what
    each stage lost and gained, curves, bytes, labels that flipped, what a search
    tried, and the commands that make it again. Parents are looked for beside the
    runs and in the folders given. A file that is there already is kept. The gates
    are for the first run.
    """
    size = parse_size(max_size)
    for option, limit in (("--max-drop", max_drop), ("--min-speedup", min_speedup)):
        if limit is not None and not math.isfinite(limit):
            raise LspError(f"{option} {limit} is no number.", hint=f"Write it as in {option} 1.5.")
    need(*runs)
    if out is not None:
        need(out.parent, code=Exit.USAGE)
    from lsp.commands import report as verb
    from lsp.report import Limits, summary

    limits = Limits(max_drop, min_speedup, size or None)
    made = verb.run(runs, out, limits, overwrite, console.Progress(quiet))
    report(made if as_json else summary(made), as_json)
    return Exit.DONE if all(gate["passed"] for gate in made["gates"]) else Exit.NO


@app.command(short_help="Latency and throughput on this machine, and what takes the bytes.")
def bench(
    *,
    run: Annotated[Path, typer.Argument(metavar="RUN", help="A run, or an export of one.", show_default=False)],
    others: Annotated[
        list[Path],
        typer.Option(
            "--against",
            metavar="RUN",
            help="A run or export to measure in turns with it; repeatable.",
            default_factory=list,
            show_default=False,
        ),
    ],
    data: Annotated[
        Path | None, typer.Option("--data", metavar="FILE", help="Texts to answer; else random ones of usual lengths.")
    ] = None,
    text_column: TextColumnOpt,
    lengths: Annotated[
        list[int], typer.Option("--length", metavar="N", min=3, help="Tokens of the one text; repeatable.")
    ] = [16, 64, 128],  # noqa: B006  Typer copies it
    batches: Annotated[
        list[int], typer.Option("--batch", metavar="N", min=2, help="Texts answered at once; repeatable.")
    ] = [32],  # noqa: B006
    rounds: Annotated[int, typer.Option("--rounds", metavar="N", min=3, help="Turns of each model, at most.")] = 50,
    seconds: Annotated[
        float, typer.Option("--seconds", metavar="S", min=0, help="For each table row's turns; 3 are made at least.")
    ] = 10.0,
    threads: Annotated[
        int | None, typer.Option("--threads", metavar="N", min=1, help="Processors to use; all if left out.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE", help="The chart as a picture: .png, .svg or .pdf.")
    ] = None,
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> int:
    """\b
    lsp bench runs/sst2-int8 --against runs/sst2 --data dev.tsv

    Milliseconds for one text, texts a second in batches and at the lengths of
    --data, bytes part by part. Models take turns, an int8 run with its float32
    self too, so that each "times as fast" is of one measurement; the first
    --against, else that self, counts as 1. Compiling is told apart.
    """
    need(run, *others)
    need(data, code=Exit.DATA)
    if plot is not None:
        need_picture("--plot", plot)
    if threads is not None:
        use_processors(threads)
    from lsp.commands import bench as verb
    from lsp.deploy.bench import Shapes
    from lsp.timing import Limits

    texts = verb.Texts(data, (tuple(text_column), ""))
    shapes, limits = Shapes(lengths, batches), Limits(rounds, seconds)
    made = verb.run([run, *others], texts, shapes, limits, plot, console.Progress(quiet))
    if not quiet:
        console.to_stderr("\n".join(made.lines))
    return report(made.result if as_json else made.summary, as_json)


def use_processors(count: int) -> None:
    """Keeps this process, and so XLA's threads that have yet to start, on so many of its processors. Raises LspError
    (exit 5) where there are fewer, or the system has no such call."""
    if not hasattr(os, "sched_setaffinity"):
        raise LspError("--threads needs Linux.", hint="Leave it out.", code=Exit.MACHINE)
    processors = sorted(os.sched_getaffinity(0))
    if count > len(processors):
        raise LspError(
            f"--threads {count}: this process may use {len(processors)} processors.",
            hint=f"Give at most --threads {len(processors)}.",
            code=Exit.MACHINE,
        )
    os.sched_setaffinity(0, processors[:count])


def need_picture(option: str, path: Path) -> None:
    """Raises LspError when a path is no picture's, or nothing is there to draw it with."""
    if path.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise LspError(f"{option} {path} is no kind of picture.", hint="End its name in .png, .svg or .pdf.")
    need(path.parent, code=Exit.USAGE)
    need_package("matplotlib", "plots", f"{option} {path}")


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
    need_text(*data, out=out)
    need(tokenizer)
    apart(out, tokenizer, "--tokenizer")
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
