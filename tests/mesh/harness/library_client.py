"""Devices on the client library, and the steps that tests take with them."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

from meshim.client import Client, Event, Message, Subscription
from meshim.client.events import ConnectionLost
from meshim.client.options import DEFAULTS, ClientOptions
from meshim.wire.rest import Connector
from tests.mesh.harness.real_mesh import DEADLINE_S, PASSWORD, RealMesh


def client(
    mesh: RealMesh, name: str, device: str = "phone", state: str = "", options: ClientOptions = DEFAULTS
) -> Client:
    """A device with a state file of its own.  Another `state` is another file, as after a new installation."""
    return Client(
        mesh.api, name, PASSWORD, device=device, state=mesh.folder / f"{name}-{device}{state}.db",
        transport=mesh.transport, options=options,
    )  # fmt: skip


async def receive(
    reader: Client, count: int, *, mark_read: bool = False, within_s: float = DEADLINE_S
) -> list[Message]:  # fmt: skip
    """The next `count` messages, each handled; with `mark_read` their senders get read receipts."""
    messages: list[Message] = []
    async with asyncio.timeout(within_s):
        async for message in reader.messages():
            messages.append(message)
            await (message.mark_read() if mark_read else message.done())
            if len(messages) == count:
                break
    return messages


async def receive_texts(reader: Client, count: int) -> list[str]:
    """The texts of the next `count` messages."""
    return [message.text for message in await receive(reader, count)]


async def send_and_wait(sender: Client, peer: str, *texts: str) -> None:
    """Send, and wait until each message is `sent`."""
    async with asyncio.timeout(DEADLINE_S):
        for outgoing in [await sender.send(peer, text) for text in texts]:
            await outgoing.wait_sent()


EventT = TypeVar("EventT", bound=Event)


async def next_event(
    events: Subscription, kind: type[EventT], which: Callable[[EventT], bool] = lambda event: True
) -> EventT:
    """The next event of this kind for which `which` is true; those before it are skipped."""
    async with asyncio.timeout(DEADLINE_S):
        async for event in events:
            if isinstance(event, kind) and which(event):
                return event
    raise AssertionError("the reader was closed")


async def expect_nothing_more(reader: Client, writer: Client, peer: str) -> None:
    """The next message that `reader` gets is the one that `writer` sends now."""
    await send_and_wait(writer, peer, "nothing more")
    assert await receive_texts(reader, 1) == ["nothing more"]


@asynccontextmanager
async def disconnected(device: Client) -> AsyncIterator[None]:
    """Take the connection of a device away for the block; afterwards it connects again."""
    connection, may_connect = device._shell.connection, asyncio.Event()
    ask = connection._connectors

    async def after_the_block(fresh: bool) -> Sequence[Connector]:
        await may_connect.wait()
        return await ask(fresh)

    connection._connectors = after_the_block
    device._shell.driver.receive(ConnectionLost())
    try:
        yield
    finally:
        connection._connectors = ask
        may_connect.set()
    await asyncio.wait_for(device.online(), DEADLINE_S)
