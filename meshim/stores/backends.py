"""The connections of a role to Redis, NATS and SQL: every role opens them here, and its exit stack closes them."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager

import msgspec

from meshim.errors import BackendUnavailable
from meshim.runtime.counters import prefixed
from meshim.runtime.service import Service
from meshim.stores.durability import Setting
from meshim.stores.lease_keeper import LeaseKeeper
from meshim.stores.nats import durability as nats_durability
from meshim.stores.nats.client import NatsClient
from meshim.stores.nats.notifications import NatsNotifications
from meshim.stores.redis import settings as redis_settings
from meshim.stores.redis.client import RedisClient, RedisStatistics
from meshim.stores.redis.leases import RedisLeases
from meshim.stores.sql import durability as sql_durability
from meshim.stores.sql.database import Database
from meshim.topology import Backends, Topology


class BackendConnections:
    """Opens clients of the backends in the topology, and counts what they count.

    `stack` closes the clients; it must outlive the service, whose background work uses them.
    """

    def __init__(self, topology: Topology, service: Service, stack: AsyncExitStack) -> None:
        self._topology = topology
        self._service = service
        self._stack = stack
        self._statistics: list[tuple[str, msgspec.Struct]] = []
        """Of each client that was opened, with the prefix of its counters."""
        self._redis_statistics = RedisStatistics()
        self._statistics.append(("redis", self._redis_statistics))

    def counters(self) -> dict[str, int]:
        """Return the counters of every client that was opened, for `meshim status`: `nats_dropped` and the like."""
        return {
            name: count
            for prefix, statistics in self._statistics
            for name, count in prefixed(prefix, statistics).items()
        }

    def redis(self) -> RedisClient:
        """Return a new client, which connects when it is first used."""
        return self._redis(connections=16)

    def leases(self) -> RedisLeases:
        """Return leases on two connections of their own: a renewal must not queue behind a connection storm."""
        return RedisLeases(self._redis(connections=2), self._topology.namespace)

    def _redis(self, connections: int) -> RedisClient:
        url, statistics = self._topology.backends.redis, self._redis_statistics
        client = RedisClient(url, self._service.log, connections=connections, statistics=statistics)
        self._stack.push_async_callback(client.close)
        return client

    def database(self) -> Database:
        """Return a new client, which connects when it is first used."""
        database = Database(self._topology.backends.sql, self._topology.limits.db_threads)
        self._stack.push_async_callback(database.close)
        self._statistics.append(("database", database.statistics))
        return database

    async def nats(self) -> NatsClient:
        """Return a connected client.  The role ends when NATS closes the connection for good.

        Raises `BackendUnavailable` when NATS does not answer.
        """
        nats = await NatsClient.connect(self._topology.backends.nats, self._service.log)
        self._stack.push_async_callback(nats.close)
        self._statistics.append(("nats", nats.statistics))
        self._service.start(_fail_when_closed(nats))
        return nats

    def notifications(self, nats: NatsClient) -> NatsNotifications:
        """Return notifications over a connected client."""
        notifications = NatsNotifications(nats, self._topology.namespace, self._service.log)
        self._statistics.append(("notifications", notifications.statistics))
        return notifications


async def _fail_when_closed(nats: NatsClient) -> None:
    await nats.wait_closed()
    raise BackendUnavailable("NATS no longer lets us in: see its log and the URL in the topology.")


@asynccontextmanager
async def lease_held(keeper: LeaseKeeper, service: Service, *, needed: bool = True) -> AsyncGenerator[None]:
    """Hold the lease during the block, and release it afterwards.

    With `needed` the block begins when the lease is held, since other roles find this one by it; otherwise at once.
    """

    async def keep() -> None:
        if not needed:
            try:
                await keeper.acquire()
            except BackendUnavailable as error:
                service.log.warning("lease not taken", reason=error)  # `run` goes on trying
        await keeper.run()

    if needed:
        await keeper.acquire()
    keeping = asyncio.create_task(keep())
    service.watch(keeping)
    try:
        yield
    finally:
        # In this order: a renewal under way would take the lease again.
        keeping.cancel()
        await asyncio.wait([keeping])
        await keeper.release()


async def read_settings(backends: Backends, monitor: str | None) -> list[Setting]:
    """Return the settings of the backends that the promises rest on, read over new connections.

    Settings of a backend that is down are unknown.
    """
    redis, nats, sql = await asyncio.gather(
        redis_settings.read_settings_at(backends.redis),
        nats_durability.read_settings_at(backends.nats, monitor),
        asyncio.to_thread(sql_durability.read_settings_at, backends.sql),
    )
    return [*redis, *nats, *sql]
