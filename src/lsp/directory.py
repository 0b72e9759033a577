"""A run is a directory: who may write it, and what was asked of it.

`claim` gives one process the directory and remembers what was asked in `run.json`, so that the same command continues
and another is refused. What makes the directory whole is in lsp.manifest. Standard library only.
"""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lsp import Exit, LspError, Stopped
from lsp import manifest as manifests
from lsp.lock import only_writer
from lsp.manifest import FORMAT, UNSEALED, identity, machine_errors, read, seal, sha256, sync, write_atomically
from lsp.recipe import differences

__all__ = ["UNSEALED", "WRITTEN", "Run", "claim", "identity", "read", "seal", "sha256", "write_atomically"]

# Everything lsp writes into a run, in the order in which `--overwrite` takes it away: first what makes it complete.
WRITTEN = (
    "manifest.json",
    "result.json",
    "metrics.jsonl",
    "recipe.toml",
    "params",
    "params.tmp",
    "tokenizer",
    "rows",
    "parts",
    "blackbox",
    *("structure.json", "flips.jsonl", "pareto.json", "pareto.png", "chain.toml"),  # of compress stages
)
EXPORTED = (  # and into an export; elsewhere a README.md, say, is its user's
    *("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"),
    *("model.stablehlo", "model.onnx"),
)
PATIENCE = 10.0  # seconds: those who share a run hold it only while they look at what was asked
WORK = ("manifest.json", "params", "tokenizer", "rows", "train", "candidates", "structure.json")


@dataclass(frozen=True)
class Run:
    """A directory that this process may write, or, when `complete`, only read."""

    path: Path
    command: str
    inputs: dict[str, str]
    complete: bool = False

    def result(self) -> dict[str, Any]:
        """What a complete run printed with `--json`, its status now "already complete". Raises LspError (exit 4)."""
        stored = json.loads(manifests.confirmed(self.path, manifests.load(self.path), "result.json"))
        return stored | {"status": "already complete"}


@contextmanager
def claim(
    out: Path, *, command: str, recipe: str, inputs: dict[str, str], overwrite: bool = False, shared: bool = False
) -> Iterator[Run]:
    """The run at `out`, made, continued, or found complete; nobody else writes there until the block ends.

    With `shared` others may that ask for the same, and what they write has locks of its own.

    `recipe` is the dumped recipe and `inputs` maps each input to its hash; with `command` they decide whether this is
    the same run. A complete run is yielded without touching a byte of it. A failure inside is written to result.json.
    Raises LspError: 2 for a directory that is not ours or was asked for something else, 4 for a damaged one, 5 when
    the machine cannot write, 75 when another process holds it.
    """
    out = Path(out)
    asked = {"format": FORMAT, "command": command, "inputs": inputs, "recipe": recipe}
    with machine_errors(out):
        _refuse_foreign(out)
        finished = None if overwrite else _finished(out, asked)
        if finished:
            yield finished
            return
        _make(out)
        with ExitStack() as held:
            held.enter_context(only_writer(out, patience=PATIENCE if shared else 0))
            finished = None if overwrite else _finished(out, asked)  # another process may just have completed it
            if finished:
                yield finished
                return
            _begin(out, asked, overwrite)
            if shared:
                held.close()
            try:
                with machine_errors(out):
                    yield Run(out, command, inputs)
            except Exception as error:
                _record_failure(out, command, error)
                raise


def _refuse_foreign(out: Path) -> None:
    """Never write into, and never delete, what lsp did not make; nor be deleted with what another run keeps there."""
    for folder, part in manifests.runs_around(out):
        if part in (*WRITTEN, *UNSEALED) and part != "candidates":
            raise LspError(
                f"--out {out} is in {part}/ of the run {folder}, which keeps that for itself.",
                hint="Put it beside the run.",
            )
    if out.is_symlink() and not out.exists():
        raise LspError(f"--out {out} is a link that leads nowhere.", hint="Remove the link or give another --out.")
    if not out.exists():
        return
    if not out.is_dir():
        raise LspError(f"--out {out} is a file, and a run is a directory.", hint="Give another --out.")
    if (out / "run.json").exists():
        return
    others = sorted(
        name for name in os.listdir(out) if name != ".lock" and not manifests.is_temporary(name, "run.json")
    )
    if others:
        raise LspError(
            f"--out {out} holds something that lsp did not write ({others[0]!r}).",
            hint="Give a new or empty directory: lsp deletes nothing that it did not write, not even with --overwrite.",
        )


def _holds_a_file(path: Path) -> bool:
    return path.is_file() or any(each.is_file() for each in path.rglob("*"))


def _finished(out: Path, asked: dict[str, Any]) -> Run | None:
    """The complete run at `out`, if there is one and it is what is asked for."""
    if not (out / "manifest.json").exists():
        return None
    marker = json.loads(manifests.confirmed(out, read(out, verify=False), "run.json"))
    _refuse_other(out, marker, asked)
    shutil.rmtree(out / "train", ignore_errors=True)  # left when a kill came between the seal and the tidying
    return Run(out, asked["command"], asked["inputs"], complete=True)


def _begin(out: Path, asked: dict[str, Any], overwrite: bool) -> None:
    """Writes what is asked into a new run, or checks that a started one was asked for the same."""
    marker = _marker(out)
    if marker and not overwrite and any(_holds_a_file(out / name) for name in WORK):
        _refuse_other(out, marker, asked)
    # A run that failed before it made anything may be asked for something else: nothing is lost. What it did leave, an
    # export that was not finished say, goes first: else it would be sealed with the new.
    kept = () if overwrite else ("blackbox",)
    if marker and (overwrite or marker != asked):
        exported = EXPORTED if marker["command"] == "export" else ()
        for name in (*WRITTEN, *UNSEALED, *exported):
            if name not in kept:
                _remove(out / name)
        sync(out)
    if marker != asked:
        write_atomically(out / "run.json", json.dumps(asked, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    write_atomically(out / "recipe.toml", asked["recipe"])


def _marker(out: Path) -> dict[str, Any] | None:
    """What `run.json` says was asked, or None where there is none."""
    marker: dict[str, Any] = {}
    try:
        marker = json.loads((out / "run.json").read_bytes())
        whole = isinstance(marker["inputs"], dict) and {"command", "recipe"} <= marker.keys()
        newer = type(marker["format"]) is int and marker["format"] > FORMAT
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        whole = newer = False
    if newer:
        raise manifests.from_the_future(out / "run.json")
    if not whole:
        raise LspError(
            f"{out / 'run.json'} is damaged, so lsp can't tell whether {out} is its own.",
            hint="Give another --out, or look at the directory and delete it yourself.",
            code=Exit.ARTIFACT,
        )
    return marker


def _refuse_other(out: Path, marker: dict[str, Any], asked: dict[str, Any]) -> None:
    changed = [f"command: {marker['command']} → {asked['command']}"] if marker["command"] != asked["command"] else []
    old, new = marker["inputs"], asked["inputs"]
    for name in dict.fromkeys([*old, *new]):
        if old.get(name) != new.get(name):
            changed.append(f"{name}: {str(old.get(name, '(none)'))[:12]} → {str(new.get(name, '(none)'))[:12]}")
    if marker["recipe"] != asked["recipe"]:
        try:
            changed += differences(marker["recipe"], asked["recipe"]) or ["recipe"]
        except (ValueError, TypeError):
            changed.append("recipe")
    if changed:
        raise LspError(
            f"{out} was asked for something else: {'; '.join(changed)}.",
            hint="Give another --out, or add --overwrite to lose what is there and start over.",
        )


def _make(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (NotADirectoryError, FileExistsError):
        raise LspError(f"--out {out} can't be made: a part of it is a file.", hint="Give another --out.") from None
    except FileNotFoundError:  # /proc and its like
        raise LspError(f"--out {out} can't be made there.", hint="Give another --out.") from None


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _record_failure(out: Path, command: str, error: Exception) -> None:
    """Writes result.json, unless the run was complete before the failure came: then nothing in it may change."""
    if (out / "manifest.json").exists():
        return
    code = error.code if isinstance(error, LspError | Stopped) else Exit.BUG
    status = "stopped" if isinstance(error, Stopped) else "failed"
    result = {"command": command, "out": str(out), "status": status, "error": str(error), "code": int(code)}
    with suppress(OSError):  # a full disk is told by exit code and message
        write_atomically(out / "result.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")
