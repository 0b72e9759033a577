"""Whatever a command can raise, as what went wrong, what to type and the exit code.

jax's errors are known by their text, so that a mistake in the command line need not load jax.
"""

import errno
import re
import shlex
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import typer

from lsp import SETUP, Exit, LspError, Stopped, nearest

FULL = {errno.ENOSPC, errno.EDQUOT}
MACHINE = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO}
BARE = {"--from": ("RUN",), "--data": ("TEXT", "FILE", "DATA")}  # options of some commands that are arguments of others


def explain(error: BaseException, saves: bool = True, words: Sequence[str] = ()) -> LspError:
    """What went wrong, what to type and the exit code, for anything that a command of these `words` can raise, which
    `saves` what it has done or has nothing to save."""
    text = str(error)
    if isinstance(error, LspError):
        return error
    if isinstance(error, Stopped | KeyboardInterrupt | typer.Abort):
        code = error.code if isinstance(error, Stopped) else Exit.INTERRUPTED
        if not saves:
            return LspError("Stopped.", code=code)
        return LspError("Stopped; what was done is saved.", hint="Run the same command again to continue.", code=code)
    if isinstance(error, typer.TyperException):
        return explain_usage(error, words)
    if isinstance(error, ModuleNotFoundError) and not (error.name or "").startswith("lsp"):
        hint = f"Set lsp up again: {SETUP}"
        return LspError(f"The Python package {error.name} is missing.", hint=hint, code=Exit.MACHINE)
    if (isinstance(error, OSError) and error.errno in FULL) or "No space left on device" in text:
        hint = f"Free some space and run the same command again{' to continue' if saves else ''}."
        where = getattr(error, "filename", None)
        what = f"The disk of {where}" if where else "The disk that this writes to"
        return LspError(f"{what} is full.", hint=hint, code=Exit.MACHINE)
    if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text or "out of memory" in text.lower():
        hint = "Lower train.batch_size, or raise train.accumulate: --set train.accumulate=4"
        hint = hint if saves else "Stop what else runs here."
        return LspError(f"There is not enough memory: {first_line(error)}", hint=hint, code=Exit.MACHINE)
    if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
        return LspError(f"The name {str(error.filename)[:40]}… is too long for a file.", hint="Give a shorter one.")
    if isinstance(error, OSError) and error.errno in MACHINE:
        hint = "Check the permissions, or choose another --out."
        return LspError(f"{error.filename or 'A file'}: {error.strerror}.", hint=hint, code=Exit.MACHINE)
    return LspError(
        f"A bug in lsp: {type(error).__name__}: {first_line(error)}",
        hint="Set LSP_DEBUG=1 for the traceback, and please report it.",
        code=Exit.BUG,
    )


def root(error: BaseException) -> BaseException:
    """The signal behind an error, where there is one, else the error: JAX wraps what is raised while it starts."""
    behind: BaseException | None = error
    seen: list[BaseException] = []  # an error of a C++ library may be its own cause
    while behind is not None and not isinstance(behind, Stopped):
        seen.append(behind)
        behind = next((each for each in (behind.__cause__, behind.__context__) if each and each not in seen), None)
    return behind or error


def explain_usage(error: typer.TyperException, words: Sequence[str] = ()) -> LspError:
    """Typer's complaint with the nearest option or command, and the help to ask for, or what was meant."""
    context = getattr(error, "ctx", None)
    asked = context.command_path if context is not None else ""
    message = error.format_message().rstrip(".") + "."
    hint = f"{asked or 'The command with'} -h shows an example and every option."
    unknown = getattr(error, "option_name", None)
    # Some commands read one thing, and some name it among others: whoever knows one kind types it to the other.
    parameters = [] if context is None else context.command.params
    takes = [str(each.metavar) for each in parameters if each.param_type_name == "argument"]
    if message.startswith("No such option") and (
        bare := [each for each in takes if each in BARE.get(str(unknown), ())]
    ):
        message, hint = f"No such option: {unknown}.", f"The {bare[0].lower()} goes without it: {asked} {bare[0]}"
    elif message == "Missing option '--from'." and (run := loose_folder(words)):
        hint = f"Name the run with it: {asked} --from {shlex.quote(run)}"
    elif unknown is not None and context is not None and message.startswith("No such option"):
        options = [name for parameter in context.command.params for name in parameter.opts if name.startswith("--")]
        message = f"No such option: {unknown}.{nearest(unknown, options)}"
    elif match := re.match(r"No such command '(.+?)'\.$", message):
        nested = ["compress quantize", "compress prune", "compress distill", "compress search", "data peek"]
        meant = next((name for name in nested if name.endswith(f" {match[1]}")), f"compress {match[1]}")
        message += nearest(meant, nested) if asked == "lsp" else ""
    elif match := re.match(r"Invalid value for '(.+?)': (?:Value error, )?'(.*?)' is not one of (.+)\.$", message):
        option, value, names = match[1], match[2], re.findall(r"'(.+?)'", match[3])
        message = f"{option} {value} is not one of {', '.join(names)}.{nearest(value, names)}"
    return LspError(message.replace("?.", "?"), hint=hint)


def loose_folder(words: Sequence[str]) -> str:
    """The first folder among the words that follows no option, or nothing."""
    return next((word for before, word in pairwise(words) if before[:1] != "-" and Path(word).is_dir()), "")


def first_line(error: BaseException) -> str:
    """The start of an exception's text, short enough for a sentence."""
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
