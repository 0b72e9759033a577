"""The chain of compress stages for a goal."""

from typing import Annotated

import typer

from lsp import Exit, recipe
from lsp.arguments import (
    DevOpt,
    FromOpt,
    JsonOpt,
    LabelColumnOpt,
    OutOpt,
    OverwriteOpt,
    QuietOpt,
    RecipeOpt,
    SetOpt,
    TextColumnOpt,
    TrainOpt,
    apart,
    need,
    parse_size,
)
from lsp.cli.app import compress, report
from lsp.cli.labels import training


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
        float, typer.Option("--min-speedup", metavar="N", min=0.0, help="Times as fast at least; 0: as fast as can be.")
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
    first, until one meets the goal; exit 1 naming the closest if none does. The
    chain is left as a recipe, OUT/chain.toml, that makes it again.
    """
    plan = recipe.load(recipe.Search, recipe_file, changes)
    size = parse_size(max_size)
    need(train, dev, code=Exit.DATA)
    need(begin)
    apart(out, begin)
    options = training(quiet, overwrite, budget, [])
    from lsp.commands import search as verb
    from lsp.compress.search import Goal
    from lsp.train.labelled import Files

    files, goal = Files(train, dev, (tuple(text_column), label_column)), Goal(max_drop, min_speedup, size)
    return report(verb.run(begin, out, plan, files, goal, options), as_json)
