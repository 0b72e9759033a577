"""The processor that this runs on, as Linux describes it. Standard library only."""

import functools
import os
import platform
import zlib

X86 = ("x86_64", "AMD64")


@functools.cache
def features() -> str:
    """The line of /proc/cpuinfo with its instruction sets; empty where there is none."""
    return _line("flags", "Features")


def name() -> str:
    """What its maker calls it, or what kind it is."""
    return _line("model name").partition(":")[2].strip() or platform.machine()


def kind() -> str:
    """A name: programs that are compiled for one do not run on another, and a home may be shared by both."""
    return platform.machine() + (f"-{zlib.crc32(features().encode()):08x}" if features() else "")


def count() -> int:
    """How many of them this process may use; XLA's CPU takes a thread for each."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def multiplies_int8() -> bool | None:
    """Whether it has an instruction for sums of int8 products (VNNI, or ARM's dot product); None where nobody says."""
    if not features():
        return None
    return not {"avx512_vnni", "avx_vnni", "asimddp"}.isdisjoint(features().split())


def multiplies_int8_by_512_bits() -> bool:
    """Whether that instruction takes 64 products at a time."""
    return "avx512_vnni" in features().split()


def _line(*begins: str) -> str:
    """The first line of /proc/cpuinfo that begins so; empty where there is none."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            return next((line for line in lines if line.startswith(begins)), "")
    except OSError:
        return ""
