"""Memory that XLA's CPU programs give back and ask for again at every step.

A step's temporaries (tens of MB at 4×256) are above glibc's mmap threshold, so each call maps, page-faults and unmaps
them: a quarter of the time of an int8 encoder. Kept in the heap they are touched once.
"""

import ctypes
import sys

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
LARGEST = (1 << 30, (1 << 31) - 1)  # allocations from the heap up to 1 GiB; freed memory kept


def keep_freed_memory() -> None:
    """Tells glibc's malloc to reuse memory rather than return it; does nothing where there is another C library."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, LARGEST[0])
        mallopt(M_TRIM_THRESHOLD, LARGEST[1])
