"""The three databases on which the ports `Accounts`, `Queues` and `Partitions` are tested: memory, SQLite, MariaDB.

A `Backend` is one database.  `process` returns the three ports as another process would have them, with connections of
its own.  Leases end when a test calls `end_leases`, not when time passes.
"""

import asyncio
import itertools
import secrets
import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from types import ModuleType
from typing import Any, NamedTuple, Protocol

import pytest
from sqlalchemy import Connection, delete, func, select, update

from meshim.stores.memory.accounts import MemoryAccounts
from meshim.stores.memory.database import MemoryDatabase, MemoryPartitions, MemoryQueues
from meshim.stores.ports import Accounts, Device, Partitions, Queues, RelationLimits, User
from meshim.stores.sql.accounts import SqlAccounts
from meshim.stores.sql.database import Database
from meshim.stores.sql.partitions import SqlPartitions
from meshim.stores.sql.queues import SqlQueues
from meshim.stores.sql.schema import im_device, im_offline, im_position, im_relation, metadata
from meshim.wire.bounds import INTEGER_MAX
from meshim.wire.envelope import Destination, DestinationType, Envelope, Kind, encode_envelope
from meshim.wire.offline_log import Entry

PARTITIONS = 4
NOW = 1_800_000_000.0
EPOCH = INTEGER_MAX
"""The epoch of every sender here."""
LIMITS = RelationLimits(relations=100, incoming=100, outgoing=100, pause_s=0.0)
"""Those of requests for friendship, where a test is about something else."""

_TIMEOUT_S = 10.0
_names = itertools.count(1)


class Ports(NamedTuple):
    accounts: Accounts
    queues: Queues
    partitions: Partitions


class Backend(Protocol):
    def process(self) -> Ports: ...

    async def end_leases(self) -> None:
        """End every lease."""

    async def step_clock_back(self, seconds: float) -> None:
        """Make every lease last that much longer, as after a step of the clock."""

    async def rows(self, device: int) -> int:
        """Return the number of rows of the device, read or not."""

    async def pairs(self) -> int:
        """Return the number of pairs of users of whom anything is kept."""


class MemoryBackend:
    def __init__(self) -> None:
        self._now = NOW
        self._database = MemoryDatabase(lambda: self._now)

    def process(self) -> Ports:
        database = self._database
        return Ports(MemoryAccounts(database), MemoryQueues(database, PARTITIONS), MemoryPartitions(database))

    async def end_leases(self) -> None:
        self._now += 86_400.0

    async def step_clock_back(self, seconds: float) -> None:
        self._now -= seconds

    async def rows(self, device: int) -> int:
        queues = [*self._database.devices.values(), *self._database.first_devices.values()]
        return sum(len(found.queue) for found in queues if found.device_id == device)

    async def pairs(self) -> int:
        return len(self._database.relations)


class SqlBackend:
    """A database with tables."""

    def __init__(self, url: str, stack: AsyncExitStack) -> None:
        self.url = url
        self._stack = stack
        self.database = self.connect()

    def connect(self) -> Database:
        database = Database(self.url, 2)
        self._stack.push_async_callback(database.close)
        return database

    def process(self) -> Ports:
        database = self.connect()
        return Ports(SqlAccounts(database), SqlQueues(database, PARTITIONS), SqlPartitions(database))

    async def end_leases(self) -> None:
        def end(connection: Connection) -> None:
            connection.execute(update(im_device).values(queue_until=1))
            connection.execute(update(im_position).values(lease_until=1))

        await self.database.write(end)

    async def step_clock_back(self, seconds: float) -> None:
        def lengthen(connection: Connection) -> None:
            by_ms = round(seconds * 1000)
            for until in (im_device.c.queue_until, im_position.c.lease_until):
                connection.execute(update(until.table).where(until > 0).values({until: until + by_ms}))

        await self.database.write(lengthen)

    async def rows(self, device: int) -> int:
        def count(connection: Connection) -> int:
            query = select(func.count()).select_from(im_offline).where(im_offline.c.to_device == device)
            return connection.scalars(query).one()

        return await self.database.read(count)

    async def pairs(self) -> int:
        def count(connection: Connection) -> int:
            return connection.scalars(select(func.count()).select_from(im_relation)).one()

        return await self.database.read(count)


class Pause:
    """A point where a transaction stops, in its thread, until the test calls `go_on`."""

    def __init__(self) -> None:
        self._reached = threading.Event()
        self._go_on = threading.Event()

    def stop(self) -> None:
        """Stop here; the transaction calls this."""
        self._reached.set()
        assert self._go_on.wait(_TIMEOUT_S)

    async def reached(self) -> None:
        assert await asyncio.to_thread(self._reached.wait, _TIMEOUT_S)

    def go_on(self) -> None:
        self._go_on.set()


def pause_after(monkeypatch: pytest.MonkeyPatch, module: ModuleType, function: str) -> Pause:
    """Stop transactions after this function of the module."""
    pause = Pause()
    original = getattr(module, function)

    def paused(*arguments: object) -> object:
        result = original(*arguments)
        pause.stop()
        return result

    monkeypatch.setattr(module, function, paused)
    return pause


async def is_waiting(task: asyncio.Task[Any]) -> bool:
    """Whether the task is still blocked after 0.1 s."""
    return not (await asyncio.wait({task}, timeout=0.1))[0]


async def processes(backend: Backend, count: int) -> list[Ports]:
    """Return the ports of `count` processes, connected already, so that calls at once run at once."""
    found = [backend.process() for _ in range(count)]
    await asyncio.gather(*(process.accounts.ping() for process in found))
    return found


@asynccontextmanager
async def open_sql_backend(url: str) -> AsyncIterator[SqlBackend]:
    async with AsyncExitStack() as stack:
        backend = SqlBackend(url, stack)
        await backend.database.write(_empty)
        yield backend


def _empty(connection: Connection) -> None:
    for table in reversed(metadata.sorted_tables):
        connection.execute(delete(table))


# ---------------------------------------------------------------- users and messages


async def person(ports: Ports) -> User:
    return await ports.accounts.register(f"user-{next(_names)}", "hash")


async def device_of(
    ports: Ports, user: User, name: str = "phone", *, epoch: int = 1, now: float = NOW, most: int = 10
) -> Device:
    device, _ = await ports.accounts.log_in(
        user.user_id, name, epoch, secrets.token_bytes(32), now + 3600.0, now, most, takeover=True
    )
    return device


def envelope(seq: int, *, sender: int = 900, device: int = 901, to: int = 902, body: bytes = b"body") -> bytes:
    destination = Destination(DestinationType.USER, to)
    return encode_envelope(
        Envelope(1, seq.to_bytes(16), sender, device, EPOCH, destination, seq, 1, Kind.TEXT, 1, 1_800_000_000_000, body)
    )


def entry(user: User, seq: int, devices: Sequence[Device] = (), *, body: bytes = b"body") -> Entry:
    return Entry(user.user_id, tuple(device.device_id for device in devices), envelope(seq, to=user.user_id, body=body))


async def claimed(partitions: Partitions, owner: str = "writer", partition: int = 0) -> int:
    """Claim a free partition; return the fencing token."""
    claim = await partitions.claim(partition, owner, 60.0)
    assert claim is not None
    return claim[0]


async def positions(ports: Ports) -> dict[int, int]:
    """Return the positions above 0, by partition."""
    found, _ = await ports.queues.check([(user, 0) for user in range(PARTITIONS)])  # one user of each partition
    return {partition: position for partition, position in found.items() if position}


async def device_ids(ports: Ports, user: User) -> list[int]:
    """Return the ids of the user's devices, ascending."""
    accounts = await ports.accounts.accounts([user.user_id], NOW)
    return list(accounts[user.user_id].devices)


async def stored(ports: Ports, user: User, device: Device) -> list[bytes]:
    """Return the envelopes in the queue, in order."""
    fence = await ports.queues.claim(device.device_id, "reader", 1 << 52, 60.0)
    assert fence is not None
    page = await ports.queues.page(user.user_id, device.device_id, fence, (0, -1), 10_000, 1 << 30, 60.0)
    return [row.envelope for row in page.rows]
