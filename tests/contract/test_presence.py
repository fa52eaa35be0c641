"""`Presence`: who is connected where; only a newer session replaces, only the same one is erased."""

import asyncio
import itertools
import os
import signal
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import TypeVar

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio.client import PubSub

from meshim.deploy.embedded import Valkey
from meshim.errors import BackendUnavailable
from meshim.stores.memory.redis import MemoryPresence, MemoryRedis
from meshim.stores.ports import Binding, UserPresence
from meshim.stores.redis.client import RedisClient
from meshim.stores.redis.presence import RedisPresence
from tests.contract.outage import up
from tests.contract.redis_sides import LOG, MemorySide, RedisSide, Side, side_of

T = TypeVar("T")

HERE = 2**62 + 1
THERE = 2**62 + 2
"""Two incarnations that are one number as doubles."""
SESSION = 1_700_000_000_000_000
ALICE = 2**63 - 1
BOB = 7


@pytest.fixture(params=["memory", "redis"])
async def side(request: pytest.FixtureRequest, namespace: str) -> AsyncIterator[Side]:
    async with side_of(request.param, lambda: str(request.getfixturevalue("valkey_url")), namespace) as side:
        yield side


async def soon(changes: AsyncIterator[T]) -> T:
    """What is told next, other than that nothing changed."""
    async with asyncio.timeout(10.0):
        while (told := await anext(changes)) == ():
            pass
        return told


async def test_a_binding_is_found_from_elsewhere_until_it_is_erased(side: Side) -> None:
    presence, elsewhere = side.presence(), side.presence()
    binding = Binding(ALICE, 11, HERE, SESSION)
    assert await elsewhere.lookup([ALICE, BOB]) == {}
    assert await presence.online([(binding, (12, 11))]) == [None]
    assert await elsewhere.lookup([ALICE, BOB]) == {ALICE: UserPresence((11, 12), (binding,))}
    assert await elsewhere.lookup([]) == {}
    await presence.offline([binding])
    assert await elsewhere.lookup([ALICE, BOB]) == {}


async def test_the_devices_of_a_user_come_and_go_apart(side: Side) -> None:
    presence = side.presence()
    phone, laptop = Binding(ALICE, 11, HERE, SESSION), Binding(ALICE, 12, THERE, SESSION + 1)
    assert await presence.online([(phone, (11, 12)), (laptop, (11, 12))]) == [None, None]
    found = (await presence.lookup([ALICE]))[ALICE]
    assert set(found.bindings) == {phone, laptop}
    await presence.offline([phone])
    assert await presence.lookup([ALICE]) == {ALICE: UserPresence((11, 12), (laptop,))}
    await presence.offline([laptop])
    assert await presence.lookup([ALICE]) == {}


async def test_only_a_newer_session_replaces(side: Side) -> None:
    presence = side.presence()
    old, new = Binding(ALICE, 11, HERE, SESSION), Binding(ALICE, 11, THERE, SESSION + 1)
    assert await presence.online([(old, (11,))]) == [None]
    assert await presence.online([(old, (11,))]) == [None], "the same again is fine"
    assert await presence.online([(new, (11,))]) == [old]
    assert await presence.online([(old, (11,))]) == [False]
    assert (await presence.lookup([ALICE]))[ALICE].bindings == (new,)


async def test_the_same_session_number_of_another_incarnation_is_another_binding(side: Side) -> None:
    presence = side.presence()
    one, other = Binding(ALICE, 11, HERE, SESSION), Binding(ALICE, 11, THERE, SESSION)
    await presence.online([(one, (11,))])
    await presence.offline([other])
    assert (await presence.lookup([ALICE]))[ALICE].bindings == (one,)
    assert await presence.online([(other, (11,))]) == [one]


async def test_a_late_goodbye_does_not_erase_the_new_session(side: Side) -> None:
    """R5: the old session's close arrives after the new session's greet."""
    presence, elsewhere = side.presence(), side.presence()
    old, new = Binding(ALICE, 11, HERE, SESSION), Binding(ALICE, 11, THERE, SESSION + 1)
    await presence.online([(old, (11,))])
    await elsewhere.online([(new, (11,))])
    await presence.offline([old])
    assert (await presence.lookup([ALICE]))[ALICE].bindings == (new,)


async def test_a_late_hello_does_not_replace_the_new_session(side: Side) -> None:
    """R5: a stopped connector writes what it meant to write before the new session's greet."""
    presence, elsewhere = side.presence(), side.presence()
    old, new = Binding(ALICE, 11, HERE, SESSION), Binding(ALICE, 11, THERE, SESSION + 1)
    await elsewhere.online([(new, (11,))])
    assert await presence.online([(old, (11, 12))]) == [False]
    assert await presence.lookup([ALICE]) == {ALICE: UserPresence((11,), (new,))}


async def test_one_batch_answers_for_each(side: Side) -> None:
    presence = side.presence()
    many = [(Binding(user, user * 10, HERE, SESSION + user), (user * 10,)) for user in range(1, 1001)]
    assert await presence.online(many) == [None] * len(many)
    found = await presence.lookup(range(1, 1002))
    assert found == {binding.user: UserPresence(devices, (binding,)) for binding, devices in many}

    moved = [(Binding(user, user * 10, THERE, SESSION + 500), (user * 10,)) for user in range(1, 1001)]
    expected = [False if binding.session > SESSION + 500 else binding for binding, _ in many]
    assert await presence.online(moved) == expected

    await presence.offline([binding for binding, _ in many] + [binding for binding, _ in moved])
    assert await presence.lookup(range(1, 1002)) == {}
    assert await presence.online([]) == []
    await presence.offline([])


async def test_a_device_too_few_is_not_believed_from_a_connector(side: Side) -> None:
    """What a connector cached may be older than the entry, and a device that is left out would miss its messages."""
    presence = side.presence()
    await presence.online([(Binding(ALICE, 9, HERE, SESSION), (9, 10))])
    await presence.online([(Binding(ALICE, 9, HERE, SESSION), (8, 9))])
    assert (await presence.lookup([ALICE]))[ALICE].devices == (8, 9, 10)
    await presence.set_devices(ALICE, (10, 9))
    assert (await presence.lookup([ALICE]))[ALICE].devices == (9, 10)


async def test_devices_are_set_only_for_who_has_an_entry(side: Side) -> None:
    presence = side.presence()
    await presence.set_devices(BOB, (1, 2))
    assert await presence.lookup([BOB]) == {}
    binding = Binding(BOB, 1, HERE, SESSION)
    await presence.online([(binding, (1,))])
    await presence.set_devices(BOB, (1, 2))
    assert await presence.lookup([BOB]) == {BOB: UserPresence((1, 2), (binding,))}


async def test_session_numbers_are_of_the_clock_and_ascend(side: Side) -> None:
    one, other = side.presence(), side.presence()
    assert await one.session_numbers(0) == []
    before = int((side.now() - 1.0) * 1_000_000)
    numbers = await one.session_numbers(3)
    assert len(numbers) == 3
    assert before < numbers[0] < before + 60_000_000
    later = await other.session_numbers(1)
    assert numbers == sorted(set(numbers))
    assert later[0] > numbers[-1]


async def test_session_numbers_are_given_once_however_many_ask(side: Side) -> None:
    """More than microseconds go by, from several processes at once."""
    sides = [side.presence() for _ in range(4)]
    given_out = await asyncio.gather(*(sides[i % 4].session_numbers(1 + i % 3 * 5000) for i in range(40)))
    numbers = [number for each in given_out for number in each]
    assert len(set(numbers)) == len(numbers)


async def test_session_numbers_go_on_when_the_clock_steps_back(valkey_url: str, namespace: str) -> None:
    """On the real server by a last number from the future."""
    client = RedisClient(valkey_url, LOG)
    last = 2 * SESSION
    await client.execute("SET", f"{namespace}:session", last)
    assert await RedisPresence(client, namespace).session_numbers(2) == [last + 1, last + 2]
    assert await RedisPresence(client, namespace).session_numbers(1) == [last + 3]
    await client.close()


async def test_what_no_connector_repeats_is_forgotten(valkey_url: str, namespace: str) -> None:
    """Bindings of a connector that crashed, when the device never comes back."""
    client = RedisClient(valkey_url, LOG)
    presence = RedisPresence(client, namespace, unseen_s=100)
    binding, key = Binding(1, 11, 77, SESSION), f"{namespace}:presence:1"
    await presence.online([(binding, (11,))])
    await client.execute("EXPIRE", key, 10)
    await presence.set_devices(1, [11, 12])
    assert await client.execute("TTL", key) <= 10
    await presence.online([(binding, (11, 12))])
    assert 90 <= await client.execute("TTL", key) <= 100, "the same binding again: somebody still wants it"
    await client.close()


async def test_memory_session_numbers_go_on_when_the_clock_steps_back(namespace: str) -> None:
    side = MemorySide(namespace)
    numbers = await side.presence().session_numbers(2)
    side.set_clock(side.now() - 3600.0)
    assert await side.presence().session_numbers(1) == [numbers[-1] + 1]


async def test_numbers_go_on_above_every_binding_that_is_written(side: Side) -> None:
    """R9: a server that was wiped, and whose clock is behind, learns from who registers again how far they had come."""
    presence, elsewhere = side.presence(), side.presence()
    far = int(side.now() * 1_000_000) + 3_600_000_000
    await presence.online([(Binding(ALICE, 11, HERE, far), (11,)), (Binding(BOB, 12, HERE, far - 5), (12,))])
    assert await elsewhere.session_numbers(2) == [far + 1, far + 2]
    await presence.online([(Binding(ALICE, 11, HERE, far), (11,))])
    assert await elsewhere.session_numbers(1) > [far + 2], "and an old binding does not set them back"


async def test_who_was_given_a_number_knows_how_far_they_must_have_come(valkey_url: str, namespace: str) -> None:
    """R5, R9: wiped, and the clock an hour behind, before anybody has registered again."""
    client = RedisClient(valkey_url, LOG)
    presence = RedisPresence(client, namespace)
    [number] = await presence.session_numbers(1)
    ahead = number + 3_600_000_000  # which makes the clock of the server one that is behind
    await client.execute("SET", f"{namespace}:session", ahead)
    assert await presence.session_numbers(1) == [ahead + 1]
    await client.execute("DEL", f"{namespace}:session")
    assert await presence.session_numbers(1) > [ahead + 1]
    await client.close()


async def test_memory_numbers_go_on_when_it_is_wiped_and_behind(namespace: str) -> None:
    side = MemorySide(namespace)
    presence = side.presence()
    [number] = await presence.session_numbers(1)
    side.redis.start(wiped=True)
    side.set_clock(side.now() - 3600.0)
    assert await presence.session_numbers(1) > [number]


async def test_changes_begin_with_none_and_name_who_changed(side: Side) -> None:
    presence, elsewhere = side.presence(), side.presence()
    binding = Binding(ALICE, 11, HERE, SESSION)
    async with aclosing(elsewhere.changes()) as changes:
        assert await soon(changes) is None
        await presence.online([(binding, (11,)), (Binding(BOB, 1, HERE, SESSION + 1), (1,))])
        assert await soon(changes) == (ALICE, BOB)
        await presence.set_devices(ALICE, (11, 12))
        assert await soon(changes) == (ALICE,)

        await presence.offline([Binding(BOB, 1, HERE, SESSION + 1)])
        assert await soon(changes) == (BOB,)


async def test_what_changes_nothing_is_not_told(side: Side) -> None:
    presence, elsewhere = side.presence(), side.presence()
    binding = Binding(ALICE, 11, HERE, SESSION)
    await presence.online([(binding, (11, 12))])
    async with aclosing(elsewhere.changes()) as changes:
        assert await soon(changes) is None
        await presence.online([(binding, (11, 12))])
        await presence.online([(binding._replace(session=SESSION - 1), (11, 12))])
        await presence.set_devices(ALICE, (12, 11))
        await presence.offline([Binding(ALICE, 11, THERE, SESSION)])
        await presence.online([(Binding(BOB, 1, HERE, SESSION), (1,))])
        assert await soon(changes) == (BOB,)


async def test_devices_of_somebody_without_an_entry_are_told_all_the_same(side: Side) -> None:
    """The entry may have ended without a word, and be in caches."""
    presence, elsewhere = side.presence(), side.presence()
    async with aclosing(elsewhere.changes()) as changes:
        assert await soon(changes) is None
        await presence.set_devices(ALICE, (11, 12))
        assert await soon(changes) == (ALICE,)


async def test_changes_are_put_together(side: Side) -> None:
    presence, elsewhere = side.presence(), side.presence()
    async with aclosing(elsewhere.changes()) as changes:
        assert await soon(changes) is None
        for number in range(50):
            await presence.online([(Binding(ALICE, 11, HERE, SESSION + number), (11,))])
        await presence.online([(Binding(BOB, 1, HERE, SESSION), (1,))])
        told: list[int] = []
        while BOB not in told:
            users = await soon(changes)
            assert users is not None
            assert len(set(users)) == len(users)
            told += users
        assert len(told) < 50


async def test_while_nothing_changes_that_is_told(side: Side) -> None:
    async with asyncio.timeout(10.0), aclosing(side.presence().changes()) as changes:
        assert await anext(changes) is None
        assert [await anext(changes), await anext(changes)] == [(), ()]


async def test_changes_say_when_something_may_have_been_missed(side: Side) -> None:
    presence, elsewhere = side.presence(), side.presence()
    async with aclosing(elsewhere.changes()) as changes:
        assert await soon(changes) is None
        await side.lose_subscriptions()
        assert await soon(changes) is None
        await presence.online([(Binding(ALICE, 11, HERE, SESSION), (11,))])
        assert await soon(changes) == (ALICE,)


async def test_changes_outlive_a_restart_of_the_server(servers_folder: Path, namespace: str) -> None:
    """R9: presence is gone, and the caches are told that they know nothing."""
    valkey = Valkey(servers_folder / namespace)
    binding = Binding(ALICE, 11, HERE, SESSION)
    async with up(valkey) as server:
        client = RedisClient(server.url, LOG, timeout_s=0.2)
    presence = RedisPresence(client, namespace)
    async with aclosing(presence.changes()) as changes:
        first = asyncio.ensure_future(soon(changes))
        with pytest.raises(BackendUnavailable):
            await presence.online([(binding, (11,))])
        async with up(valkey):
            assert await first is None
            await presence.online([(binding, (11,))])
            assert await soon(changes) == (ALICE,)
        async with up(valkey):
            assert await soon(changes) is None
            assert await presence.lookup([ALICE]) == {}
            assert await presence.online([(binding, (11,))]) == [None]
            assert await soon(changes) == (ALICE,)
            await client.close()


async def test_a_silent_server_counts_as_a_lost_subscription(servers_folder: Path, namespace: str) -> None:
    """Stopped, it neither answers nor closes the connection."""
    async with up(Valkey(servers_folder / namespace)) as server:
        side = RedisSide(server.url, namespace)
        client = RedisClient(server.url, LOG, timeout_s=0.1)
        async with aclosing(RedisPresence(client, namespace).changes()) as changes:
            assert await soon(changes) is None
            again = asyncio.ensure_future(soon(changes))
            os.kill(server.pid, signal.SIGSTOP)

            async def noticed() -> bool:
                return client.statistics.subscription_failures > 0

            await side.until(noticed)
            os.kill(server.pid, signal.SIGCONT)
            assert await again is None
        await client.close()


async def test_a_server_that_answers_late_counts_as_lost(
    valkey_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much it has to say meanwhile: it may be of long ago."""
    side, client = RedisSide(valkey_url, namespace), RedisClient(valkey_url, LOG, timeout_s=0.1)

    async def unanswered(self: PubSub) -> None:
        """Lost on its way."""

    monkeypatch.setattr(PubSub, "ping", unanswered)
    presence = side.presence()
    async with aclosing(RedisPresence(client, namespace).changes()) as changes:
        assert await soon(changes) is None
        session = itertools.count(SESSION)
        async with asyncio.timeout(10.0):
            while client.statistics.subscription_failures == 0:
                await presence.online([(Binding(ALICE, 11, HERE, next(session)), (11,))])
                await anext(changes)
    await client.close()
    await side.close()


async def test_memory_wiped(namespace: str) -> None:
    redis = MemoryRedis(lambda: 0.0)
    presence = MemoryPresence(redis, namespace)
    await presence.online([(Binding(ALICE, 11, HERE, SESSION), (11,))])
    redis.stop()
    with pytest.raises(BackendUnavailable):
        await presence.lookup([ALICE])
    redis.start(wiped=True)
    assert await presence.lookup([ALICE]) == {}


async def test_memory_tells_what_comes_after_something_was_missed(namespace: str) -> None:
    redis = MemoryRedis(lambda: 0.0)
    presence = MemoryPresence(redis, namespace)
    async with aclosing(presence.changes()) as changes:
        assert await soon(changes) is None
        redis.stop()
        redis.start()
        await presence.online([(Binding(ALICE, 11, HERE, SESSION), (11,))])
        assert [await soon(changes), await soon(changes)] == [None, (ALICE,)]


bindings = st.builds(
    Binding,
    user=st.integers(1, 2),
    device=st.integers(1, 2),
    incarnation=st.sampled_from([HERE, THERE]),
    session=st.integers(SESSION, SESSION + 3),
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("online"), st.lists(st.tuples(bindings, st.sets(st.integers(9, 11)).map(tuple)), max_size=4)),
        st.tuples(st.just("offline"), st.lists(bindings, max_size=4)),
        st.tuples(st.just("set_devices"), st.tuples(st.integers(1, 2), st.sets(st.integers(9, 11)).map(tuple))),
    ),
    max_size=12,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=steps)
def test_memory_and_redis_do_the_same(valkey_url: str, namespace: str, steps: list[tuple[str, object]]) -> None:
    async def both() -> None:
        client = RedisClient(valkey_url, LOG)
        await client.execute("DEL", f"{namespace}:presence:1", f"{namespace}:presence:2")
        sides = RedisPresence(client, namespace), MemoryPresence(MemoryRedis(lambda: 0.0), namespace)
        for name, argument in steps:
            arguments = argument if name == "set_devices" else (argument,)
            one, other = [await getattr(side, name)(*arguments) for side in sides]  # type: ignore[misc]  # by name
            assert one == other
            one, other = [await side.lookup([1, 2]) for side in sides]
            assert {user: (found.devices, set(found.bindings)) for user, found in one.items()} == {
                user: (found.devices, set(found.bindings)) for user, found in other.items()
            }
        await client.close()

    asyncio.run(both())
