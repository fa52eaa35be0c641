"""alice and bob on a real mesh, each on the connector that a test chooses.

alice writes with the client library.  bob reads with independent_client.py, because that client connects to a
given connector, acknowledges when a test says so, and counts duplicates.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from meshim.client import Client, Outgoing
from meshim.wire.rest import Connector
from tests.mesh.harness.independent_client import STORED, IndependentClient
from tests.mesh.harness.inspection import stored_rows
from tests.mesh.harness.library_client import client, send_and_wait
from tests.mesh.harness.real_mesh import DEADLINE_S, PASSWORD, RealMesh, in_thread, until


class TwoUsers:
    """alice is connected.  The device of bob has logged in, and is not connected."""

    def __init__(self, mesh: RealMesh, names: tuple[str, ...], alice: Client, bob: IndependentClient) -> None:
        self.mesh = mesh
        self.alice_name, self.bob_name = names
        self.alice = alice
        self.bob = bob

    async def send_and_wait(self, *texts: str) -> None:
        """alice sends to bob and waits for `sent`.  Only while bob is away: nothing reads for bob meanwhile."""
        await send_and_wait(self.alice, self.bob_name, *texts)

    async def send(self, *texts: str) -> list[Outgoing]:
        """alice sends to bob."""
        return [await self.alice.send(self.bob_name, text) for text in texts]

    def shown(self, *texts: str, stored: bool | None = None) -> bool:
        """Whether bob saw exactly these, in order; AssertionError when what bob saw is not the beginning of them."""
        seen = [(sender, text, was) for sender, text, was in self.bob.shown]
        assert seen == [
            (self.alice.user_id, text, was if stored is None else stored)
            for text, (_, _, was) in zip(texts, self.bob.shown, strict=False)
        ]
        return len(seen) == len(texts)


@asynccontextmanager
async def two_users(mesh: RealMesh, alice_on: str = "") -> AsyncIterator[TwoUsers]:
    """Register alice and bob, and connect alice to the connector `alice_on`, or to any."""
    names = await mesh.register_users("alice", "bob")
    bob = await in_thread(IndependentClient, mesh.api, names[1], PASSWORD, mesh.transport)
    async with client(mesh, names[0]) as alice:
        if alice_on:
            pin_connector(alice, alice_on)
        await asyncio.wait_for(alice.online(), DEADLINE_S)
        yield TwoUsers(mesh, names, alice, bob)


@asynccontextmanager
async def reading(device: IndependentClient) -> AsyncIterator[None]:
    """The device reads and acknowledges in a thread during the block, which must not call it."""
    over = False
    thread = asyncio.create_task(in_thread(device.until, lambda: over))
    try:
        yield
    finally:
        over = True
        await thread


async def expect_nothing_else(pair: TwoUsers, *texts: str, through: IndependentClient | None = None) -> None:
    """bob saw these texts; the next text is the one that alice sends now, and the queue of bob becomes empty."""
    bob = through or pair.bob
    outgoing = await pair.alice.send(pair.bob_name, "nothing else")
    await in_thread(bob.until, lambda: len(bob.shown) > len(texts))
    assert [text for _, text, _ in bob.shown] == [*texts, "nothing else"]
    async with reading(bob):
        await asyncio.wait_for(outgoing.wait_delivered(), DEADLINE_S)
        await until(lambda: stored_rows(pair.mesh, bob.device)[0] == 0, "unread rows stay in the queue")


# ---------------------------------------------------------------- connections


def pin_connector(device: Client, name: str) -> None:
    """Let a device of the library connect to this connector alone from now on; call it before it connects."""
    connection = device._shell.connection
    ask = device._shell._session.connectors

    async def only_that_one(fresh: bool) -> list[Connector]:
        return [connector for connector in await ask(fresh) if connector.name == name]

    connection._connectors = only_that_one


async def wait_synced(device: IndependentClient) -> None:
    """Wait until the connector has read the queue of the device to its end."""
    await in_thread(device.until, lambda: [frame[2] for frame in device.frames_of(STORED)][-1:] == [False])
