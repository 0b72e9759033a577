"""The `lsp` command, also as `python -m lsp`: from the first line to the exit code.

Nothing slow is imported at the top, so that a Ctrl-C while the rest loads ends as any other does.
"""

import os
import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import NoReturn

from lsp import Exit


def run() -> NoReturn:
    """Runs the command line and exits with its code.

    A command that failed or was stopped ends at once: a compilation left behind in its thread would abort an orderly
    exit, and one of several processes would wait for the others.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave)
    from lsp.cli import main

    code = main()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the work is done, and its exit code is known
    if code:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    """A signal before the command has begun."""
    os.write(2, b"Stopped before anything was begun.\n")
    os._exit(Exit.INTERRUPTED if number == signal.SIGINT else Exit.STOPPED)


if __name__ == "__main__":
    run()
