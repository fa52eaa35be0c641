"""Strangers who connect by WebSocket as fast as one process can, and greet with garbage: no library, plain sockets."""

import select
import socket
import struct
import time
from contextlib import suppress
from urllib.parse import urlsplit

OPEN_AT_ONCE = 2_000
"""Connections; each that ends is followed by the next one."""
_RESET_AT_CLOSE = struct.pack("ii", 1, 0)
"""SO_LINGER: no TIME_WAIT, so that the ports of this machine last."""
GARBAGE = b"\x82\xc0" + bytes(4) + b"\xc1" * 64
"""A message of 64 bytes that does not decode, with a mask of zeros."""


def handshake(host: str) -> bytes:
    """Return a request for a WebSocket."""
    return (
        f"GET / HTTP/1.1\r\nHost: {host}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Protocol: meshim.1\r\n\r\n"
    ).encode()


def flood(url: str, frames: int, stop_at: float) -> int:
    """Connect until `stop_at` (monotonic), with so many frames behind each request; return the connections made."""
    where = urlsplit(url)
    address = (where.hostname or "", where.port or 0)
    request = handshake(where.netloc) + GARBAGE * frames
    open_now: dict[int, socket.socket] = {}
    made = 0
    with select.epoll() as poll:
        while time.monotonic() < stop_at:
            while len(open_now) < OPEN_AT_ONCE and (each := _connect(address)) is not None:
                open_now[each.fileno()] = each
                poll.register(each, select.EPOLLOUT | select.EPOLLIN)
            for number, events in poll.poll(0.01):
                if events & ~select.EPOLLOUT:  # an answer: all that was sent has been read; or the end
                    open_now.pop(number).close()
                    continue
                made += 1
                poll.modify(number, select.EPOLLIN)
                with suppress(OSError):
                    open_now[number].send(request)
        for each in open_now.values():
            each.close()
    return made


def _connect(address: tuple[str, int]) -> socket.socket | None:
    made = socket.socket()
    made.setblocking(False)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
    try:
        made.connect(address)
    except BlockingIOError:
        return made
    except OSError:
        made.close()
        return None
    return made
