"""lsp takes raw text to a small, fast, well-measured text classifier."""

import difflib
from collections.abc import Callable, Iterable
from enum import IntEnum

__version__ = "0.1.0"


class Exit(IntEnum):
    """What a finished process tells the shell. The docs print this table; the numbers are a contract."""

    DONE = 0, "done, or already done"
    NO = 1, "it ran and the answer is no: a gate was missed, an export differs"
    USAGE = 2, "the command or the recipe is wrong"
    DATA = 3, "the data is unusable"
    ARTIFACT = 4, "a checkpoint or artifact is damaged, foreign or from another version"
    MACHINE = 5, "this machine cannot: disk, memory, a missing extra or device"
    DIVERGED = 6, "training diverged"
    BUG = 70, "a bug in lsp"
    STOPPED = 75, "stopped early with everything saved: run the same command again to continue"
    INTERRUPTED = 130, "Ctrl-C, everything saved"

    meaning: str

    def __new__(cls, code: int, meaning: str) -> "Exit":
        member = int.__new__(cls, code)
        member._value_ = code
        member.meaning = meaning
        return member

    @classmethod
    def of(cls, code: int) -> "Exit":
        """The member with this number."""
        return next(member for member in cls if member == code)


class LspError(Exception):
    """A failure the user can mend: what was found and expected, a `hint` to type, and the exit code."""

    def __init__(self, message: str, *, hint: str = "", code: Exit = Exit.USAGE) -> None:
        super().__init__(message)
        self.message, self.hint, self.code = message, hint, code


# What installs lsp, in the folder of its sources, with the names of extras after it. Not pip: `lsp` on PyPI is another.
SETUP = "bash scripts/setup.sh"


def lacking(message: str, extra: str) -> LspError:
    """For a Python package that only an extra brings."""
    return LspError(message, hint=f"Install it, in lsp's own folder: {SETUP} {extra}", code=Exit.MACHINE)


class Stopped(Exception):
    """A signal asked for an end and everything is saved; `code` is `Exit.STOPPED` or `Exit.INTERRUPTED`."""

    def __init__(self, code: Exit) -> None:
        super().__init__(code.meaning)
        self.code = code


def nearest(word: str, names: Iterable[str], called: Callable[[str], str] = str) -> str:
    """` Did you mean 'x'?` for the name most like `word`, as it is `called`, or an empty string when none is."""
    matches = difflib.get_close_matches(word, list(names), n=1, cutoff=0.6)
    return f" Did you mean {called(matches[0])!r}?" if matches else ""
