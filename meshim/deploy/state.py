"""The state of a mesh in its data folder: `run/lock` while a process runs, and `run/state.json` with all processes.

The folder::

    run/lock             flock held by the supervisor and all its children; its text is the pid of the supervisor
    run/state.json       `MeshState`, replaced at each change
    run/topology.yaml    the topology with every `embedded` replaced by a URL (mode 0600: it holds passwords)
    log/NAME.log         the log of each process
"""

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path

import msgspec

from meshim.errors import MeshimError, UsageError, one_line
from meshim.runtime.file_lock import try_lock
from meshim.stores.sql.url import sqlite_url


class Phase(StrEnum):
    """The state of a process, or of the whole mesh."""

    STARTING = "starting"
    RUNNING = "running"
    RESTARTING = "restarting"
    """It ended by itself and waits for its next start."""
    STOPPING = "stopping"
    STOPPED = "stopped"
    EXTERNAL = "external"
    """A backend that meshim does not run."""


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
    storage_restarts: int = 0
    """How many of them because it had stopped storing."""


class MeshState(msgspec.Struct, frozen=True):
    pid: int
    """The pid of the supervisor."""
    state: Phase
    api: str | None
    """The URL of REST; None until it is ready."""
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
        """Make the folders that are missing, readable for their owner alone (messages, keys, passwords).

        A folder that exists keeps its mode; the files that meshim writes are private through its umask.  Raises
        `UsageError` when the folder around them does not exist: a slip in its path must not make a new, empty mesh.
        """
        if not self.root.parent.is_dir():
            raise UsageError(f"There is no folder {self.root.parent} for the data: make it, or choose other --data.")
        for folder in (self.root, self.run, self.logs):
            folder.mkdir(mode=0o700, exist_ok=True)

    @property
    def sqlite_url(self) -> str:
        """The URL that `embedded` stands for."""
        return sqlite_url(self.root / "meshim.db")


@contextmanager
def explained(data: DataFolder) -> Iterator[None]:
    """Raise `MeshimError` for what the system refuses at the start, as on a full disk; later the mesh goes on."""
    try:
        yield
    except OSError as error:
        reason = one_line(error.strerror or error)
        raise MeshimError(
            f"The mesh cannot start on {data.root} ({reason}): make room there, and let this user write."
        ) from error


@contextmanager
def locked(data: DataFolder, timeout_s: float = 2.0) -> Iterator[int]:
    """Hold the lock of a data folder; yield its descriptor, for children to inherit.

    Raises `UsageError` when a mesh runs there.  After a supervisor was killed its children hold the lock until the
    kernel has ended them: that is waited for, `timeout_s` at most.
    """
    descriptor = os.open(data.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        deadline = time.monotonic() + timeout_s
        while not try_lock(descriptor):
            holder = _holder(data)
            if time.monotonic() > deadline or (holder is not None and _is_alive(holder)):
                raise UsageError(
                    f"A mesh runs on {data.root} already: end it with `meshim down`, or choose other --data."
                )
            time.sleep(0.02)
        with explained(data):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield descriptor
    finally:
        os.close(descriptor)


def supervisor(data: DataFolder) -> int:
    """Return the pid of the supervisor that runs on a data folder; raises `UsageError` when none does."""
    not_running = UsageError(f"No mesh runs on {data.root}: start one with `meshim up`.")
    try:
        descriptor = os.open(data.lock, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise not_running from None
    try:
        free = try_lock(descriptor, shared=True)
    finally:
        os.close(descriptor)
    holder = _holder(data)
    if free or holder is None or not _is_alive(holder):
        raise not_running
    return holder


def write(data: DataFolder, state: MeshState) -> None:
    """Replace the state file atomically: a reader sees the old or the new one."""
    new = data.state.with_suffix(".new")
    new.write_bytes(msgspec.json.format(msgspec.json.encode(state)) + b"\n")
    new.replace(data.state)


def read(data: DataFolder) -> MeshState | None:
    """Return the content of the state file; None when there is none."""
    try:
        return msgspec.json.decode(data.state.read_bytes(), type=MeshState)
    except FileNotFoundError:
        return None


def _holder(data: DataFolder) -> int | None:
    text = data.lock.read_text(encoding="ascii")
    return int(text) if text else None


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it belongs to another user, but it lives
        return True
    return True
