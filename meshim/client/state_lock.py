"""The lock of a state file: one process at a time uses it."""

import os
from pathlib import Path

from meshim.errors import UsageError
from meshim.runtime.file_lock import try_lock


def check_folder(path: Path) -> None:
    """Raise UsageError when a state file has no folder: a slip in its path must not make a new device."""
    folder = path.resolve().parent
    if not folder.is_dir():
        raise UsageError(f"There is no folder {folder} for the state file: make it, or name another file.")


def lock(path: Path) -> int:
    """Make the file if it is missing, and lock it for this process; returns the descriptor that holds the lock."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)  # it holds keys: only its owner may read it
    try:
        # SQLite takes POSIX locks, only during transactions; flock is independent of those.
        if try_lock(descriptor):
            return descriptor
    except OSError:
        os.close(descriptor)
        raise
    os.close(descriptor)
    raise UsageError(
        f"Another process uses the state file {path}: stop it, or be another device with a file of its own."
    )
