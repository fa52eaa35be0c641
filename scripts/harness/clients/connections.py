"""How the minimal clients reach a connector: ZeroMQ or WebSocket, at little cost for the load process.

Both do the work that a client of that transport has to do, CURVE and masks included; neither checks more of what a
connector sends than it needs to.
"""

import asyncio
import base64
import random
import secrets
import socket
import struct
from contextlib import suppress
from functools import cache
from typing import Final, Literal, Protocol, cast
from urllib.parse import urlsplit

import zmq
from websockets.frames import apply_mask  # type: ignore[attr-defined]  # in C where there is a wheel

from meshim.stores.ports import Lease
from scripts.harness.clients.zmq_context import ZmqContext, context

Transport = Literal["zeromq", "websocket"]

SUBPROTOCOL: Final = "meshim.1"
BUFFER_BYTES: Final = 16 << 20
"""May wait for a connector that does not read."""
WAITING_MAX: Final = 100
"""Frames that may wait for the handshake of a WebSocket."""
_DEAF_BYTES: Final = 4_096

_BINARY: Final = 0x82
"""The first byte of a whole binary message."""
_CLOSE: Final = 0x88
_MASKED: Final = 0x80
_SHORT: Final = struct.Struct("!BB4s")
_MEDIUM: Final = struct.Struct("!BBH4s")
_LONG: Final = struct.Struct("!BBQ4s")
_HEAD_END: Final = b"\r\n\r\n"


class Receiver(Protocol):
    """The client, as its connection sees it."""

    def received(self, frame: bytes) -> None:
        """Take a frame."""

    def received_all(self) -> None:
        """Go on: all frames that were there have been given to `received`."""

    def lost(self, why: str) -> None:
        """The connection ended."""


class Connection(Protocol):
    """Connects when it is made.  Frames that are sent before it is connected leave afterwards."""

    def send(self, frame: bytes) -> bool:
        """Send a frame; return False when there is no room for it."""

    def close(self) -> None:
        """End it; what was sent still leaves."""


class Dialer:
    """Makes connections of one transport."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._context: ZmqContext | None = context() if transport == "zeromq" else None

    def connect(self, connector: Lease, receiver: Receiver) -> Connection:
        """Connect to a connector; without CURVE the key of its lease is empty."""
        if self._context is None:
            return WebSocketConnection(connector.url, receiver)
        return ZeroMqConnection(self._context, connector.endpoint, connector.key.encode(), receiver)

    def close(self) -> None:
        """End whatever is still connected."""
        if self._context is not None:
            self._context.destroy(0)


class ZeroMqConnection:
    """A DEALER."""

    def __init__(self, context: ZmqContext, endpoint: str, server_key: bytes, receiver: Receiver) -> None:
        self._receiver = receiver
        self._closed = self._reading = False
        self._loop = asyncio.get_running_loop()
        self._socket = context.socket(zmq.DEALER)
        self._socket.set(zmq.LINGER, 100)
        self._socket.set(zmq.RECONNECT_IVL, -1)
        self._socket.set(zmq.SNDHWM, 0)
        self._socket.set(zmq.RCVHWM, 0)
        if server_key:
            public, secret = _keys()
            self._socket.set(zmq.CURVE_SERVERKEY, server_key)
            self._socket.set(zmq.CURVE_PUBLICKEY, public)
            self._socket.set(zmq.CURVE_SECRETKEY, secret)
        self._socket.connect(endpoint)
        self._loop.add_reader(self._socket.FD, self._readable)

    def send(self, frame: bytes) -> bool:
        try:
            self._socket.send(frame, zmq.NOBLOCK)
        except zmq.Again:
            return False
        if not self._reading:  # a send may consume the edge of the descriptor
            self._reading = True
            self._loop.call_soon(self._readable)
        return True

    def _readable(self) -> None:
        self._reading = False
        if self._closed:
            return
        receive, received = self._socket.recv, self._receiver.received
        with suppress(zmq.Again):
            while not self._closed:
                received(receive(zmq.NOBLOCK))
        self._receiver.received_all()

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._loop.remove_reader(self._socket.FD)
            self._socket.close()


@cache
def _keys() -> tuple[bytes, bytes]:
    """Return one CURVE key pair for all clients of this process: connectors accept any, and a new one costs time."""
    return zmq.curve_keypair()


class WebSocketConnection(asyncio.Protocol):
    """A client of `ws://`; masks are not those of a cryptographic random number generator."""

    def __init__(self, url: str, receiver: Receiver, *, deaf: bool = False, buffer_bytes: int = BUFFER_BYTES) -> None:
        """A `deaf` one reads nothing after the handshake; `buffer_bytes` may wait to be sent."""
        self._receiver = receiver
        self._deaf = deaf
        self._buffer_bytes = buffer_bytes
        self._closed = self._open = False
        self._transport: asyncio.Transport | None = None
        self._waiting: list[bytes] = []
        self._unread = b""
        """The beginning of a frame, or of the answer to the handshake."""
        self._host = urlsplit(url).netloc
        self._connecting = asyncio.get_running_loop().create_task(self._connect(url))

    async def _connect(self, url: str) -> None:
        where = urlsplit(url)
        assert where.port is not None
        try:
            await asyncio.get_running_loop().create_connection(lambda: self, where.hostname or "", where.port)
        except OSError as error:
            self._lost(str(error))

    def send(self, frame: bytes) -> bool:
        transport = self._transport
        if self._closed:
            return False
        if not self._open or transport is None:
            self._waiting.append(frame)
            return len(self._waiting) < WAITING_MAX
        if transport.get_write_buffer_size() > self._buffer_bytes:
            return False
        size, mask = len(frame), random.getrandbits(32).to_bytes(4, "big")
        if size < 126:
            head = _SHORT.pack(_BINARY, _MASKED | size, mask)
        elif size < 65_536:
            head = _MEDIUM.pack(_BINARY, _MASKED | 126, size, mask)
        else:
            head = _LONG.pack(_BINARY, _MASKED | 127, size, mask)
        transport.write(head + apply_mask(frame, mask))
        return True

    def close(self) -> None:
        self._end()

    def abort(self) -> None:
        """End it at once; what was sent may be lost."""
        self._end()
        if self._transport is not None:
            self._transport.abort()

    def _end(self) -> None:
        self._closed = True
        self._connecting.cancel()
        if self._transport is not None:
            self._transport.close()

    def _lost(self, why: str) -> None:
        if not self._closed:
            self._end()
            self._receiver.lost(why)

    # ---------------------------------------------------------------- of the transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        if self._deaf:
            transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _DEAF_BYTES)
        key = base64.b64encode(secrets.token_bytes(16)).decode()
        self._transport.write(
            f"GET / HTTP/1.1\r\nHost: {self._host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n"
            f"Sec-WebSocket-Protocol: {SUBPROTOCOL}\r\n\r\n".encode()
        )

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None  # asyncio's may not be aborted after this
        self._lost("the connection ended")

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        if self._unread:
            data = self._unread + data
        if not self._open:
            head, found, data = data.partition(_HEAD_END)
            if not found:
                self._unread = head
                return
            if not head.startswith(b"HTTP/1.1 101 "):
                self._lost(f"the connector answers {head!r}")
                return
            self._open = True
            if self._deaf:
                self._transport.pause_reading()
            waiting, self._waiting = self._waiting, []
            for frame in waiting:
                self.send(frame)
        if self._deaf:
            return
        self._unread = data[self._take(data) :]
        self._receiver.received_all()

    def _take(self, data: bytes) -> int:
        """Give the whole messages in `data` to the client; return where the rest begins."""
        at, length, received = 0, len(data), self._receiver.received
        while length - at >= 2 and not self._closed:
            first, size, begin = data[at], data[at + 1], at + 2
            if size == 126:
                size, begin = int.from_bytes(data[at + 2 : at + 4], "big"), at + 4
            elif size == 127:
                size, begin = int.from_bytes(data[at + 2 : at + 10], "big"), at + 10
            end = begin + size
            if end > length:
                break
            at = end
            if first == _BINARY:
                received(data[begin:end])
            elif first == _CLOSE:
                self._lost(f"the connector closed: {data[begin:end]!r}")
        return at
