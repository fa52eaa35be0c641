"""The two servers on which the ports of Redis are tested: a real one, and one in memory.

A `Backend` makes any number of clients, each with connections of its own, as several processes have.  `until` lets time
pass: on the memory server by setting its clock.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Protocol

from meshim.runtime.log import Log
from meshim.stores.memory.redis import MemoryLeases, MemoryPresence, MemoryRedis, MemorySessionCache
from meshim.stores.memory.throttle import MemoryThrottle
from meshim.stores.ports import Leases, Presence, SessionCache, Throttle
from meshim.stores.redis.client import RedisClient
from meshim.stores.redis.leases import RedisLeases
from meshim.stores.redis.presence import RedisPresence
from meshim.stores.redis.session_cache import RedisSessionCache
from meshim.stores.redis.throttle import RedisThrottle

LOG = Log("test", "contract")


class Backend(Protocol):
    def leases(self) -> Leases: ...

    def presence(self) -> Presence: ...

    def session_cache(self, account_ttl_s: float = 60.0) -> SessionCache: ...

    def throttle(self) -> Throttle: ...

    def now(self) -> float: ...

    async def lose_subscriptions(self) -> None: ...

    async def step_clock_back(self, seconds: float) -> None:
        """Make every expiring value last that much longer, as after a step of the clock."""

    async def until(self, condition: Callable[[], Awaitable[bool]]) -> None:
        """Let time pass until the condition holds, 10 s at most."""


class MemoryBackend:
    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._now = 1_700_000_000.0
        self.redis = MemoryRedis(lambda: self._now)

    def leases(self) -> Leases:
        return MemoryLeases(self.redis, self._namespace)

    def presence(self) -> Presence:
        return MemoryPresence(self.redis, self._namespace)

    def session_cache(self, account_ttl_s: float = 60.0) -> SessionCache:
        return MemorySessionCache(self.redis, self._namespace, account_ttl_s=account_ttl_s)

    def throttle(self) -> Throttle:
        return MemoryThrottle(self.redis.windows, self.redis.answer)

    def now(self) -> float:
        return self._now

    async def step_clock_back(self, seconds: float) -> None:
        self._now -= seconds

    def set_clock(self, now: float) -> None:
        self._now = now

    async def lose_subscriptions(self) -> None:
        self.redis.stop()
        self.redis.start()

    async def until(self, condition: Callable[[], Awaitable[bool]]) -> None:
        end = self._now + 10.0
        while not await condition():
            self._now += 0.01
            assert self._now < end, "it did not come true"


class RedisBackend:
    def __init__(self, url: str, namespace: str) -> None:
        self._url = url
        self._namespace = namespace
        self._clients: list[RedisClient] = []

    def client(self) -> RedisClient:
        client = RedisClient(self._url, LOG)
        self._clients.append(client)
        return client

    def leases(self) -> Leases:
        return RedisLeases(self.client(), self._namespace)

    def presence(self) -> Presence:
        return RedisPresence(self.client(), self._namespace)

    def session_cache(self, account_ttl_s: float = 60.0) -> SessionCache:
        return RedisSessionCache(self.client(), self._namespace, account_ttl_s=account_ttl_s)

    def throttle(self) -> Throttle:
        return RedisThrottle(self.client(), self._namespace)

    def now(self) -> float:
        return time.time()

    async def lose_subscriptions(self) -> None:
        await self.client().execute("CLIENT", "KILL", "TYPE", "pubsub")

    async def step_clock_back(self, seconds: float) -> None:
        client = self.client()
        for key in await client.execute("KEYS", f"{self._namespace}:*"):
            left_ms = await client.execute("PTTL", key)
            if left_ms > 0:
                await client.execute("PEXPIRE", key, left_ms + round(seconds * 1000))

    async def until(self, condition: Callable[[], Awaitable[bool]]) -> None:
        end = time.monotonic() + 10.0
        while not await condition():
            assert time.monotonic() < end, "it did not come true"
            await asyncio.sleep(0.01)

    async def close(self) -> None:
        for client in self._clients:
            await client.close()


@asynccontextmanager
async def open_backend(kind: str, url: Callable[[], str], namespace: str) -> AsyncIterator[Backend]:
    """Yield the backend of that kind; `url` is called, and so starts a server, only for a real one."""
    if kind == "memory":
        yield MemoryBackend(namespace)
        return
    backend = RedisBackend(url(), namespace)
    try:
        yield backend
    finally:
        await backend.close()
