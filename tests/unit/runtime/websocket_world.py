"""A WebSocket server for tests, what it reported, and who is authenticated."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from meshim.runtime.send_result import SendResult
from meshim.runtime.websocket import ServerOptions, WebSocketServer, listen
from tests.unit.runtime.raw_websocket import BINARY, DEADLINE_S, Frame, RawWebSocket

MESSAGE_BYTES = 1_000
TAG = 9


class World:
    """A server, what it reported, and who is authenticated."""

    def __init__(self, bind: str = "ws://127.0.0.1:0", files: tuple[str, str] | None = None, **changes: Any) -> None:
        options: dict[str, Any] = {
            "tag": TAG,
            "origins": ("https://chat.example",),
            "is_authenticated": lambda peer: peer in self.authenticated,
            "connections": 100,
            "unauthenticated": 50,
            "unauthenticated_s": 60.0,
            "unauthenticated_frames": 100,
            "unauthenticated_bytes": 50_000,
            "handshakes": 100_000,
            "handshakes_at_once": 100_000,
            "waiting": 50,
            "message_bytes": MESSAGE_BYTES,
            "write_bytes": 100_000,
            "linger_s": 0.2,
        }
        self.authenticated: set[bytes] = set()
        self.batches: list[list[tuple[bytes, bytes]]] = []
        self.gone: list[bytes] = []
        listening = listen(bind, *(files or ()))
        self.url = listening.url
        self.server = WebSocketServer(
            listening, ServerOptions(**options | changes), self.batches.append, self.gone.append
        )

    @property
    def messages(self) -> list[tuple[bytes, bytes]]:
        return [message for batch in self.batches for message in batch]

    @property
    def counted(self) -> dict[str, int]:
        """The counters that are not zero, but for those of all connections."""
        statistics = self.server.statistics
        names = [name for name in statistics.__struct_fields__ if name not in ("accepted", "opened", "lost")]
        return {name: getattr(statistics, name) for name in names if getattr(statistics, name)}

    async def open(self) -> RawWebSocket:
        return await RawWebSocket.open(self.url)

    async def peer_of(self, raw: RawWebSocket) -> bytes:
        """The id of a connection."""
        seen = len(self.messages)
        raw.message(b"who am I")
        await until(lambda: len(self.messages) > seen)
        return self.messages[-1][0]

    async def expect_alive(self) -> None:
        """A new connection is served."""
        async with await self.open() as raw:
            peer = await self.peer_of(raw)
            assert self.server.send(peer, b"here") is SendResult.OK
            assert await raw.receive() == Frame(BINARY, b"here")


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.001)


Make = Callable[..., Any]


@asynccontextmanager
async def worlds(kind: "type[World]" = World) -> AsyncIterator[Make]:
    """Makes servers that run until the end of the block."""
    made: list[World] = []

    async def make(**changes: Any) -> World:
        world = kind(**changes)
        made.append(world)
        await world.server.start()
        return world

    yield make
    for world in made:
        world.server.close()
        async with asyncio.timeout(DEADLINE_S):
            await world.server.wait_closed()
