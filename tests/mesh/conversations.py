"""Conversations on a real mesh: who talks with whom, and what each has to see.  For embedded and external backends."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from pathlib import Path

import msgspec

from meshim.client import Client, Message
from meshim.client.events import ConnectionLost
from meshim.deploy.embedded import free_port
from meshim.topology import Backends, RestListener, Topology
from meshim.wire.rest import Connector
from scripts.harness.mesh import local_mesh
from tests.mesh.real_mesh import DEADLINE_S, PASSWORD, RealMesh, running


def client(mesh: RealMesh, name: str, device: str = "phone", state: str = "") -> Client:
    """A device with a state file of its own; another `state` is another installation."""
    return Client(mesh.api, name, PASSWORD, device=device, state=mesh.folder / f"{name}-{device}{state}.db")


async def take(reader: Client, count: int, *, read: bool = False, within_s: float = DEADLINE_S) -> list[Message]:
    """The next messages, all of them handled; `read` also tells the senders."""
    messages: list[Message] = []
    async with asyncio.timeout(within_s):
        async for message in reader.messages():
            messages.append(message)
            await (message.mark_read() if read else message.done())
            if len(messages) == count:
                break
    return messages


async def texts(reader: Client, count: int) -> list[str]:
    return [message.text for message in await take(reader, count)]


async def say(sender: Client, peer: str, *lines: str) -> None:
    """Send, and wait until all of it is safe in the mesh."""
    async with asyncio.timeout(DEADLINE_S):
        for outgoing in [await sender.send(peer, line) for line in lines]:
            await outgoing.wait_sent()


async def nothing_more(reader: Client, writer: Client, peer: str) -> None:
    """Nothing is under way to `reader` but what `writer` says now."""
    await say(writer, peer, "nothing more")
    assert await texts(reader, 1) == ["nothing more"]


class Restartable:
    """A mesh that can go down and come up again, REST always on the same port, everything else on new ones."""

    def __init__(self, folder: Path, backends: Backends | None = None, namespace: str = "meshim") -> None:
        rest = (RestListener("r1", f"http://127.0.0.1:{free_port()}"),)
        self._folder = folder
        self._topology: Topology = msgspec.structs.replace(
            local_mesh.topology(), rest=rest, backends=backends or Backends(), namespace=namespace
        )
        self._running: AbstractContextManager[RealMesh] | None = None

    async def up(self) -> RealMesh:
        assert self._running is None
        mesh = running(self._folder, self._topology)
        found = await asyncio.to_thread(mesh.__enter__)
        self._running = mesh
        return found

    async def down(self) -> None:
        if self._running is not None:
            await asyncio.to_thread(self._running.__exit__, None, None, None)
            self._running = None


@asynccontextmanager
async def restartable(
    folder: Path, backends: Backends | None = None, namespace: str = "meshim"
) -> AsyncIterator[Restartable]:
    mesh = Restartable(folder, backends, namespace)
    try:
        yield mesh
    finally:
        await mesh.down()


@asynccontextmanager
async def cut_off(device: Client) -> AsyncIterator[None]:
    """A device without a connection, as on a train."""
    connection, may_connect = device._connection, asyncio.Event()
    ask = connection._connectors

    async def when_it_may(fresh: bool) -> Sequence[Connector]:
        await may_connect.wait()
        return await ask(fresh)

    connection._connectors = when_it_may
    device._driver.receive(ConnectionLost())
    try:
        yield
    finally:
        connection._connectors = ask
        may_connect.set()
    await asyncio.wait_for(device.online(), DEADLINE_S)


# ---------------------------------------------------------------- scenarios


async def two_people_online(mesh: RealMesh) -> None:
    """Each message is sent, delivered and read, both ways."""
    alice_name, bob_name = await mesh.people("alice", "bob")
    async with client(mesh, alice_name) as alice, client(mesh, bob_name) as bob:
        for sender, reader, peer in ((alice, bob, bob_name), (bob, alice, alice_name)) * 2:
            outgoing = await sender.send(peer, f"hello {peer}")
            async with asyncio.timeout(DEADLINE_S):
                await outgoing.wait_sent()
                await outgoing.wait_delivered()
            assert outgoing.state == "delivered"
            [message] = await take(reader, 1, read=True)
            async with asyncio.timeout(DEADLINE_S):
                await outgoing.wait_read()
            assert (message.id, message.text, message.problem) == (outgoing.id, f"hello {peer}", "")
            assert message.sender in (alice_name, bob_name)
            assert (message.recipient, message.sender_device, message.own) == (peer, sender.device_id, False)


async def stored_and_all_restarted(mesh: Restartable) -> None:
    """She left; what was said meanwhile survives a restart of everything, and comes before anything new."""
    running_mesh = await mesh.up()
    alice_name, bob_name = await running_mesh.people("alice", "bob")
    old, new = [f"old {number}" for number in range(30)], [f"new {number}" for number in range(30)]
    async with client(running_mesh, alice_name) as alice:
        async with client(running_mesh, bob_name) as bob:
            await say(alice, bob_name, "are you there?")
            assert await texts(bob, 1) == ["are you there?"]
        await say(alice, bob_name, *old)
        before = {connector.endpoint for connector in await alice._session.connectors(fresh=True)}
        await mesh.down()
        await mesh.up()
        async with client(running_mesh, bob_name) as bob:
            talking = asyncio.create_task(say(alice, bob_name, *new))
            messages = await take(bob, len(old + new), read=True)
            await talking
            await bob.settled()
        assert [message.text for message in messages] == old + new
        assert all(message.stored for message in messages[: len(old)])
        after = {connector.endpoint for connector in await alice._session.connectors(fresh=True)}
        assert not before & after, "every port is a new one after a restart"


async def every_device_has_its_copy(mesh: RealMesh) -> None:
    """Each device of the recipient, there or not, and the other devices of the sender."""
    alice_name, bob_name = await mesh.people("alice", "bob")
    async with client(mesh, bob_name, "laptop"), client(mesh, alice_name, "tablet"):
        pass  # both are known, and away
    async with (
        client(mesh, alice_name) as alice,
        client(mesh, alice_name, "watch") as alices_watch,
        client(mesh, bob_name) as bob,
        client(mesh, bob_name, "tv") as bobs_tv,
    ):
        await asyncio.gather(*(each.online() for each in (alice, alices_watch, bob, bobs_tv)))
        await say(alice, bob_name, "one", "two")
        for device in (bob, bobs_tv):
            assert await texts(device, 2) == ["one", "two"]
        on_watch = await take(alices_watch, 2)
        assert [(m.text, m.own, m.sender, m.recipient) for m in on_watch] == [
            (text, True, alice_name, bob_name) for text in ("one", "two")
        ]
        async with client(mesh, bob_name, "laptop") as laptop, client(mesh, alice_name, "tablet") as tablet:
            for device in (laptop, tablet):
                assert [(m.text, m.stored) for m in await take(device, 2)] == [("one", True), ("two", True)]
            await nothing_more(laptop, alice, bob_name)
            assert await texts(tablet, 1) == ["nothing more"]


async def never_logged_in(mesh: RealMesh) -> None:
    """She registered and made friends, but had no device: the first one gets what was said, a second one does not."""
    alice_name, bob_name = await mesh.people("alice", "bob")
    async with client(mesh, alice_name) as alice:
        await say(alice, bob_name, "welcome", "to meshim")
        async with client(mesh, bob_name) as bob:
            messages = await take(bob, 2, read=True)
            assert [(message.text, message.stored) for message in messages] == [("welcome", True), ("to meshim", True)]
            async with client(mesh, bob_name, "second") as second:
                await second.online()
                await nothing_more(second, alice, bob_name)
            assert await texts(bob, 1) == ["nothing more"]


async def receipts_for_who_is_away(mesh: RealMesh) -> None:
    """He reads while she is cut off; she learns of it when she is back."""
    alice_name, bob_name = await mesh.people("alice", "bob")
    async with client(mesh, bob_name):
        pass
    async with client(mesh, alice_name) as alice:
        outgoing = await alice.send(bob_name, "read this")
        await asyncio.wait_for(outgoing.wait_sent(), DEADLINE_S)
        async with cut_off(alice):
            async with client(mesh, bob_name) as bob:
                await take(bob, 1, read=True)
                await asyncio.wait_for(bob.settled(), DEADLINE_S)
            assert outgoing.state == "sent"
        await asyncio.wait_for(outgoing.wait_read(), DEADLINE_S)


async def thousands_both_ways(mesh: RealMesh, count: int = 2_000) -> None:
    """As fast as the outbox takes them; each once and in order."""
    alice_name, bob_name = await mesh.people("alice", "bob")
    async with client(mesh, alice_name) as alice, client(mesh, bob_name) as bob:

        async def talk(sender: Client, peer: str) -> None:
            # Tasks reserve their numbers in the order they were made.
            await asyncio.gather(*(sender.send(peer, str(number)) for number in range(count)))

        seen = await asyncio.gather(
            take(alice, count, within_s=120.0),
            take(bob, count, within_s=120.0),
            talk(alice, bob_name),
            talk(bob, alice_name),
        )
        for messages in seen[:2]:
            assert messages is not None
            assert [message.text for message in messages] == [str(number) for number in range(count)]
        for each in (alice, bob):
            await asyncio.wait_for(each.settled(), DEADLINE_S)
