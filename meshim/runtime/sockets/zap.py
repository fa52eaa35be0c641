"""The ZAP 1.0 handler (RFC 27): libzmq asks it whether a peer that has proved its CURVE key may connect.

The answer names the owner of the key.  libzmq attaches this user id to every message of that connection, so that the
owner of a ROUTER can compare it with what a peer says of itself (adr/0045).
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

import zmq
from zmq.utils import z85

from meshim.runtime.sockets.pump import NOBLOCK, READ_MESSAGES_MAX, Pump

Admit = Callable[[bytes], str | Awaitable[str | None] | None]
"""Given a public key (Z85): the user id of its owner, who may connect; "" when the key is not admitted, and None when
that is not known now."""

_ENDPOINT = "inproc://zeromq.zap.01"  # fixed by the RFC
_VERSION = b"1.0"
_KEY_BYTES = 32
_ADMISSIONS = 4_096
"""Calls of `admit` under way; beyond, peers are refused."""

_ADMITTED = (b"200", b"OK")
_CANNOT_TELL = (b"500", b"cannot tell now", b"")  # not 300: libzmq would leave the peer waiting until a timeout
_REFUSED = (b"400", b"key not known", b"")


class Request(NamedTuple):
    """One request: may the owner of this public key (32 bytes) use sockets of `domain`?"""

    route: tuple[bytes, ...]
    number: bytes
    domain: str
    public: bytes


def parse(parts: Sequence[bytes]) -> Request | None:
    """The request in a message to the handler; None when it is not a CURVE request of this version.

    ::

        routing id, "", version, number, domain, address, routing id of the server, mechanism, public key
    """
    if len(parts) != 9:
        return None
    *route, version, number, domain, _address, _routing_id, mechanism, public = parts
    if version != _VERSION or mechanism != b"CURVE" or len(public) != _KEY_BYTES:
        return None
    return Request(tuple(route), number, domain.decode("ascii", "replace"), public)


class ZapHandler:
    """The one handler of a context.  Make it before the first socket with a domain binds."""

    def __init__(self, loop: asyncio.AbstractEventLoop, context: "zmq.Context[zmq.Socket[bytes]]") -> None:
        self._admit: dict[str, Admit] = {}
        self._under_way: set[asyncio.Future[None]] = set()
        self._socket = context.socket(zmq.ROUTER)
        self._socket.set(zmq.LINGER, 0)
        self._socket.bind(_ENDPOINT)
        self._pump = Pump(loop, self._socket, self._take)

    def guard(self, domain: str, admit: Admit) -> None:
        """Answer requests of this domain, which belongs to one socket, with `admit`."""
        assert domain, "libzmq does not ask about the empty domain"
        assert domain not in self._admit, "each socket has a domain of its own"
        self._admit[domain] = admit

    def leave(self, domain: str) -> None:
        """Refuse every peer of this domain from now on."""
        del self._admit[domain]

    def close(self) -> None:
        for task in self._under_way:
            task.cancel()
        self._pump.stop()
        self._socket.close()

    def _take(self) -> bool:
        try:
            for _ in range(READ_MESSAGES_MAX):
                request = parse(self._socket.recv_multipart(NOBLOCK))
                if request is not None:
                    self._ask(request)
        except zmq.Again:
            return False
        return True

    def _ask(self, request: Request) -> None:
        if request.domain not in self._admit:
            return self._answer(request, _REFUSED)
        admit = self._admit[request.domain]
        if len(self._under_way) >= _ADMISSIONS:
            return self._answer(request, _CANNOT_TELL)
        owner = admit(z85.encode(request.public))
        if owner is None or isinstance(owner, str):
            return self._answer(request, _answer_of(owner))
        task = asyncio.ensure_future(self._await(request, owner))
        self._under_way.add(task)
        task.add_done_callback(self._answered)
        return None

    async def _await(self, request: Request, owner: Awaitable[str | None]) -> None:
        self._answer(request, _answer_of(await owner))

    def _answered(self, task: asyncio.Future[None]) -> None:
        self._under_way.discard(task)
        if not task.cancelled():
            task.result()  # an exception of `admit` is our bug: the loop reports it

    def _answer(self, request: Request, answer: tuple[bytes, bytes, bytes]) -> None:
        """Send an answer (status, text, user id), without metadata."""
        # A ROUTER drops it when the connection has ended by now.
        self._socket.send_multipart([*request.route, _VERSION, request.number, *answer, b""], NOBLOCK)
        self._pump.nudge()


def _answer_of(owner: str | None) -> tuple[bytes, bytes, bytes]:
    if owner is None:
        return _CANNOT_TELL
    return (*_ADMITTED, owner.encode()) if owner else _REFUSED
