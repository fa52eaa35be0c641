"""The port `Leases`: one incarnation at a time holds a lease, for as long as it renews."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import redis.exceptions

from meshim.deploy.embedded import Valkey
from meshim.errors import BackendUnavailable, UsageError
from meshim.runtime.log import Log
from meshim.stores.memory.redis import MemoryLeases, MemoryRedis
from meshim.stores.ports import Lease
from meshim.stores.redis.client import RedisClient
from meshim.stores.redis.leases import RedisLeases
from tests.contract.outage import up
from tests.contract.redis.backends import LOG, Backend, open_backend

FIRST = Lease("connector", "c1", 2**62 + 1, "tcp://127.0.0.1:5001", "key-1", "mesh-key-1")
SECOND = Lease("connector", "c1", 2**62 + 2, "tcp://127.0.0.1:5002", "key-2", "mesh-key-2")
"""Another incarnation of the same connector; as doubles the two numbers would be equal."""
OTHER = Lease("connector", "c2", 7)
LONG_S = 60.0
SHORT_S = 0.05


@pytest.fixture(params=["memory", "redis"])
async def backend(request: pytest.FixtureRequest, namespace: str) -> AsyncIterator[Backend]:
    async with open_backend(request.param, lambda: str(request.getfixturevalue("valkey_url")), namespace) as backend:
        yield backend


async def test_a_lease_is_seen_by_others_until_it_is_released(backend: Backend) -> None:
    leases, elsewhere = backend.leases(), backend.leases()
    assert await elsewhere.living("connector") == []
    assert await leases.acquire(OTHER, LONG_S)
    assert await leases.acquire(FIRST, LONG_S)
    assert await elsewhere.living("connector") == [FIRST, OTHER]
    assert await elsewhere.living("transfer") == []
    await leases.release(FIRST)
    assert await elsewhere.living("connector") == [OTHER]


async def test_another_incarnation_cannot_take_extend_or_release_a_lease(backend: Backend) -> None:
    leases, elsewhere = backend.leases(), backend.leases()
    assert await leases.acquire(FIRST, LONG_S)
    assert not await elsewhere.acquire(SECOND, LONG_S)
    assert not await elsewhere.extend(SECOND, LONG_S)
    await elsewhere.release(SECOND)
    assert await leases.living("connector") == [FIRST]


async def test_acquiring_again_renews_the_lease(backend: Backend) -> None:
    leases = backend.leases()
    assert await leases.acquire(FIRST, LONG_S)
    assert await leases.acquire(FIRST, LONG_S), "the reply to the first may have been lost"


async def test_a_lease_expires_and_cannot_be_extended_afterwards(backend: Backend) -> None:
    """R11: a process that was stopped for longer than its lease learns that from its first renewal."""
    leases, elsewhere = backend.leases(), backend.leases()
    assert await leases.acquire(FIRST, SHORT_S)

    async def nobody() -> bool:
        return await elsewhere.living("connector") == []

    await backend.until(nobody)
    assert not await leases.extend(FIRST, LONG_S)
    assert await elsewhere.acquire(SECOND, LONG_S)
    assert not await leases.extend(FIRST, LONG_S)
    await leases.release(FIRST)
    assert await leases.living("connector") == [SECOND]


async def test_an_extended_lease_lasts(backend: Backend) -> None:
    leases = backend.leases()
    assert await leases.acquire(OTHER, SHORT_S)
    assert await leases.acquire(FIRST, SHORT_S)
    assert await leases.extend(FIRST, LONG_S)

    async def the_other_has_ended() -> bool:
        return OTHER not in await leases.living("connector")

    await backend.until(the_other_has_ended)
    assert await leases.living("connector") == [FIRST]


async def test_the_lease_of_a_dead_process_ends_although_the_clock_stepped_back(backend: Backend) -> None:
    """For processes that watch, and for the process that takes its place."""
    dead, watching, successor = backend.leases(), backend.leases(), backend.leases()
    assert await dead.acquire(FIRST, SHORT_S)
    assert await dead.acquire(OTHER, SHORT_S)
    assert await watching.acquire(Lease("transfer", "t1", 3), SHORT_S)
    await backend.step_clock_back(3600.0)
    assert not await successor.acquire(SECOND, SHORT_S)

    async def successor_has_it() -> bool:
        return await successor.acquire(SECOND, SHORT_S)

    await backend.until(successor_has_it)
    assert OTHER in await watching.living("connector")

    async def other_has_ended() -> bool:
        return OTHER not in await watching.living("connector")

    await backend.until(other_has_ended)


async def test_names_of_ended_leases_are_removed(valkey_url: str, namespace: str) -> None:
    client = RedisClient(valkey_url, LOG)
    leases = RedisLeases(client, namespace)
    await leases.acquire(FIRST, LONG_S)
    await client.execute("DEL", f"{namespace}:lease:connector:c1")  # as its expiry does
    assert await leases.living("connector") == []
    assert await client.execute("KEYS", f"{namespace}:*") == []
    await client.close()


@pytest.mark.parametrize("value", [b"", b"x", b"12 ", b"12 \x90", b"12 \x93from the future", b"\xff" * 100])
async def test_a_malformed_lease_is_left_out_counted_once_and_ends(
    valkey_url: str, namespace: str, value: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    client = RedisClient(valkey_url, Log("test", "malformed"))
    leases = RedisLeases(client, namespace)
    for lease in (FIRST, OTHER):
        await leases.acquire(lease, LONG_S)
    key = f"{namespace}:lease:connector:c1"
    await client.execute("SET", key, value)
    for _ in range(3):
        assert await leases.living("connector") == [OTHER]
    assert client.statistics.malformed == 1
    assert capfd.readouterr().err.count("malformed-value-in-redis kind=lease") == 1
    assert 0 < await client.execute("PTTL", key) <= LONG_S * 1000, "so that another process can take its name"
    await client.close()


async def test_a_key_of_another_type_is_no_lease(valkey_url: str, namespace: str) -> None:
    client = RedisClient(valkey_url, LOG)
    leases = RedisLeases(client, namespace)
    await leases.acquire(FIRST, LONG_S)
    key = f"{namespace}:lease:connector:c1"
    await client.execute("DEL", key)
    await client.execute("RPUSH", key, "x")
    assert not await leases.extend(FIRST, LONG_S)
    await leases.release(FIRST)
    assert await leases.living("connector") == []
    assert await leases.acquire(FIRST, LONG_S)
    assert await leases.living("connector") == [FIRST]
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
    """R9; the server has lost its scripts too."""
    valkey = Valkey(servers_folder / namespace)
    async with up(valkey) as server:
        client = RedisClient(server.url, LOG)
        leases = RedisLeases(client, namespace)
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


async def test_a_stopped_server_is_unavailable_within_the_timeout(servers_folder: Path, namespace: str) -> None:
    async with up(Valkey(servers_folder / namespace)) as server:
        client = RedisClient(server.url, LOG, timeout_s=0.1)
        leases = RedisLeases(client, namespace)
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


async def test_our_bugs_are_not_called_outages(valkey_url: str, namespace: str) -> None:
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
