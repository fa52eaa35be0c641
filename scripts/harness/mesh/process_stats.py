"""What the processes of a mesh take: resident memory and descriptors, read from /proc while something happens."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from meshim.deploy.state import DataFolder, read

EVERY_S = 0.1
MIB = 1 << 20


def processes(data: Path) -> dict[str, int]:
    """The pid of every role, by name.  (Backends have bounds of their own, which are not meshim's.)"""
    state = read(DataFolder(data))
    assert state is not None, "the mesh runs"
    return {role.name: role.pid for role in state.roles if role.pid is not None}


def api(data: Path) -> str:
    """The URL of the REST service."""
    state = read(DataFolder(data))
    assert state is not None, "the mesh runs"
    assert state.api is not None, "REST answers"
    return state.api


def rss_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1_024
    return 0.0


def files(pid: int) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


class Memory:
    """The highest that was seen of each process, in MiB."""

    def __init__(self, pids: dict[str, int]) -> None:
        self._pids = pids
        self.before = self.now()
        self.most = dict(self.before)

    def now(self) -> dict[str, float]:
        return {name: round(rss_mib(pid), 1) for name, pid in self._pids.items()}

    def look(self) -> None:
        for name, mib in self.now().items():
            self.most[name] = max(self.most[name], mib)

    @property
    def grown(self) -> dict[str, float]:
        """By how much each process grew at most."""
        return {name: round(self.most[name] - self.before[name], 1) for name in self.before}


@contextmanager
def watched(pids: dict[str, int], tell: Callable[[Memory], None] | None = None) -> Iterator[Memory]:
    """Look at memory all the time, in a thread."""
    memory = Memory(pids)
    done = threading.Event()

    def look() -> None:
        told = time.monotonic()
        while not done.wait(EVERY_S):
            memory.look()
            if tell is not None and time.monotonic() - told > 1.0:
                told = time.monotonic()
                tell(memory)

    thread = threading.Thread(target=look, daemon=True)
    thread.start()
    try:
        yield memory
    finally:
        done.set()
        thread.join()
        memory.look()
