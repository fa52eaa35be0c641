"""ZMTP 3.0 (RFC 23) on a plain TCP socket, without encryption: sends messages that libzmq would refuse to send."""

import socket
from contextlib import suppress

GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
_STUCK_S = 1.0
"""A send that takes longer ends the connection: the peer has stopped reading."""
_MORE, _LONG, _COMMAND = 1, 2, 4
_READY = b"\x05READY\x0bSocket-Type" + (6).to_bytes(4, "big") + b"DEALER"


def connect_without_curve(endpoint: str, timeout_s: float = 5.0) -> socket.socket:
    """Connect to a ROUTER without CURVE; return the socket, ready for messages.  Raises OSError."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    connection = socket.create_connection((host, int(port)), timeout_s)
    connection.sendall(GREETING + frame(_READY, command=True))
    missing = len(GREETING) + 2  # its greeting, and the first bytes of its READY
    while missing > 0:
        received = connection.recv(missing)
        if not received:
            raise ConnectionResetError("the handshake was refused")
        missing -= len(received)
    return connection


def frame(data: bytes, *, more: bool = False, command: bool = False) -> bytes:
    """Return a ZMTP frame; longer than 255 bytes it has a length of 8 bytes."""
    flags = _MORE * more | _COMMAND * command
    if len(data) < 256:
        return bytes((flags, len(data))) + data
    return bytes((flags | _LONG,)) + len(data).to_bytes(8, "big") + data


def send_endless_message(endpoint: str, size: int, bytes_max: int) -> int:
    """Send parts of a message without a last part until the peer cuts the connection; return the bytes sent."""
    sent = 0
    part = frame(bytes(size), more=True)
    with connect_without_curve(endpoint) as connection, suppress(OSError):
        connection.settimeout(_STUCK_S)
        while sent < bytes_max:
            connection.sendall(part)
            sent += size
    return sent
