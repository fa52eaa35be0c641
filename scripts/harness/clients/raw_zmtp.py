"""ZMTP 3.0 (RFC 23) on a plain TCP socket, without encryption: sends messages that libzmq would refuse to send."""

import select
import socket
import time
from contextlib import suppress

GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
_STUCK_S = 1.0
"""A send that takes longer ends the connection: the peer has stopped reading."""
_PART_BYTES = 61_440
_MORE, _LONG, _COMMAND = 1, 2, 4
_READY = b"\x05READY\x0bSocket-Type" + (6).to_bytes(4, "big") + b"DEALER"


def connect_without_curve(endpoint: str, timeout_s: float = 5.0) -> socket.socket:
    """Connect to a ROUTER without CURVE; return the socket, ready for messages.  Raises OSError."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    connection = socket.create_connection((host, int(port)), timeout_s)
    try:
        connection.sendall(GREETING + frame(_READY, command=True))
        missing = len(GREETING) + 2  # its greeting, and the first bytes of its READY
        while missing > 0:
            received = connection.recv(missing)
            if not received:
                raise ConnectionResetError("the handshake was refused")
            missing -= len(received)
    except OSError:
        connection.close()
        raise
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


def hold_unfinished_messages(endpoint: str, connections: int, size: int, stop_at: float) -> tuple[int, int]:
    """Begin a message of `size` bytes on so many connections at once, and hold them until `stop_at` (monotonic).

    Connections that are cut are followed by others.  Returns (connections made, bytes sent).
    """
    message = memoryview(frame(bytes(_PART_BYTES), more=True) * (size // _PART_BYTES))
    made = sent = 0
    held: dict[int, tuple[socket.socket, memoryview]] = {}
    """By descriptor, with what is not sent yet."""
    with select.epoll() as poll:
        while time.monotonic() < stop_at:
            if len(held) < connections:
                with suppress(OSError):
                    connection = connect_without_curve(endpoint)
                    connection.setblocking(False)
                    held[connection.fileno()] = connection, message
                    poll.register(connection, select.EPOLLOUT | select.EPOLLRDHUP)
                    made += 1
            for number, events in poll.poll(0.02 if len(held) == connections else 0):
                connection, rest = held[number]
                try:
                    if events & ~select.EPOLLOUT:
                        raise ConnectionResetError
                    count = connection.send(rest)
                except OSError:  # cut
                    held.pop(number)
                    connection.close()
                    continue
                sent += count
                held[number] = connection, rest[count:]
                if count == len(rest):
                    poll.modify(number, select.EPOLLRDHUP)
        for connection, _ in held.values():
            connection.close()
    return made, sent
