"""What runs on a data folder: `run/lock`, held as long as anything does, and `run/state.json`, which says what.

The folder::

    run/lock             flock held by the supervisor and all its children; its text is the supervisor's pid
    run/state.json       `MeshState`, replaced whenever something changes
    run/topology.yaml    the topology with every `embedded` replaced by a URL (mode 0600: it holds passwords)
    log/NAME.log         what each process says
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path

import msgspec

from meshim.errors import UsageError


class Phase(StrEnum):
    """Where a process, or the whole mesh, is in its life."""

    STARTING = "starting"
    RUNNING = "running"
    RESTARTING = "restarting"
    """It ended by itself and is waiting for its next start."""
    STOPPING = "stopping"
    STOPPED = "stopped"
    EXTERNAL = "external"
    """A backend that somebody else runs."""


class RoleState(msgspec.Struct, frozen=True):
    name: str
    role: str
    pid: int | None
    state: Phase
    endpoint: str | None
    restarts: int


class BackendState(msgspec.Struct, frozen=True):
    name: str
    """`redis`, `nats` or `sql`."""
    url: str
    """Without credentials."""
    pid: int | None
    state: Phase
    restarts: int


class MeshState(msgspec.Struct, frozen=True):
    pid: int
    """Of the supervisor."""
    state: Phase
    api: str | None
    """Where REST answers, once it does."""
    roles: list[RoleState]
    backends: list[BackendState]


class DataFolder:
    """The paths in a data folder."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.run = self.root / "run"
        self.logs = self.root / "log"
        self.lock = self.run / "lock"
        self.state = self.run / "state.json"
        self.topology = self.run / "topology.yaml"

    def create(self) -> None:
        """Make what is missing; only the owner can look inside (messages, keys, passwords).

        A folder that was there keeps its mode; what meshim writes into it is private by itself (umask).
        """
        for folder in (self.root, self.run, self.logs):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    @property
    def sqlite_url(self) -> str:
        """What `embedded` means for SQL."""
        return f"sqlite:///{self.root / 'meshim.db'}"


@contextmanager
def locked(data: DataFolder, timeout_s: float = 2.0) -> Iterator[int]:
    """Hold the lock of a data folder; yield its descriptor, for children to inherit.

    Raises `UsageError` when a mesh runs there.  One that was killed is waited for: its children
    hold the lock until the kernel has ended them.
    """
    descriptor = os.open(data.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + timeout_s
        while not _try_lock(descriptor, fcntl.LOCK_EX):
            holder = _holder(data)
            if time.monotonic() > deadline or (holder is not None and _is_alive(holder)):
                raise UsageError(
                    f"A mesh runs on {data.root} already: end it with `meshim down`, or choose other --data."
                )
            time.sleep(0.02)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)


def supervisor(data: DataFolder) -> int:
    """Return the pid of the supervisor that runs on a data folder; raise `UsageError` when none does."""
    nobody = UsageError(f"No mesh runs on {data.root}: start one with `meshim up`.")
    try:
        descriptor = os.open(data.lock, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise nobody from None
    try:
        free = _try_lock(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)
    holder = _holder(data)
    if free or holder is None or not _is_alive(holder):
        raise nobody
    return holder


def write(data: DataFolder, state: MeshState) -> None:
    """Replace the state file: whoever reads it sees the old or the new one, whole."""
    new = data.state.with_suffix(".new")
    new.write_bytes(msgspec.json.format(msgspec.json.encode(state)) + b"\n")
    new.replace(data.state)


def read(data: DataFolder) -> MeshState | None:
    """Return what the state file says, or None as long as there is none."""
    try:
        return msgspec.json.decode(data.state.read_bytes(), type=MeshState)
    except FileNotFoundError:
        return None


def _try_lock(descriptor: int, how: int) -> bool:
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(data: DataFolder) -> int | None:
    text = data.lock.read_text(encoding="ascii")
    return int(text) if text else None


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's, but there
        return True
    return True
