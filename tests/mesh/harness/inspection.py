"""The observable state of a running mesh: counters, bindings, leases, rows, consumers.

Processes write their counters once a second and begin at 0 when they start.  So a test notes a counter before
(`CounterRise`) and waits until it has risen.
"""

import asyncio
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass

import msgspec
import nats
import redis

from meshim import topology as topologies
from meshim.protocol.routing import conversation_of, pick
from meshim.runtime import counters
from meshim.stores.ports import Binding
from tests.mesh.harness.real_mesh import DEADLINE_S, RealMesh, until

ROLES = {"c": "connector", "t": "transfer", "w": "writer", "r": "rest"}
"""By the first letter of a name, as `local_mesh.topology` gives them."""


# ---------------------------------------------------------------- counters


def read_counter(mesh: RealMesh, name: str, counter: str) -> int:
    """One counter of one role, as that role wrote it last."""
    return counters.read(mesh.data.root, ROLES[name[0]], name, mesh.pid(name)).get(counter, 0)


@dataclass
class CounterRise:
    """How far a counter has risen since this object was made: the sum over the roles `names`, by default over all."""

    mesh: RealMesh
    counter: str
    names: Sequence[str] = ()

    def __post_init__(self) -> None:
        self._before = self._counts()

    def _counts(self) -> dict[tuple[str, int], int]:
        """By name and pid, since a new process counts from 0."""
        found = {}
        for name, pid in self.mesh.role_pids().items():
            if name in self.names or not self.names:
                role = ROLES[name[0]]
                found[name, pid] = counters.read(self.mesh.data.root, role, name, pid).get(self.counter, 0)
        return found

    @property
    def rise(self) -> int:
        return sum(max(0, count - self._before.get(key, 0)) for key, count in self._counts().items())

    async def wait(self, by: int = 1, within_s: float = DEADLINE_S) -> None:
        """Wait until the counter has risen by at least `by`."""
        await until(lambda: self.rise >= by, f"{self.counter} did not rise by {by} within {within_s:g} s", within_s)


# ---------------------------------------------------------------- Redis


def redis_client(mesh: RealMesh) -> "redis.Redis":
    return redis.from_url(topologies.load(mesh.data.topology).backends.redis)


def bindings(mesh: RealMesh, user: int) -> dict[int, Binding]:
    """The bindings of a user in Redis, by device."""
    with closing(redis_client(mesh)) as client:
        entry = client.hgetall(f"meshim:presence:{user}")
    found = [msgspec.json.decode(value, type=Binding) for name, value in entry.items() if name != b"devices"]
    return {binding.device: binding for binding in found}


def has_lease(mesh: RealMesh, name: str) -> bool:
    """Whether a role has a lease."""
    with closing(redis_client(mesh)) as client:
        return bool(client.exists(f"meshim:lease:{ROLES[name[0]]}:{name}"))


def incarnation(mesh: RealMesh, name: str) -> int:
    """The incarnation of a living role, from its lease."""
    with closing(redis_client(mesh)) as client:
        lease = client.get(f"meshim:lease:{ROLES[name[0]]}:{name}")
    assert isinstance(lease, bytes)
    return int(lease.split(b" ")[0])


async def transfer_of(mesh: RealMesh, one: int, other: int) -> str:
    """The transfer that routes the conversation of two users, once every connector is linked to it."""
    roles = [ROLES[name[0]] for name in mesh.role_pids()]
    names = {incarnation(mesh, name): name for name in mesh.role_pids() if ROLES[name[0]] == "transfer"}
    picked = pick(conversation_of(one, other), names)
    assert picked is not None
    name = names[picked]
    linked = roles.count("connector")
    await until(lambda: read_counter(mesh, name, "connectors") == linked, f"{name} is not linked to all connectors")
    return name


# ---------------------------------------------------------------- the database and the log


def open_database(mesh: RealMesh) -> sqlite3.Connection:
    return sqlite3.connect(mesh.data.root / "meshim.db", isolation_level=None, timeout=DEADLINE_S)


def stored_rows(mesh: RealMesh, device: int) -> tuple[int, int]:
    """(unread, all) rows in the offline queue of a device."""
    query = "SELECT COALESCE(SUM(1 - has_read), 0), COUNT(*) FROM im_offline WHERE to_device = ?"
    with closing(open_database(mesh)) as connection:
        unread, count = connection.execute(query, (device,)).fetchone()
    return int(unread), int(count)


def queue_fence(mesh: RealMesh, device: int) -> int:
    """The fencing token of the queue of a device: how often it was claimed."""
    with closing(open_database(mesh)) as connection:
        (found,) = connection.execute("SELECT queue_fence FROM im_device WHERE id = ?", (device,)).fetchone()
    return int(found)


def writer_of(mesh: RealMesh, partition: int) -> str:
    """The name of the writer that claimed a partition last."""
    with closing(open_database(mesh)) as connection:
        (owner,) = connection.execute("SELECT owner FROM im_position WHERE partition = ?", (partition,)).fetchone()
    return str(owner).rpartition("-")[2]


async def wait_fetched(mesh: RealMesh, partition: int) -> None:
    """Wait until a writer has fetched messages of a partition that it has not acknowledged."""
    client = await nats.connect(topologies.load(mesh.data.topology).backends.nats)
    try:
        async with asyncio.timeout(DEADLINE_S):
            while not (await client.jetstream().consumer_info(f"meshim-offline-{partition}", "writer")).num_ack_pending:
                await asyncio.sleep(0.02)
    finally:
        await client.close()
