"""Text that lies elsewhere: `gs://…`, `s3://…` and whatever else fsspec knows, each by a package of its own."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lsp import Exit, LspError, nearest


def is_remote(path: str) -> bool:
    """Whether `path` is an address such as `gs://bucket/corpus` rather than a name on this machine."""
    return "://" in path


def find(path: str) -> list[str]:
    """The files meant by an address: itself, those that match a glob, all below a folder (sorted), or none."""
    system, inner = _system(path)
    with _answers(path):
        if any(sign in inner for sign in "*?["):
            found = [name for name in system.glob(inner) if system.isfile(name)]
        elif system.isfile(inner):
            return [path]
        else:
            found = system.find(inner) if system.exists(inner) else []
        return sorted(system.unstrip_protocol(name) for name in found)


def opened(path: str) -> io.BufferedReader:
    """The bytes of a file, fetched as they are read."""
    system, inner = _system(path)
    with _answers(path):
        return io.BufferedReader(_File(path, system.open(inner, "rb")), 1 << 20)


def size(path: str) -> int:
    """Bytes of a file."""
    system, inner = _system(path)
    with _answers(path):
        return int(system.size(inner))


def fingerprint(path: str) -> str:
    """What changes when the file does, without reading it: its size, and what the store says of it."""
    system, inner = _system(path)
    with _answers(path):
        return f"{system.size(inner)} {system.ukey(inner)}"


class _File(io.RawIOBase):
    """A remote file whose failures, hours after it was opened perhaps, name it."""

    def __init__(self, path: str, file: Any) -> None:
        self.path, self.file = path, file

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        with _answers(self.path):
            data = self.file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        with _answers(self.path):
            return int(self.file.seek(offset, whence))

    def tell(self) -> int:
        return int(self.file.tell())

    def close(self) -> None:
        if not self.closed:
            self.file.close()
        super().close()


@contextmanager
def _answers(path: str) -> Iterator[None]:
    """Turns whatever a store can raise (no such bucket, no credentials, no network) into LspError (exit 3)."""
    try:
        yield
    except LspError:
        raise
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200].rstrip(".")
        raise LspError(
            f"{path} can't be read: {reason}.",
            hint="Check the address, the network and your credentials for it.",
            code=Exit.DATA,
        ) from None


def _system(path: str) -> tuple[Any, str]:
    """The file system of an address and what it calls the file. Raises LspError: exit 2 or, without its package, 5."""
    from fsspec.core import url_to_fs
    from fsspec.registry import available_protocols, known_implementations

    protocol = path.partition("://")[0].rpartition("::")[2]
    if protocol not in available_protocols():
        raise LspError(
            f"{path}: there is no protocol {protocol!r}.{nearest(protocol, ['gs', 's3', 'abfs', 'https', 'hf'])}",
            hint="Addresses look like gs://BUCKET/FOLDER and s3://BUCKET/FOLDER.",
        )
    with _answers(path):
        try:
            return url_to_fs(path)
        except ImportError as error:
            package = known_implementations.get(protocol, {}).get("class", "fsspec").partition(".")[0]
            if package == "fsspec":  # has the protocol itself, and lacks what that needs
                package = getattr(error.__cause__, "name", None) or error.name or protocol
            raise LspError(
                f"{path} can't be read without the Python package {package}.",
                hint=f"Install it: pip install {package}",
                code=Exit.MACHINE,
            ) from None
