"""Races R1 to R16 on real processes: those of a connector, transfer or writer that dies, sleeps or begins anew.

R13 is forced from the side of clients: the frames of a link of an earlier connector arrive at the new one ahead of any
greeting.  From the side of connectors it cannot be: a transfer that begins anew has another port and another key, and
sockets connect once (docs/adr/0010), so that libzmq has nothing to replay; the simulation forces it.
"""

import asyncio
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from meshim.protocol.timeouts import CLIENT_RESEND_S
from meshim.topology import load
from tests.mesh import faults
from tests.mesh.conversations import client, take
from tests.mesh.faults import Counted, back, bindings, brisk, kill, rows, stopped
from tests.mesh.pairs import doing, listening, nothing_else, people, synced
from tests.mesh.real_mesh import DEADLINE_S, RealMesh, running, until
from tests.mesh.stranger import DATA, PING, RESET, SUBMIT, pack

NOTIFICATION_S = 5.0
"""Far less than the sweep: what is seen by then was not found by it."""


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealMesh]:
    with running(tmp_path_factory.mktemp("mesh"), brisk(writers=2)) as started:
        yield started


# ---------------------------------------------------------------- R4


@pytest.mark.parametrize("how", ["killed", "silent"])
async def test_r04_presence_points_at_the_dead(mesh: RealMesh, how: str) -> None:
    async with people(mesh, on="c2") as pair:
        bob = pair.bob
        await doing(bob.connect, on="c1")
        await synced(bob)
        await pair.sends("m1")  # transfers know where he is
        await doing(bob.until, lambda: pair.shown("m1", stored=False))
        dead = faults.incarnation(mesh, "c1")
        stored_after_loss = Counted(mesh, "stored_after_loss", ("t1", "t2"))
        with stopped(mesh, "c1"):
            if how == "killed":
                killed = kill(mesh, "c1")
            assert bindings(mesh, bob.user)[bob.device].incarnation == faults.incarnation(mesh, "c1") == dead
            began = time.monotonic()
            await pair.says("m2")
            assert time.monotonic() - began < load(mesh.data.topology).timers.delivery_timeout_s + CLIENT_RESEND_S
            if how == "silent":
                await stored_after_loss.rises()
                killed = kill(mesh, "c1")
        bob.vanish()
        await doing(bob.connect, on="c2")
        await doing(bob.until, lambda: pair.shown("m1", "m2"))
        await nothing_else(pair, "m1", "m2")
        bob.disconnect()
        await back(mesh, "c1", killed)


# ---------------------------------------------------------------- R6


async def test_r06_transfer_dies_with_bundles_in_flight(mesh: RealMesh) -> None:
    """Some of what it had was forwarded, some stored for a laptop that is away, some was neither."""
    lines = [f"m{number}" for number in range(60)]
    async with people(mesh, on="c1") as pair:
        bob = pair.bob
        async with client(mesh, pair.bob_name, "laptop"):
            pass
        await doing(bob.connect, on="c2")
        await synced(bob)
        rerouted = Counted(mesh, "rerouted", ("c1", "c2"))
        submitted = Counted(mesh, "submitted", ("c1",))
        outgoing = await pair.sends(*lines[:30])
        await doing(bob.until, lambda: len(bob.shown) >= 5)
        dying = await faults.handler(mesh, pair.alice.user_id, bob.user)
        with stopped(mesh, dying):
            outgoing += await pair.sends(*lines[30:])
            async with listening(bob):
                await submitted.rises(31)
            killed = kill(mesh, dying)
        await doing(bob.until, lambda: pair.shown(*lines))
        async with listening(bob):
            await asyncio.wait_for(asyncio.gather(*(each.wait_sent() for each in outgoing)), DEADLINE_S)
            await rerouted.rises()
        await nothing_else(pair, *lines)
        async with client(mesh, pair.bob_name, "laptop") as laptop:
            assert [message.text for message in await take(laptop, 61)] == [*lines, "nothing else"]
        bob.disconnect()
        await back(mesh, dying, killed)


# ---------------------------------------------------------------- R11


async def test_r11_connector_stopped_not_dead(mesh: RealMesh) -> None:
    """Its users are stored for meanwhile, and synced when it wakes.

    What it was sent before its link was given up still lies in its socket.  It depends on where it was stopped whether
    it finds the link silent first, or reads and pushes that too: bob then has each line live, and stored once more.
    """
    async with people(mesh, on="c2") as pair:
        bob = pair.bob
        await doing(bob.connect, on="c1")
        await synced(bob)
        lost = Counted(mesh, "lease_losses", ("c1",))
        with stopped(mesh, "c1"):
            await pair.says("m1", "m2", "m3")
            await until(lambda: rows(mesh, bob.device) == (3, 3), "nothing was stored")
            await until(lambda: not faults.lives(mesh, "c1"), "its lease does not end")
        woke = time.monotonic()
        # Only what he was given as stored, and has acknowledged, is marked: all three, whatever came live before.
        await doing(bob.until, lambda: pair.shown("m1", "m2", "m3") and rows(mesh, bob.device) == (0, 3))
        assert time.monotonic() - woke < NOTIFICATION_S
        async with listening(bob):
            await lost.rises()
        await nothing_else(pair, "m1", "m2", "m3")
        bob.disconnect()


async def test_r11_transfer_stopped_not_dead(mesh: RealMesh) -> None:
    """What it had in hand went elsewhere; whatever it still does with it when it wakes, nobody is shown it twice."""
    lines = [f"m{number}" for number in range(8)]
    async with people(mesh, on="c1") as pair:
        bob = pair.bob
        await doing(bob.connect, on="c2")
        await synced(bob)
        await pair.sends("m0")
        await doing(bob.until, lambda: pair.shown("m0"))
        sleeping = await faults.handler(mesh, pair.alice.user_id, bob.user)
        lost, rerouted = Counted(mesh, "lease_losses", (sleeping,)), Counted(mesh, "rerouted", ("c1",))
        with stopped(mesh, sleeping):
            outgoing = await pair.sends(*lines[1:])
            await doing(bob.until, lambda: pair.shown(*lines))
            async with listening(bob):
                await rerouted.rises()
                await until(lambda: not faults.lives(mesh, sleeping), "its lease does not end")
        async with listening(bob):
            await asyncio.wait_for(asyncio.gather(*(each.wait_sent() for each in outgoing)), DEADLINE_S)
            await lost.rises()
        await nothing_else(pair, *lines)
        bob.disconnect()


# ---------------------------------------------------------------- R13


async def test_r13_restarted_peer(mesh: RealMesh) -> None:
    """What bob had queued for the connector that died is the first that the new one hears; he says it again."""
    async with people(mesh, on="c2") as pair:
        bob = pair.bob
        await doing(bob.connect, on="c1")
        await synced(bob)
        first = await doing(bob.text, pair.alice.user_id, "m1")
        await doing(bob.until, lambda: bob.states[first] >= {"sent", "delivered"})
        await back(mesh, "c1", kill(mesh, "c1"))
        old, unknown_links = bob.link, Counted(mesh, "unknown_links", ("c1",))
        bob.vanish()
        await doing(bob.find_connectors)
        queued = [[SUBMIT, envelope, []] for envelope in bob.pending.values()]
        frames = [pack([DATA, old, bob.sent_number + 1, 0, [], queued]), pack([PING, old])]
        await doing(bob.connect, on="c1", ahead=frames)
        assert bob.came(RESET) == [[RESET, old]] * 2
        await unknown_links.rises(2)
        second = await doing(bob.text, pair.alice.user_id, "m2")
        await doing(bob.until, lambda: bob.states[second] >= {"sent", "delivered"})
        assert [message.text for message in await take(pair.alice, 2)] == ["m1", "m2"]
        await nothing_else(pair)
        bob.disconnect()


# ---------------------------------------------------------------- R11, R15


async def test_r15_two_writers(mesh: RealMesh) -> None:
    """One sleeps with a transaction under way and the other takes over: the first commits late, and is fenced off."""
    async with people(mesh) as pair:
        bob = pair.bob
        partition = bob.user % load(mesh.data.topology).limits.partitions
        owner = faults.writer_of(mesh, partition)
        fenced = Counted(mesh, "fenced", (owner,))
        with ExitStack() as sleep:
            with faults.locked_database(mesh):
                await pair.says("m1", "m2")
                await faults.given_out(mesh, partition)
                sleep.enter_context(stopped(mesh, owner, at_once=True))
            await until(lambda: rows(mesh, bob.device) == (2, 2), "the other writer does not take over")
            assert faults.writer_of(mesh, partition) != owner
            await pair.says("m3")
            await until(lambda: rows(mesh, bob.device) == (3, 3), "the other writer does not go on")
        await fenced.rises()
        await doing(bob.connect)
        await doing(bob.until, lambda: pair.shown("m1", "m2", "m3", stored=True))
        assert rows(mesh, bob.device)[1] == 3
        await nothing_else(pair, "m1", "m2", "m3")
        bob.disconnect()


# ---------------------------------------------------------------- R16


@pytest.mark.parametrize("dies", ["who stores", "who delivers"])
async def test_r16_one_copy_live_one_stored(mesh: RealMesh, dies: str) -> None:
    async with people(mesh, on="c1") as pair:
        bob = pair.bob
        async with client(mesh, pair.bob_name, "laptop") as laptop:
            laptop_id = laptop.device_id
        await doing(bob.connect, on="c2", acknowledges=dies == "who stores")
        await synced(bob)
        if dies == "who stores":
            with stopped(mesh, "nats"):
                [outgoing] = await pair.sends("m1")
                await doing(bob.until, lambda: pair.shown("m1", stored=False))
                name = await faults.handler(mesh, pair.alice.user_id, bob.user)
                killed = kill(mesh, name)
                assert outgoing.state == "pending", "one copy is not all"
        else:
            [outgoing] = await pair.sends("m1")
            await doing(bob.until, lambda: pair.shown("m1", stored=False))
            await until(lambda: rows(mesh, laptop_id) == (1, 1), "the copy of the laptop is not written")
            assert outgoing.state == "pending", "one copy is not all"
            name = "c2"
            killed = kill(mesh, name)
            bob.vanish()
        await asyncio.wait_for(outgoing.wait_sent(), DEADLINE_S)
        if dies == "who delivers":
            await doing(bob.connect, on="c1")
        await doing(bob.until, lambda: bob.duplicates == 1)
        async with client(mesh, pair.bob_name, "laptop") as laptop:
            assert [message.text for message in await take(laptop, 1)] == ["m1"]
            await nothing_else(pair, "m1")
            assert [message.text for message in await take(laptop, 1)] == ["nothing else"]
        bob.disconnect()
        await back(mesh, name, killed)
