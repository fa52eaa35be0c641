"""The two servers on which the ports of NATS are tested: a real one, and one in memory."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Protocol

from meshim.runtime.log import Log as Output
from meshim.stores.memory.nats import MemoryDeadLetters, MemoryNats, MemoryNotifications, MemoryOfflineLog
from meshim.stores.nats.client import NatsClient
from meshim.stores.nats.dead_letters import JetStreamDeadLetters
from meshim.stores.nats.notifications import NatsNotifications
from meshim.stores.nats.offline_log import JetStreamOfflineLog
from meshim.stores.ports import DeadLetters, Notifications, OfflineLog

LOG = Output("test", "contract")
MAX_BYTES = 1 << 20


class Backend(Protocol):
    async def log(self, ack_wait_s: float = 60.0, max_bytes: int = MAX_BYTES) -> OfflineLog: ...

    async def notifications(self) -> Notifications: ...

    async def dead_letters(self) -> DeadLetters: ...

    async def until(self, condition: Callable[[], Awaitable[bool]]) -> None:
        """Let time pass until the condition holds, 10 s at most."""


class MemoryBackend:
    def __init__(self, namespace: str) -> None:
        self._namespace = namespace
        self._now = 0.0
        self.nats = MemoryNats(lambda: self._now)

    async def log(self, ack_wait_s: float = 60.0, max_bytes: int = MAX_BYTES) -> OfflineLog:
        return MemoryOfflineLog(self.nats, self._namespace, ack_wait_s=ack_wait_s, max_bytes=max_bytes)

    async def notifications(self) -> Notifications:
        return MemoryNotifications(self.nats, self._namespace)

    async def dead_letters(self) -> DeadLetters:
        return MemoryDeadLetters(self.nats, self._namespace)

    async def until(self, condition: Callable[[], Awaitable[bool]]) -> None:
        end = self._now + 10.0
        while not await condition():
            self._now += 0.01
            assert self._now < end, "it did not come true"


class NatsBackend:
    def __init__(self, url: str, namespace: str) -> None:
        self._url = url
        self._namespace = namespace
        self._clients: list[NatsClient] = []

    async def client(self) -> NatsClient:
        client = await NatsClient.connect(self._url, LOG)
        self._clients.append(client)
        return client

    async def log(self, ack_wait_s: float = 60.0, max_bytes: int = MAX_BYTES) -> OfflineLog:
        return JetStreamOfflineLog(
            await self.client(), self._namespace, ack_wait_s=ack_wait_s, max_bytes=max_bytes, dead_bytes=MAX_BYTES
        )

    async def notifications(self) -> Notifications:
        return NatsNotifications(await self.client(), self._namespace, LOG)

    async def dead_letters(self) -> DeadLetters:
        return JetStreamDeadLetters(await self.client(), self._namespace)

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
    backend = NatsBackend(url(), namespace)
    try:
        yield backend
    finally:
        await backend.close()
