"""Creates thousands of users on a running mesh through the ports of the stores: with tokens, without passwords."""

import secrets
import time
from collections.abc import AsyncIterator, Iterable, Sequence
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
from meshim.stores.ports import Lease, Login, RelationKey, RelationLimits
from meshim.stores.redis.client import RedisClient
from meshim.stores.redis.leases import RedisLeases
from meshim.stores.redis.session_cache import RedisSessionCache
from meshim.stores.sql.accounts import SqlAccounts
from meshim.stores.sql.database import Database
from meshim.stores.sql.partitions import SqlPartitions
from meshim.stores.sql.schema import im_position
from meshim.wire.envelope import WIRE_VERSION, Destination, DestinationType, Envelope, Kind, encode_envelope
from meshim.wire.offline_log import Entry

TOKEN_S = 86_400.0
_NO_HASH = "no password"
_DEVICE = "only"
_LIMITS = RelationLimits(relations=5_000, incoming=5_000, outgoing=5_000, pause_s=0.0)


class MeshUser(NamedTuple):
    """A user with one device and a valid token."""

    name: str
    user: int
    device: int
    epoch: int
    token: bytes


class UserFactory:
    """Creates users, friendships and stored messages in the database of a mesh."""

    def __init__(self, database: Database, partitions: int) -> None:
        self._database = database
        self._accounts = SqlAccounts(database)
        self._partitions = SqlPartitions(database)
        self._count = partitions

    async def create(self, count: int, prefix: str) -> list[MeshUser]:
        """Register `count` new users, each with a device that has logged in."""
        mark = secrets.token_hex(4)
        names = [f"{prefix}-{mark}-{number}" for number in range(count)]
        accounts = await self._accounts.register_many([(name, _NO_HASH) for name in names])
        users: list[MeshUser] = []
        for user in accounts:
            assert user is not None, "the name is new"
            epoch, token, now = secrets.randbits(53), secrets.token_bytes(32), time.time()
            device, _ = await self._accounts.log_in(
                user.user_id, _DEVICE, epoch, hash_token(token), now + TOKEN_S, now, devices_max=10
            )
            users.append(MeshUser(user.name, user.user_id, device.device_id, epoch, token))
        return users

    async def befriend(self, one: MeshUser, other: MeshUser) -> None:
        """Make two users friends."""
        now = time.time()
        await self._accounts.request(one.user, other.user, now, _LIMITS)
        await self._accounts.accept(other.user, one.user, RelationKey(1, b"not used"), now, _LIMITS.relations)

    async def store(self, sender: MeshUser, recipient: MeshUser, count: int, body: bytes) -> None:
        """Put `count` messages into the offline queue of a device, as the writer of its partition would.

        They are written in one transaction at the current position of the partition, so that the writer skips no record
        of the log.
        """
        partition = partition_of(recipient.user, self._count)
        entries = [
            Entry(recipient.user, (recipient.device,), text_envelope(sender, recipient.user, seq, body))
            for seq in range(1, count + 1)
        ]
        fence, position = await self._database.read(_fence_and_position, partition)
        await self._partitions.write(partition, fence, position, [(position, entries)], time.time())


def _fence_and_position(connection: Connection, partition: int) -> tuple[int, int]:
    query = select(im_position.c.fence, im_position.c.position).where(im_position.c.partition == partition)
    row = connection.execute(query).one()
    return row.fence, row.position


def text_envelope(sender: MeshUser, to: int, seq: int, body: bytes) -> bytes:
    """Return an encoded envelope; its sender has settled all earlier messages of the stream."""
    to_user = Destination(DestinationType.USER, to)
    return encode_envelope(
        Envelope(
            version=WIRE_VERSION,
            id=secrets.token_bytes(16),
            user=sender.user,
            device=sender.device,
            epoch=sender.epoch,
            to=to_user,
            seq=seq,
            base=seq,
            kind=Kind.TEXT,
            key=0,
            sent_at=int(time.time() * 1000),
            body=body,
        )
    )


@asynccontextmanager
async def user_factory(data: Path) -> AsyncIterator[UserFactory]:
    """Yield the user factory of the mesh that runs on a data folder."""
    topology = topologies.load(DataFolder(data).topology)
    database = Database(topology.backends.sql, 2)
    try:
        yield UserFactory(database, topology.limits.partitions)
    finally:
        await database.close()


async def cache_logins(data: Path, logins: Iterable[tuple[bytes, Login]]) -> None:
    """Put (token, login) pairs into the cache in Redis, where REST puts each login."""
    topology = topologies.load(DataFolder(data).topology)
    redis = RedisClient(topology.backends.redis, log.get("script", "logins"))
    try:
        cache = RedisSessionCache(redis, topology.namespace)
        for token, login in logins:
            await cache.put_login(hash_token(token), login)
    finally:
        await redis.close()


async def living_connectors(data: Path) -> Sequence[Lease]:
    """Return the leases of the living connectors, sorted by name."""
    topology = topologies.load(DataFolder(data).topology)
    logger = log.get("script", "leases")
    redis = RedisClient(topology.backends.redis, logger)
    try:
        return await RedisLeases(redis, topology.namespace).living("connector")
    finally:
        await redis.close()
