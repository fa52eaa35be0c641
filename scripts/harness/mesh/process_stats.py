"""Resident memory and open descriptors of the processes of a mesh, read from /proc."""

import os
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from meshim.deploy.state import DataFolder, read
from meshim.runtime import counters

SAMPLE_S = 0.1
_CPUCLOCK_SCHED = 2
_PAGE_KIB = os.sysconf("SC_PAGE_SIZE") // 1024


def role_pids(data: Path) -> dict[str, int]:
    """Return the pid of every role by name, without backends: meshim sets no bounds for their memory."""
    state = read(DataFolder(data))
    assert state is not None, "the mesh runs"
    return {role.name: role.pid for role in state.roles if role.pid is not None}


def connector_counters(data: Path) -> Counter[str]:
    """Return the counters of all connectors together, at most a second old."""
    state = read(DataFolder(data))
    assert state is not None, "the mesh runs"
    together: Counter[str] = Counter()
    for role in state.roles:
        if role.role == "connector":
            together.update(counters.read(data, role.role, role.name, role.pid))
    return together


def rest_url(data: Path) -> str:
    """Return the URL of the REST service."""
    state = read(DataFolder(data))
    assert state is not None, "the mesh runs"
    assert state.api is not None, "REST answers"
    return state.api


def cpu_seconds(pids: Iterable[int]) -> float:
    """Return the CPU time (user and system) of these processes together, from the CPU clock of each.

    /proc/PID/stat has a resolution of 10 ms only.  The id of the clock is computed as clock_getcpuclockid(3) does.
    """
    return sum(time.clock_gettime(~pid << 3 | _CPUCLOCK_SCHED) for pid in pids)


def resident_kib(pid: int) -> int:
    """Return the resident memory of a process in KiB."""
    return int(Path(f"/proc/{pid}/statm").read_bytes().split()[1]) * _PAGE_KIB


def open_files(pid: int) -> int:
    """Return the number of open descriptors of a process."""
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


class MemoryPeak:
    """Peak resident memory of each process, in MiB."""

    def __init__(self, pids: dict[str, int]) -> None:
        self._pids = pids
        self.baseline = self.current()
        self.peak = dict(self.baseline)

    def current(self) -> dict[str, float]:
        """Return the resident memory of each process now, in MiB."""
        return {name: round(resident_kib(pid) / 1_024, 1) for name, pid in self._pids.items()}

    def sample(self) -> None:
        """Take the current memory into the peaks."""
        for name, mib in self.current().items():
            self.peak[name] = max(self.peak[name], mib)

    @property
    def growth(self) -> dict[str, float]:
        """Peak memory of each process beyond its baseline."""
        return {name: round(self.peak[name] - self.baseline[name], 1) for name in self.baseline}


@contextmanager
def watch_memory(pids: dict[str, int]) -> Iterator[MemoryPeak]:
    """Sample memory every `SAMPLE_S` in a thread until the context ends."""
    memory = MemoryPeak(pids)
    done = threading.Event()

    def sample() -> None:
        while not done.wait(SAMPLE_S):
            memory.sample()

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield memory
    finally:
        done.set()
        thread.join()
        memory.sample()
