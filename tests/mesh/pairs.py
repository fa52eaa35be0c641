"""alice and bob on a real mesh, each where a test wants them.

alice writes with the library.  bob reads with the client of stranger.py: it connects to the connector it is told,
acknowledges when a test says so, and counts what it is given twice.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from meshim.client import Client, Outgoing
from meshim.wire.rest import Connector
from tests.mesh.conversations import client, say
from tests.mesh.faults import rows
from tests.mesh.real_mesh import DEADLINE_S, PASSWORD, RealMesh, until
from tests.mesh.stranger import STORED, Stranger


class People:
    """alice writes with the library, bob reads with the stranger's client; his device is known, and away."""

    def __init__(self, mesh: RealMesh, names: tuple[str, ...], alice: Client, bob: Stranger) -> None:
        self.mesh = mesh
        self.alice_name, self.bob_name = names
        self.alice = alice
        self.bob = bob

    async def says(self, *lines: str) -> None:
        """And waits until each is safe.  For when bob is away: nobody reads for him meanwhile."""
        await say(self.alice, self.bob_name, *lines)

    async def sends(self, *lines: str) -> list[Outgoing]:
        return [await self.alice.send(self.bob_name, line) for line in lines]

    def shown(self, *lines: str, stored: bool | None = None) -> bool:
        """Whether bob was shown exactly these, in order."""
        seen = [(sender, text, was) for sender, text, was in self.bob.shown]
        assert seen == [
            (self.alice.user_id, text, was if stored is None else stored)
            for text, (_, _, was) in zip(lines, self.bob.shown, strict=False)
        ]
        return len(seen) == len(lines)


async def doing(work: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    return await asyncio.to_thread(work, *arguments, **named)


@asynccontextmanager
async def listening(device: Stranger) -> AsyncIterator[None]:
    """It reads and acknowledges during the block; nothing else may be asked of it."""
    over = False
    reading = asyncio.create_task(doing(device.until, lambda: over))
    try:
        yield
    finally:
        over = True
        await reading


@asynccontextmanager
async def people(mesh: RealMesh, on: str = "") -> AsyncIterator[People]:
    """`on` is alice's connector."""
    names = await mesh.people("alice", "bob")
    bob = await doing(Stranger, mesh.api, names[1], PASSWORD)
    async with client(mesh, names[0]) as alice:
        if on:
            pinned(alice, on)
        await asyncio.wait_for(alice.online(), DEADLINE_S)
        yield People(mesh, names, alice, bob)


async def nothing_else(pair: People, *lines: str, through: Stranger | None = None) -> None:
    """What alice says now comes next, and nothing before it."""
    bob = through or pair.bob
    outgoing = await pair.alice.send(pair.bob_name, "nothing else")
    await doing(bob.until, lambda: len(bob.shown) > len(lines))
    assert [text for _, text, _ in bob.shown] == [*lines, "nothing else"]
    async with listening(bob):
        await asyncio.wait_for(outgoing.wait_delivered(), DEADLINE_S)
        await until(lambda: rows(pair.mesh, bob.device)[0] == 0, "something stays in the queue")


# ---------------------------------------------------------------- where they are


def pinned(device: Client, name: str) -> None:
    """Let a device of the library connect to this connector alone, from now on; call it before it connects."""
    connection = device._connection
    ask = device._session.connectors

    async def that_one(fresh: bool) -> list[Connector]:
        return [connector for connector in await ask(fresh) if connector.name == name]

    connection._connectors = that_one


async def synced(device: Stranger) -> None:
    """Wait until its queue was looked at and nothing is left in it."""
    await asyncio.to_thread(device.until, lambda: [frame[2] for frame in device.came(STORED)][-1:] == [False])
