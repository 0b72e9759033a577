"""How a reader knows that a directory is whole: `manifest.json` lists every file with its size and SHA-256.

`seal` writes it, last; `read` believes nothing that it does not confirm. docs/checkpoint.md is the format.
Standard library only, so that asking about a run loads no arrays.
"""

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from lsp import SETUP, Exit, LspError, nearest

FORMAT = 1
SPARSE = 2  # where arrays are packed by the gaps between their values, which a reader of format 1 does not know
MANIFEST_LIMIT = 64 * 2**20  # bytes; a manifest of a million files is larger, and is not ours
DEPTH_LIMIT = 32  # folders below the run; Orbax makes four
TEMPORARY = 240  # bytes of a name that its temporary file's begins with: names have 255
NAMED = 8  # runs of a folder that an error names
UNLISTED = ("manifest.json", ".lock")
# Steps to continue from, what the trackers keep for themselves, and what a search tried: no part of the finished run.
UNSEALED = ("train", "tensorboard", "wandb", "candidates")
# Folders in which a file that the manifest does not list is a fault, because somebody would read it.
CLOSED = ("params", "tokenizer", "rows", "state")
# Failures of the machine rather than of lsp or of the bytes.
MACHINE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.EMFILE, errno.ENFILE)


def seal(path: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """Makes `path` a whole directory: every file synced and hashed, then `manifest.json`. Returns the manifest.

    Adds `files`, `self` and, where it has none, `format` to what it is given. Half-written `*.tmp` files of a killed
    process are removed.
    """
    names = []
    for name in walk(path):
        if name.endswith(".tmp") and name.split("/")[0] not in UNSEALED:  # those are others', and may be in use
            (path / name).unlink()
        elif _is_listed(name):
            names.append(name)
    with ThreadPoolExecutor(4) as pool:  # hashing lets go of the interpreter lock
        entries = list(pool.map(lambda name: _sync_and_hash(path / name), names))
    for folder in {parent for name in names for parent in (path / name).parents if parent.is_relative_to(path)}:
        sync(folder)
    body = {"format": FORMAT} | manifest | {"files": dict(zip(names, entries, strict=True))}
    body.pop("self", None)
    body = json.loads(json.dumps(body))  # tuples and whole-number keys become what a reader will see
    text = _canonical(body | {"self": _digest(body)})
    write_atomically(path / "manifest.json", text)
    sync(path.parent)
    return json.loads(text)


def unsealed(target: Path, option: str) -> None:
    """Raises LspError (exit 2) where the file that an `option` names would go into a sealed run, and damage it."""
    if any(part not in UNSEALED for _, part in runs_around(target)):
        raise LspError(f"{option} {target} is inside a run, which is sealed.", hint="Put it beside the run.")


def runs_around(path: Path) -> Iterator[tuple[Path, str]]:
    """The finished runs that a path lies in, and what of each it is in or is."""
    place = path.resolve()
    for folder in place.parents:
        if (folder / "manifest.json").exists():
            yield folder, place.relative_to(folder).parts[0]


def read(path: Path, verify: bool = True) -> dict[str, Any]:
    """The manifest of a finished directory, after checking that every listed file is there, whole, and alone.

    With `verify` each file is hashed, else only its size is compared. No link is followed and nothing outside `path`
    is opened, whatever the manifest says. Raises LspError (exit 4) naming the file.
    """
    path = Path(path)
    with machine_errors(path):
        manifest = load(path)
        faults = list(_faults(path, manifest["files"], verify))
    if faults:
        more = f"; and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise damaged(path, "; ".join(faults[:3]) + more)
    return manifest


def identity(manifest: dict[str, Any]) -> str:
    """The hash by which a child names this directory among its `parents`."""
    return manifest["self"]


def write_atomically(path: Path, data: bytes | str) -> None:
    """The file is wholly the old one or wholly the new one, whatever happens, and durable on return."""
    start = os.fsdecode(os.fsencode(path.name)[:TEMPORARY])
    temporary = path.with_name(f"{start}.{secrets.token_hex(4)}.tmp")  # never a file, or a link, that is there
    try:
        with open(temporary, "xb") as file:
            # What is not UTF-8 in a name, as JSON spells it.
            file.write(data.encode(errors="backslashreplace") if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    sync(path.parent)


def is_temporary(name: str, of: str) -> bool:
    """Whether a file is what a killed process left of writing the file `of`."""
    return bool(re.fullmatch(re.escape(of) + r"\.[0-9a-f]{8}\.tmp", name))


def sync(path: Path) -> None:
    """Flushes a file's bytes or a folder's names to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes, the one `sha256sum` prints."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def bytes_under(path: Path) -> int:
    """Bytes of all files under a folder."""
    return sum((path / name).stat().st_size for name in walk(path))


@contextmanager
def machine_errors(path: Path) -> Iterator[None]:
    """Turns a full disk, a missing permission and their like into LspError (exit 5)."""
    try:
        yield
    except OSError as error:
        if error.errno not in MACHINE:
            raise
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError, needed: int = 0) -> LspError:
    """The sentence for a disk that refused; a full one with the megabytes there are and, where known, those needed."""
    message = f"{error.filename or path}: {(error.strerror or str(error)).lower()}"
    hint = "Mend that, or use another directory; what was saved before is intact."
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        there = next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())
        message += f"; {shutil.disk_usage(there).free / 1e6:.1f} MB are free"
        message += f" and {needed / 1e6:.1f} MB are needed" if needed else ""
        hint = "Free some space and run the same command again; it continues."
    return LspError(f"{message}.", hint=hint, code=Exit.MACHINE)


def load(path: Path) -> dict[str, Any]:
    """`manifest.json`, its form and own hash checked; the files are not looked at."""
    if not path.is_dir():
        siblings = [str(p) for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
        found = "is a file" if path.exists() else "does not exist"
        raise LspError(f"{path} {found}; a run is a directory.{nearest(str(path), siblings)}", code=Exit.ARTIFACT)
    try:
        raw = _read_inside(path, "manifest.json", MANIFEST_LIMIT)
    except FileNotFoundError:
        inside = [str(each.parent) for each in sorted(path.glob("*/manifest.json"))]
        ended = (path / "result.json").exists() or not (path / "run.json").exists()  # a demo is no run of its own
        if inside and ended:
            message = f"{path} is no run, and holds some."
            hint = f"Name one of them: {', '.join(inside[:NAMED])}{', …' * (len(inside) > NAMED)}"
        elif (path / "run.json").exists():
            message, hint = f"{path} is not finished.", "Run the command that made it again; it continues."
        elif (path / "config.json").exists():
            message = f"{path} is no run of lsp's: it has a config.json and no manifest.json."
            hint = f"Take a published checkpoint in first: lsp import {path} --out RUN"
        else:
            message = f"{path} is not a checkpoint: it has no manifest.json."
            hint = "Give a directory that lsp finished."
        raise LspError(message, hint=hint, code=Exit.ARTIFACT) from None
    except OSError as error:
        if error.errno in MACHINE and error.errno != errno.EIO:
            raise
        raise damaged(path, f"'manifest.json' can't be read ({error.strerror})") from None
    manifest: dict[str, Any] = {}
    try:
        manifest = json.loads(raw)
        version = manifest["format"]
        if type(version) is int and version > SPARSE:
            raise from_the_future(path / "manifest.json")
        body = {key: value for key, value in manifest.items() if key != "self"}
        # Comparing bytes too, because a flipped bit in white space would change neither values nor their hash.
        whole = manifest["self"] == _digest(body) and raw == _canonical(manifest).encode()
        whole = whole and version in (FORMAT, SPARSE) and all(map(_is_entry, manifest["files"].items()))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        whole = False
    if not whole:
        raise damaged(path, "'manifest.json' does not match its own hash")
    return manifest


def _faults(path: Path, files: dict[str, Any], verify: bool) -> Iterator[str]:
    """A phrase for each file that is missing, changed, or there without being listed."""
    with ThreadPoolExecutor(4) as pool:
        yield from filter(None, pool.map(lambda item: _fault(path, item[0], item[1], verify), files.items()))
    for folder in sorted({*CLOSED, *(name.partition("/")[0] for name in files if "/" in name)}):
        if os.path.lexists(path / folder):
            yield from (f"{name!r} is not in the manifest" for name in walk(path / folder, folder) if name not in files)


def _fault(path: Path, name: str, entry: dict[str, Any], verify: bool) -> str:
    try:
        descriptor = _open_inside(path, name)
        with open(descriptor, "rb") as file:
            found = os.fstat(descriptor).st_size
            if found != entry["size"]:
                return f"{name!r} has {found} bytes instead of {entry['size']}"
            if verify and hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
                return f"{name!r} has changed since it was written (its SHA-256 differs)"
    except OSError as error:
        if error.errno in MACHINE and error.errno != errno.EIO:
            raise
        return f"{name!r} can't be read ({error.strerror})"
    return ""


def _open_inside(root: Path, name: str) -> int:
    """A descriptor of the regular file `name` under `root`: part by part, so that no link is followed anywhere."""
    folder = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        *folders, last = name.split("/")
        for part in folders:
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
            os.close(folder)
            folder = inner
        descriptor = os.open(
            last, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder
        )  # a pipe must not hang us
    finally:
        os.close(folder)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file")
    return descriptor


def _read_inside(root: Path, name: str, limit: int) -> bytes:
    with open(_open_inside(root, name), "rb") as file:
        return _bounded(file, limit)


def read_bounded(path: Path, limit: int) -> bytes:
    """The bytes of a file that may be anybody's: links are followed. Raises LspError (exit 4) when it is no regular
    file, can't be read, or has more than `limit` bytes."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe must not hang us
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise OSError(errno.EINVAL, "not a regular file")
            return _bounded(file, limit)
    except OSError as error:
        raise LspError(f"{path} can't be read: {error.strerror}.", code=Exit.ARTIFACT) from None


def _bounded(file: BinaryIO, limit: int) -> bytes:
    size = os.fstat(file.fileno()).st_size
    data = file.read(min(limit, size) + 1)  # a read of many bytes asks for the memory first
    if len(data) > limit:
        raise OSError(errno.EFBIG, "too large")
    return data


def confirmed(path: Path, manifest: dict[str, Any], name: str) -> bytes:
    """A small file's bytes, if they are the ones the manifest lists."""
    entry = manifest["files"].get(name)
    try:
        data = _read_inside(path, name, MANIFEST_LIMIT)
    except OSError as error:
        raise damaged(path, f"{name!r} can't be read ({error.strerror})") from None
    if entry is None or hashlib.sha256(data).hexdigest() != entry["sha256"]:
        raise damaged(path, f"{name!r} has changed since it was written")
    return data


def _is_entry(item: tuple[str, Any]) -> bool:
    """Whether a line of `files` names something strictly inside the directory, with a size and a digest."""
    name, entry = item
    size, digest = entry["size"], entry["sha256"]
    return _is_listed(name) and type(size) is int and size >= 0 and isinstance(digest, str)


def _is_listed(name: str) -> bool:
    """Whether a manifest may list this name: relative, plain, strictly inside, and fixed by the seal."""
    parts = name.split("/")
    inside = len(parts) <= DEPTH_LIMIT and not any(part in ("", ".", "..") or len(part) > 255 for part in parts)
    return inside and name.isprintable() and "\\" not in name and name not in UNLISTED and parts[0] not in UNSEALED


def walk(folder: Path, prefix: str = "") -> Iterator[str]:
    """Names, relative and with '/', of all under `folder` that is not itself a folder; links are not followed."""
    if prefix.count("/") > DEPTH_LIMIT:
        raise damaged(folder, "its folders are nested too deeply")
    if prefix and (folder.is_symlink() or not folder.is_dir()):
        yield prefix
        return
    for name in sorted(os.listdir(folder)):
        below = f"{prefix}/{name}" if prefix else name
        if (folder / name).is_dir() and not (folder / name).is_symlink():
            yield from walk(folder / name, below)
        else:
            yield below


def _sync_and_hash(path: Path) -> dict[str, Any]:
    if path.is_symlink() or not path.is_file():
        raise LspError(
            f"{path} is not a regular file, so the run can't be sealed.", hint="Remove it.", code=Exit.ARTIFACT
        )
    sync(path)
    return {"size": path.stat().st_size, "sha256": sha256(path)}


def _canonical(manifest: dict[str, Any]) -> str:
    """The one text of a manifest. Raises ValueError for NaN and infinity, which JSON cannot hold."""
    return json.dumps(manifest, indent=1, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(_canonical(body).encode()).hexdigest()


def damaged(path: Path, what: str) -> LspError:
    hint = "Run the stage that made it again with --overwrite, or take it from a backup."
    return LspError(f"{path} is damaged: {what}.", hint=hint, code=Exit.ARTIFACT)


def from_the_future(path: Path) -> LspError:
    hint = f"Upgrade lsp, in its own folder: git pull && {SETUP}"
    return LspError(f"{path} was written by a newer lsp than this one reads.", hint=hint, code=Exit.ARTIFACT)
