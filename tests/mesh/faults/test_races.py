"""The races R1, R2, R3, R5, R10, R12 and R14 of docs/simulation.md on real processes: those about one device.

A test forces the order of events by stopping a process (fault_injection.py), and waits only for what it can observe
(inspection.py).  It shows that the race was entered, and that the promise held.  R4, R6, R11, R13, R15 and R16 are in
test_races_processes.py, R7, R8 and R9 in test_races_backends.py.
"""

import asyncio
from collections.abc import Iterator

import pytest

from tests.mesh.harness.fault_injection import (
    erase_binding,
    kill,
    locked_database,
    short_timers,
    stopped,
    wait_restarted,
)
from tests.mesh.harness.independent_client import CLOSE, IndependentClient
from tests.mesh.harness.inspection import (
    CounterRise,
    bindings,
    has_lease,
    incarnation,
    queue_fence,
    read_counter,
    stored_rows,
    transfer_of,
)
from tests.mesh.harness.library_client import client, receive, send_and_wait
from tests.mesh.harness.real_mesh import DEADLINE_S, PASSWORD, RealMesh, in_thread, running, until
from tests.mesh.harness.two_users import expect_nothing_else, pin_connector, two_users, wait_synced

SWEEP_S = 3.0
LINES = [f"m{number}" for number in range(1, 6)]


@pytest.fixture(scope="module")
def started_mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealMesh]:
    with running(tmp_path_factory.mktemp("mesh"), short_timers(sweep_s=SWEEP_S)) as started:
        yield started


@pytest.fixture(params=["zeromq", "websocket"])
def mesh(request: pytest.FixtureRequest, started_mesh: RealMesh) -> RealMesh:
    """By either transport alice and bob connect."""
    return started_mesh.over(request.param)


# ---------------------------------------------------------------- R1


@pytest.mark.parametrize("wake_up", ["comes", "is lost"])
async def test_r01_stored_after_the_sync(mesh: RealMesh, wake_up: str) -> None:
    async with two_users(mesh) as pair:
        bob = pair.bob
        woken = CounterRise(mesh, "woken", ("c1", "c2"))
        with stopped(mesh, "w1"):
            await pair.send_and_wait(*LINES)
            await in_thread(bob.connect)
            await wait_synced(bob)
            assert not bob.shown, "the messages are not in the log alone"
            if wake_up == "is lost":
                erase_binding(mesh, bob.user, bob.device)
        await in_thread(bob.until, lambda: pair.shown(*LINES, stored=True))
        if wake_up == "comes":
            await woken.wait()
        if wake_up == "is lost":
            assert not bindings(mesh, bob.user), "a writer could have sent a wake-up, so this was not the sweep"
        await expect_nothing_else(pair, *LINES)
        bob.disconnect()


# ---------------------------------------------------------------- R2


@pytest.mark.parametrize("transfer", ["the same", "another"])
async def test_r02_live_overtakes_stored(mesh: RealMesh, transfer: str) -> None:
    async with two_users(mesh) as pair:
        bob = pair.bob
        deferred = CounterRise(mesh, "deferred", ("c1", "c2"))
        with stopped(mesh, "w1"):
            await pair.send_and_wait("m1")
            await in_thread(bob.connect)
            await wait_synced(bob)
            if transfer == "another":
                first = await transfer_of(mesh, pair.alice.user_id, bob.user)
                killed = kill(mesh, first)
            texts, last = ["m1", "m2"], await pair.alice.send(pair.bob_name, "m2")

            def routed() -> bool:
                return deferred.rise > 0 or last.state != "pending"

            await until(routed, "it is neither live nor stored")
            while not deferred.rise:  # a message that a transfer routes before it has heard of bob is stored like m1
                assert len(texts) < 10, "no live message is deferred"
                texts.append(f"m{len(texts) + 1}")
                last = await pair.alice.send(pair.bob_name, texts[-1])
                await until(routed, "it is neither live nor stored")
            assert not bob.shown, "the live message overtook the stored one"
        await in_thread(bob.until, lambda: pair.shown(*texts))
        await asyncio.wait_for(last.wait_delivered(), DEADLINE_S)
        await expect_nothing_else(pair, *texts)
        bob.disconnect()
        if transfer == "another":
            await wait_restarted(mesh, first, killed)


# ---------------------------------------------------------------- R3


@pytest.mark.parametrize("dies", ["neither", "first", "second"])
async def test_r03_two_connections_of_one_device_sync_at_once(mesh: RealMesh, dies: str) -> None:
    async with two_users(mesh, alice_on="c1" if dies != "first" else "c2") as pair:
        bob = pair.bob
        await pair.send_and_wait(*LINES)
        await until(lambda: stored_rows(mesh, bob.device) == (5, 5), "the writer did not store it")
        before = queue_fence(mesh, bob.device)
        await in_thread(bob.connect, on="c1", acknowledges=False)
        await in_thread(bob.until, lambda: pair.shown(*LINES))
        second = bob.second_connection()
        killed = {}
        with stopped(mesh, "c1"):
            await in_thread(second.connect, on="c2", acknowledges=False)
            await in_thread(second.until, lambda: second.duplicates == 5)
            assert queue_fence(mesh, bob.device) == before + 2, "the second connection did not claim the queue"
            assert stored_rows(mesh, bob.device) == (5, 5), "a row is marked read before its acknowledgement"
            bob.acknowledge()  # c1 reads it when it goes on
            if dies == "second":
                killed["c2"] = kill(mesh, "c2")
            else:
                second.acknowledge()
            if dies == "first":
                killed["c1"] = kill(mesh, "c1")
        bob.abort()
        last = second
        if dies == "second":
            second.abort()
            last = bob.second_connection()
            await in_thread(last.connect, on="c1")
        last.acknowledges = True
        await expect_nothing_else(pair, *LINES, through=last)
        assert stored_rows(mesh, bob.device)[0] == 0, "an unread row stays in the queue"
        last.disconnect()
        for name, pid in killed.items():
            await wait_restarted(mesh, name, pid)


# ---------------------------------------------------------------- R5


async def test_r05_late_goodbye(mesh: RealMesh) -> None:
    async with two_users(mesh, alice_on="c2") as pair:
        bob = pair.bob
        await in_thread(bob.connect, on="c1")
        await wait_synced(bob)
        old = bindings(mesh, bob.user)[bob.device]
        second = bob.second_connection()
        with stopped(mesh, "c1"):
            bob.send(CLOSE, bob.link, 14, "bye")  # c1 reads it when it goes on
            await in_thread(second.connect, on="c2")
            await wait_synced(second)
            new = bindings(mesh, bob.user)[bob.device]
            assert new.session > old.session
            assert new.incarnation == incarnation(mesh, "c2") != old.incarnation
        # A kick waits for c1 as well: the first of the two ends the session and erases its binding.
        await until(lambda: read_counter(mesh, "c1", "sessions") == 0, "c1 does not end the session")
        assert bindings(mesh, bob.user) == {bob.device: new}, "the late goodbye erased the new session"
        await pair.send("hello")
        await in_thread(second.until, lambda: pair.shown("hello", stored=False))
        bob.abort()
        second.disconnect()


async def test_r05_late_hello(mesh: RealMesh) -> None:
    """c1 is stopped beyond its lease, NATS restarts without its subscriptions: c1 gets no kick and binds bob again."""
    async with two_users(mesh, alice_on="c2") as pair:
        bob = pair.bob
        await in_thread(bob.connect, on="c1")
        await wait_synced(bob)
        second = bob.second_connection()
        replaced, lost = CounterRise(mesh, "replaced", ("c1",)), CounterRise(mesh, "lease_losses", ("c1",))
        with stopped(mesh, "c1"):
            await wait_restarted(mesh, "nats", kill(mesh, "nats"))
            await in_thread(second.connect, on="c2")
            await wait_synced(second)
            new = bindings(mesh, bob.user)[bob.device]
            await until(lambda: not has_lease(mesh, "c1"), "the lease of c1 does not end")
        await lost.wait()
        await replaced.wait()
        assert bindings(mesh, bob.user) == {bob.device: new}, "the late hello replaced the new session"
        await in_thread(bob.until, lambda: bob.frames_of(CLOSE))
        await pair.send("hello")
        await in_thread(second.until, lambda: pair.shown("hello"))
        bob.abort()
        second.disconnect()


# ---------------------------------------------------------------- R10


@pytest.mark.parametrize("kind", ["live", "stored"])
async def test_r10_acknowledgement_lost(mesh: RealMesh, kind: str) -> None:
    """bob has the message, and the connector dies before it reads the acknowledgement."""
    async with two_users(mesh, alice_on="c2") as pair:
        bob = pair.bob
        if kind == "stored":
            await pair.send_and_wait("m1")
            await until(lambda: stored_rows(mesh, bob.device) == (1, 1), "the writer did not store it")
        await in_thread(bob.connect, on="c1", acknowledges=False)
        if kind == "live":
            await wait_synced(bob)
            outgoing = await pair.alice.send(pair.bob_name, "m1")
        await in_thread(bob.until, lambda: pair.shown("m1", stored=kind == "stored"))
        killed = kill(mesh, "c1")
        bob.abort()
        await in_thread(bob.connect, on="c2")
        await in_thread(bob.until, lambda: bob.duplicates == 1)
        if kind == "live":
            await asyncio.wait_for(outgoing.wait_delivered(), DEADLINE_S)
        await expect_nothing_else(pair, "m1")
        assert bob.duplicates == 1
        bob.disconnect()
        await wait_restarted(mesh, "c1", killed)


async def test_r10_acknowledgement_not_marked(mesh: RealMesh) -> None:
    """bob acknowledges, and the connector dies before it marks the row read in SQL (it marks in batches)."""
    async with two_users(mesh, alice_on="c2") as pair:
        bob = pair.bob
        await pair.send_and_wait("m1")
        await until(lambda: stored_rows(mesh, bob.device) == (1, 1), "the writer did not store it")
        await in_thread(bob.connect, on="c1", acknowledges=False)
        await in_thread(bob.until, lambda: pair.shown("m1", stored=True))
        acknowledged = CounterRise(mesh, "synced", ("c1",))
        with locked_database(mesh):
            bob.acknowledge()
            await acknowledged.wait()
            killed = kill(mesh, "c1")
        bob.abort()
        assert stored_rows(mesh, bob.device) == (1, 1), "the row was marked read, so the race was not entered"
        await in_thread(bob.connect, on="c2")
        await in_thread(bob.until, lambda: bob.duplicates == 1)
        await expect_nothing_else(pair, "m1")
        await until(
            lambda: stored_rows(mesh, bob.device) == (0, 1), "the row is not marked read after the second delivery"
        )
        bob.disconnect()
        await wait_restarted(mesh, "c1", killed)


# ---------------------------------------------------------------- R12


async def test_r12_resend_elsewhere(mesh: RealMesh) -> None:
    """One copy is delivered, one stored; the connector of alice dies with both outcomes: alice resends elsewhere."""
    async with two_users(mesh, alice_on="c1") as pair:
        bob = pair.bob
        async with client(mesh, pair.bob_name, "laptop") as laptop:
            laptop_id = laptop.device_id
        await in_thread(bob.connect, on="c2", acknowledges=False)
        await wait_synced(bob)
        written = CounterRise(mesh, "entries", ("w1",))
        outgoing = await pair.alice.send(pair.bob_name, "m1")
        await in_thread(bob.until, lambda: pair.shown("m1", stored=False))
        await until(lambda: stored_rows(mesh, laptop_id) == (1, 1), "the copy of the laptop is not written")
        delivered = CounterRise(mesh, "delivered", ("c2",))
        with stopped(mesh, "c1"):
            bob.acknowledge()  # the outcome goes to c1, which is stopped
            await delivered.wait()
            bob.acknowledges = True
            killed = kill(mesh, "c1")
            pin_connector(pair.alice, "c2")
            assert outgoing.state == "pending", "the outcome reached alice"
        await in_thread(bob.until, lambda: bob.duplicates == 1)
        await asyncio.wait_for(outgoing.wait_delivered(), DEADLINE_S)
        await written.wait(2)
        assert stored_rows(mesh, laptop_id) == (1, 1), "the copy of the laptop is not exactly one row"
        async with client(mesh, pair.bob_name, "laptop") as laptop:
            assert [message.text for message in await receive(laptop, 1)] == ["m1"]
            await expect_nothing_else(pair, "m1")
            assert [message.text for message in await receive(laptop, 1)] == ["nothing else"]
        bob.disconnect()
        await wait_restarted(mesh, "c1", killed)


# ---------------------------------------------------------------- R14


async def test_r14_lost_state_file(mesh: RealMesh) -> None:
    """bob loses the state file while the queue is pushed; then alice loses the other one."""
    async with two_users(mesh) as pair:
        old = pair.bob
        await pair.send_and_wait(*LINES)
        await until(lambda: stored_rows(mesh, old.device) == (5, 5), "the writer did not store it")
        await in_thread(old.connect, acknowledges=False)
        await in_thread(old.until, lambda: pair.shown(*LINES))
        new = pair.bob = await in_thread(IndependentClient, mesh.api, pair.bob_name, PASSWORD, mesh.transport)
        assert (new.device, new.epoch != old.epoch) == (old.device, True)
        await in_thread(new.connect)
        await in_thread(new.until, lambda: pair.shown(*LINES, stored=True))
        await in_thread(old.until, lambda: old.frames_of(CLOSE))
        await expect_nothing_else(pair, *LINES)
        old.abort()
    (mesh.folder / f"{pair.alice_name}-phone.db").unlink()
    async with client(mesh, pair.alice_name) as alice:
        await send_and_wait(alice, pair.bob_name, *LINES)
        await in_thread(new.until, lambda: len(new.shown) == 11)
        assert [text for _, text, _ in new.shown] == [*LINES, "nothing else", *LINES]
        assert new.duplicates == 0
    new.disconnect()
