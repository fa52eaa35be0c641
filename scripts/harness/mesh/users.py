"""People on a mesh by the thousand: made through the stores' ports, with tokens of their own and no password hash."""

import secrets
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from sqlalchemy import select
from sqlalchemy.engine import Connection

from meshim import topology as topologies
from meshim.deploy.state import DataFolder
from meshim.protocol.routing import partition_of
from meshim.runtime import log
from meshim.runtime.crypto import hash_token
from meshim.stores.ports import Lease, RelationKey
from meshim.stores.redis.client import RedisClient
from meshim.stores.redis.leases import RedisLeases
from meshim.stores.sql.accounts import SqlAccounts
from meshim.stores.sql.database import Database
from meshim.stores.sql.partitions import SqlPartitions
from meshim.stores.sql.schema import im_position
from meshim.wire.envelope import WIRE_VERSION, Destination, DestinationType, Envelope, Kind, encode_envelope
from meshim.wire.offline_log import Entry

TOKEN_S = 86_400.0
_NO_HASH = "nobody logs in with a password here"
_DEVICE = "only"


class Person(NamedTuple):
    """A user with one device, who can greet."""

    name: str
    user: int
    device: int
    epoch: int
    token: bytes


class Population:
    """Makes people, friendships and stored messages in the database of a mesh."""

    def __init__(self, database: Database, partitions: int) -> None:
        self._database = database
        self._accounts = SqlAccounts(database)
        self._partitions = SqlPartitions(database)
        self._count = partitions

    async def people(self, count: int, prefix: str) -> list[Person]:
        """Register that many new users, each with a device that is logged in."""
        mark = secrets.token_hex(4)
        names = [f"{prefix}-{mark}-{number}" for number in range(count)]
        users = await self._accounts.register_many([(name, _NO_HASH) for name in names])
        people: list[Person] = []
        for user in users:
            assert user is not None, "the name is new"
            epoch, token, now = secrets.randbits(64), secrets.token_bytes(32), time.time()
            device, _ = await self._accounts.log_in(
                user.user_id, _DEVICE, epoch, hash_token(token), now + TOKEN_S, now, devices_max=10
            )
            people.append(Person(user.name, user.user_id, device.device_id, epoch, token))
        return people

    async def befriend(self, one: Person, other: Person) -> None:
        now = time.time()
        await self._accounts.request(one.user, other.user, now, relations_max=5_000)
        await self._accounts.accept(other.user, one.user, RelationKey(1, b"not used"), now)

    async def store(self, sender: Person, recipient: Person, count: int, body: bytes) -> None:
        """Put messages into the queue of a device, as the writer of her partition would.

        In one transaction, at the position that the partition has already: no record of the log is skipped for it.
        """
        partition = partition_of(recipient.user, self._count)
        entries = [
            Entry(recipient.user, (recipient.device,), text(sender, recipient.user, seq, body))
            for seq in range(1, count + 1)
        ]
        fence, position = await self._database.read(_fence_and_position, partition)
        await self._partitions.write(partition, fence, position, [(position, entries)], time.time())


def _fence_and_position(connection: Connection, partition: int) -> tuple[int, int]:
    query = select(im_position.c.fence, im_position.c.position).where(im_position.c.partition == partition)
    row = connection.execute(query).one()
    return row.fence, row.position


def text(sender: Person, to: int, seq: int, body: bytes) -> bytes:
    """An envelope of a sender who has settled everything before it."""
    where = Destination(DestinationType.USER, to)
    return encode_envelope(
        Envelope(
            WIRE_VERSION, secrets.token_bytes(16), sender.user, sender.device, sender.epoch, where, seq, seq,
            Kind.TEXT, 0, int(time.time() * 1000), body,
        )
    )  # fmt: skip


@asynccontextmanager
async def population(data: Path) -> AsyncIterator[Population]:
    """The population of the mesh that runs on a data folder."""
    topology = topologies.load(DataFolder(data).topology)
    database = Database(topology.backends.sql, 2)
    try:
        yield Population(database, topology.limits.partitions)
    finally:
        await database.close()


async def connectors(data: Path) -> Sequence[Lease]:
    """The connectors that live, by name."""
    topology = topologies.load(DataFolder(data).topology)
    logger = log.get("script", "population")
    redis = RedisClient(topology.backends.redis, logger)
    try:
        return await RedisLeases(redis, topology.namespace, logger).living("connector")
    finally:
        await redis.close()
