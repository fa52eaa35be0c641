"""Strangers who begin CURVE handshakes (RFC 26) over ZeroMQ as fast as one process can, and finish none.

Nothing in the first command of a client, HELLO, comes from the server.  So a stranger makes it once, and sends it again
and again: the server computes, the stranger does not.
"""

import select
import socket
import time
from contextlib import suppress

import zmq

from scripts.harness.clients.stranger_flood import connect
from scripts.harness.clients.zmq_context import ZmqContext

OPEN_AT_ONCE = 500
"""Connections; each that is answered is followed by the next one."""
_GREETING = b"\xff" + bytes(8) + b"\x7f" + b"\x03\x00" + b"CURVE".ljust(20, b"\0") + b"\x01" + bytes(31)
_HELLO_BYTES = 2 + 200
_WELCOME_BYTES = 2 + 168
_TIMEOUT_S = 5.0


def record_opening(zmq_context: ZmqContext, server_key: str) -> bytes:
    """Return what a client sends first to the server with this key: greeting and HELLO."""
    with socket.create_server(("127.0.0.1", 0)) as server, zmq_context.socket(zmq.DEALER) as client:
        client.set(zmq.LINGER, 0)
        public, secret = zmq.curve_keypair()
        client.set(zmq.CURVE_SERVERKEY, server_key.encode())
        client.set(zmq.CURVE_PUBLICKEY, public)
        client.set(zmq.CURVE_SECRETKEY, secret)
        client.connect(f"tcp://127.0.0.1:{server.getsockname()[1]}")
        connection, _ = server.accept()
        with connection:
            connection.settimeout(_TIMEOUT_S)
            connection.sendall(_GREETING)
            opening = b""
            while missing := len(_GREETING) + _HELLO_BYTES - len(opening):
                received = connection.recv(missing)
                if not received:
                    raise ConnectionResetError("the client gave up")
                opening += received
    return opening


def flood_handshakes(endpoint: str, opening: bytes, stop_at: float) -> tuple[int, int]:
    """Begin handshakes until `stop_at` (monotonic); return the connections made, and those that were answered."""
    host, _, port = endpoint.removeprefix("tcp://").rpartition(":")
    open_now: dict[int, tuple[socket.socket, int]] = {}
    """By descriptor, with the bytes of the answer that are missing."""
    made = answered = 0
    with select.epoll() as poll:
        while time.monotonic() < stop_at:
            while len(open_now) < OPEN_AT_ONCE and (each := connect((host, int(port)))) is not None:
                open_now[each.fileno()] = each, len(_GREETING) + _WELCOME_BYTES
                poll.register(each, select.EPOLLOUT | select.EPOLLIN)
            for number, events in poll.poll(0.01):
                each, missing = open_now[number]
                if events & select.EPOLLOUT:
                    made += 1
                    poll.modify(number, select.EPOLLIN)
                    with suppress(OSError):
                        each.send(opening)
                    continue
                received = b""
                with suppress(OSError):
                    received = each.recv(missing)
                missing -= len(received)
                answered += not missing
                if received and missing:
                    open_now[number] = each, missing
                else:
                    open_now.pop(number)[0].close()
        for each, _ in open_now.values():
            each.close()
    return made, answered
