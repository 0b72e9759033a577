"""A classifier made smaller, stage by stage or by the chain of stages that meets a goal."""

from pathlib import Path
from typing import Annotated, Any

import typer

from lsp import Exit, LspError, recipe
from lsp.arguments import (
    BudgetOpt,
    CalibratedOpt,
    DevOpt,
    FromOpt,
    JsonOpt,
    KeptOpt,
    LabelColumnOpt,
    MeasuredOpt,
    MethodOpt,
    OutOpt,
    OverwriteOpt,
    QuietOpt,
    RecipeOpt,
    SetOpt,
    TextColumnOpt,
    TrackerOpt,
    TrainOpt,
    apart,
    need,
    need_tables,
    parse_size,
)
from lsp.cli.app import compress, report, training
from lsp.recipe import together


@compress.command(short_help="Int8 weights and activations: smaller and faster.")
def quantize(
    *,
    begin: FromOpt,
    out: OutOpt,
    dev: MeasuredOpt = None,
    train: CalibratedOpt = None,
    text_column: TextColumnOpt,
    label_column: LabelColumnOpt = "",
    method: MethodOpt = "",
    most: KeptOpt = None,
    recipe_file: RecipeOpt = None,
    changes: SetOpt,
    budget: BudgetOpt = "",
    tracker: TrackerOpt,
    overwrite: OverwriteOpt = False,
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> int:
    """\b
    lsp compress quantize --from runs/sst2 --dev dev.tsv --out runs/sst2-int8

    Int8 weights and activations: a quarter of the bytes, and faster where the
    processor multiplies int8. With --max-drop 0.5 it says what each part costs
    alone, and those that cost most stay float until accuracy falls by no more than
    half a percent point; exits 1 where that leaves nothing in int8.
    --method weights leaves activations float: smaller, with --set quantize.bits=4
    eight times, but not faster. static, the fastest, and what else [quantize] has
    to choose in docs/recipes.md, calibrates on --train; trained learns on it in
    int8.
    """
    plan = recipe.load(recipe.Quantize, recipe_file, changes)
    if method:
        plan = recipe.load(recipe.Quantize, None, [f"quantize.method={method}"], plan, "--method")
    if most is not None:
        plan = recipe.load(recipe.Quantize, None, [f"quantize.max_drop={most}"], plan, "--max-drop")
    together.quantize(plan, changes)
    if plan.quantize.method != "trained" and (budget or tracker):
        raise LspError("--budget and --tracker are for training.", hint="Add --method trained, or leave them out.")
    need_examples(plan.quantize, train, dev)
    columns = (tuple(text_column), label_column)
    need_tables(train, dev)
    need(begin)
    apart(out, begin)
    options = training(quiet, overwrite, budget, tracker)
    from lsp.commands import quantize as verb

    made = verb.run(begin, out, plan, dev, columns, options, train)
    report(made, as_json)
    return Exit.DONE if all(gate["passed"] for gate in made["gates"]) else Exit.NO


def need_examples(plan: recipe.Quantization, train: Path | None, dev: Path | None) -> None:
    """Raises LspError where the recipe asks for a file that was not given."""
    if plan.calibrates and train is None:
        what = "to train on" if plan.method == "trained" else "to calibrate with"
        raise LspError(f"[quantize] asks for examples {what}.", hint="Add --train FILE, as in lsp finetune.")
    measured = {
        "--max-drop": plan.max_drop >= 0,
        "--method trained": plan.method == "trained",
        "quantize.sensitivity": plan.sensitivity,
    }
    if dev is None and (option := next((option for option, asked in measured.items() if asked), "")):
        raise LspError(f"{option} has nothing to measure with.", hint="Add --dev FILE, labelled examples.")


@compress.command(short_help="Less: weights, heads and units, or pieces of the vocabulary.")
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
        --set prune.what=structure --set prune.speedup=2 --out runs/sst2-fast

    Remove what the classifier can do without, then train to answer as before.
    prune.what is weights (those that prune.score judges least become zeros,
    little by little, stored packed: smaller, not faster), structure (heads
    and feed-forward units, until it is prune.speedup times as fast on this
    machine, after whole layers and hidden width where prune.depth and
    prune.channels ask for less) or vocabulary (pieces that the examples do not
    use: smaller).
    """
    plan = recipe.load(recipe.Prune, recipe_file, changes)
    together.prune(plan, changes)
    columns = (tuple(text_column), label_column)
    need_tables(train, dev)
    need(begin)
    apart(out, begin)
    options = training(quiet, overwrite, budget, tracker)
    from lsp.commands import prune_structure, prune_vocabulary, prune_weights
    from lsp.train.labelled import Files

    verbs: Any = {"weights": prune_weights, "structure": prune_structure, "vocabulary": prune_vocabulary}
    return report(verbs[plan.prune.what].run(begin, out, plan, Files(train, dev, columns), options), as_json)


@compress.command(short_help="A smaller student that learns a classifier's answers.")
def distill(
    *,
    begin: FromOpt,
    train: TrainOpt,
    dev: DevOpt,
    out: OutOpt,
    augmenter: Annotated[
        Path | None,
        typer.Option("--augmenter", metavar="RUN", help="Masked LM that proposes words for distill.augment."),
    ] = None,
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
    together.distill(plan)
    columns = (tuple(text_column), label_column)
    need_tables(train, dev)
    need(begin, augmenter)
    apart(out, begin)
    apart(out, augmenter, "--augmenter")
    options = training(quiet, overwrite, budget, tracker)
    from lsp.commands import distill as verb
    from lsp.train.labelled import Files

    return report(verb.run(begin, out, plan, Files(train, dev, columns), options, augmenter), as_json)


@compress.command(short_help="The chain of these stages for a budget, found on this machine.")
def search(
    *,
    begin: FromOpt,
    train: TrainOpt,
    dev: DevOpt,
    out: OutOpt,
    max_drop: Annotated[
        float, typer.Option("--max-drop", metavar="POINTS", min=0.0, help="Points of the metric that may be lost.")
    ] = 1.0,
    min_speedup: Annotated[
        float,
        typer.Option(
            "--min-speedup",
            metavar="N",
            min=0.0,
            max=1000.0,
            help="Times as fast at least, to within 3 %; 0: as fast as can be.",
        ),
    ] = 0.0,
    max_size: Annotated[str, typer.Option("--max-size", metavar="SIZE", help="Such as 20MB.")] = "",
    text_column: TextColumnOpt,
    label_column: LabelColumnOpt = "",
    recipe_file: RecipeOpt = None,
    changes: SetOpt,
    budget: Annotated[str, typer.Option("--budget", metavar="TIME", help="Begin nothing more after 30m or 2h.")] = "1h",
    overwrite: OverwriteOpt = False,
    as_json: JsonOpt = False,
    quiet: QuietOpt = False,
) -> int:
    """\b
    lsp compress search --from runs/sst2 --train train.tsv --dev dev.tsv \\
        --max-drop 1 --min-speedup 4 --max-size 20MB --out runs/sst2-best

    Try chains of vocabulary, structure and int8 on this machine, the cheap ones
    first, until one meets the goal (where structure goes: one that was trained,
    for others lose more on new texts); exit 1 naming the closest if none does. The
    chain is left as a recipe, OUT/chain.toml, that makes it again, and all that
    was tried in OUT/candidates, a run each; OUT/pareto.png and the terminal draw
    them by speed and points lost.
    """
    plan = recipe.load(recipe.Search, recipe_file, changes)
    together.search(plan)
    size = parse_size(max_size)
    need_tables(train, dev)
    need(begin)
    apart(out, begin)
    options = training(quiet, overwrite, budget, [])
    from lsp.commands import prune_structure, prune_vocabulary
    from lsp.commands import quantize as int8
    from lsp.commands import search as verb
    from lsp.compress.search import Goal
    from lsp.train.labelled import Files

    files, goal = Files(train, dev, (tuple(text_column), label_column)), Goal(max_drop, min_speedup, size)
    stages = verb.Stages(prune_vocabulary.run, prune_structure.run, int8.run)
    return report(verb.run(begin, out, plan, files, goal, options, stages), as_json)
