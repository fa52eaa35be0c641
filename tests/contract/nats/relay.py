"""A TCP relay to a NATS server that a test can cut, or make hold back data after the client's handshake."""

import asyncio
from typing import Self
from urllib.parse import urlsplit

_CHUNK_BYTES = 64 * 1024
_SOON_S = 10.0


class NatsRelay:
    """Listens on a port of its own while it is entered; `url` is the URL of the server through the relay."""

    def __init__(self, server_url: str) -> None:
        parts = urlsplit(server_url)
        self._host, self._port = parts.hostname, parts.port
        self._url = server_url
        self.url = ""
        self._wires: set[asyncio.StreamWriter] = set()
        self._open = asyncio.Event()
        self._open.set()
        self._held = asyncio.Event()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        self.url = self._url.replace(f":{self._port}", f":{port}")
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.let_go()
        self.cut()
        await self._server.wait_closed()

    def cut(self) -> None:
        """End every connection."""
        for wire in self._wires:
            wire.close()

    def hold_after_the_handshake(self) -> None:
        """Forward only CONNECT and PING of the next connection until `let_go`."""
        self._open.clear()

    async def holding(self) -> None:
        """Return when the relay holds back data."""
        async with asyncio.timeout(_SOON_S):
            await self._held.wait()

    def let_go(self) -> None:
        self._open.set()

    async def _serve(self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection(self._host, self._port)
        wires = {to_client, to_server}
        self._wires |= wires
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._forward(from_server, to_client))
                group.create_task(self._forward_client(from_client, to_server))
        finally:
            self._wires -= wires
            for wire in wires:
                wire.close()

    async def _forward_client(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        sink.write(await source.readuntil(b"PING\r\n"))
        await self._forward(source, sink)

    async def _forward(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(_CHUNK_BYTES):
            if not self._open.is_set() and b"SUB " in data:
                self._held.set()
                await self._open.wait()
            sink.write(data)
        sink.close()
