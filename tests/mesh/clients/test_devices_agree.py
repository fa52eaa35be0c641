"""All devices of the sender learn what was delivered and read, all devices of the reader what was read."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from meshim.client import Client, Message, MessagesProgressed, RelationChanged
from meshim.client.rest import Api
from tests.mesh.harness.library_client import client, expect_nothing_more, next_event, receive, send_and_wait
from tests.mesh.harness.real_mesh import DEADLINE_S, PASSWORD, RealMesh, until


@asynccontextmanager
async def registered(mesh: RealMesh, *devices: tuple[str, str]) -> AsyncIterator[None]:
    """The mesh knows these devices, each (user, device): copies are stored for them from now on."""
    for name, device in devices:
        async with client(mesh, name, device) as each:
            await each.online()
    yield


async def expect_state(device: Client, message: Message, state: str) -> None:
    await until(lambda: device.state_of(message) == state, f"{message.text} is {state}")


async def first_progress(device: Client) -> MessagesProgressed:
    return await next_event(device.events(), MessagesProgressed)


async def settled(device: Client) -> None:
    await asyncio.wait_for(device.settled(), DEADLINE_S)


async def test_all_devices_learn_at_once_when_they_are_connected(mesh: RealMesh) -> None:
    alice_name, bob_name = await mesh.register_users("alice", "bob")
    async with (
        client(mesh, alice_name) as phone, client(mesh, alice_name, "laptop") as laptop,
        client(mesh, bob_name) as bobs_phone, client(mesh, bob_name, "laptop") as bobs_laptop,
    ):  # fmt: skip
        for device in (phone, laptop, bobs_phone, bobs_laptop):
            await device.online()
        told = asyncio.create_task(first_progress(laptop))
        told_bob = asyncio.create_task(first_progress(bobs_laptop))
        outgoing = await phone.send(bob_name, "hello")
        [copy], [unread] = await receive(laptop, 1), await receive(bobs_laptop, 1)
        assert (copy.own, laptop.state_of(copy), unread.already_read) == (True, "sent", False)
        await receive(bobs_phone, 1, mark_read=True)
        await asyncio.wait_for(outgoing.wait_read(), DEADLINE_S)
        for task, message in ((told, copy), (told_bob, unread)):
            progress = await asyncio.wait_for(task, DEADLINE_S)
            assert progress.state == "read"
            assert progress.covers(message)
        assert laptop.state_of(copy) == "read"
        assert bobs_laptop.state_of(unread) == "read"
        await unread.mark_read()  # it has been told: no second receipt, and no receipt for a receipt
        for device in (phone, laptop, bobs_phone, bobs_laptop):
            await settled(device)
        sent = {
            (each.user_id, each.device_id): each._shell.core.outbox._streams
            for each in (phone, bobs_phone, bobs_laptop)
        }
        counts = [sum(stream.next_seq - 1 for stream in streams.values()) for streams in sent.values()]
        assert counts == [1, 1, 0]


async def test_all_devices_of_the_sender_learn_that_a_message_is_delivered_before_it_is_read(mesh: RealMesh) -> None:
    alice_name, bob_name = await mesh.register_users("alice", "bob")
    async with client(mesh, alice_name) as phone, client(mesh, alice_name, "laptop") as laptop:
        await phone.online()
        await laptop.online()
        async with client(mesh, bob_name) as bob:
            await bob.online()
            outgoing = await phone.send(bob_name, "hello")
            await asyncio.wait_for(outgoing.wait_delivered(), DEADLINE_S)
            [copy] = await receive(laptop, 1)
            await expect_state(laptop, copy, "delivered")
            assert outgoing.state == "delivered"


async def test_a_device_that_was_away_learns_what_its_user_read_meanwhile(mesh: RealMesh) -> None:
    alice_name, bob_name = await mesh.register_users("alice", "bob")
    async with registered(mesh, (bob_name, "laptop")), client(mesh, alice_name) as alice:
        async with client(mesh, bob_name) as phone:
            await phone.online()
            await send_and_wait(alice, bob_name, "one", "two", "three")
            await receive(phone, 2, mark_read=True)
            await settled(phone)
        async with client(mesh, bob_name, "laptop") as laptop:
            await until(lambda: bool(laptop._shell.core.receipts._streams), "the receipt has come")
            one, two, three = await receive(laptop, 3)
            await expect_state(laptop, two, "read")
            assert [laptop.state_of(message) for message in (one, two, three)] == ["read", "read", "delivered"]
        async with client(mesh, bob_name, "laptop") as laptop:
            assert laptop.state_of(two) == "read", "it is in the state file"
            await expect_nothing_more(laptop, alice, bob_name)


async def test_senders_devices_that_were_away_learn_what_was_delivered_and_read(mesh: RealMesh) -> None:
    alice_name, bob_name = await mesh.register_users("alice", "bob")
    async with registered(mesh, (alice_name, "laptop"), (bob_name, "phone")):
        async with client(mesh, alice_name) as phone:
            outgoing = await phone.send(bob_name, "one")
            await asyncio.wait_for(outgoing.wait_sent(), DEADLINE_S)
            await send_and_wait(phone, bob_name, "two")
        async with client(mesh, bob_name) as bob:
            await receive(bob, 1, mark_read=True)
            await receive(bob, 1)
            await settled(bob)
        async with client(mesh, alice_name, "laptop") as laptop:
            one, two = await receive(laptop, 2)
            await expect_state(laptop, one, "read")
            await expect_state(laptop, two, "delivered")
        async with client(mesh, alice_name) as phone:
            to = one.stream.to
            await until(lambda: phone._shell.core.outbox._settled[to, one.seq] == "read", "the sending device knows")
            await until(lambda: phone._shell.core.outbox._settled[to, two.seq] == "delivered", "of the second one, too")


async def test_a_new_state_file_of_the_sender_learns_of_what_its_sibling_sent(mesh: RealMesh) -> None:
    """The laptop is installed anew, and then sends itself: receipts for its earlier epoch do not touch its messages."""
    alice_name, bob_name = await mesh.register_users("alice", "bob")
    async with registered(mesh, (bob_name, "phone")), client(mesh, alice_name) as phone:
        async with client(mesh, alice_name, "laptop") as old:
            await send_and_wait(old, bob_name, "from the old file")
        async with client(mesh, alice_name, "laptop", state="-new") as laptop:
            await laptop.online()
            outgoing = await laptop.send(bob_name, "from the new file")
            await send_and_wait(phone, bob_name, "from the phone")
            await receive(phone, 2)
            [copy] = await receive(laptop, 1)
            async with client(mesh, bob_name) as bob:
                first, second, third = await receive(bob, 3)
                unread = second if second.text == "from the new file" else third
                for message in (first, second, third):
                    if message is not unread:
                        await message.mark_read()
                await settled(bob)
                await expect_state(laptop, copy, "read")
                await asyncio.wait_for(outgoing.wait_delivered(), DEADLINE_S)
                assert outgoing.state == "delivered", "`read` was said of the old file's message"
                await unread.mark_read()
                await asyncio.wait_for(outgoing.wait_read(), DEADLINE_S)


async def test_a_new_state_file_of_the_reader_learns_what_is_read_from_then_on(mesh: RealMesh) -> None:
    alice_name, bob_name = await mesh.register_users("alice", "bob")
    async with client(mesh, alice_name) as alice, client(mesh, bob_name) as phone:
        await phone.online()
        async with client(mesh, bob_name, "laptop") as old:
            await old.online()
            await send_and_wait(alice, bob_name, "one")
            await receive(old, 1)
        async with client(mesh, bob_name, "laptop", state="-new") as laptop:
            await laptop.online()
            outgoing = await alice.send(bob_name, "two")
            [two] = await receive(laptop, 1)
            await receive(phone, 2, mark_read=True)
            await asyncio.wait_for(outgoing.wait_read(), DEADLINE_S)
            await expect_state(laptop, two, "read")


async def test_receipts_after_the_end_of_a_friendship_settle_silently(mesh: RealMesh) -> None:
    alice_name, bob_name = await mesh.register_users("alice", "bob")
    async with client(mesh, alice_name) as alice, client(mesh, bob_name) as bob, Api(mesh.api) as api:
        outgoing = await alice.send(bob_name, "hello")
        await asyncio.wait_for(outgoing.wait_sent(), DEADLINE_S)
        [message] = await receive(bob, 1)
        answer = await api.login(alice_name, PASSWORD, None, 0)
        api.token = answer.token
        events = bob.events()
        await api.remove(bob_name)
        await next_event(events, RelationChanged)  # his connector knows it, too
        await until(lambda: bob._shell.core.outbox.unsettled == 0, "nothing is under way")
        await message.mark_read()
        await settled(bob)
        assert (bob._shell._failure, bob.state_of(message), outgoing.state) == (None, "read", "delivered")
