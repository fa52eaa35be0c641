"""The memory of this process: how much the system has given to it, and giving back what is free.

The C library keeps what is freed.  So a process that was filled once looks full afterwards, and what fills it a second
time does not show.
"""

import ctypes
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


def resident_bytes() -> int:
    """Memory of this process, in ten microseconds; 0 where the system has no /proc."""
    try:
        return int(Path("/proc/self/statm").read_bytes().split()[1]) * _PAGE_BYTES
    except OSError:
        return 0


def _find_trim() -> Callable[[int], object] | None:
    with suppress(OSError, AttributeError):
        found = ctypes.CDLL(None).malloc_trim
        found.argtypes, found.restype = [ctypes.c_size_t], ctypes.c_int
        return found
    return None


_trim = _find_trim()


def return_free_memory() -> None:
    """Give free memory back to the system; takes milliseconds.  Only glibc can: elsewhere nothing happens."""
    if _trim is not None:
        _trim(0)
