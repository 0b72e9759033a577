"""The application that the commands add themselves to, in the order in which `lsp -h` shows them."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lsp import Exit, LspError, __version__, console
from lsp.arguments import apart, need, need_trackers, parse_duration

if TYPE_CHECKING:
    from lsp.train.options import Options

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


def report(made: dict[str, Any], as_json: bool) -> int:
    """Print a result; the exit code of a command that did its work."""
    console.result(made, as_json)
    return Exit.DONE


def need_text(*arguments: str, out: Path, option: str = "--data") -> None:
    """Raises LspError when an argument that names raw text is badly weighted, or a path on this machine is missing or
    would be written over."""
    from lsp.data import files, remote

    sources = files.sources(arguments)
    if sources[0].name and option == "--valid":
        raise LspError(
            f"Text to measure on has no weight, and {sources[0].name} has one.", hint="Give --valid paths alone."
        )
    paths = [path for source in sources for path in source.paths if not remote.is_remote(path)]
    need(*paths, code=Exit.DATA)
    for path in paths:
        apart(out, Path(path), option)


def training(quiet: bool, overwrite: bool, budget: str, tracker: list[str]) -> "Options":
    """How a command trains. Raises LspError for a budget that is none, and for trackers that are not there."""
    seconds = parse_duration(budget)
    need_trackers(tracker)
    from lsp.train.options import Options

    return Options(console.Progress(quiet), overwrite, seconds, tracker)
