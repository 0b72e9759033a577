"""What is kept between runs in the user's cache folder. An entry is checked before it is believed, and none is needed:
what is missing, damaged or can't be written is made again."""

import functools
import hashlib
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from lsp.manifest import read_bounded, write_atomically

LARGEST = 4 << 30  # bytes that are read as an entry, and that all entries of a kind may have


def folder(name: str) -> Path:
    """Where entries of a kind lie: under $XDG_CACHE_HOME, or ~/.cache; of a user without a home, a folder that goes
    with the process."""
    try:
        place = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    except RuntimeError:
        place = Path(_passing().name)
    return place / "lsp" / name


@functools.cache
def _passing() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="lsp-")


def load(name: str, key: str) -> bytes | None:
    """The entry, or None where there is none. Raises ValueError for one whose bytes are not those that were saved."""
    path = folder(name) / key
    if not path.is_file():
        return None
    content = read_bounded(path, LARGEST)
    check, body = content[:32], content[32:]
    if hashlib.sha256(body).digest() != check:
        raise ValueError(f"{path} is damaged")
    with suppress(OSError):
        os.utime(path)
    return body


def save(name: str, key: str, body: bytes) -> None:
    """Keeps an entry, where the disk takes it; those go that were not used for longest, where all are too large."""
    if 32 + len(body) > LARGEST:
        return
    with suppress(OSError):
        folder(name).mkdir(parents=True, exist_ok=True)
        write_atomically(folder(name) / key, hashlib.sha256(body).digest() + body)
        entries = sorted(folder(name).iterdir(), key=lambda path: path.stat().st_mtime_ns)
        over = sum(path.stat().st_size for path in entries) - LARGEST
        for path in entries:
            if over > 0:
                over -= path.stat().st_size
                path.unlink()
