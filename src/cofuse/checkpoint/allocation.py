"""Memory for chunk after chunk: what one has used is kept for the next, and not given back to the system in between."""

from __future__ import annotations

import ctypes
import sys
from functools import cache

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt(3)
_KEPT = 128 * 1024 * 1024  # bytes at the end of a heap that may stay free
_LARGE = 32 * 1024 * 1024  # from here on memory is the system's to give and take; the most that glibc allows


@cache
def keep_freed_memory() -> None:
    """Let glibc keep what was freed; elsewhere nothing happens.

    Glibc gives blocks of some megabytes back as soon as they are free, and the kernel clears them anew for the next
    chunk: three quarters of the time of a checkout on a virtual machine. No more is kept than was in use at once.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(_MMAP_THRESHOLD, _LARGE)
            mallopt(_TRIM_THRESHOLD, _KEPT)
