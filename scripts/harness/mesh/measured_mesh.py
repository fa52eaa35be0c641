"""A real mesh with seeded users, and the CPU time and memory of its processes.

Memory is the resident set.
"""

import asyncio
import json
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import msgspec

from meshim.deploy.state import DataFolder, MeshState
from meshim.errors import BackendUnavailable
from meshim.stores.ports import Lease
from meshim.topology import Topology
from scripts.harness.clients.connections import Transport
from scripts.harness.mesh import local_mesh
from scripts.harness.mesh.process_stats import cpu_seconds, resident_kib
from scripts.harness.mesh.seed_database import seed_database
from scripts.harness.mesh.users import living_connectors

LINKED_S = 30.0


class Usage(NamedTuple):
    """CPU seconds and KiB of memory at one moment, by the name of the process in the topology."""

    at: float
    """Seconds of the monotonic clock."""
    cpu_s: dict[str, float]
    own_cpu_s: float
    """CPU seconds of this process, which makes the load."""
    rss_kib: dict[str, int]


class Cost(NamedTuple):
    """Cost of operations: microseconds of CPU for each, of all servers together, of each server, and of the clients."""

    things: int
    seconds: float
    rate: float
    cpu_us: float
    cpu_us_by: dict[str, float]
    client_us: float
    cores: float
    """CPUs that the servers used together."""


class MeasuredMesh:
    """A running mesh."""

    def __init__(self, data: Path, connectors: Sequence[Lease], transport: Transport) -> None:
        self.data = data
        self.transport = transport
        """Of the clients that measure it."""
        self.connectors = connectors
        """In the order of their names; keys are empty without CURVE."""
        state = msgspec.json.decode(DataFolder(data).state.read_bytes(), type=MeshState)
        self._pids = {"up": state.pid}
        self._pids |= {role.name: role.pid for role in state.roles if role.pid is not None}
        self._pids |= {backend.name: backend.pid for backend in state.backends if backend.pid is not None}

    def usage(self) -> Usage:
        """Return the usage of every process until now.  Raises OSError when one has ended."""
        cpu_s = {name: cpu_seconds((pid,)) for name, pid in self._pids.items()}
        rss_kib = {name: resident_kib(pid) for name, pid in self._pids.items()}
        return Usage(time.monotonic(), cpu_s, time.process_time(), rss_kib)

    def cost(self, since: Usage, count: int) -> Cost:
        """Return the cost of `count` operations since an earlier usage."""
        now = self.usage()
        seconds = now.at - since.at
        each = 1e6 / max(1, count)
        by = {name: round((cpu_s - since.cpu_s[name]) * each, 2) for name, cpu_s in now.cpu_s.items()}
        all_s = sum(now.cpu_s.values()) - sum(since.cpu_s.values())
        return Cost(
            things=count,
            seconds=round(seconds, 3),
            rate=round(count / seconds, 1),
            cpu_us=round(all_s * each, 2),
            cpu_us_by=by,
            client_us=round((now.own_cpu_s - since.own_cpu_s) * each, 2),
            cores=round(all_s / seconds, 2),
        )


@contextmanager
def measured_mesh(
    mesh: Topology, users: int, friends: Iterable[tuple[int, int]], transport: Transport = "zeromq"
) -> Iterator[MeasuredMesh]:
    """Run a mesh in a temporary folder with `users` seeded users; `friends` are pairs of their numbers, from 0.

    Raises `MeshimError` when it does not start.
    """
    with tempfile.TemporaryDirectory(prefix="meshim-bench-") as folder:
        data = Path(folder) / "data"
        seed_database(data, users, friends)
        with local_mesh.running(Path(folder), mesh):
            _until_linked(data, mesh)
            leases = sorted(asyncio.run(living_connectors(data)), key=lambda lease: lease.name)
            yield MeasuredMesh(data, leases, transport)


def _until_linked(data: Path, mesh: Topology) -> None:
    """Wait until every connector is linked to every transfer: earlier messages may be stored or refused."""
    files = [data / "run" / "counters" / f"transfer-{transfer.name}.json" for transfer in mesh.transfers]
    deadline = time.monotonic() + LINKED_S
    while any(_linked(file) < len(mesh.connectors) for file in files):
        if time.monotonic() > deadline:
            raise BackendUnavailable("The connectors did not find the transfers in time: is the machine too busy?")
        time.sleep(0.05)


def _linked(counters: Path) -> int:
    return int(json.loads(counters.read_bytes())["counters"]["connectors"]) if counters.exists() else 0
