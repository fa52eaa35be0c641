"""One connection to a WebSocket server: the handshake, messages, and its end."""

import asyncio
import struct
from typing import Final, Protocol, cast

from websockets.exceptions import InvalidHeader, InvalidOrigin, NegotiationError
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import OPEN
from websockets.server import ServerProtocol
from websockets.typing import Origin

from meshim.protocol.token_bucket import UnnumberedBudget
from meshim.runtime.send_result import SendResult
from meshim.runtime.websocket.messages import (
    MESSAGE_TOO_BIG,
    NORMAL,
    QUIET,
    SUBPROTOCOL,
    UNSUPPORTED_DATA,
    Messages,
    reason_of,
)
from meshim.runtime.websocket.statistics import WebSocketStatistics

HEADER_BYTES_MAX: Final = 16_384
"""Of the whole request of a handshake."""

_VERSION: Final = "Sec-WebSocket-Version"
_HEAD_END: Final = b"\r\n\r\n"
_BINARY: Final = 0x80 | Opcode.BINARY.value
_SHORT: Final = struct.Struct("!BB")
_MEDIUM: Final = struct.Struct("!BBH")
_LONG: Final = struct.Struct("!BBQ")


class Owner(Protocol):
    """The server, as its connections see it."""

    statistics: WebSocketStatistics
    origins: list[Origin | None] | None
    message_bytes: int
    unauthenticated_bytes: int
    write_bytes: int
    linger_s: float
    loop: asyncio.AbstractEventLoop

    def accepted(self, connection: "Connection") -> None: ...
    def opened(self, connection: "Connection") -> bytes: ...
    def received(self, connection: "Connection", frame: bytes) -> None: ...
    def continued(self, connection: "Connection", size: int) -> None: ...
    def controlled(self, connection: "Connection") -> None: ...
    def ending(self, connection: "Connection") -> None: ...
    def lost(self, connection: "Connection") -> None: ...


class Connection(asyncio.Protocol):
    """Accepted; `peer` is its id once the handshake is complete, b"" before.

    The library checks everything that comes.  What leaves are whole unmasked messages, whose header this class writes
    itself: that takes a third of the time.
    """

    __slots__ = (
        "_header_bytes", "_held", "_messages", "_owner", "_request_end", "_transport", "_websocket", "accepted_at",
        "close_with", "frames", "is_ending", "is_stranger", "is_waiting", "peer", "size", "unnumbered",
    )  # fmt: skip

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._transport: asyncio.Transport
        self._websocket = ServerProtocol(
            origins=owner.origins, subprotocols=[SUBPROTOCOL], max_size=owner.unauthenticated_bytes, logger=QUIET
        )
        self._messages = Messages()
        self._held = b""
        """Came while it waits, and is not looked at."""
        self._header_bytes = 0
        self._request_end = b""
        """The last bytes that came of the request."""
        self.peer = b""
        self.accepted_at = 0.0
        self.is_stranger = True
        """Not known to be authenticated."""
        self.is_waiting = False
        """To be served: nothing is read meanwhile."""
        self.is_ending = False
        """Closed by one end: nothing is received any more."""
        self.frames = 0
        """Frames and bytes received while it is a stranger."""
        self.size = 0
        self.unnumbered = UnnumberedBudget(owner.loop.time())
        self.close_with = (NORMAL, "")

    # ---------------------------------------------------------------- what comes

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._owner.accepted(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()
        self._owner.lost(self)

    def eof_received(self) -> bool:
        return False  # the transport flushes, and closes itself

    def data_received(self, data: bytes) -> None:
        if self._transport.is_closing():
            return
        if self.is_ending:
            self._discard(data)
        elif self.is_waiting:
            self._hold(data)
        else:
            self._read(data)

    def _hold(self, data: bytes) -> None:
        """Read no more until it is served.  (uvloop reads once before a transport can be paused.)"""
        self._held += data[: HEADER_BYTES_MAX + 1 - len(self._held)]
        self._transport.pause_reading()

    def serve(self) -> None:
        """It need not wait any more."""
        self.is_waiting = False
        if self._held and not self._transport.is_closing():
            held, self._held = self._held, b""
            self._transport.resume_reading()
            self.data_received(held)

    def authenticated(self) -> None:
        """It is no stranger any more, and may send messages of the largest size."""
        self.is_stranger = False
        self._websocket.max_message_size = self._owner.message_bytes

    def _discard(self, data: bytes) -> None:
        """All that is of interest is that the other end has closed, too.  What the library answers is dropped."""
        websocket = self._websocket
        websocket.receive_data(data)
        websocket.events_received()
        if b"" in websocket.data_to_send():
            self._transport.close()

    def _read(self, data: bytes) -> None:
        if self.peer:
            self._parse(data)
            return
        # The library would parse what is behind the request before there is an answer to it.
        end = self._end_of_request(data)
        self._header_bytes += end
        if self._header_bytes > HEADER_BYTES_MAX:
            self._owner.statistics.refused_request += 1
            self.refuse(431, f"the request has more than {HEADER_BYTES_MAX} bytes")
            return
        self._parse(data[:end])
        if end < len(data) and self._websocket.state is OPEN:
            self._parse(data[end:])

    def _end_of_request(self, data: bytes) -> int:
        """How many of these bytes belong to the request."""
        begun = self._request_end + data
        end = begun.find(_HEAD_END)
        if end < 0:
            self._request_end = begun[1 - len(_HEAD_END) :]
            return len(data)
        return end + len(_HEAD_END) - len(self._request_end)

    def _parse(self, data: bytes) -> None:
        websocket = self._websocket
        websocket.receive_data(data)
        for event in websocket.events_received():
            if isinstance(event, Frame):
                self._take(event)
            elif isinstance(event, Request):
                self._accept(event)
            if self.is_ending or self._messages.failed:
                break
        if self.is_ending:
            return
        if websocket.eof_sent:
            self._failed()
        elif websocket.writes:
            self._answer()

    def _accept(self, request: Request) -> None:
        websocket = self._websocket
        response = websocket.accept(request)
        if response.status_code == 101 and len(request.headers.get_all("Host")) != 1:
            response = websocket.reject(400, "a request has one Host header\n")  # RFC 9112, 3.2: left to its caller
        elif isinstance(error := websocket.handshake_exc, InvalidHeader) and error.name == _VERSION:
            response = websocket.reject(426, f"{error}\n")  # RFC 6455, 4.4
            response.headers[_VERSION] = "13"
        websocket.send_response(response)
        if response.status_code == 101:
            self._transport.write(b"".join(websocket.data_to_send()))
            self.peer = self._owner.opened(self)

    def _take(self, frame: Frame) -> None:
        message = self._messages.take(self._websocket, frame)
        if message is not None:
            self._owner.received(self, message)
        elif frame.opcode.value >= Opcode.CLOSE.value:
            self._owner.controlled(self)
        else:
            self._owner.continued(self, len(frame.data))

    def _answer(self) -> None:
        """Send the pongs for the pings that came."""
        if self._transport.get_write_buffer_size() > self._owner.write_bytes:
            self._owner.statistics.cut += 1
            self._transport.abort()
        else:
            self._transport.write(b"".join(self._websocket.data_to_send()))

    def _failed(self) -> None:
        """The library ended the handshake or the connection: count why, send its last words, and wait for the end."""
        websocket, statistics = self._websocket, self._owner.statistics
        words = b"".join(websocket.data_to_send())
        if self.peer:
            code = websocket.close_sent.code if websocket.close_sent is not None else 0
            if websocket.close_rcvd is not None and websocket.parser_exc is None:
                pass  # the client closed, and this is the answer
            elif code == MESSAGE_TOO_BIG:
                statistics.too_large += 1
            elif code == UNSUPPORTED_DATA:
                statistics.text += 1
            else:
                statistics.malformed += 1
        elif isinstance(websocket.handshake_exc, InvalidOrigin):
            statistics.refused_origin += 1
        elif isinstance(websocket.handshake_exc, NegotiationError):
            statistics.refused_subprotocol += 1
        else:
            statistics.refused_request += 1
            words = words or websocket.reject(400, "this is no request of HTTP/1.1\n").serialize()
        self._end()
        self._leave(words)

    @property
    def host(self) -> str:
        """The address of the other end."""
        address = self._transport.get_extra_info("peername")
        return str(address[0]) if address else ""

    # ---------------------------------------------------------------- what leaves

    def send(self, frame: bytes) -> SendResult:
        """Queue one message; FULL when more than `write_bytes` would wait for the peer."""
        transport, size = self._transport, len(frame)
        if transport.get_write_buffer_size() + size > self._owner.write_bytes:
            self._owner.statistics.full += 1
            return SendResult.FULL
        if size < 126:
            transport.write(_SHORT.pack(_BINARY, size) + frame)
        elif size < 65_536:
            transport.write(_MEDIUM.pack(_BINARY, 126, size) + frame)
        else:
            transport.write(_LONG.pack(_BINARY, 127, size) + frame)
        return SendResult.OK

    def close(self, code: int, sentence: str) -> None:
        """Close with a code, after the frames that are queued.  Without an answer it is cut after `linger_s`."""
        if self.is_ending:
            return
        if self._websocket.state is OPEN:
            self._websocket.send_close(code, reason_of(sentence))
            words = b"".join(self._websocket.data_to_send())
            self._end()
            self._leave(words, half_close=False)
        else:
            self._end()
            self._transport.abort()

    def refuse(self, status: int, sentence: str) -> None:
        """End the handshake with a status of HTTP."""
        self._websocket.send_response(self._websocket.reject(status, f"{sentence}\n"))
        self._end()
        self._leave(b"".join(self._websocket.data_to_send()))

    def leave_now(self) -> None:
        """Wait for no answer: end the connection when what is queued has left."""
        self._transport.close()

    def abort(self) -> None:
        """End the connection now; queued frames are lost."""
        self._transport.abort()

    def _leave(self, words: bytes, *, half_close: bool = True) -> None:
        """Send the last words.  With unread data in its socket, closing at once would take them away from the peer."""
        transport = self._transport
        if transport.is_closing():
            return
        transport.write(words)
        if half_close and transport.can_write_eof():
            transport.write_eof()
        self._owner.loop.call_later(self._owner.linger_s, transport.abort)

    def _end(self) -> None:
        if not self.is_ending:
            self.is_ending = True
            self._owner.ending(self)
