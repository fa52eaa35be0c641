"""Users talk over WebSocket, among themselves and with users on ZeroMQ."""

import asyncio
import signal

import pytest

from meshim.client import Client
from tests.mesh.harness import scenarios
from tests.mesh.harness.library_client import client, expect_nothing_more, receive, receive_texts, send_and_wait
from tests.mesh.harness.real_mesh import DEADLINE_S, RealMesh


@pytest.fixture
def over_websocket(mesh: RealMesh) -> RealMesh:
    return mesh.over("websocket")


async def test_two_users_online(over_websocket: RealMesh) -> None:
    await scenarios.two_users_online(over_websocket)


async def test_every_device_gets_a_copy(over_websocket: RealMesh) -> None:
    await scenarios.every_device_gets_a_copy(over_websocket)


async def test_the_first_device_of_a_user_gets_the_stored_messages(over_websocket: RealMesh) -> None:
    await scenarios.first_device_gets_the_stored_messages(over_websocket)


async def test_receipts_reach_a_disconnected_sender(over_websocket: RealMesh) -> None:
    await scenarios.receipts_reach_a_disconnected_sender(over_websocket)


async def test_hundreds_both_ways_arrive_once_and_in_order(over_websocket: RealMesh) -> None:
    await scenarios.thousands_both_ways(over_websocket, 300)


async def test_one_user_on_each_transport(mesh: RealMesh) -> None:
    alice_name, bob_name = await mesh.register_users("alice", "bob")
    async with client(mesh.over("websocket"), alice_name) as alice, client(mesh.over("zeromq"), bob_name) as bob:
        await asyncio.wait_for(asyncio.gather(alice.online(), bob.online()), DEADLINE_S)
        assert [str(each.connector).partition("://")[0] for each in (alice, bob)] == ["ws", "tcp"]
        texts = [f"message {number}" for number in range(50)]
        await asyncio.gather(send_and_wait(alice, bob_name, *texts), send_and_wait(bob, alice_name, *texts))
        assert await receive_texts(bob, 50) == texts
        assert await receive_texts(alice, 50) == texts


async def test_a_killed_connector_loses_nothing(over_websocket: RealMesh) -> None:
    """All connections of one connector are cut while both users write; they go on over the other one."""
    alice_name, bob_name = await over_websocket.register_users("alice", "bob")
    texts = [f"message {number}" for number in range(300)]
    async with client(over_websocket, alice_name) as alice, client(over_websocket, bob_name) as bob:
        await asyncio.wait_for(asyncio.gather(alice.online(), bob.online()), DEADLINE_S)

        async def talk(sender: Client, peer: str) -> None:
            for text in texts:
                await sender.send(peer, text)
                await asyncio.sleep(0.002)

        talking = asyncio.gather(talk(alice, bob_name), talk(bob, alice_name))
        await receive(bob, 50)
        pid = over_websocket.signal("c1", signal.SIGKILL)
        got = [message.text for message in await receive(bob, 250)]
        assert got == texts[50:]
        assert await receive_texts(alice, 300) == texts
        await talking
        await over_websocket.restarted("c1", pid)
        await expect_nothing_more(bob, alice, bob_name)
