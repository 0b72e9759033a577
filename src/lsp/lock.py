"""One writer at a time. The kernel drops a lock with its process, so SIGKILL leaves nothing to clean up by hand."""

import fcntl
import os
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lsp import Exit, LspError


@contextmanager
def only_writer(directory: Path, patience: float = 0) -> Iterator[None]:
    """Holds `directory` until the block ends. Raises LspError (exit 75), naming the owner, when another process does.

    With `patience` the other one is waited for, that many seconds.

    Two locks are taken. The one on the directory itself cannot be deleted by a person who thinks it stale; network
    file systems that refuse it still have the one on `.lock`, whose text says who holds it.
    """
    lock = directory / ".lock"
    folder = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    until = time.monotonic() + patience
    try:
        with suppress(OSError):  # NFS locks only files that are open for writing
            _take(folder, lock, until)
        file = _take_file(lock, until)
        try:
            os.ftruncate(file, 0)
            os.write(file, f"{socket.gethostname()} process {os.getpid()} token {secrets.token_hex(8)}\n".encode())
            yield
        finally:
            lock.unlink(missing_ok=True)  # while it is still held: whoever opened it meanwhile sees that it is gone
            os.close(file)
    finally:
        os.close(folder)


def _take_file(lock: Path, until: float) -> int:
    while True:
        file = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
        try:
            _take(file, lock, until)
            if os.fstat(file).st_ino == lock.stat().st_ino:
                return file
        except FileNotFoundError:
            pass  # removed by its owner between our open and our lock: make another
        except BaseException:
            os.close(file)
            raise
        os.close(file)


def _take(descriptor: int, lock: Path, until: float) -> None:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() < until:
                time.sleep(0.05)
                continue
        owner = ""
        with suppress(OSError):
            owner = lock.read_text("utf-8", "replace").strip()
        raise LspError(
            f"{lock.parent} is being written by another run ({owner or 'its owner has not signed yet'}).",
            hint="Wait for it or stop it, then run the same command again.",
            code=Exit.STOPPED,
        )
