"""A TCP proxy that can swallow what one or both ends send, as a network that drops packets: neither end is told."""

import asyncio
from contextlib import suppress
from typing import Self

_CHUNK_BYTES = 64 * 1024


class HalfOpenProxy:
    """Listens on a port of its own while it is entered, in front of one address."""

    def __init__(self, host: str, port: int) -> None:
        self._to = (host, port)
        self.port = 0
        self._from_client, self._from_server = asyncio.Event(), asyncio.Event()
        self._connections: set[asyncio.Task[None]] = set()
        self.pass_on()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def swallow(self, *, from_client: bool, from_server: bool) -> None:
        """Let nothing through in these directions, of any connection, not even its end."""
        for swallows, passes in ((from_client, self._from_client), (from_server, self._from_server)):
            if swallows:
                passes.clear()

    def pass_on(self) -> None:
        """Let everything through, first what was held back: TCP sends again what was dropped."""
        self._from_client.set()
        self._from_server.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        task.add_done_callback(self._connections.discard)
        writers = [writer]
        try:
            from_server, to_server = await asyncio.open_connection(*self._to)
            writers.append(to_server)
            await asyncio.gather(
                _forward(reader, to_server, self._from_client), _forward(from_server, writer, self._from_server)
            )
        finally:
            for each in writers:
                each.transport.abort()


async def _forward(source: asyncio.StreamReader, sink: asyncio.StreamWriter, passes: asyncio.Event) -> None:
    with suppress(ConnectionError):  # a reset is an end, too
        while data := await source.read(_CHUNK_BYTES):
            await passes.wait()
            sink.write(data)
            await sink.drain()
    await passes.wait()
    sink.close()
