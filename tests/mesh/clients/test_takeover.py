"""One device name with two state files, awake and asleep, in any order: one winner, and the loser stops (H11)."""

import asyncio
import secrets

import pytest

from meshim.client import Client
from meshim.client.rest import Api
from meshim.errors import Code, Refused
from tests.mesh.harness.library_client import client, expect_nothing_more, receive, receive_texts, send_and_wait
from tests.mesh.harness.real_mesh import PASSWORD, RealMesh

SOON_S = 5.0
"""A connector that gets no notification checks the token after 45 s or more."""


async def expect_stopped(loser: Client) -> None:
    """The client ends by itself, with the code and a sentence that says why."""
    with pytest.raises(Refused, match="was taken over with another state file") as refused:
        await asyncio.wait_for(receive(loser, 1), SOON_S)
    assert refused.value.code is Code.REPLACED


async def test_a_takeover_ends_the_earlier_session_before_the_new_one_greets(mesh: RealMesh) -> None:
    """What comes after the login waits for the new state file; the old one must not swallow it."""
    alice_name, bob_name = await mesh.register_users("alice", "bob")
    async with client(mesh, alice_name) as alice:
        async with client(mesh, bob_name) as old, Api(mesh.api) as api:
            await send_and_wait(alice, bob_name, "one")
            assert await receive_texts(old, 1) == ["one"]
            await api.login(bob_name, PASSWORD, "phone", secrets.randbits(53), takeover=True)
            await expect_stopped(old)
        await send_and_wait(alice, bob_name, "two")
        async with client(mesh, bob_name, state="-new") as new:
            assert await receive_texts(new, 1) == ["two"]


@pytest.mark.parametrize("winner_is_awake", [True, False])
async def test_a_state_file_that_was_away_does_not_take_its_device_back(mesh: RealMesh, winner_is_awake: bool) -> None:
    alice_name, bob_name = await mesh.register_users("alice", "bob")
    async with client(mesh, alice_name) as alice:
        async with client(mesh, bob_name) as old:
            await old.online()
        async with client(mesh, bob_name, state="-new") as new:
            await new.online()
            for _ in range(2 if winner_is_awake else 0):
                async with client(mesh, bob_name) as old:
                    await expect_stopped(old)
            await expect_nothing_more(new, alice, bob_name)
        for _ in range(2):
            async with client(mesh, bob_name) as old:
                await expect_stopped(old)
        async with client(mesh, bob_name, state="-new") as new:
            await expect_nothing_more(new, alice, bob_name)
