"""alice and bob talk while a hostile client attacks the mesh: their conversation must not notice it."""

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

from meshim.client import Client
from meshim.deploy.state import read
from tests.mesh.harness.library_client import client, send_and_wait
from tests.mesh.harness.real_mesh import DEADLINE_S, RealMesh


class Users(NamedTuple):
    """Names.  alice and bob are friends, mallory has no friends, trudy is a friend of bob's."""

    alice: str
    bob: str
    mallory: str
    trudy: str


@asynccontextmanager
async def background_chat(mesh: RealMesh, users: Users) -> AsyncIterator[None]:
    """alice writes to bob during the block.

    Every message has to arrive once and in order, and every process of the mesh has to live on.
    """
    running = _processes(mesh)
    stop = asyncio.Event()
    async with client(mesh, users.alice) as alice, client(mesh, users.bob) as bob:
        await asyncio.gather(alice.online(), bob.online())
        sending = asyncio.create_task(_send_until(alice, users.bob, stop))
        try:
            yield
        finally:
            stop.set()
            sent = await sending
        assert await _receive_from(bob, users.alice, len(sent)) == sent
        await send_and_wait(bob, users.alice, "still here")
        assert await _receive_from(alice, users.bob, 1) == ["still here"]
    assert _processes(mesh) == running


async def _send_until(sender: Client, peer: str, stop: asyncio.Event) -> list[str]:
    sent: list[str] = []
    while not stop.is_set():
        sent.append(f"{secrets.token_hex(4)} number {len(sent)}")
        await sender.send(peer, sent[-1])
        await asyncio.sleep(0.02)
    return sent


async def _receive_from(reader: Client, sender: str, count: int) -> list[str]:
    """The next texts of one sender; messages of other senders are skipped."""
    texts: list[str] = []
    async with asyncio.timeout(DEADLINE_S):
        async for message in reader.messages():
            texts += [message.text] * (message.sender == sender)
            await message.done()
            if len(texts) == count:
                break
    return texts


def _processes(mesh: RealMesh) -> dict[str, int | None]:
    state = read(mesh.data)
    assert state is not None
    return {role.name: role.pid for role in state.roles}
