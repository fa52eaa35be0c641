"""The races R4, R6, R11, R13, R15 and R16 on real processes: a connector, transfer or writer dies, stops or restarts.

R13 is forced between client and connector: frames of a link with the dead connector reach its successor before any
greeting.  It cannot be forced between connector and transfer: a restarted transfer has another port and another key,
and sockets connect once (docs/adr/0010), so that libzmq has nothing to replay; the simulation forces it.
"""

import asyncio
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from meshim.protocol.timeouts import CLIENT_RESEND_S
from meshim.topology import load
from tests.mesh.harness.fault_injection import kill, locked_database, short_timers, stopped, wait_restarted
from tests.mesh.harness.independent_client import DATA, PING, RESET, SUBMIT, pack
from tests.mesh.harness.inspection import (
    CounterRise,
    bindings,
    has_lease,
    incarnation,
    stored_rows,
    transfer_of,
    wait_fetched,
    writer_of,
)
from tests.mesh.harness.library_client import client, receive
from tests.mesh.harness.real_mesh import DEADLINE_S, RealMesh, in_thread, running, until
from tests.mesh.harness.two_users import expect_nothing_else, reading, two_users, wait_synced

NOTIFICATION_S = 5.0
"""Far less than the sweep: what arrives within this time was not found by a sweep."""


@pytest.fixture(scope="module")
def started_mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealMesh]:
    with running(tmp_path_factory.mktemp("mesh"), short_timers(writers=2)) as started:
        yield started


@pytest.fixture(params=["zeromq", "websocket"])
def mesh(request: pytest.FixtureRequest, started_mesh: RealMesh) -> RealMesh:
    """By either transport alice and bob connect."""
    return started_mesh.over(request.param)


# ---------------------------------------------------------------- R4


@pytest.mark.parametrize("connector", ["killed", "silent"])
async def test_r04_presence_points_at_the_dead(mesh: RealMesh, connector: str) -> None:
    async with two_users(mesh, alice_on="c2") as pair:
        bob = pair.bob
        await in_thread(bob.connect, on="c1")
        await wait_synced(bob)
        await pair.send("m1")  # the transfer caches the binding of bob
        await in_thread(bob.until, lambda: pair.shown("m1", stored=False))
        dead = incarnation(mesh, "c1")
        stored_after_loss = CounterRise(mesh, "stored_after_loss", ("t1", "t2"))
        with stopped(mesh, "c1"):
            if connector == "killed":
                killed = kill(mesh, "c1")
            assert bindings(mesh, bob.user)[bob.device].incarnation == incarnation(mesh, "c1") == dead
            began = time.monotonic()
            await pair.send_and_wait("m2")
            assert time.monotonic() - began < load(mesh.data.topology).timers.delivery_timeout_s + CLIENT_RESEND_S
            if connector == "silent":
                await stored_after_loss.wait()
                killed = kill(mesh, "c1")
        bob.abort()
        await in_thread(bob.connect, on="c2")
        await in_thread(bob.until, lambda: pair.shown("m1", "m2"))
        await expect_nothing_else(pair, "m1", "m2")
        bob.disconnect()
        await wait_restarted(mesh, "c1", killed)


# ---------------------------------------------------------------- R6


async def test_r06_transfer_dies_with_bundles_in_flight(mesh: RealMesh) -> None:
    """The transfer forwarded some messages, stored some for a laptop that is away, and did neither with the rest."""
    lines = [f"m{number}" for number in range(60)]
    async with two_users(mesh, alice_on="c1") as pair:
        bob = pair.bob
        async with client(mesh, pair.bob_name, "laptop"):
            pass
        await in_thread(bob.connect, on="c2")
        await wait_synced(bob)
        rerouted = CounterRise(mesh, "rerouted", ("c1", "c2"))
        submitted = CounterRise(mesh, "submitted", ("c1",))
        outgoing = await pair.send(*lines[:30])
        await in_thread(bob.until, lambda: len(bob.shown) >= 5)
        dying = await transfer_of(mesh, pair.alice.user_id, bob.user)
        with stopped(mesh, dying):
            outgoing += await pair.send(*lines[30:])
            async with reading(bob):
                await submitted.wait(31)
            killed = kill(mesh, dying)
        await in_thread(bob.until, lambda: pair.shown(*lines))
        async with reading(bob):
            await asyncio.wait_for(asyncio.gather(*(each.wait_sent() for each in outgoing)), DEADLINE_S)
            await rerouted.wait()
        await expect_nothing_else(pair, *lines)
        async with client(mesh, pair.bob_name, "laptop") as laptop:
            assert [message.text for message in await receive(laptop, 61)] == [*lines, "nothing else"]
        bob.disconnect()
        await wait_restarted(mesh, dying, killed)


# ---------------------------------------------------------------- R11


async def test_r11_connector_stopped_not_dead(mesh: RealMesh) -> None:
    """Messages for its users are stored meanwhile, and synced when it goes on.

    Frames that were sent to c1 before the transfer gave up the link still lie in its socket.  Where c1 was stopped
    decides whether it first finds the link silent, or first reads those frames and pushes the messages too: then bob
    gets each message live, and a second time as stored.
    """
    async with two_users(mesh, alice_on="c2") as pair:
        bob = pair.bob
        await in_thread(bob.connect, on="c1")
        await wait_synced(bob)
        lost = CounterRise(mesh, "lease_losses", ("c1",))
        with stopped(mesh, "c1"):
            await pair.send_and_wait("m1", "m2", "m3")
            await until(lambda: stored_rows(mesh, bob.device) == (3, 3), "the writer did not store the messages")
            await until(lambda: not has_lease(mesh, "c1"), "the lease does not end")
        resumed = time.monotonic()
        # Rows are marked read after bob acknowledged their stored copies: all three, even if they came live before.
        await in_thread(bob.until, lambda: pair.shown("m1", "m2", "m3") and stored_rows(mesh, bob.device) == (0, 3))
        assert time.monotonic() - resumed < NOTIFICATION_S
        async with reading(bob):
            await lost.wait()
        await expect_nothing_else(pair, "m1", "m2", "m3")
        bob.disconnect()


async def test_r11_transfer_stopped_not_dead(mesh: RealMesh) -> None:
    """Its messages are rerouted.  When it goes on it may send them as well, and bob still sees each of them once."""
    lines = [f"m{number}" for number in range(8)]
    async with two_users(mesh, alice_on="c1") as pair:
        bob = pair.bob
        await in_thread(bob.connect, on="c2")
        await wait_synced(bob)
        await pair.send("m0")
        await in_thread(bob.until, lambda: pair.shown("m0"))
        picked = await transfer_of(mesh, pair.alice.user_id, bob.user)
        lost, rerouted = CounterRise(mesh, "lease_losses", (picked,)), CounterRise(mesh, "rerouted", ("c1",))
        with stopped(mesh, picked):
            outgoing = await pair.send(*lines[1:])
            await in_thread(bob.until, lambda: pair.shown(*lines))
            async with reading(bob):
                await rerouted.wait()
                await until(lambda: not has_lease(mesh, picked), "the lease does not end")
        async with reading(bob):
            await asyncio.wait_for(asyncio.gather(*(each.wait_sent() for each in outgoing)), DEADLINE_S)
            await lost.wait()
        await expect_nothing_else(pair, *lines)
        bob.disconnect()


# ---------------------------------------------------------------- R13


async def test_r13_restarted_peer(mesh: RealMesh) -> None:
    """Frames that bob queued for the dead connector are the first that its successor reads; bob submits again."""
    async with two_users(mesh, alice_on="c2") as pair:
        bob = pair.bob
        await in_thread(bob.connect, on="c1")
        await wait_synced(bob)
        first = await in_thread(bob.send_text, pair.alice.user_id, "m1")
        await in_thread(bob.until, lambda: bob.states[first] >= {"sent", "delivered"})
        await wait_restarted(mesh, "c1", kill(mesh, "c1"))
        old, unknown_links = bob.link, CounterRise(mesh, "unknown_links", ("c1",))
        bob.abort()
        await in_thread(bob.refresh_connectors)
        queued = [[SUBMIT, envelope, []] for envelope in bob.pending.values()]
        frames = [pack([DATA, old, bob.sent_number + 1, 0, queued]), pack([PING, old])]
        await in_thread(bob.connect, on="c1", before_greeting=frames)
        assert bob.frames_of(RESET) == [[RESET, old]] * 2
        await unknown_links.wait(2)
        second = await in_thread(bob.send_text, pair.alice.user_id, "m2")
        await in_thread(bob.until, lambda: bob.states[second] >= {"sent", "delivered"})
        assert [message.text for message in await receive(pair.alice, 2)] == ["m1", "m2"]
        await expect_nothing_else(pair)
        bob.disconnect()


# ---------------------------------------------------------------- R11, R15


async def test_r15_two_writers(mesh: RealMesh) -> None:
    """A writer is stopped in a transaction, another takes its partition: the first commits late and is fenced off."""
    async with two_users(mesh) as pair:
        bob = pair.bob
        partition = bob.user % load(mesh.data.topology).limits.partitions
        owner = writer_of(mesh, partition)
        fenced = CounterRise(mesh, "fenced", (owner,))
        with ExitStack() as stack:
            with locked_database(mesh):
                await pair.send_and_wait("m1", "m2")
                await wait_fetched(mesh, partition)
                stack.enter_context(stopped(mesh, owner, at_once=True))
            await until(lambda: stored_rows(mesh, bob.device) == (2, 2), "the other writer does not take over")
            assert writer_of(mesh, partition) != owner
            await pair.send_and_wait("m3")
            await until(lambda: stored_rows(mesh, bob.device) == (3, 3), "the other writer does not go on")
        await fenced.wait()
        await in_thread(bob.connect)
        await in_thread(bob.until, lambda: pair.shown("m1", "m2", "m3", stored=True))
        assert stored_rows(mesh, bob.device)[1] == 3
        await expect_nothing_else(pair, "m1", "m2", "m3")
        bob.disconnect()


# ---------------------------------------------------------------- R16


@pytest.mark.parametrize("dies", ["transfer", "connector"])
async def test_r16_one_copy_live_one_stored(mesh: RealMesh, dies: str) -> None:
    async with two_users(mesh, alice_on="c1") as pair:
        bob = pair.bob
        async with client(mesh, pair.bob_name, "laptop") as laptop:
            laptop_id = laptop.device_id
        await in_thread(bob.connect, on="c2", acknowledges=dies == "transfer")
        await wait_synced(bob)
        if dies == "transfer":
            with stopped(mesh, "nats"):
                [outgoing] = await pair.send("m1")
                await in_thread(bob.until, lambda: pair.shown("m1", stored=False))
                name = await transfer_of(mesh, pair.alice.user_id, bob.user)
                killed = kill(mesh, name)
                assert outgoing.state == "pending", "it is sent with one of two copies accounted for"
        else:
            [outgoing] = await pair.send("m1")
            await in_thread(bob.until, lambda: pair.shown("m1", stored=False))
            await until(lambda: stored_rows(mesh, laptop_id) == (1, 1), "the copy of the laptop is not written")
            assert outgoing.state == "pending", "it is sent with one of two copies accounted for"
            name = "c2"
            killed = kill(mesh, name)
            bob.abort()
        await asyncio.wait_for(outgoing.wait_sent(), DEADLINE_S)
        if dies == "connector":
            await in_thread(bob.connect, on="c1")
        await in_thread(bob.until, lambda: bob.duplicates == 1)
        async with client(mesh, pair.bob_name, "laptop") as laptop:
            assert [message.text for message in await receive(laptop, 1)] == ["m1"]
            await expect_nothing_else(pair, "m1")
            assert [message.text for message in await receive(laptop, 1)] == ["nothing else"]
        bob.disconnect()
        await wait_restarted(mesh, name, killed)
