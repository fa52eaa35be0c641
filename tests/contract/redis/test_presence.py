"""The port `Presence`: only a newer session replaces a binding, and only the same binding is erased."""

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
from meshim.runtime.log import Log
from meshim.stores.memory.redis import MemoryPresence, MemoryRedis
from meshim.stores.ports import Binding, UserPresence
from meshim.stores.redis.client import RedisClient
from meshim.stores.redis.presence import RedisPresence
from tests.contract.outage import up
from tests.contract.redis.backends import LOG, Backend, MemoryBackend, RedisBackend, open_backend

T = TypeVar("T")

HERE = 2**62 + 1
THERE = 2**62 + 2
"""Two incarnations that would be equal as doubles."""
SESSION = 1_700_000_000_000_000
ALICE = 2**63 - 1
BOB = 7


@pytest.fixture(params=["memory", "redis"])
async def backend(request: pytest.FixtureRequest, namespace: str) -> AsyncIterator[Backend]:
    async with open_backend(request.param, lambda: str(request.getfixturevalue("valkey_url")), namespace) as backend:
        yield backend


async def soon(changes: AsyncIterator[T]) -> T:
    """Return the next item of `changes` that is no heartbeat."""
    async with asyncio.timeout(10.0):
        while (told := await anext(changes)) == ():
            pass
        return told


async def test_a_binding_is_found_from_elsewhere_until_it_is_erased(backend: Backend) -> None:
    presence, elsewhere = backend.presence(), backend.presence()
    binding = Binding(ALICE, 11, HERE, SESSION)
    assert await elsewhere.lookup([ALICE, BOB]) == {}
    assert await presence.online([(binding, (12, 11))]) == [None]
    assert await elsewhere.lookup([ALICE, BOB]) == {ALICE: UserPresence((11, 12), (binding,))}
    assert await elsewhere.lookup([]) == {}
    await presence.offline([binding])
    assert await elsewhere.lookup([ALICE, BOB]) == {}


async def test_devices_of_a_user_are_bound_independently(backend: Backend) -> None:
    presence = backend.presence()
    phone, laptop = Binding(ALICE, 11, HERE, SESSION), Binding(ALICE, 12, THERE, SESSION + 1)
    assert await presence.online([(phone, (11, 12)), (laptop, (11, 12))]) == [None, None]
    found = (await presence.lookup([ALICE]))[ALICE]
    assert set(found.bindings) == {phone, laptop}
    await presence.offline([phone])
    assert await presence.lookup([ALICE]) == {ALICE: UserPresence((11, 12), (laptop,))}
    await presence.offline([laptop])
    assert await presence.lookup([ALICE]) == {}


async def test_only_a_newer_session_replaces(backend: Backend) -> None:
    presence = backend.presence()
    old, new = Binding(ALICE, 11, HERE, SESSION), Binding(ALICE, 11, THERE, SESSION + 1)
    assert await presence.online([(old, (11,))]) == [None]
    assert await presence.online([(old, (11,))]) == [None], "the same again is fine"
    assert await presence.online([(new, (11,))]) == [old]
    assert await presence.online([(old, (11,))]) == [False]
    assert (await presence.lookup([ALICE]))[ALICE].bindings == (new,)


async def test_the_same_session_number_of_another_incarnation_is_another_binding(backend: Backend) -> None:
    presence = backend.presence()
    one, other = Binding(ALICE, 11, HERE, SESSION), Binding(ALICE, 11, THERE, SESSION)
    await presence.online([(one, (11,))])
    await presence.offline([other])
    assert (await presence.lookup([ALICE]))[ALICE].bindings == (one,)
    assert await presence.online([(other, (11,))]) == [one]


async def test_a_late_goodbye_does_not_erase_the_new_session(backend: Backend) -> None:
    """R5: `offline` of the old session arrives after `online` of the new one."""
    presence, elsewhere = backend.presence(), backend.presence()
    old, new = Binding(ALICE, 11, HERE, SESSION), Binding(ALICE, 11, THERE, SESSION + 1)
    await presence.online([(old, (11,))])
    await elsewhere.online([(new, (11,))])
    await presence.offline([old])
    assert (await presence.lookup([ALICE]))[ALICE].bindings == (new,)


async def test_a_late_hello_does_not_replace_the_new_session(backend: Backend) -> None:
    """R5: a stopped connector writes its binding after the newer session has written one."""
    presence, elsewhere = backend.presence(), backend.presence()
    old, new = Binding(ALICE, 11, HERE, SESSION), Binding(ALICE, 11, THERE, SESSION + 1)
    await elsewhere.online([(new, (11,))])
    assert await presence.online([(old, (11, 12))]) == [False]
    assert await presence.lookup([ALICE]) == {ALICE: UserPresence((11,), (new,))}


async def test_a_batch_has_one_result_per_binding(backend: Backend) -> None:
    presence = backend.presence()
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


async def test_a_connector_cannot_remove_a_device_from_the_entry(backend: Backend) -> None:
    """The list that a connector cached may be older than the entry, and a missing device would miss its messages."""
    presence = backend.presence()
    await presence.online([(Binding(ALICE, 9, HERE, SESSION), (9, 10))])
    await presence.online([(Binding(ALICE, 9, HERE, SESSION), (8, 9))])
    assert (await presence.lookup([ALICE]))[ALICE].devices == (8, 9, 10)
    await presence.update_devices(ALICE, (10, 9), (8,))
    assert (await presence.lookup([ALICE]))[ALICE].devices == (9, 10)


async def test_of_two_updates_in_the_wrong_order_the_older_takes_no_device_away(backend: Backend) -> None:
    """Two REST processes registered a device each: the slower one does not know that of the other."""
    slow, quick = backend.presence(), backend.presence()
    binding = Binding(ALICE, 9, HERE, SESSION)
    await slow.online([(binding, (9,))])
    await quick.update_devices(ALICE, (9, 10, 11))
    await slow.update_devices(ALICE, (9, 10))
    assert await slow.lookup([ALICE]) == {ALICE: UserPresence((9, 10, 11), (binding,))}


async def test_a_device_is_removed_by_its_id_alone(backend: Backend) -> None:
    presence = backend.presence()
    binding = Binding(ALICE, 9, HERE, SESSION)
    await presence.online([(binding, (9, 90, 900))])
    await presence.update_devices(ALICE, (), (90, 99))
    assert (await presence.lookup([ALICE]))[ALICE].devices == (9, 900)
    await presence.update_devices(ALICE, (), (9, 900))
    assert await presence.lookup([ALICE]) == {ALICE: UserPresence((), (binding,))}


async def test_devices_are_set_only_in_an_existing_entry(backend: Backend) -> None:
    presence = backend.presence()
    await presence.update_devices(BOB, (1, 2))
    assert await presence.lookup([BOB]) == {}
    binding = Binding(BOB, 1, HERE, SESSION)
    await presence.online([(binding, (1,))])
    await presence.update_devices(BOB, (1, 2))
    assert await presence.lookup([BOB]) == {BOB: UserPresence((1, 2), (binding,))}


async def test_session_numbers_follow_the_clock_and_ascend(backend: Backend) -> None:
    one, other = backend.presence(), backend.presence()
    assert await one.session_numbers(0) == []
    before = int((backend.now() - 1.0) * 1_000_000)
    numbers = await one.session_numbers(3)
    assert len(numbers) == 3
    assert before < numbers[0] < before + 60_000_000
    later = await other.session_numbers(1)
    assert numbers == sorted(set(numbers))
    assert later[0] > numbers[-1]


async def test_session_numbers_are_unique_across_processes(backend: Backend) -> None:
    """Several processes at once take more numbers than microseconds pass."""
    sides = [backend.presence() for _ in range(4)]
    given_out = await asyncio.gather(*(sides[i % 4].session_numbers(1 + i % 3 * 5000) for i in range(40)))
    numbers = [number for each in given_out for number in each]
    assert len(set(numbers)) == len(numbers)


async def test_session_numbers_ascend_when_the_clock_steps_back(valkey_url: str, namespace: str) -> None:
    """On the real server, the last number given is set into the future instead."""
    client = RedisClient(valkey_url, LOG)
    last = 2 * SESSION
    await client.execute("SET", f"{namespace}:session", last)
    assert await RedisPresence(client, namespace).session_numbers(2) == [last + 1, last + 2]
    assert await RedisPresence(client, namespace).session_numbers(1) == [last + 3]
    await client.close()


async def test_an_entry_that_no_connector_repeats_expires(valkey_url: str, namespace: str) -> None:
    """Bindings of a connector that crashed, when the device never comes back."""
    client = RedisClient(valkey_url, LOG)
    presence = RedisPresence(client, namespace, unseen_s=100)
    binding, key = Binding(1, 11, 77, SESSION), f"{namespace}:presence:1"
    await presence.online([(binding, (11,))])
    await client.execute("EXPIRE", key, 10)
    await presence.update_devices(1, [11, 12])
    assert await client.execute("TTL", key) <= 10
    await presence.online([(binding, (11, 12))])
    assert 90 <= await client.execute("TTL", key) <= 100, "the same binding again renews the entry"
    await client.close()


async def test_memory_session_numbers_ascend_when_the_clock_steps_back(namespace: str) -> None:
    backend = MemoryBackend(namespace)
    numbers = await backend.presence().session_numbers(2)
    backend.set_clock(backend.now() - 3600.0)
    assert await backend.presence().session_numbers(1) == [numbers[-1] + 1]


async def test_numbers_ascend_above_every_written_binding(backend: Backend) -> None:
    """R9: a wiped server with a clock behind learns the highest number from bindings that are written again."""
    presence, elsewhere = backend.presence(), backend.presence()
    far = int(backend.now() * 1_000_000) + 3_600_000_000
    await presence.online([(Binding(ALICE, 11, HERE, far), (11,)), (Binding(BOB, 12, HERE, far - 5), (12,))])
    assert await elsewhere.session_numbers(2) == [far + 1, far + 2]
    await presence.online([(Binding(ALICE, 11, HERE, far), (11,))])
    assert await elsewhere.session_numbers(1) > [far + 2], "and an old binding does not set them back"


async def test_a_client_keeps_numbers_ascending_after_a_wipe(valkey_url: str, namespace: str) -> None:
    """R5, R9: wiped, and the clock an hour behind, before any binding is written again."""
    client = RedisClient(valkey_url, LOG)
    presence = RedisPresence(client, namespace)
    [number] = await presence.session_numbers(1)
    ahead = number + 3_600_000_000  # so that the clock of the server is an hour behind
    await client.execute("SET", f"{namespace}:session", ahead)
    assert await presence.session_numbers(1) == [ahead + 1]
    await client.execute("DEL", f"{namespace}:session")
    assert await presence.session_numbers(1) > [ahead + 1]
    await client.close()


async def test_memory_numbers_ascend_when_it_is_wiped_and_behind(namespace: str) -> None:
    backend = MemoryBackend(namespace)
    presence = backend.presence()
    [number] = await presence.session_numbers(1)
    backend.redis.start(wiped=True)
    backend.set_clock(backend.now() - 3600.0)
    assert await presence.session_numbers(1) > [number]


async def test_changes_begin_with_none_and_name_changed_users(backend: Backend) -> None:
    presence, elsewhere = backend.presence(), backend.presence()
    binding = Binding(ALICE, 11, HERE, SESSION)
    async with aclosing(elsewhere.changes()) as changes:
        assert await soon(changes) is None
        await presence.online([(binding, (11,)), (Binding(BOB, 1, HERE, SESSION + 1), (1,))])
        assert await soon(changes) == (ALICE, BOB)
        await presence.update_devices(ALICE, (11, 12))
        assert await soon(changes) == (ALICE,)

        await presence.offline([Binding(BOB, 1, HERE, SESSION + 1)])
        assert await soon(changes) == (BOB,)


async def test_writes_without_a_change_are_not_published(backend: Backend) -> None:
    presence, elsewhere = backend.presence(), backend.presence()
    binding = Binding(ALICE, 11, HERE, SESSION)
    await presence.online([(binding, (11, 12))])
    async with aclosing(elsewhere.changes()) as changes:
        assert await soon(changes) is None
        await presence.online([(binding, (11, 12))])
        await presence.online([(binding._replace(session=SESSION - 1), (11, 12))])
        await presence.update_devices(ALICE, (12, 11))
        await presence.offline([Binding(ALICE, 11, THERE, SESSION)])
        await presence.online([(Binding(BOB, 1, HERE, SESSION), (1,))])
        assert await soon(changes) == (BOB,)


async def test_devices_of_a_user_without_an_entry_are_published(backend: Backend) -> None:
    """The entry may have expired, which is not published, and be in caches."""
    presence, elsewhere = backend.presence(), backend.presence()
    async with aclosing(elsewhere.changes()) as changes:
        assert await soon(changes) is None
        await presence.update_devices(ALICE, (11, 12))
        assert await soon(changes) == (ALICE,)


async def test_changes_are_batched(backend: Backend) -> None:
    presence, elsewhere = backend.presence(), backend.presence()
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


async def test_changes_have_a_heartbeat(backend: Backend) -> None:
    async with asyncio.timeout(10.0), aclosing(backend.presence().changes()) as changes:
        assert await anext(changes) is None
        assert [await anext(changes), await anext(changes)] == [(), ()]


async def test_changes_yield_none_when_some_may_have_been_missed(backend: Backend) -> None:
    presence, elsewhere = backend.presence(), backend.presence()
    async with aclosing(elsewhere.changes()) as changes:
        assert await soon(changes) is None
        await backend.lose_subscriptions()
        assert await soon(changes) is None
        await presence.online([(Binding(ALICE, 11, HERE, SESSION), (11,))])
        assert await soon(changes) == (ALICE,)


MALFORMED = (
    b"x", b"[", b"[11", b"[11,-1]", b"[007]", b"[99999999999999999999]", b"null", b'"text"',
    b'[],"bindings":[]},{"devices":[]',
)  # fmt: skip


@pytest.mark.parametrize("value", MALFORMED)
@pytest.mark.parametrize("field", ["devices", "11"])
async def test_a_malformed_entry_is_no_entry_until_its_device_connects(
    valkey_url: str, namespace: str, field: str, value: bytes, capfd: pytest.CaptureFixture[str]
) -> None:
    client = RedisClient(valkey_url, Log("test", "malformed"))
    presence = RedisPresence(client, namespace)
    alice, bob = Binding(ALICE, 11, HERE, SESSION), Binding(BOB, 12, HERE, SESSION)
    await presence.online([(alice, (11,)), (bob, (12,))])
    entry = await presence.lookup([BOB])
    await client.execute("HSET", f"{namespace}:presence:{ALICE}", field, value)
    for _ in range(2):
        assert await presence.lookup([ALICE, BOB]) == entry
    assert client.statistics.malformed == 2
    assert capfd.readouterr().err.count("malformed-value-in-redis kind=presence") == 1
    again = alice._replace(session=SESSION + 1)
    results = await presence.online([(again, (11,)), (bob._replace(session=SESSION + 1), (12,))])
    assert results == [alice if field == "devices" else None, bob]
    found = (await presence.lookup([ALICE]))[ALICE]
    assert (11 in found.devices, found.bindings) == (True, (again,))
    await client.close()


async def test_keys_of_another_type_are_no_entries_and_are_replaced(valkey_url: str, namespace: str) -> None:
    client = RedisClient(valkey_url, LOG)
    presence = RedisPresence(client, namespace)
    binding, key = Binding(ALICE, 11, HERE, SESSION), f"{namespace}:presence:{ALICE}"
    for command in (("SET", key, "x"), ("RPUSH", f"{namespace}:session", "x")):
        await client.execute(*command)
    assert await presence.lookup([ALICE]) == {}
    await presence.update_devices(ALICE, (11,))
    await presence.offline([binding])
    assert await presence.online([(binding, (11,))]) == [None]
    assert await presence.lookup([ALICE]) == {ALICE: UserPresence((11,), (binding,))}
    for malformed in ("x", "nan", "1e300"):
        await client.execute("SET", f"{namespace}:session", malformed)
        [number] = await presence.session_numbers(1)
        assert SESSION < number < 2**53
    await client.close()


async def test_messages_of_a_foreign_publisher_are_skipped_and_counted(valkey_url: str, namespace: str) -> None:
    client = RedisClient(valkey_url, LOG)
    presence = RedisPresence(client, namespace)
    async with aclosing(presence.changes()) as changes:
        assert await soon(changes) is None
        for message in (b"", b"alice", b"1,,2", b"9" * 5_000, b"\xff"):
            await client.execute("PUBLISH", f"{namespace}:presence", message)
        await presence.update_devices(BOB, (12,))
        assert await soon(changes) == (BOB,)
    assert client.statistics.malformed == 5
    await client.close()


async def test_changes_continue_after_a_restart_of_the_server(servers_folder: Path, namespace: str) -> None:
    """R9: presence is lost, and caches are told to drop everything."""
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
    """A stopped server neither answers nor closes the connection."""
    async with up(Valkey(servers_folder / namespace)) as server:
        backend = RedisBackend(server.url, namespace)
        client = RedisClient(server.url, LOG, timeout_s=0.1)
        async with aclosing(RedisPresence(client, namespace).changes()) as changes:
            assert await soon(changes) is None
            again = asyncio.ensure_future(soon(changes))
            os.kill(server.pid, signal.SIGSTOP)

            async def noticed() -> bool:
                return client.statistics.subscription_failures > 0

            await backend.until(noticed)
            os.kill(server.pid, signal.SIGCONT)
            assert await again is None
        await client.close()


async def test_a_server_that_answers_late_counts_as_lost(
    valkey_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also while it sends messages: they may be old."""
    backend, client = RedisBackend(valkey_url, namespace), RedisClient(valkey_url, LOG, timeout_s=0.1)

    async def unanswered(self: PubSub) -> None:
        """Lose the PING."""

    monkeypatch.setattr(PubSub, "ping", unanswered)
    presence = backend.presence()
    async with aclosing(RedisPresence(client, namespace).changes()) as changes:
        assert await soon(changes) is None
        session = itertools.count(SESSION)
        async with asyncio.timeout(10.0):
            while client.statistics.subscription_failures == 0:
                await presence.online([(Binding(ALICE, 11, HERE, next(session)), (11,))])
                await anext(changes)
    await client.close()
    await backend.close()


async def test_memory_wiped(namespace: str) -> None:
    redis = MemoryRedis(lambda: 0.0)
    presence = MemoryPresence(redis, namespace)
    await presence.online([(Binding(ALICE, 11, HERE, SESSION), (11,))])
    redis.stop()
    with pytest.raises(BackendUnavailable):
        await presence.lookup([ALICE])
    redis.start(wiped=True)
    assert await presence.lookup([ALICE]) == {}


async def test_memory_yields_changes_after_a_miss(namespace: str) -> None:
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
ids = st.sets(st.integers(9, 11)).map(tuple)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("online"), st.lists(st.tuples(bindings, ids), max_size=4)),
        st.tuples(st.just("offline"), st.lists(bindings, max_size=4)),
        st.tuples(st.just("update_devices"), st.tuples(st.integers(1, 2), ids, ids)),
    ),
    max_size=12,
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=steps)
def test_memory_and_redis_behave_the_same(valkey_url: str, namespace: str, steps: list[tuple[str, object]]) -> None:
    async def both() -> None:
        client = RedisClient(valkey_url, LOG)
        await client.execute("DEL", f"{namespace}:presence:1", f"{namespace}:presence:2")
        backends = RedisPresence(client, namespace), MemoryPresence(MemoryRedis(lambda: 0.0), namespace)
        for name, argument in steps:
            arguments = argument if name == "update_devices" else (argument,)
            one, other = [await getattr(backend, name)(*arguments) for backend in backends]  # type: ignore[misc]  # by name
            assert one == other
            one, other = [await backend.lookup([1, 2]) for backend in backends]
            assert {user: (found.devices, set(found.bindings)) for user, found in one.items()} == {
                user: (found.devices, set(found.bindings)) for user, found in other.items()
            }
        await client.close()

    asyncio.run(both())
