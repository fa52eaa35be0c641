"""`Presence.announce_full`: which queues are full, in memory and on Redis."""

from collections.abc import AsyncIterator
from contextlib import aclosing

import pytest

from meshim.runtime.log import Log
from meshim.stores.ports import Binding, UserPresence
from meshim.stores.redis.client import RedisClient
from meshim.stores.redis.presence import RedisPresence
from tests.contract.redis.backends import Backend, open_backend
from tests.contract.redis.test_presence import ALICE, BOB, HERE, SESSION, soon

TTL_S = 60.0
FULL = ((11, BOB), (0, 0))


@pytest.fixture(params=["memory", "redis"])
async def backend(request: pytest.FixtureRequest, namespace: str) -> AsyncIterator[Backend]:
    async with open_backend(request.param, lambda: str(request.getfixturevalue("valkey_url")), namespace) as backend:
        yield backend


async def test_what_is_full_is_found_with_presence_and_without(backend: Backend) -> None:
    presence, elsewhere = backend.presence(), backend.presence()
    await presence.announce_full(ALICE, FULL, TTL_S)
    assert await elsewhere.lookup([ALICE, BOB]) == {ALICE: UserPresence((), (), FULL)}
    binding = Binding(ALICE, 11, HERE, SESSION)
    await presence.online([(binding, (11,))])
    assert await elsewhere.lookup([ALICE]) == {ALICE: UserPresence((11,), (binding,), FULL)}
    await presence.announce_full(ALICE, FULL[:1], TTL_S)
    assert await elsewhere.lookup([ALICE]) == {ALICE: UserPresence((11,), (binding,), FULL[:1])}
    await presence.offline([binding])
    await presence.announce_full(ALICE, (), TTL_S)
    assert await elsewhere.lookup([ALICE]) == {}


async def test_it_is_published_when_it_changes(backend: Backend) -> None:
    presence = backend.presence()
    async with aclosing(presence.changes()) as changes:
        assert await soon(changes) is None
        await presence.announce_full(ALICE, FULL, TTL_S)
        assert await soon(changes) == (ALICE,)
        for same in (FULL, FULL):
            await presence.announce_full(ALICE, same, TTL_S)
        await presence.announce_full(BOB, FULL, TTL_S)
        assert await soon(changes) == (BOB,)
        await presence.announce_full(ALICE, (), TTL_S)
        assert await soon(changes) == (ALICE,)
        await presence.announce_full(ALICE, (), TTL_S)
        await presence.announce_full(BOB, (), TTL_S)
        assert await soon(changes) == (BOB,)


async def test_it_ends(backend: Backend) -> None:
    presence = backend.presence()
    await presence.announce_full(ALICE, FULL, 0.01)

    async def is_over() -> bool:
        return await presence.lookup([ALICE]) == {}

    await backend.until(is_over)


@pytest.mark.parametrize("value", [b"x", b"[[1]]", b"[[1,-1]]", b'"', b'[[1,2]]}],"x"', b"\xff\x00", b"[" * 5000])
async def test_a_malformed_value_is_skipped_and_counted(valkey_url: str, namespace: str, value: bytes) -> None:
    client = RedisClient(valkey_url, Log("test", "full"))
    presence = RedisPresence(client, namespace)
    binding = Binding(ALICE, 11, HERE, SESSION)
    await presence.online([(binding, (11,))])
    await client.execute("SET", f"{namespace}:full:{ALICE}", value)
    assert await presence.lookup([ALICE]) == {ALICE: UserPresence((11,), (binding,))}
    assert client.statistics.malformed == 1
    await presence.announce_full(ALICE, FULL, TTL_S)
    assert (await presence.lookup([ALICE]))[ALICE].full == FULL
    await client.close()


async def test_a_key_of_another_type_is_replaced(valkey_url: str, namespace: str) -> None:
    client = RedisClient(valkey_url, Log("test", "full"))
    presence = RedisPresence(client, namespace)
    await client.execute("RPUSH", f"{namespace}:full:{ALICE}", "x")
    assert await presence.lookup([ALICE]) == {}
    await presence.announce_full(ALICE, FULL, TTL_S)
    assert await presence.lookup([ALICE]) == {ALICE: UserPresence((), (), FULL)}
    await client.close()
