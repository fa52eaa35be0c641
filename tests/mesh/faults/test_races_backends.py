"""The races R7, R8 and R9 on real processes: a backend is away, hangs, or has lost its data.

The database is SQLite.  A process that holds its write lock takes it away from every other: nothing is stored, synced
or logged in.
"""

import asyncio
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from meshim.client.rest import Api
from meshim.errors import ApiError
from tests.mesh.harness.fault_injection import kill, locked_database, short_timers, stopped, wait_restarted
from tests.mesh.harness.independent_client import STORED
from tests.mesh.harness.inspection import CounterRise, bindings, redis_client, stored_rows
from tests.mesh.harness.library_client import client, receive
from tests.mesh.harness.real_mesh import DEADLINE_S, PASSWORD, RealMesh, in_thread, running, until
from tests.mesh.harness.two_users import TwoUsers, expect_nothing_else, reading, two_users, wait_synced

REBUILT_S = 8.0
"""Within this time presence is rebuilt and queues are checked; the sweep comes every 30 s."""


@pytest.fixture(scope="module")
def started_mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealMesh]:
    with running(tmp_path_factory.mktemp("mesh"), short_timers()) as started:
        yield started


@pytest.fixture(params=["zeromq", "websocket"])
def mesh(request: pytest.FixtureRequest, started_mesh: RealMesh) -> RealMesh:
    """By either transport alice and bob connect."""
    return started_mesh.over(request.param)


# ---------------------------------------------------------------- R7


async def test_r07_nats_away(mesh: RealMesh) -> None:
    """NATS hangs, then dies: messages to a user who is away stay pending, live messages between others go on."""
    lines = [f"m{number}" for number in range(5)]
    async with two_users(mesh) as pair:
        names = await mesh.register_users("carol")
        await mesh.make_friends(pair.alice_name, *names)
        async with client(mesh, names[0]) as carol:
            await carol.online()
            busy = CounterRise(mesh, "busy", ("t1", "t2"))
            with stopped(mesh, "nats"):
                outgoing = await pair.send(*lines)
                live = await pair.alice.send(names[0], "live")
                assert [message.text for message in await receive(carol, 1)] == ["live"]
                await asyncio.wait_for(live.wait_delivered(), DEADLINE_S)
                await busy.wait()
                assert {each.state for each in outgoing} == {"pending"}, (
                    "a message is sent, and neither the log nor a device has it"
                )
                killed = kill(mesh, "nats")
            await wait_restarted(mesh, "nats", killed)
            await asyncio.wait_for(asyncio.gather(*(each.wait_sent() for each in outgoing)), DEADLINE_S)
        bob = pair.bob
        await in_thread(bob.connect)
        await in_thread(bob.until, lambda: pair.shown(*lines))
        await expect_nothing_else(pair, *lines)
        bob.disconnect()


# ---------------------------------------------------------------- R8


async def test_r08_mysql_away(mesh: RealMesh) -> None:
    """The log keeps messages, cached tokens are accepted, STORED says that more comes later, REST answers 503."""
    async with two_users(mesh) as pair:
        bob = pair.bob
        await in_thread(bob.connect)
        await wait_synced(bob)
        bob.disconnect()
        await pair.send_and_wait("m1")
        await until(lambda: stored_rows(mesh, bob.device) == (1, 1), "the writer did not store it")
        with locked_database(mesh):
            await pair.send_and_wait("m2")
            await in_thread(bob.connect)
            async with Api(mesh.api) as api:
                refusing = asyncio.create_task(api.login(pair.bob_name, PASSWORD, device="new", epoch=1))
                async with reading(bob):
                    with pytest.raises(ApiError) as refused:
                        await refusing
            assert refused.value.status == 503
            await in_thread(bob.until, lambda: [frame[2] for frame in bob.frames_of(STORED)] == [True])
            assert not bob.shown
            assert stored_rows(mesh, bob.device) == (1, 1), "the writer stored m2 while the database was locked"
        await in_thread(bob.until, lambda: pair.shown("m1", "m2", stored=True))
        await wait_synced(bob)
        await expect_nothing_else(pair, "m1", "m2")
        bob.disconnect()


# ---------------------------------------------------------------- R9


async def test_r09_redis_away(mesh: RealMesh) -> None:
    """Cached presence is used; without it messages are stored, and pushed long before the sweep (docs/adr/0017)."""
    async with two_users(mesh, alice_on="c2") as pair:
        bob = pair.bob
        await in_thread(bob.connect, on="c1")
        await wait_synced(bob)
        await pair.send("m1")
        await in_thread(bob.until, lambda: pair.shown("m1", stored=False))
        unreadable = CounterRise(mesh, "unreadable", ("t1", "t2"))
        with stopped(mesh, "redis"):
            await pair.send("m2")
            await in_thread(bob.until, lambda: pair.shown("m1", "m2", stored=False))
            async with reading(bob):
                sent = await send_until_stored(pair)
            await unreadable.wait()
            await pair.send("last")
            began = time.monotonic()
            await in_thread(bob.until, lambda: bob.shown[-1][1] == "last")
            assert time.monotonic() - began < REBUILT_S
            assert bob.shown[-1] == (pair.alice.user_id, "last", True)
        texts = ["m1", "m2", *sent, "last"]
        assert [text for _, text, _ in bob.shown] == texts
        await expect_nothing_else(pair, *texts)
        bob.disconnect()


async def send_until_stored(pair: TwoUsers) -> list[str]:
    """Send every 0.2 s until bob, who reads, gets a stored message; return what was sent.

    The transfer of this conversation has then asked Redis for the presence of bob.  A counter does not say that: it
    rises for other users and the other transfer as well.
    """
    sent: list[str] = []
    while not any(stored for _, _, stored in pair.bob.shown):
        sent.append(f"m{len(sent) + 3}")
        await asyncio.gather(*(each.wait_sent() for each in await pair.send(sent[-1])))
        await asyncio.sleep(0.2)  # the transfer caches the presence of bob for some seconds
    return sent


async def move_bob(mesh: RealMesh, pair: TwoUsers) -> None:
    """Connect bob to c2, with a dump of Redis that says c1."""
    bob = pair.bob
    await in_thread(bob.connect, on="c1")
    await wait_synced(bob)
    with closing(redis_client(mesh)) as redis:
        redis.save()
    bob.disconnect()
    await in_thread(bob.connect, on="c2")
    await wait_synced(bob)


@pytest.mark.parametrize("data", ["gone", "old"])
async def test_r09_redis_restarts_with_no_or_old_data(mesh: RealMesh, data: str) -> None:
    async with two_users(mesh, alice_on="c1") as pair:
        bob = pair.bob
        await move_bob(mesh, pair)
        here = bindings(mesh, bob.user)
        dump = mesh.data.root / "valkey" / "dump.rdb"
        if data == "gone":
            dump.unlink()
        with stopped(mesh, "c1", "c2"):  # so that neither binds bob again before the test has looked
            killed = kill(mesh, "redis")
            await wait_restarted(mesh, "redis", killed)
            found = bindings(mesh, bob.user)
            assert found == {} if data == "gone" else found[bob.device].session < here[bob.device].session
        dump.unlink(missing_ok=True)
        returned = time.monotonic()
        async with reading(bob):
            await until(lambda: bindings(mesh, bob.user) == here, "presence is not rebuilt")
        assert time.monotonic() - returned < REBUILT_S
        await pair.send("m1")
        await in_thread(bob.until, lambda: pair.shown("m1"))
        await expect_nothing_else(pair, "m1")
        bob.disconnect()


async def test_r09_redis_wiped_while_something_is_stored(mesh: RealMesh) -> None:
    """Without a binding the writer sends no wake-up: the connector checks the queue after it bound bob again."""
    async with two_users(mesh, alice_on="c1") as pair:
        bob = pair.bob
        await in_thread(bob.connect, on="c2")
        await wait_synced(bob)
        with stopped(mesh, "c2"):
            with closing(redis_client(mesh)) as redis:
                redis.flushall()
            await pair.send_and_wait("m1")
            await until(lambda: stored_rows(mesh, bob.device) == (1, 1), "the writer did not store it")
            assert not bindings(mesh, bob.user), "a writer could have sent a wake-up"
        began = time.monotonic()
        await in_thread(bob.until, lambda: pair.shown("m1", stored=True))
        assert time.monotonic() - began < REBUILT_S
        async with reading(bob):
            await until(lambda: bob.device in bindings(mesh, bob.user), "presence is not rebuilt")
        await expect_nothing_else(pair, "m1")
        bob.disconnect()
