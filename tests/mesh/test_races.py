"""Races R1 to R16 of DESIGN section 5, on real processes: those that meet at one device.

Nothing is left to chance: a process is stopped where another must come first, and every wait is for something that can
be observed (faults.py).  Each test shows that its race was entered, and that the promise held.  R4, R6, R11, R13, R15
and R16 are in test_races_processes.py, R7, R8 and R9 in test_races_backends.py.
"""

import asyncio
from collections.abc import Iterator

import pytest

from tests.mesh import faults
from tests.mesh.conversations import client, say, take
from tests.mesh.faults import Counted, bindings, brisk, kill, locked_database, rows, stopped
from tests.mesh.pairs import doing, nothing_else, people, pinned, synced
from tests.mesh.real_mesh import DEADLINE_S, PASSWORD, RealMesh, running, until
from tests.mesh.stranger import CLOSE, Stranger

SWEEP_S = 3.0
LINES = [f"m{number}" for number in range(1, 6)]


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealMesh]:
    with running(tmp_path_factory.mktemp("mesh"), brisk(sweep_s=SWEEP_S)) as started:
        yield started


# ---------------------------------------------------------------- R1


@pytest.mark.parametrize("wake_up", ["comes", "is lost"])
async def test_r01_stored_after_the_sync(mesh: RealMesh, wake_up: str) -> None:
    async with people(mesh) as pair:
        bob = pair.bob
        woken = Counted(mesh, "woken", ("c1", "c2"))
        with stopped(mesh, "w1"):
            await pair.says(*LINES)
            await doing(bob.connect)
            await synced(bob)
            assert not bob.shown, "it is in the log alone"
            if wake_up == "is lost":
                faults.erase_binding(mesh, bob.user, bob.device)
        await doing(bob.until, lambda: pair.shown(*LINES, stored=True))
        if wake_up == "comes":
            await woken.rises()
        if wake_up == "is lost":
            assert not bindings(mesh, bob.user), "no writer could know whom to wake-up: it was the sweep"
        await nothing_else(pair, *LINES)
        bob.disconnect()


# ---------------------------------------------------------------- R2


@pytest.mark.parametrize("transfer", ["the same", "another"])
async def test_r02_live_overtakes_stored(mesh: RealMesh, transfer: str) -> None:
    async with people(mesh) as pair:
        bob = pair.bob
        held = Counted(mesh, "held", ("c1", "c2"))
        with stopped(mesh, "w1"):
            await pair.says("m1")
            await doing(bob.connect)
            await synced(bob)
            if transfer == "another":
                first = await faults.handler(mesh, pair.alice.user_id, bob.user)
                killed = kill(mesh, first)
            second = await pair.alice.send(pair.bob_name, "m2")
            await held.rises()
            assert not bob.shown, "the second came before the first"
        await doing(bob.until, lambda: pair.shown("m1", "m2"))
        await asyncio.wait_for(second.wait_delivered(), DEADLINE_S)
        await nothing_else(pair, "m1", "m2")
        bob.disconnect()
        if transfer == "another":
            await faults.back(mesh, first, killed)


# ---------------------------------------------------------------- R3


@pytest.mark.parametrize("dies", ["neither", "first", "second"])
async def test_r03_two_connections_of_one_device_drain_at_once(mesh: RealMesh, dies: str) -> None:
    async with people(mesh, on="c1" if dies != "first" else "c2") as pair:
        bob = pair.bob
        await pair.says(*LINES)
        await until(lambda: rows(mesh, bob.device) == (5, 5), "nothing is written")
        before = faults.fence(mesh, bob.device)
        await doing(bob.connect, on="c1", acknowledges=False)
        await doing(bob.until, lambda: pair.shown(*LINES))
        second = bob.again()
        killed = {}
        with stopped(mesh, "c1"):
            await doing(second.connect, on="c2", acknowledges=False)
            await doing(second.until, lambda: second.duplicates == 5)
            assert faults.fence(mesh, bob.device) == before + 2, "both claimed the queue"
            assert rows(mesh, bob.device) == (5, 5), "neither had an acknowledgement"
            bob.acknowledge()  # c1 will find it when it wakes
            if dies == "second":
                killed["c2"] = kill(mesh, "c2")
            else:
                second.acknowledge()
            if dies == "first":
                killed["c1"] = kill(mesh, "c1")
        bob.vanish()
        last = second
        if dies == "second":
            second.vanish()
            last = bob.again()
            await doing(last.connect, on="c1")
        last.acknowledges = True
        await nothing_else(pair, *LINES, through=last)
        assert rows(mesh, bob.device)[0] == 0, "nothing is stuck"
        last.disconnect()
        for name, pid in killed.items():
            await faults.back(mesh, name, pid)


# ---------------------------------------------------------------- R5


async def test_r05_late_goodbye(mesh: RealMesh) -> None:
    async with people(mesh, on="c2") as pair:
        bob = pair.bob
        await doing(bob.connect, on="c1")
        await synced(bob)
        old = bindings(mesh, bob.user)[bob.device]
        second = bob.again()
        with stopped(mesh, "c1"):
            bob.send(CLOSE, bob.link, 14, "bye")  # c1 will find it when it wakes
            await doing(second.connect, on="c2")
            await synced(second)
            new = bindings(mesh, bob.user)[bob.device]
            assert new.session > old.session
            assert new.incarnation == faults.incarnation(mesh, "c2") != old.incarnation
        # The kick waits beside it: whichever comes first ends the session and erases its binding.
        await until(lambda: faults.counter(mesh, "c1", "sessions") == 0, "c1 does not notice the goodbye")
        assert bindings(mesh, bob.user) == {bob.device: new}, "the late goodbye erased the new session"
        await pair.sends("hello")
        await doing(second.until, lambda: pair.shown("hello", stored=False))
        bob.vanish()
        second.disconnect()


async def test_r05_late_hello(mesh: RealMesh) -> None:
    """c1 sleeps beyond its lease, and NATS forgets who listens: so c1 hears of nothing and registers bob again."""
    async with people(mesh, on="c2") as pair:
        bob = pair.bob
        await doing(bob.connect, on="c1")
        await synced(bob)
        second = bob.again()
        replaced, lost = Counted(mesh, "replaced", ("c1",)), Counted(mesh, "lease_losses", ("c1",))
        with stopped(mesh, "c1"):
            await faults.back(mesh, "nats", kill(mesh, "nats"))
            await doing(second.connect, on="c2")
            await synced(second)
            new = bindings(mesh, bob.user)[bob.device]
            await until(lambda: not faults.lives(mesh, "c1"), "the lease of c1 does not end")
        await lost.rises()
        await replaced.rises()
        assert bindings(mesh, bob.user) == {bob.device: new}, "the late hello replaced the new session"
        await doing(bob.until, lambda: bob.came(CLOSE))
        await pair.sends("hello")
        await doing(second.until, lambda: pair.shown("hello"))
        bob.vanish()
        second.disconnect()


# ---------------------------------------------------------------- R10


@pytest.mark.parametrize("kind", ["live", "stored"])
async def test_r10_acknowledgement_lost(mesh: RealMesh, kind: str) -> None:
    """bob has it, and his connector dies before it hears so."""
    async with people(mesh, on="c2") as pair:
        bob = pair.bob
        if kind == "stored":
            await pair.says("m1")
            await until(lambda: rows(mesh, bob.device) == (1, 1), "nothing is written")
        await doing(bob.connect, on="c1", acknowledges=False)
        if kind == "live":
            await synced(bob)
            outgoing = await pair.alice.send(pair.bob_name, "m1")
        await doing(bob.until, lambda: pair.shown("m1", stored=kind == "stored"))
        killed = kill(mesh, "c1")
        bob.vanish()
        await doing(bob.connect, on="c2")
        await doing(bob.until, lambda: bob.duplicates == 1)
        if kind == "live":
            await asyncio.wait_for(outgoing.wait_delivered(), DEADLINE_S)
        await nothing_else(pair, "m1")
        assert bob.duplicates == 1
        bob.disconnect()
        await faults.back(mesh, "c1", killed)


async def test_r10_acknowledgement_not_marked(mesh: RealMesh) -> None:
    """bob has it and has said so, and his connector dies before the database hears it: marks wait for company."""
    async with people(mesh, on="c2") as pair:
        bob = pair.bob
        await pair.says("m1")
        await until(lambda: rows(mesh, bob.device) == (1, 1), "nothing is written")
        await doing(bob.connect, on="c1", acknowledges=False)
        await doing(bob.until, lambda: pair.shown("m1", stored=True))
        acknowledged = Counted(mesh, "synced", ("c1",))
        with locked_database(mesh):
            bob.acknowledge()
            await acknowledged.rises()
            killed = kill(mesh, "c1")
        bob.vanish()
        assert rows(mesh, bob.device) == (1, 1), "it was marked, so the race was not entered"
        await doing(bob.connect, on="c2")
        await doing(bob.until, lambda: bob.duplicates == 1)
        await nothing_else(pair, "m1")
        await until(lambda: rows(mesh, bob.device) == (0, 1), "it is not marked the second time")
        bob.disconnect()
        await faults.back(mesh, "c1", killed)


# ---------------------------------------------------------------- R12


async def test_r12_resend_elsewhere(mesh: RealMesh) -> None:
    """One copy is delivered, one stored, and the connector that should tell alice dies: she says it again elsewhere."""
    async with people(mesh, on="c1") as pair:
        bob = pair.bob
        async with client(mesh, pair.bob_name, "laptop") as laptop:
            laptop_id = laptop.device_id
        await doing(bob.connect, on="c2", acknowledges=False)
        await synced(bob)
        written = Counted(mesh, "entries", ("w1",))
        outgoing = await pair.alice.send(pair.bob_name, "m1")
        await doing(bob.until, lambda: pair.shown("m1", stored=False))
        await until(lambda: rows(mesh, laptop_id) == (1, 1), "the copy of the laptop is not written")
        delivered = Counted(mesh, "delivered", ("c2",))
        with stopped(mesh, "c1"):
            bob.acknowledge()  # what became of it goes to c1, and no further
            await delivered.rises()
            bob.acknowledges = True
            killed = kill(mesh, "c1")
            pinned(pair.alice, "c2")
            assert outgoing.state == "pending", "alice heard of it"
        await doing(bob.until, lambda: bob.duplicates == 1)
        await asyncio.wait_for(outgoing.wait_delivered(), DEADLINE_S)
        await written.rises(2)
        assert rows(mesh, laptop_id) == (1, 1), "stored twice, and there once"
        async with client(mesh, pair.bob_name, "laptop") as laptop:
            assert [message.text for message in await take(laptop, 1)] == ["m1"]
            await nothing_else(pair, "m1")
            assert [message.text for message in await take(laptop, 1)] == ["nothing else"]
        bob.disconnect()
        await faults.back(mesh, "c1", killed)


# ---------------------------------------------------------------- R14


async def test_r14_lost_state_file(mesh: RealMesh) -> None:
    """bob loses his while a queue is being pushed to him; then alice loses hers."""
    async with people(mesh) as pair:
        old = pair.bob
        await pair.says(*LINES)
        await until(lambda: rows(mesh, old.device) == (5, 5), "nothing is written")
        await doing(old.connect, acknowledges=False)
        await doing(old.until, lambda: pair.shown(*LINES))
        new = pair.bob = await doing(Stranger, mesh.api, pair.bob_name, PASSWORD)
        assert (new.device, new.epoch != old.epoch) == (old.device, True)
        await doing(new.connect)
        await doing(new.until, lambda: pair.shown(*LINES, stored=True))
        await doing(old.until, lambda: old.came(CLOSE))
        await nothing_else(pair, *LINES)
        old.vanish()
    (mesh.folder / f"{pair.alice_name}-phone.db").unlink()
    async with client(mesh, pair.alice_name) as alice:
        await say(alice, pair.bob_name, *LINES)
        await doing(new.until, lambda: len(new.shown) == 11)
        assert [text for _, text, _ in new.shown] == [*LINES, "nothing else", *LINES]
        assert new.duplicates == 0
    new.disconnect()
