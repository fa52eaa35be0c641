"""A WebSocket connection that sends what it is told, whatever the other end makes of it, and may never read."""

import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import cast

from websockets.client import ClientProtocol
from websockets.frames import Frame
from websockets.protocol import OPEN
from websockets.typing import Subprotocol
from websockets.uri import parse_uri

BUFFER_BYTES = 1 << 20
"""May wait to be sent; a single frame may be larger."""
_DEAF_BYTES = 4_096


class RawWebSocket(asyncio.Protocol):
    """Connects at once; frames that are sent before the handshake is complete leave after it."""

    def __init__(self, url: str, on_frame: Callable[[bytes], None], on_lost: Callable[[], None], *, deaf: bool) -> None:
        """A `deaf` one reads nothing after the handshake."""
        uri = parse_uri(url)
        self.closed = False
        self._on_frame = on_frame
        self._on_lost = on_lost
        self._deaf = deaf
        self._websocket = ClientProtocol(uri, subprotocols=[Subprotocol("meshim.1")])
        self._transport: asyncio.Transport | None = None
        self._queued: list[bytes] = []
        self._connecting = asyncio.get_running_loop().create_task(self._connect(uri.host, uri.port))

    async def _connect(self, host: str, port: int) -> None:
        with suppress(OSError):
            made = socket.socket()
            made.setblocking(False)
            if self._deaf:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _DEAF_BYTES)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(made, (host, port))
            await loop.create_connection(lambda: self, sock=made)
            return
        self._on_lost()

    def send(self, frame: bytes) -> bool:
        """Send a frame; return False when too much waits."""
        transport = self._transport
        if self.closed or (transport is not None and transport.is_closing()):
            return False
        if self._websocket.state is not OPEN or transport is None:
            self._queued.append(frame)
            return len(self._queued) < 100
        if transport.get_write_buffer_size() > BUFFER_BYTES:
            return False
        self._websocket.send_binary(frame)
        transport.write(b"".join(self._websocket.data_to_send()))
        return True

    def close(self) -> None:
        self.closed = True
        self._connecting.cancel()
        if self._transport is not None:
            self._transport.abort()

    # ---------------------------------------------------------------- of the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._websocket.send_request(self._websocket.connect())
        self._transport.write(b"".join(self._websocket.data_to_send()))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.closed:
            self.closed = True
            self._on_lost()

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        self._websocket.receive_data(data)
        for event in self._websocket.events_received():
            if isinstance(event, Frame) and not self._deaf:
                self._on_frame(bytes(event.data))
        if self._websocket.state is OPEN:
            if self._deaf:
                self._transport.pause_reading()
            queued, self._queued = self._queued, []
            for frame in queued:
                self.send(frame)
        elif self._websocket.close_expected() or self._websocket.handshake_exc is not None:
            self._transport.close()
