"""Memory that XLA's CPU programs give back and ask for again at every step.

A step's temporaries (hundreds of MB) are above glibc's mmap threshold, and threads other than the first take whatever
does not fit an arena of 64 MB from mmap too. So each step maps, page-faults and unmaps them: 80,000 faults and a third
of the time of a training step at 4×128. In one heap that is kept they are touched once. benchmarks/train_step.py times
both ways at 4×256.

Answering needs little memory, and threads that share a heap wait for each other: a small int8 model is a seventh
faster where each has its own.
"""

import ctypes
import sys

# Of glibc's malloc.h: blocks of up to 1 GiB from a heap, up to 2 GiB of what is freed stay; one heap for all threads.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_ARENA_MAX = -1, -3, -8
KEPT = (1 << 31) - 1
SETTINGS = ((M_MMAP_THRESHOLD, 1 << 30), (M_TRIM_THRESHOLD, KEPT))
ONE_HEAP = (M_ARENA_MAX, 1)


def keep_freed_memory(one_heap: bool = True) -> None:
    """Tells glibc's malloc to reuse memory rather than return it. Does nothing where there is another C library.

    To be called before threads exist.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for setting in (*SETTINGS, *([ONE_HEAP] if one_heap else [])):
            mallopt(*setting)
