"""How the C library treats memory that was freed."""

from __future__ import annotations

import ctypes
import functools
import os
import platform


@functools.cache  # once in a process
def keep_freed_memory() -> bool:
    """Make glibc keep large blocks that were freed for the next time; elsewhere it does nothing.

    By default it gives every block above some megabytes back to the system and gets it again page by page, each page
    filled with zeros: a seventh of a training step on a CPU. MALLOC_ variables of the environment win.

    Returns:
        Whether anything was changed.
    """
    if platform.libc_ver()[0] != "glibc" or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    libc = ctypes.CDLL(None)
    trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of malloc.h
    return bool(libc.mallopt(mmap_max, 0) and libc.mallopt(trim_threshold, -1))
