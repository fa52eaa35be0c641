"""The WebSocket connection of the harness's clients, against the server of meshim."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from meshim.errors import Code
from meshim.runtime.websocket import ServerOptions, WebSocketServer, listen
from meshim.stores.ports import Lease
from scripts.harness.clients.connections import Dialer

DEADLINE_S = 10.0
SIZES = (0, 1, 125, 126, 65_535, 65_536, 200_000)
"""Around each length of a header."""


class Client:
    """Records what its connection tells."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.turns = 0
        self.ends: list[str] = []

    def received(self, frame: bytes) -> None:
        self.frames.append(frame)

    def received_all(self) -> None:
        self.turns += 1

    def lost(self, why: str) -> None:
        self.ends.append(why)


class World:
    """A server that sends back what it gets."""

    def __init__(self) -> None:
        listening = listen("ws://127.0.0.1:0")
        self.connector = Lease("connector", "c1", 1, url=listening.url)
        self.gone: list[bytes] = []
        options = ServerOptions(
            tag=1, origins=(), is_authenticated=lambda peer: True, connections=10, unauthenticated=10,
            unauthenticated_s=60.0, unauthenticated_frames=100, unauthenticated_bytes=1 << 20,
            handshakes=1_000, handshakes_at_once=1_000, waiting=10, message_bytes=1 << 20, write_bytes=1 << 24,
        )  # fmt: skip
        self.server = WebSocketServer(listening, options, self._echo, self.gone.append)

    def _echo(self, batch: list[tuple[bytes, bytes]]) -> None:
        for peer, frame in batch:
            self.server.send(peer, frame)
            if frame == b"go away":
                self.server.set_close(peer, 4_000 + Code.BUSY, "too many")
                self.server.close_peer(peer)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    world = World()
    await world.server.start()
    yield world
    world.server.close()
    async with asyncio.timeout(DEADLINE_S):
        await world.server.wait_closed()


async def until_told(about: list[bytes] | list[str], count: int) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while len(about) < count:
            await asyncio.sleep(0.001)


async def test_frames_of_all_sizes_go_both_ways_in_order(world: World) -> None:
    client = Client()
    connection = Dialer("websocket").connect(world.connector, client)
    frames = [bytes((number,)) * size for number, size in enumerate(SIZES)] * 3
    assert all(connection.send(frame) for frame in frames), "before the handshake"
    await until_told(client.frames, len(frames))
    assert all(connection.send(frame) for frame in frames)
    await until_told(client.frames, 2 * len(frames))
    assert client.frames == frames * 2
    connection.close()
    await until_told(world.gone, 1)
    assert client.ends == []
    assert world.server.statistics.malformed == 0


async def test_the_end_of_a_connection_is_told_once(world: World) -> None:
    client = Client()
    Dialer("websocket").connect(world.connector, client).send(b"go away")
    await until_told(client.ends, 1)
    assert client.frames == [b"go away"]
    await asyncio.sleep(0)
    [why] = client.ends
    assert "too many" in why


async def test_a_connector_that_is_not_there_is_told(world: World) -> None:
    client = Client()
    world.server.close()
    Dialer("websocket").connect(world.connector, client)
    await until_told(client.ends, 1)
