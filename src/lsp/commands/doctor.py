"""`lsp doctor`: is this machine set up? Each finding is a line, with a fix where one is needed."""

import importlib
import importlib.metadata
import os
import platform
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lsp import SETUP, __version__, console, processor

PACKAGES = ("flax", "optax", "orbax.checkpoint", "grain", "sentencepiece", "numpy")


class Finding(NamedTuple):
    """`state` is ok, warn (lsp works, but slower or soon not) or failed (lsp can't work here)."""

    check: str
    state: str
    found: str
    fix: str = ""


def run() -> dict[str, Any]:
    """Every finding, and the worst state among them as `status`."""
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (_python, _jax, _packages, _machine, _int8, _cache)
    findings = [finding for check in checks for finding in check()]
    states = {finding.state for finding in findings}
    status = "failed" if "failed" in states else "warn" if "warn" in states else "ok"
    return {"command": "doctor", "status": status, "checks": [finding._asdict() for finding in findings]}


def _python() -> Iterator[Finding]:
    good = sys.version_info >= (3, 11)
    found = f"lsp {__version__} on Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    yield Finding("python", "ok" if good else "failed", found, "" if good else "Use Python 3.11 or newer.")


def _jax() -> Iterator[Finding]:
    """The pair of jax and flax, and the devices jax finds. Importing flax is what shows a mixed pair."""
    try:
        versions = {name: importlib.metadata.version(name) for name in ("jax", "flax")}
        import flax.nnx  # noqa: F401
        import jax

        devices = jax.devices()
    except Exception as error:
        yield Finding("jax", "failed", f"{type(error).__name__}: {error}".splitlines()[0], SETUP)
        return
    found = f"jax {versions['jax']} with flax {versions['flax']}"
    if paired(sys.version_info[:2], versions["jax"], versions["flax"]):
        yield Finding("jax", "ok", found)
    else:
        yield Finding("jax", "warn", f"{found} is not a tested pair", SETUP)
    kinds = ", ".join(sorted({device.device_kind for device in devices}))
    yield Finding("devices", "ok", f"{len(devices)} × {jax.default_backend()} ({kinds})")


def paired(python: tuple[int, ...], jax: str, flax: str) -> bool:
    """Whether the versions are one of the two pairs that lsp is tested with."""
    newer = tuple(map(int, jax.split(".")[:2])) >= (0, 11) and tuple(map(int, flax.split(".")[:3])) >= (0, 12, 9)
    return newer if python >= (3, 12) else (jax, flax) == ("0.10.2", "0.12.8")


def _packages() -> Iterator[Finding]:
    missing = []
    for name in PACKAGES:
        try:
            importlib.import_module(name)
        except Exception as error:
            missing.append(f"{name} ({type(error).__name__})")
    if missing:
        yield Finding("packages", "failed", f"can't be imported: {', '.join(missing)}", SETUP)
    else:
        yield Finding("packages", "ok", ", ".join(PACKAGES))


def _machine() -> Iterator[Finding]:
    yield Finding("cores", "ok", f"{processor.count()}")
    memory = available_memory()
    if memory is not None:
        state, fix = ("ok", "") if memory >= 2e9 else ("warn", "Close other programs, or lower train.batch_size.")
        yield Finding("memory", state, f"{console.size(memory)} available", fix)
    free = shutil.disk_usage(".").free
    state, fix = ("ok", "") if free >= 2e9 else ("warn", "Free some space, or put --out on another disk.")
    yield Finding("disk", state, f"{console.size(free)} free in {Path.cwd()}", fix)


def available_memory() -> int | None:
    """Bytes that could be used without swapping: the machine's, or the container's if that is less. None if unknown."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return None
    try:
        limit, used = (int(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current"))
        return min(available, max(0, limit - used))
    except (OSError, ValueError):  # no cgroup, or no limit ("max")
        return available


def _int8() -> Iterator[Finding]:
    """Whether int8 products are fast here, and whether they are right: against NumPy, on values at the extremes."""
    try:
        import jax
        import jax.numpy as jnp
        import numpy as np

        from lsp.model import int8

        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            rng = np.random.default_rng(0)
            x = np.sign(rng.normal(size=(8, 64))).astype(np.float32)  # ±1 is exact in int8
            weight = int8.quantize_array(rng.normal(size=(64, 16)).astype(np.float32), axis=1)
            wrong = np.abs(int8.matmul(jnp.asarray(x), weight) - x @ np.asarray(weight.dequantize())).max()
    except Exception as error:
        yield Finding("int8", "failed", f"{type(error).__name__}: {error}".splitlines()[0], SETUP)
        return
    if not wrong < 1e-4:
        yield Finding(
            "int8", "failed", f"products differ from NumPy's by {wrong:.2g}", f"Install the locked versions: {SETUP}"
        )
    elif said:
        yield Finding("int8", "warn", str(said[0].message), "int8 models work here, but are not faster.")
    elif jax.default_backend() != "cpu":
        yield Finding("int8", "ok", "right; lsp bench tells whether it is faster here than bfloat16")
    elif not processor.multiplies_int8():
        yield Finding(
            "int8",
            "warn",
            "right, but this CPU has no VNNI",
            "int8 models are smaller, and hardly faster on many texts; exported as ONNX they are.",
        )
    else:
        yield Finding("int8", "ok", "right, and this CPU multiplies int8 (VNNI)")


def _cache() -> Iterator[Finding]:
    """Whether compiled programs can be kept between runs."""
    chosen = os.environ.get("JAX_COMPILATION_CACHE_DIR", "")
    if not chosen:
        yield Finding("cache", "warn", "off", "Unset JAX_COMPILATION_CACHE_DIR to keep compiled programs between runs.")
        return
    folder = Path(chosen)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        yield Finding("cache", "warn", f"{folder}: {error.strerror}", "Set XDG_CACHE_HOME to a folder of yours.")
    else:
        yield Finding("cache", "ok", f"{folder}")
