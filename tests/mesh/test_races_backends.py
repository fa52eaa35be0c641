"""Races R1 to R16 on real processes: those of a backend that is away, hangs, or has forgotten.

The database is SQLite, which is away for all who write when somebody keeps its lock: nobody stores, syncs or logs in.
"""

import asyncio
import time
from collections.abc import Iterator
from contextlib import closing

import pytest

from meshim.client.rest import Api
from meshim.errors import ApiError
from tests.mesh import faults
from tests.mesh.conversations import client, take
from tests.mesh.faults import Counted, back, bindings, brisk, kill, rows, stopped
from tests.mesh.pairs import People, doing, listening, nothing_else, people, synced
from tests.mesh.real_mesh import DEADLINE_S, PASSWORD, RealMesh, running, until
from tests.mesh.stranger import STORED

REBUILT_S = 8.0
"""Presence is rebuilt and queues are looked at "within seconds", long before the sweep (30 s)."""


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealMesh]:
    with running(tmp_path_factory.mktemp("mesh"), brisk()) as started:
        yield started


# ---------------------------------------------------------------- R7


async def test_r07_nats_away(mesh: RealMesh) -> None:
    """It hangs, then it dies: alice keeps what she cannot be told is safe, and who is online goes on talking."""
    lines = [f"m{number}" for number in range(5)]
    async with people(mesh) as pair:
        names = await mesh.people("carol")
        await mesh.befriend(pair.alice_name, *names)
        async with client(mesh, names[0]) as carol:
            await carol.online()
            busy = Counted(mesh, "busy", ("t1", "t2"))
            with stopped(mesh, "nats"):
                outgoing = await pair.sends(*lines)
                live = await pair.alice.send(names[0], "live")
                assert [message.text for message in await take(carol, 1)] == ["live"]
                await asyncio.wait_for(live.wait_delivered(), DEADLINE_S)
                await busy.rises()
                assert {each.state for each in outgoing} == {"pending"}, "sent, and nobody has it"
                killed = kill(mesh, "nats")
            await back(mesh, "nats", killed)
            await asyncio.wait_for(asyncio.gather(*(each.wait_sent() for each in outgoing)), DEADLINE_S)
        bob = pair.bob
        await doing(bob.connect)
        await doing(bob.until, lambda: pair.shown(*lines))
        await nothing_else(pair, *lines)
        bob.disconnect()


# ---------------------------------------------------------------- R8


async def test_r08_mysql_away(mesh: RealMesh) -> None:
    """The log keeps, known tokens are welcome and told that stored messages come later, REST says 503."""
    async with people(mesh) as pair:
        bob = pair.bob
        await doing(bob.connect)
        await synced(bob)
        bob.disconnect()
        await pair.says("m1")
        await until(lambda: rows(mesh, bob.device) == (1, 1), "nothing is written")
        with faults.locked_database(mesh):
            await pair.says("m2")
            await doing(bob.connect)
            async with Api(mesh.api) as api:
                refusing = asyncio.create_task(api.login(pair.bob_name, PASSWORD, device="new", epoch=1))
                async with listening(bob):
                    with pytest.raises(ApiError) as refused:
                        await refusing
            assert refused.value.status == 503
            await doing(bob.until, lambda: [frame[2] for frame in bob.came(STORED)] == [True])
            assert not bob.shown
            assert rows(mesh, bob.device) == (1, 1), "the log has it"
        await doing(bob.until, lambda: pair.shown("m1", "m2", stored=True))
        await synced(bob)
        await nothing_else(pair, "m1", "m2")
        bob.disconnect()


# ---------------------------------------------------------------- R9


async def test_r09_redis_away(mesh: RealMesh) -> None:
    """What is cached goes on, what is unknown is stored, and found long before the sweep (docs/adr/0017)."""
    async with people(mesh, on="c2") as pair:
        bob = pair.bob
        await doing(bob.connect, on="c1")
        await synced(bob)
        await pair.sends("m1")
        await doing(bob.until, lambda: pair.shown("m1", stored=False))
        unreadable = Counted(mesh, "unreadable", ("t1", "t2"))
        with stopped(mesh, "redis"):
            await pair.sends("m2")
            await doing(bob.until, lambda: pair.shown("m1", "m2", stored=False))
            async with listening(bob):
                said = await until_unknown(pair, unreadable)
            await pair.sends("last")
            began = time.monotonic()
            await doing(bob.until, lambda: bob.shown[-1][1] == "last")
            assert time.monotonic() - began < REBUILT_S
            assert bob.shown[-1] == (pair.alice.user_id, "last", True)
        texts = ["m1", "m2", *said, "last"]
        assert [text for _, text, _ in bob.shown] == texts
        await nothing_else(pair, *texts)
        bob.disconnect()


async def until_unknown(pair: People, unreadable: Counted) -> list[str]:
    """Say something every now and then until a transfer has to ask where bob is; what was said."""
    said: list[str] = []
    while not unreadable.rise:
        said.append(f"m{len(said) + 3}")
        await asyncio.gather(*(each.wait_sent() for each in await pair.sends(said[-1])))
        await asyncio.sleep(0.2)  # his presence is cached for some seconds
    return said


async def moved(mesh: RealMesh, pair: People) -> None:
    """bob is on c2, and what Redis has saved says that he is on c1."""
    bob = pair.bob
    await doing(bob.connect, on="c1")
    await synced(bob)
    with closing(faults.redis_of(mesh)) as redis:
        redis.save()
    bob.disconnect()
    await doing(bob.connect, on="c2")
    await synced(bob)


@pytest.mark.parametrize("data", ["gone", "old"])
async def test_r09_redis_begins_anew(mesh: RealMesh, data: str) -> None:
    async with people(mesh, on="c1") as pair:
        bob = pair.bob
        await moved(mesh, pair)
        here = bindings(mesh, bob.user)
        dump = mesh.data.root / "valkey" / "dump.rdb"
        if data == "gone":
            dump.unlink()
        with stopped(mesh, "c1", "c2"):  # so that nobody registers before it was seen
            killed = kill(mesh, "redis")
            await back(mesh, "redis", killed)
            found = bindings(mesh, bob.user)
            assert found == {} if data == "gone" else found[bob.device].session < here[bob.device].session
        dump.unlink(missing_ok=True)
        returned = time.monotonic()
        async with listening(bob):
            await until(lambda: bindings(mesh, bob.user) == here, "presence is not rebuilt")
        assert time.monotonic() - returned < REBUILT_S
        await pair.sends("m1")
        await doing(bob.until, lambda: pair.shown("m1"))
        await nothing_else(pair, "m1")
        bob.disconnect()


async def test_r09_redis_wiped_while_something_is_stored(mesh: RealMesh) -> None:
    """Nobody is bound, so the writer wake-ups nobody: the queue is looked at when bob is registered again."""
    async with people(mesh, on="c1") as pair:
        bob = pair.bob
        await doing(bob.connect, on="c2")
        await synced(bob)
        with stopped(mesh, "c2"):
            with closing(faults.redis_of(mesh)) as redis:
                redis.flushall()
            await pair.says("m1")
            await until(lambda: rows(mesh, bob.device) == (1, 1), "nothing is written")
            assert not bindings(mesh, bob.user), "no writer could know whom to wake-up"
        began = time.monotonic()
        await doing(bob.until, lambda: pair.shown("m1", stored=True))
        assert time.monotonic() - began < REBUILT_S
        async with listening(bob):
            await until(lambda: bob.device in bindings(mesh, bob.user), "presence is not rebuilt")
        await nothing_else(pair, "m1")
        bob.disconnect()
