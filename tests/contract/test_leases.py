"""`Leases`: held by one incarnation at a time, for as long as it renews."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import redis.exceptions

from meshim.deploy.embedded import Valkey
from meshim.errors import BackendUnavailable, UsageError
from meshim.stores.memory.redis import MemoryLeases, MemoryRedis
from meshim.stores.ports import Lease
from meshim.stores.redis.client import RedisClient
from meshim.stores.redis.leases import RedisLeases
from tests.contract.outage import up
from tests.contract.redis_sides import LOG, Side, side_of

FIRST = Lease("connector", "c1", 2**62 + 1, "tcp://127.0.0.1:5001", "key-1")
SECOND = Lease("connector", "c1", 2**62 + 2, "tcp://127.0.0.1:5002", "key-2")
"""Another incarnation of the same connector; the two numbers are one as doubles."""
OTHER = Lease("connector", "c2", 7)
LONG_S = 60.0
SHORT_S = 0.05


@pytest.fixture(params=["memory", "redis"])
async def side(request: pytest.FixtureRequest, namespace: str) -> AsyncIterator[Side]:
    async with side_of(request.param, lambda: str(request.getfixturevalue("valkey_url")), namespace) as side:
        yield side


async def test_a_lease_is_seen_by_others_until_it_is_released(side: Side) -> None:
    leases, elsewhere = side.leases(), side.leases()
    assert await elsewhere.living("connector") == []
    assert await leases.acquire(OTHER, LONG_S)
    assert await leases.acquire(FIRST, LONG_S)
    assert await elsewhere.living("connector") == [FIRST, OTHER]
    assert await elsewhere.living("transfer") == []
    await leases.release(FIRST)
    assert await elsewhere.living("connector") == [OTHER]


async def test_another_incarnation_cannot_take_extend_or_release_it(side: Side) -> None:
    leases, elsewhere = side.leases(), side.leases()
    assert await leases.acquire(FIRST, LONG_S)
    assert not await elsewhere.acquire(SECOND, LONG_S)
    assert not await elsewhere.extend(SECOND, LONG_S)
    await elsewhere.release(SECOND)
    assert await leases.living("connector") == [FIRST]


async def test_acquiring_again_renews(side: Side) -> None:
    leases = side.leases()
    assert await leases.acquire(FIRST, LONG_S)
    assert await leases.acquire(FIRST, LONG_S), "the reply to the first may have been lost"


async def test_it_ends_by_itself_and_cannot_be_extended_then(side: Side) -> None:
    """R11: a process that was stopped beyond its lease learns it from the first renewal."""
    leases, elsewhere = side.leases(), side.leases()
    assert await leases.acquire(FIRST, SHORT_S)

    async def nobody() -> bool:
        return await elsewhere.living("connector") == []

    await side.until(nobody)
    assert not await leases.extend(FIRST, LONG_S)
    assert await elsewhere.acquire(SECOND, LONG_S)
    assert not await leases.extend(FIRST, LONG_S)
    await leases.release(FIRST)
    assert await leases.living("connector") == [SECOND]


async def test_extending_makes_it_last(side: Side) -> None:
    leases = side.leases()
    assert await leases.acquire(OTHER, SHORT_S)
    assert await leases.acquire(FIRST, SHORT_S)
    assert await leases.extend(FIRST, LONG_S)

    async def the_other_has_ended() -> bool:
        return OTHER not in await leases.living("connector")

    await side.until(the_other_has_ended)
    assert await leases.living("connector") == [FIRST]


async def test_of_who_died_it_ends_although_the_clock_stepped_back(side: Side) -> None:
    """In the eyes of those who watch, and of who comes in its place."""
    dead, watching, successor = side.leases(), side.leases(), side.leases()
    assert await dead.acquire(FIRST, SHORT_S)
    assert await dead.acquire(OTHER, SHORT_S)
    assert await watching.acquire(Lease("transfer", "t1", 3), SHORT_S)
    await side.step_clock_back(3600.0)
    assert not await successor.acquire(SECOND, SHORT_S)

    async def successor_has_it() -> bool:
        return await successor.acquire(SECOND, SHORT_S)

    await side.until(successor_has_it)
    assert OTHER in await watching.living("connector")

    async def other_has_ended() -> bool:
        return OTHER not in await watching.living("connector")

    await side.until(other_has_ended)


async def test_names_of_ended_leases_are_not_kept(valkey_url: str, namespace: str) -> None:
    client = RedisClient(valkey_url, LOG)
    leases = RedisLeases(client, namespace, LOG)
    await leases.acquire(FIRST, LONG_S)
    await client.execute("DEL", f"{namespace}:lease:connector:c1")  # what the end of its life does
    assert await leases.living("connector") == []
    assert await client.execute("KEYS", f"{namespace}:*") == []
    await client.close()


async def test_a_lease_of_an_unknown_version_is_left_out(valkey_url: str, namespace: str) -> None:
    client = RedisClient(valkey_url, LOG)
    leases = RedisLeases(client, namespace, LOG)
    await leases.acquire(FIRST, LONG_S)
    await leases.acquire(OTHER, LONG_S)
    await client.execute("SET", f"{namespace}:lease:connector:c1", b"12 \x93from the future")
    assert await leases.living("connector") == [OTHER]
    await client.close()


async def test_memory_run_id_and_outage() -> None:
    redis = MemoryRedis(lambda: 0.0)
    leases = MemoryLeases(redis, "n")
    run = await leases.run_id()
    await leases.acquire(FIRST, LONG_S)
    redis.stop()
    with pytest.raises(BackendUnavailable):
        await leases.extend(FIRST, LONG_S)
    redis.start()
    assert await leases.run_id() == run
    assert await leases.living("connector") == [FIRST]
    redis.start(wiped=True)
    assert await leases.run_id() != run
    assert await leases.living("connector") == []


async def test_a_restarted_server_has_another_run_id_and_no_leases(servers_folder: Path, namespace: str) -> None:
    """R9; its scripts are gone too."""
    valkey = Valkey(servers_folder / namespace)
    async with up(valkey) as server:
        client = RedisClient(server.url, LOG)
        leases = RedisLeases(client, namespace, LOG)
        run = await leases.run_id()
        assert await leases.acquire(FIRST, LONG_S)
        assert await leases.run_id() == run
    with pytest.raises(BackendUnavailable, match=r"^Redis at 127\.0\.0\.1:\d+ is not available: .*\.$"):
        await leases.extend(FIRST, LONG_S)
    async with up(valkey):
        assert await leases.run_id() != run
        assert not await leases.extend(FIRST, LONG_S)
        assert await leases.living("connector") == []
        assert await leases.acquire(SECOND, LONG_S)
        await client.close()


async def test_a_stopped_server_is_told_within_the_time_limit(servers_folder: Path, namespace: str) -> None:
    async with up(Valkey(servers_folder / namespace)) as server:
        client = RedisClient(server.url, LOG, timeout_s=0.1)
        leases = RedisLeases(client, namespace, LOG)
        assert await leases.acquire(FIRST, LONG_S)
        os.kill(server.pid, signal.SIGSTOP)
        async with asyncio.timeout(5.0):
            with pytest.raises(BackendUnavailable):
                await leases.extend(FIRST, LONG_S)
        os.kill(server.pid, signal.SIGCONT)
        assert await leases.living("connector") == [FIRST]
        await client.close()


async def test_a_wrong_password_is_one_sentence(valkey_url: str) -> None:
    client = RedisClient(valkey_url.replace("://:", "://:no"), LOG)
    with pytest.raises(BackendUnavailable, match=r"^Redis at 127\.0\.0\.1:\d+ is not available: .*password.*\.$"):
        await client.execute("PING")
    await client.close()


async def test_our_own_mistakes_are_not_called_outages(valkey_url: str, namespace: str) -> None:
    client = RedisClient(valkey_url, LOG)
    await client.execute("SADD", namespace, "x")
    with pytest.raises(redis.exceptions.ResponseError):
        await client.execute("GET", namespace)
    with pytest.raises(redis.exceptions.ResponseError):
        await client.script("return nonsense()")([])
    await client.execute("DEL", namespace)
    await client.close()


def test_a_wrong_url_is_one_sentence() -> None:
    with pytest.raises(UsageError, match=r"^backends\.redis is not a Redis URL: .*\.$"):
        RedisClient("http://127.0.0.1", LOG)
