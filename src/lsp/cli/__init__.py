"""The front door: parse, load the recipe, call one verb, print its result, and turn whatever goes wrong into a sentence
and an exit code.

Typer and the recipes are imported here, verbs inside the commands: `lsp --help` and every mistake in the command or the
recipe answer before jax is loaded.
"""

import io
import os
import sys
import traceback
from collections.abc import Sequence

import typer

from lsp import Exit, Stopped, cache, console, interrupt, processor
from lsp.allocator import keep_freed_memory
from lsp.arguments import spread
from lsp.cli import compress, corpus, exchange, labels, runs  # noqa: F401  they add their commands, in this order
from lsp.cli.app import app
from lsp.failures import explain, root

__all__ = ["app", "main"]
ANSWERING = ("bench", "evaluate", "explain", "predict")  # commands that train nothing
TELLING = ("data peek", "doctor", "inspect", "plan", "plot", "replay", "report", "verify")  # nor save what they do


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line and returns the exit code. Nothing but a bug under LSP_DEBUG shows a traceback."""
    words = spread(sys.argv[1:] if arguments is None else arguments)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the shell: nobody reads it, and the work goes on
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # texts are UTF-8 in every locale, and nothing is unprintable
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    # Both are read when jax is loaded: XLA's own chatter off, compiled programs kept between runs.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(cache.folder("jax") / processor.kind()))
    keep_freed_memory(one_heap=command_in(words) not in ANSWERING)
    try:
        with interrupt.listening():
            return int(typer.main.get_command(app).main(words, prog_name="lsp", standalone_mode=False) or 0)
    except SystemExit as leave:  # how Typer leaves when the reader of its help went away
        return Exit.DONE if isinstance(leave.__context__, BrokenPipeError) else Exit.BUG
    except BaseException as error:
        if os.environ.get("LSP_DEBUG"):
            traceback.print_exc()
        error = root(error)
        failure = explain(error, command_in(words) not in (*ANSWERING, *TELLING), words)
        status = "stopped" if isinstance(error, Stopped | KeyboardInterrupt | typer.Abort) else "failed"
        console.fail(failure, "--json" in words, command_in(words), status)
        return int(failure.code)


def command_in(words: Sequence[str]) -> str:
    """The command that was asked for, as in `compress quantize`; empty when none can be made out."""
    names = [word for word in words if not word.startswith("-")]  # "verify resume" is one word by now
    return " ".join(names[:2] if names[:1] in (["compress"], ["data"]) else names[:1])
