"""One connection to a WebSocket server."""

import asyncio
import ssl
from collections.abc import Callable
from typing import cast

from websockets.client import ClientProtocol
from websockets.frames import Frame
from websockets.http11 import Response
from websockets.protocol import OPEN
from websockets.uri import parse_uri

from meshim.runtime.websocket.messages import NORMAL, QUIET, SUBPROTOCOL, Messages

WRITE_BYTES = 8 << 20
"""May wait for a server that does not read: more than a window of the largest frames."""


class WebSocketClient(asyncio.Protocol):
    """A connection to one server, once: the interface of a DEALER (`runtime/sockets`)."""

    def __init__(
        self,
        url: str,
        *,
        frame_bytes: int,
        on_batch: Callable[[list[bytes]], None],
        on_connected: Callable[[], None] | None,
        on_lost: Callable[[], None] | None,
    ) -> None:
        """Connect to `ws://...` or `wss://...`.  A frame above `frame_bytes` ends the connection.

        `on_connected` is called after the handshake, `on_lost` once, after the last batch, when the connection failed
        or ended.  Neither is called after `close`.
        """
        self.endpoint = url
        self._on_batch = on_batch
        self._on_connected = on_connected
        self._on_lost = on_lost
        self._uri = parse_uri(url)
        self._websocket = ClientProtocol(self._uri, subprotocols=[SUBPROTOCOL], max_size=frame_bytes, logger=QUIET)
        self._messages = Messages()
        self._closed = False
        self._transport: asyncio.Transport | None = None
        self._loop = asyncio.get_running_loop()
        self._connecting = self._loop.create_task(self._connect())

    async def _connect(self) -> None:
        try:
            tls = ssl.create_default_context() if self._uri.secure else None
            await self._loop.create_connection(lambda: self, self._uri.host, self._uri.port, ssl=tls)
        except OSError:
            self._ended()

    def send(self, frame: bytes) -> bool:
        """Queue one frame; False when there is no connection or no room for it.  Never waits."""
        transport = self._transport
        if transport is None or self._websocket.state is not OPEN or transport.is_closing():
            return False
        if transport.get_write_buffer_size() + len(frame) > WRITE_BYTES:
            return False
        self._websocket.send_binary(frame)
        transport.write(b"".join(self._websocket.data_to_send()))
        return True

    def close(self, linger_ms: int = 0) -> None:
        """End the connection; queued frames have `linger_ms` to leave."""
        self._closed = True
        self._on_connected = self._on_lost = None
        self._connecting.cancel()
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if self._websocket.state is OPEN:
            self._websocket.send_close(NORMAL)
            transport.write(b"".join(self._websocket.data_to_send()))
        transport.close()
        if linger_ms:
            self._loop.call_later(linger_ms / 1000, transport.abort)
        else:
            transport.abort()

    # ---------------------------------------------------------------- of the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._websocket.send_request(self._websocket.connect())
        self._transport.write(b"".join(self._websocket.data_to_send()))

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended()

    def data_received(self, data: bytes) -> None:
        transport, websocket = self._transport, self._websocket
        assert transport is not None
        if transport.is_closing():
            return
        websocket.receive_data(data)
        batch: list[bytes] = []
        for event in websocket.events_received():
            if isinstance(event, Response):
                if websocket.state is OPEN and self._on_connected is not None:
                    self._on_connected()
            elif isinstance(event, Frame):
                message = self._messages.take(websocket, event)
                if message is not None:
                    batch.append(message)
                elif self._messages.failed:
                    break
        if batch and not self._closed:
            self._on_batch(batch)
        if (words := websocket.data_to_send()) and not transport.is_closing():
            transport.write(b"".join(words))
        if websocket.close_expected() or websocket.handshake_exc is not None:
            transport.close()
            self._ended()

    def _ended(self) -> None:
        on_lost, self._on_lost = self._on_lost, None
        self._on_connected = None
        if on_lost is not None:
            on_lost()
