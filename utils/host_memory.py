"""Freed memory stays with the process, so that each training step finds the last one's."""

from __future__ import annotations

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4  # of glibc's malloc.h
_NEVER = 2**31 - 1


def keep_freed_memory() -> bool:
    """Let glibc give no memory back to the system, from now on; returns whether it will (False without glibc).

    By default each tensor of more than 32 MiB is a mapping of its own, whose every page the kernel clears when it is
    first written: 0.02 s for 256 MiB became 0.38 s on a virtual machine whose host takes free pages back. A step of the
    3-D network on 2 CPU cores allocates gigabytes. The process keeps the size of its largest step, and somewhat more.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, _NEVER))
