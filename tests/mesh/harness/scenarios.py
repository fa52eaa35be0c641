"""Conversations on a real mesh and what each device has to see, for embedded and for external backends."""

import asyncio

from meshim.client import Client
from tests.mesh.harness.library_client import (
    client,
    disconnected,
    expect_nothing_more,
    receive,
    receive_texts,
    send_and_wait,
)
from tests.mesh.harness.real_mesh import DEADLINE_S, RealMesh, RestartableMesh


async def two_users_online(mesh: RealMesh) -> None:
    """Each message becomes sent, delivered and read, in both directions."""
    alice_name, bob_name = await mesh.register_users("alice", "bob")
    async with client(mesh, alice_name) as alice, client(mesh, bob_name) as bob:
        for sender, reader, peer in ((alice, bob, bob_name), (bob, alice, alice_name)) * 2:
            outgoing = await sender.send(peer, f"hello {peer}")
            async with asyncio.timeout(DEADLINE_S):
                await outgoing.wait_sent()
                await outgoing.wait_delivered()
            assert outgoing.state == "delivered"
            [message] = await receive(reader, 1, mark_read=True)
            async with asyncio.timeout(DEADLINE_S):
                await outgoing.wait_read()
            assert (message.id, message.text, message.problem) == (outgoing.id, f"hello {peer}", "")
            assert message.sender in (alice_name, bob_name)
            assert (message.recipient, message.sender_device, message.own) == (peer, sender.device_id, False)


async def stored_messages_survive_a_restart(mesh: RestartableMesh) -> None:
    """bob is away: what alice sends survives a restart of all processes, and bob gets it before anything new."""
    running_mesh = await mesh.up()
    alice_name, bob_name = await running_mesh.register_users("alice", "bob")
    old, new = [f"old {number}" for number in range(30)], [f"new {number}" for number in range(30)]
    async with client(running_mesh, alice_name) as alice:
        async with client(running_mesh, bob_name) as bob:
            await send_and_wait(alice, bob_name, "are you there?")
            assert await receive_texts(bob, 1) == ["are you there?"]
        await send_and_wait(alice, bob_name, *old)
        before = {connector.endpoint for connector in await alice._shell._session.connectors(fresh=True)}
        await mesh.down()
        await mesh.up()
        async with client(running_mesh, bob_name) as bob:
            sending = asyncio.create_task(send_and_wait(alice, bob_name, *new))
            messages = await receive(bob, len(old + new), mark_read=True)
            await sending
            await bob.settled()
        assert [message.text for message in messages] == old + new
        assert all(message.stored for message in messages[: len(old)])
        after = {connector.endpoint for connector in await alice._shell._session.connectors(fresh=True)}
        assert not before & after, "every connector has a new port after a restart"


async def every_device_gets_a_copy(mesh: RealMesh) -> None:
    """Each device of the recipient, connected or not, and each other device of the sender gets every message once."""
    alice_name, bob_name = await mesh.register_users("alice", "bob")
    async with client(mesh, bob_name, "laptop"), client(mesh, alice_name, "tablet"):
        pass  # the mesh knows both devices; neither is connected
    async with (
        client(mesh, alice_name) as alice,
        client(mesh, alice_name, "watch") as alices_watch,
        client(mesh, bob_name) as bob,
        client(mesh, bob_name, "tv") as bobs_tv,
    ):
        await asyncio.gather(*(each.online() for each in (alice, alices_watch, bob, bobs_tv)))
        await send_and_wait(alice, bob_name, "one", "two")
        for device in (bob, bobs_tv):
            assert await receive_texts(device, 2) == ["one", "two"]
        on_watch = await receive(alices_watch, 2)
        assert [(m.text, m.own, m.sender, m.recipient) for m in on_watch] == [
            (text, True, alice_name, bob_name) for text in ("one", "two")
        ]
        async with client(mesh, bob_name, "laptop") as laptop, client(mesh, alice_name, "tablet") as tablet:
            for device in (laptop, tablet):
                assert [(m.text, m.stored) for m in await receive(device, 2)] == [("one", True), ("two", True)]
            await expect_nothing_more(laptop, alice, bob_name)
            assert await receive_texts(tablet, 1) == ["nothing more"]


async def first_device_gets_the_stored_messages(mesh: RealMesh) -> None:
    """bob has no device yet: the first one gets what alice sent before, the second one does not."""
    alice_name, bob_name = await mesh.register_users("alice", "bob")
    async with client(mesh, alice_name) as alice:
        await send_and_wait(alice, bob_name, "welcome", "to meshim")
        async with client(mesh, bob_name) as bob:
            messages = await receive(bob, 2, mark_read=True)
            assert [(message.text, message.stored) for message in messages] == [("welcome", True), ("to meshim", True)]
            async with client(mesh, bob_name, "second") as second:
                await second.online()
                await expect_nothing_more(second, alice, bob_name)
            assert await receive_texts(bob, 1) == ["nothing more"]


async def receipts_reach_a_disconnected_sender(mesh: RealMesh) -> None:
    """bob reads while alice is disconnected; the receipt arrives when alice connects again."""
    alice_name, bob_name = await mesh.register_users("alice", "bob")
    async with client(mesh, bob_name):
        pass
    async with client(mesh, alice_name) as alice:
        outgoing = await alice.send(bob_name, "read this")
        await asyncio.wait_for(outgoing.wait_sent(), DEADLINE_S)
        async with disconnected(alice):
            async with client(mesh, bob_name) as bob:
                await receive(bob, 1, mark_read=True)
                await asyncio.wait_for(bob.settled(), DEADLINE_S)
            assert outgoing.state == "sent"
        await asyncio.wait_for(outgoing.wait_read(), DEADLINE_S)


async def thousands_both_ways(mesh: RealMesh, count: int = 2_000) -> None:
    """Both send as fast as the outbox takes messages; each message arrives once and in order."""
    alice_name, bob_name = await mesh.register_users("alice", "bob")
    async with client(mesh, alice_name) as alice, client(mesh, bob_name) as bob:

        async def talk(sender: Client, peer: str) -> None:
            # Tasks reserve their sequence numbers in the order in which they were made.
            await asyncio.gather(*(sender.send(peer, str(number)) for number in range(count)))

        seen = await asyncio.gather(
            receive(alice, count, within_s=120.0),
            receive(bob, count, within_s=120.0),
            talk(alice, bob_name),
            talk(bob, alice_name),
        )
        for messages in seen[:2]:
            assert messages is not None
            assert [message.text for message in messages] == [str(number) for number in range(count)]
        for each in (alice, bob):
            await asyncio.wait_for(each.settled(), DEADLINE_S)
