"""What is done to a real mesh to force a race, and how a test sees that it was entered.

Every wait is for something that can be observed: a counter of `meshim status --json`, a row, a binding.  Counters are
written once a second and begin anew with each process, so a test notes them before (`Counted`) and waits for a rise.
"""

import asyncio
import os
import signal
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass

import msgspec
import nats
import redis

from meshim import topology as topologies
from meshim.protocol.routing import conversation_of, pick
from meshim.runtime import counters
from meshim.stores.ports import Binding
from meshim.topology import Timers, Topology
from scripts.harness.mesh import local_mesh
from tests.mesh.real_mesh import DEADLINE_S, RealMesh, until

ROLES = {"c": "connector", "t": "transfer", "w": "writer", "r": "rest"}
"""By the first letter of a name, as `local_mesh.topology` gives them."""


def brisk(*, writers: int = 1, **timers: float) -> Topology:
    """A mesh that notices the dead in half the usual time, so that tests wait less."""
    quick = Timers(
        lease_renew_s=0.5, lease_ttl_s=2.0, partition_lease_s=3.0, queue_lease_s=4.0, mesh_heartbeat_s=0.3,
        mesh_silence_s=1.0,
    )  # fmt: skip
    topology = msgspec.structs.replace(
        local_mesh.topology(writers=writers), timers=msgspec.structs.replace(quick, **timers)
    )
    topologies.check(topology)
    return topology


# ---------------------------------------------------------------- processes


@contextmanager
def stopped(mesh: RealMesh, *names: str, at_once: bool = False) -> Iterator[None]:
    """Roles or backends that hold still during the block, and then go on, unless they were killed.

    Unless `at_once`, none of them is within a transaction: SQLite has one lock, and whoever is stopped with it stops
    all who write.
    """
    pids = [pid_of(mesh, name) for name in names]
    with nullcontext() if at_once else locked_database(mesh):
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def kill(mesh: RealMesh, name: str) -> int:
    """`kill -9`; the pid that was killed."""
    pid = pid_of(mesh, name)
    os.kill(pid, signal.SIGKILL)
    return pid


def pid_of(mesh: RealMesh, name: str) -> int:
    return mesh.backend_pid(name) if name in ("redis", "nats") else mesh.pid(name)


async def back(mesh: RealMesh, name: str, after: int) -> None:
    """Wait until a process that was killed runs again, in the eyes of the others too."""
    if name in ("redis", "nats"):
        await until(lambda: mesh.backend_pid(name) not in (0, after), f"{name} does not come back")
    else:
        await mesh.restarted(name, after)


# ---------------------------------------------------------------- counters


def counter(mesh: RealMesh, name: str, of: str) -> int:
    """One counter of one role, as it was written last."""
    return counters.read(mesh.data.root, ROLES[name[0]], name, mesh.pid(name)).get(of, 0)


@dataclass
class Counted:
    """A counter of some roles, since this was made: by default of all that have it."""

    mesh: RealMesh
    counter: str
    names: Sequence[str] = ()

    def __post_init__(self) -> None:
        self._before = self._counts()

    def _counts(self) -> dict[tuple[str, int], int]:
        """By name and pid, since another process counts from 0."""
        found = {}
        for name, pid in self.mesh.role_pids().items():
            if name in self.names or not self.names:
                role = ROLES[name[0]]
                found[name, pid] = counters.read(self.mesh.data.root, role, name, pid).get(self.counter, 0)
        return found

    @property
    def rise(self) -> int:
        return sum(max(0, count - self._before.get(key, 0)) for key, count in self._counts().items())

    async def rises(self, by: int = 1, within_s: float = DEADLINE_S) -> None:
        await until(lambda: self.rise >= by, f"{self.counter} rose by {self.rise} instead of {by}", within_s)


# ---------------------------------------------------------------- stores


def redis_of(mesh: RealMesh) -> "redis.Redis":
    return redis.from_url(topologies.load(mesh.data.topology).backends.redis)


def bindings(mesh: RealMesh, user: int) -> dict[int, Binding]:
    """The bindings of a user in Redis, by device."""
    with closing(redis_of(mesh)) as client:
        entry = client.hgetall(f"meshim:presence:{user}")
    found = [msgspec.json.decode(value, type=Binding) for name, value in entry.items() if name != b"devices"]
    return {binding.device: binding for binding in found}


def erase_binding(mesh: RealMesh, user: int, device: int) -> None:
    """So that no writer knows whom to wake-up."""
    with closing(redis_of(mesh)) as client:
        assert client.hdel(f"meshim:presence:{user}", str(device)) == 1


async def handler(mesh: RealMesh, one: int, other: int) -> str:
    """The transfer that handles what these users say to each other, once every connector is linked to it."""
    roles = [ROLES[name[0]] for name in mesh.role_pids()]
    names = {incarnation(mesh, name): name for name in mesh.role_pids() if ROLES[name[0]] == "transfer"}
    picked = pick(conversation_of(one, other), names)
    assert picked is not None
    name = names[picked]
    await until(lambda: counter(mesh, name, "connectors") == roles.count("connector"), f"{name} is not linked")
    return name


def incarnation(mesh: RealMesh, name: str) -> int:
    """That of a living role, from its lease."""
    with closing(redis_of(mesh)) as client:
        lease = client.get(f"meshim:lease:{ROLES[name[0]]}:{name}")
    assert isinstance(lease, bytes)
    return int(lease.split(b" ")[0])


def lives(mesh: RealMesh, name: str) -> bool:
    """Whether a role has a lease."""
    with closing(redis_of(mesh)) as client:
        return bool(client.exists(f"meshim:lease:{ROLES[name[0]]}:{name}"))


def rows(mesh: RealMesh, device: int) -> tuple[int, int]:
    """(unread, all) of what is stored for a device."""
    query = "SELECT COALESCE(SUM(1 - has_read), 0), COUNT(*) FROM im_offline WHERE to_device = ?"
    with closing(database(mesh)) as connection:
        unread, count = connection.execute(query, (device,)).fetchone()
    return int(unread), int(count)


def fence(mesh: RealMesh, device: int) -> int:
    """How often the queue of a device was claimed."""
    with closing(database(mesh)) as connection:
        (found,) = connection.execute("SELECT queue_fence FROM im_device WHERE id = ?", (device,)).fetchone()
    return int(found)


def database(mesh: RealMesh) -> sqlite3.Connection:
    return sqlite3.connect(mesh.data.root / "meshim.db", isolation_level=None, timeout=DEADLINE_S)


def writer_of(mesh: RealMesh, partition: int) -> str:
    """The name of the writer that claimed a partition last."""
    with closing(database(mesh)) as connection:
        (owner,) = connection.execute("SELECT owner FROM im_position WHERE partition = ?", (partition,)).fetchone()
    return str(owner).rpartition("-")[2]


async def given_out(mesh: RealMesh, partition: int) -> None:
    """Wait until a writer has fetched something of a partition that it has not acknowledged."""
    client = await nats.connect(topologies.load(mesh.data.topology).backends.nats)
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not (await client.jetstream().consumer_info(f"meshim-offline-{partition}", "writer")).num_ack_pending:
                await asyncio.sleep(0.02)
    finally:
        await client.close()


@contextmanager
def locked_database(mesh: RealMesh) -> Iterator[None]:
    """Nobody writes to the database during the block."""
    with closing(database(mesh)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            connection.execute("ROLLBACK")
