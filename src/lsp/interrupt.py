"""SIGTERM and Ctrl-C, in every phase: an end that loses nothing.

The handler sets a flag. Where nothing unsaved exists (reading, tokenizing, compiling, the final report) it also ends
the phase at once by raising `Stopped`; inside `holding()` the work polls `check()` between its own units, saves, and
lets `Stopped` out. A second signal does not wait for the current unit. Nothing is ever raised into an import: native
modules crash when their start is cut short, so a timer asks again until it is over; nor into those functions of jax
that keep to themselves what is raised in them.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TypeVar

from lsp import Exit, Stopped

Result = TypeVar("Result")
DEAF = ("_xla_gc_callback", "_cache_read", "_cache_write")

_code: Exit | None = None
_held = False


@contextmanager
def listening() -> Iterator[None]:
    """Installs the handlers for the length of a command, and puts the old ones back."""
    global _code
    before = {number: signal.signal(number, _handle) for number in (signal.SIGTERM, signal.SIGINT)}
    before[signal.SIGALRM] = signal.signal(signal.SIGALRM, _ask_again)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        _code = None
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def holding() -> Iterator[None]:
    """Inside, a first signal only sets the flag: unsaved work is at stake and polls `check`."""
    global _held
    outer, _held = _held, True
    try:
        yield
    finally:
        _held = outer


def asked() -> int:
    """The exit code that a signal asks for, or 0."""
    return int(_code or 0)


def check() -> None:
    """Raises `Stopped` if a signal has come."""
    if _code is not None:
        raise Stopped(_code)


def apart(work: Callable[[], Result]) -> Result:
    """Runs `work` in a thread and waits, so that a signal is heard while it sits in compiled code (an XLA compile)."""
    done: list[Result] = []
    failed: list[BaseException] = []

    def target() -> None:
        try:
            done.append(work())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=target, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.1)
        check()
    if failed:
        raise failed[0]
    return done[0]


def _handle(number: int, frame: FrameType | None) -> None:
    global _code
    again, _code = _code is not None, Exit.STOPPED if number == signal.SIGTERM else Exit.INTERRUPTED
    if again or not _held:
        _stop(frame)


def _ask_again(number: int, frame: FrameType | None) -> None:
    if _code is not None and not _held:
        _stop(frame)


def _stop(frame: FrameType | None) -> None:
    if _unheard(frame):
        signal.setitimer(signal.ITIMER_REAL, 0.05)
    else:
        raise Stopped(_code or Exit.STOPPED)


def _unheard(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib") or frame.f_code.co_name in DEAF:
            return True
        frame = frame.f_back
    return False
