"""How the C library treats memory that was freed."""

from __future__ import annotations

import ctypes
import functools
import os
import platform

_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4  # of malloc.h
_LARGE = 32 << 20  # bytes: the highest threshold that glibc takes


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
    return bool(libc.mallopt(_MMAP_MAX, 0) and libc.mallopt(_TRIM_THRESHOLD, -1))


def give_back_large_blocks() -> None:
    """Where a process has inherited `keep_freed_memory`: keep what a usual picture takes, and no more for good."""
    if keep_freed_memory.cache_info().currsize and keep_freed_memory():
        libc = ctypes.CDLL(None)
        for name, value in ((_MMAP_MAX, 65536), (_MMAP_THRESHOLD, _LARGE), (_TRIM_THRESHOLD, 8 * _LARGE)):
            libc.mallopt(name, value)
