"""Bindings at a stop: what was begun is finished, and what follows from it, so that presence keeps none of them."""

import asyncio
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack
from typing import Any, cast

from meshim.connector import events as e
from meshim.connector.authenticator import Authenticator, Backends
from meshim.connector.bindings import Bindings
from meshim.errors import BackendUnavailable
from meshim.runtime.service import Service
from meshim.stores.memory.accounts import MemoryAccounts
from meshim.stores.memory.database import MemoryDatabase
from meshim.stores.memory.redis import MemoryPresence, MemoryRedis, MemorySessionCache
from meshim.stores.ports import Binding, CachedLogin

USER, DEVICE, HERE = 1, 2, 901
TOKEN = b"t" * 32
DEADLINE_S = 10.0


class World:
    """The bindings of a connector whose core has no session left: it erases each binding that was written."""

    def __init__(self) -> None:
        database, redis = MemoryDatabase(time.time), MemoryRedis(time.time)
        self.accounts = MemoryAccounts(database)
        self.presence, self.cache = MemoryPresence(redis, "test"), MemorySessionCache(redis, "test")
        service = Service("connector", "c1", shutdown_s=1.0)
        backends = Backends(self.presence, self.cache, self.accounts, cast("Any", None), cast("Any", None))
        self.bindings = Bindings(self.presence, Authenticator(backends, 15.0, service), self.receive, service, 0.0)
        self.events: list[e.Event] = []

    def receive(self, event: e.Event) -> None:
        self.events.append(event)
        if isinstance(event, e.BindingsWritten):
            self.bindings.erase(e.EraseBindings(tuple(binding for binding, _ in event.results)))


async def test_a_stop_waits_for_the_renewal_that_a_write_has_added(monkeypatch: Any) -> None:
    """The second look at the token has no answer, so the token is looked up in the database, which takes a while; the
    binding is then written again, when the session has ended, and has to be erased."""
    world = World()
    asked = asyncio.Event()

    async def away(hashes: Sequence[bytes]) -> list[CachedLogin | None]:
        raise BackendUnavailable("Redis is away.")

    async def slow(hashes: Sequence[bytes]) -> set[bytes]:
        asked.set()
        for _ in range(100):
            await asyncio.sleep(0)
        return set(hashes)

    monkeypatch.setattr(world.cache, "logins", away)
    monkeypatch.setattr(world.accounts, "unrevoked", slow)
    binding = Binding(user=USER, device=DEVICE, incarnation=HERE, session=7)
    async with AsyncExitStack() as stack:
        for run in world.bindings.runs():
            stack.callback(asyncio.create_task(run).cancel)
        world.bindings.write(e.WriteBindings((e.BindingRenewal(binding, (DEVICE,), TOKEN),)))
        await world.bindings.join(DEADLINE_S)
        assert asked.is_set()
        assert world.events == [e.BindingsWritten([(binding, None)])] * 2, "new, and renewed"
        assert await world.presence.lookup([USER]) == {}


async def test_a_stop_waits_no_longer_than_it_may(monkeypatch: Any) -> None:
    world = World()
    never: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def hangs(bindings: object) -> Any:
        await never

    monkeypatch.setattr(world.presence, "online", hangs)
    binding = Binding(user=USER, device=DEVICE, incarnation=HERE, session=7)
    async with AsyncExitStack() as stack:
        for run in world.bindings.runs():
            stack.callback(asyncio.create_task(run).cancel)
        world.bindings.write(e.WriteBindings((e.BindingRenewal(binding, (DEVICE,), TOKEN),)))
        await world.bindings.join(0.01)
        assert world.events == []
