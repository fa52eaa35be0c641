"""Files that hold one key: made whole or not at all, and refused when other users may read them.

`what` is what the sentences of errors call the file, as "master key".
"""

import os
import secrets
import stat
from pathlib import Path

from meshim.errors import UsageError


def create(path: Path, content: bytes, what: str) -> bool:
    """Make the file with mode 0600, whole and fsynced; return False and change nothing when it exists.

    Raises `UsageError` when it cannot be made.
    """
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(draft, path)  # unlike a rename, it does not replace the file of another process
        except FileExistsError:
            return False
        finally:
            draft.unlink()
        _fsync_folder(path.parent)
    except OSError as error:
        raise UsageError(f"The {what} {path} cannot be made: {error.strerror}.") from error
    return True


def read(path: Path, bytes_max: int, what: str) -> bytes:
    """Return at most the first `bytes_max` bytes.

    Raises `FileNotFoundError`, and `UsageError` when the file cannot be read or users other than its owner may access
    it.
    """
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            content = file.read(bytes_max)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise UsageError(f"The {what} {path} cannot be read: {error.strerror}.") from error
    if mode & 0o077:
        raise UsageError(f"Others may read the {what} {path} (mode {mode:04o}): run chmod 600 on it.")
    return content


def _fsync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
