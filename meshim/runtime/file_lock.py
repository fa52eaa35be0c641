"""Locks of files: flock(2), which the kernel releases when the last process that holds the descriptor ends."""

import fcntl


def try_lock(descriptor: int, *, shared: bool = False) -> bool:
    """Lock an open file for this process and its children without waiting; return False when another one holds it."""
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
