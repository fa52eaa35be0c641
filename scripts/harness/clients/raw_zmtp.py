"""ZMTP 3.0 by hand, without encryption: what libzmq itself would not send (RFC 23)."""

import socket
from contextlib import suppress

GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
_STUCK_S = 1.0
"""Nothing more was taken for so long: the other end has gone without a word."""
_MORE, _LONG, _COMMAND = 1, 2, 4
_READY = b"\x05READY\x0bSocket-Type" + (6).to_bytes(4, "big") + b"DEALER"


def shake_hands(endpoint: str, timeout_s: float = 5.0) -> socket.socket:
    """A connection to a ROUTER without CURVE, ready for messages.  Raises OSError."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    connection = socket.create_connection((host, int(port)), timeout_s)
    connection.sendall(GREETING + frame(_READY, command=True))
    missing = len(GREETING) + 2  # its greeting, and the beginning of its READY
    while missing > 0:
        heard = connection.recv(missing)
        if not heard:
            raise ConnectionResetError("the handshake was refused")
        missing -= len(heard)
    return connection


def frame(data: bytes, *, more: bool = False, command: bool = False) -> bytes:
    flags = _MORE * more | _COMMAND * command
    if len(data) < 256:
        return bytes((flags, len(data))) + data
    return bytes((flags | _LONG,)) + len(data).to_bytes(8, "big") + data


def pour_parts(endpoint: str, size: int, most_bytes: int) -> int:
    """Send parts of one message that does not end, until the connection is cut; how many bytes were sent."""
    sent = 0
    part = frame(bytes(size), more=True)
    with shake_hands(endpoint) as connection, suppress(OSError):
        connection.settimeout(_STUCK_S)
        while sent < most_bytes:
            connection.sendall(part)
            sent += size
    return sent
