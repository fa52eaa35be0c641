"""Thousands who ask for connectors at once: few look-ups, none for those who have gone, a turn for those beyond."""

import asyncio
import time
from collections.abc import Callable, Sequence
from io import StringIO
from typing import Any, cast

import msgspec
import pytest

from meshim.errors import ApiError, BackendUnavailable
from meshim.rest import connectors
from meshim.rest.backends import Backends
from meshim.rest.connectors import TOGETHER_MAX, ConnectorDirectory
from meshim.rest.statistics import Statistics
from meshim.runtime.log import Log
from meshim.stores.ports import CachedLogin, Lease, Login
from meshim.wire import rest

ENDS_AT = time.time() + 3_600.0
LEASE = Lease("connector", "c1", 7, "tcp://127.0.0.1:4001")
LIST = rest.Connectors((rest.Connector("c1", "tcp://127.0.0.1:4001", ""),))


def token(number: int) -> bytes:
    return number.to_bytes(32, "big")


class World:
    """Redis and a database that count their calls; tokens below `cached` are in Redis, those below `stored` in SQL."""

    def __init__(self) -> None:
        self.cached, self.stored = 100_000, 0
        self.away = False
        """Whether the database is."""
        self.lists = 0
        self.look_ups: list[int] = []
        self.queries: list[int] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.statistics = Statistics()
        port = cast("Any", self)
        cache = cast("Any", _Cache(self))
        backends = Backends(port, port, port, cache, port, port, {}, {})
        self.directory = ConnectorDirectory(backends, time.time, Log("rest", "r1", StringIO()), self.statistics)

    async def living(self, role: str) -> list[Lease]:
        self.lists += 1
        await asyncio.sleep(0)
        return [LEASE]

    async def logins(self, hashes: Sequence[bytes], now: float) -> dict[bytes, Login]:
        self.queries.append(len(hashes))
        if self.away:
            raise BackendUnavailable("The database is away.")
        return {each: Login(1, 1, 1, ENDS_AT) for each in hashes if int.from_bytes(each, "big") < self.stored}

    async def ask(self, number: int, is_gone: Callable[[], bool] = lambda: False) -> rest.Connectors:
        return msgspec.json.decode(await self.directory.answer(token(number), is_gone), type=rest.Connectors)


class _Cache:
    def __init__(self, world: World) -> None:
        self._world = world

    async def logins(self, hashes: Sequence[bytes]) -> list[CachedLogin | None]:
        self._world.look_ups.append(len(hashes))
        await self._world.may_answer.wait()
        found = CachedLogin(Login(1, 1, 1, ENDS_AT), "run", verified=True)
        return [found if int.from_bytes(each, "big") < self._world.cached else None for each in hashes]


async def test_thousands_at_once_cost_few_look_ups() -> None:
    world = World()
    answers = await asyncio.gather(*(world.ask(number) for number in range(1_500)))
    assert answers == [LIST] * 1_500
    assert sum(world.look_ups) == 1_500
    assert len(world.look_ups) <= 2 + 1_500 // TOGETHER_MAX
    assert world.lists == 1
    assert world.queries == []


async def test_the_list_is_read_again_when_it_is_old(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    await world.ask(1)
    monkeypatch.setattr(connectors, "REFRESH_S", 0.0)
    await world.ask(1)
    assert world.lists == 2


async def test_nothing_is_looked_up_for_those_who_have_gone() -> None:
    world = World()
    world.may_answer.clear()
    gone = False
    first = asyncio.create_task(world.ask(1))
    while not world.look_ups:
        await asyncio.sleep(0)
    others = [asyncio.create_task(world.directory.answer(token(number), lambda: gone)) for number in range(2, 100)]
    stays = asyncio.create_task(world.ask(100))
    await asyncio.sleep(0)
    gone = True
    world.may_answer.set()
    assert [await first, await stays] == [LIST, LIST]
    assert world.look_ups == [1, 1]
    assert world.statistics.connectors_abandoned == 98
    assert await asyncio.gather(*others) == [b""] * 98


async def test_those_beyond_the_queue_are_told_when_to_come_again() -> None:
    world = World()
    world.may_answer.clear()
    asked = [asyncio.create_task(world.ask(number)) for number in range(5_000)]
    await asyncio.sleep(0.01)
    refused = [task.exception() for task in asked if task.done()]
    waits = [error.retry_after_s for error in refused if isinstance(error, ApiError)]
    inside = int(connectors.QUEUE_S * connectors.RATE)
    assert len(waits) == len(refused) == 5_000 - inside == world.statistics.connectors_postponed
    assert min(each for each in waits if each) > connectors.QUEUE_S
    assert len(set(waits)) > 5, "one after another, at the rate of the service"
    world.may_answer.set()
    waiting = [task for task in asked if not task.done()]
    assert await asyncio.gather(*waiting) == [LIST] * inside
    assert await world.ask(1) == LIST


async def test_each_gets_the_verdict_on_its_own_token() -> None:
    world = World()
    world.cached, world.stored = 1, 2
    found = await asyncio.gather(world.ask(0), world.ask(1), world.ask(2), return_exceptions=True)
    assert list(found[:2]) == [LIST, LIST]
    assert isinstance(found[2], ApiError)
    assert (found[2].status, found[2].code) == (401, "bad_token")
    assert world.queries == [2], "one query for all that Redis does not know"
    world.away = True
    known, unknown = await asyncio.gather(world.ask(0), world.ask(1), return_exceptions=True)
    assert known == LIST
    assert isinstance(unknown, BackendUnavailable)


async def test_an_unexpected_error_is_that_of_each_asker_and_the_next_question_is_answered() -> None:
    world = World()

    async def broken(hashes: Sequence[bytes]) -> list[CachedLogin | None]:
        raise ZeroDivisionError

    cache = cast("Any", world.directory._cache)
    right, cache.logins = cache.logins, broken
    found = await asyncio.gather(world.ask(0), world.ask(1), return_exceptions=True)
    assert [type(each) for each in found] == [ZeroDivisionError] * 2
    cache.logins = right
    assert await world.ask(1) == LIST
