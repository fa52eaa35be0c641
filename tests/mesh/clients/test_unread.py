"""An application that reads too little: its state file stays small, and the mesh keeps the rest."""

import asyncio

import msgspec

from meshim.client import Connected, Disconnected
from meshim.client.options import DEFAULTS
from tests.mesh.harness.library_client import client, expect_nothing_more, next_event, receive_texts, send_and_wait
from tests.mesh.harness.real_mesh import DEADLINE_S, RealMesh

INBOX_BYTES = 20_000
FEW = msgspec.structs.replace(DEFAULTS, inbox_bytes_max=INBOX_BYTES)


async def test_an_inbox_that_is_full_waits_in_the_mesh_until_the_application_reads(mesh: RealMesh) -> None:
    alice_name, bob_name = await mesh.register_users("alice", "bob")
    texts = [f"{number} {'x' * 2_000}" for number in range(60)]
    async with client(mesh, alice_name) as alice:
        async with client(mesh, bob_name, options=FEW) as bob:
            events = bob.events()
            await next_event(events, Connected)
            await send_and_wait(alice, bob_name, *texts)
            told = await next_event(events, Disconnected)
            assert "bytes of messages to read: this device connects again when it has handled" in told.sentence
            assert bob.last_failure == told.sentence
            await bob.send(alice_name, "it waits in the outbox")
        # The next run does not connect either, before it has read.
        async with client(mesh, bob_name, options=FEW) as bob:
            assert bob.last_failure is not None
            kept = bob._shell._state.unread_bytes
            assert INBOX_BYTES <= kept <= INBOX_BYTES + 33 * 65_536, "what was under way came too, and no more"
            assert await receive_texts(bob, len(texts)) == texts
            await asyncio.wait_for(bob.online(), DEADLINE_S)
            assert await receive_texts(alice, 1) == ["it waits in the outbox"]
            await expect_nothing_more(bob, alice, bob_name)
            assert bob.statistics.inbox_full >= 1
