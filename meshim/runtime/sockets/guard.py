"""The connections of a ROUTER, and the end of those that are not authenticated.

libzmq offers no call that ends one connection of a ROUTER: after its handshake a client may stay connected, send and
never read.  But libzmq reports the descriptor of each connection, and a descriptor can be shut down; libzmq then does
what it does when the network fails.  The owner of the ROUTER says which peers are authenticated
(`Guarding.is_authenticated`) and which connections to close (`close`).  The guard shuts down a connection that

    never authenticated       `unauthenticated_s` after it was accepted; after `unauthenticated_frames` frames or
                              `greeting_bytes` bytes; or, the oldest first, when there are too many connections
    was marked for closing    `linger_s` later: time for the last frame to leave
    sent far more than the socket has read, authenticated or not: libzmq gathers the parts of one ZeroMQ message in
                              memory, without a limit on their number, and no high-water mark counts them (adr/0014);
                              or sent the most of those that are not authenticated, while these together have sent
                              `unfinished_bytes` that were not read (adr/0047)

The end of a connection, whoever caused it, is reported too (`Guarding.on_gone`): libzmq reports a descriptor, and the
guard knows its peer.

The system uses descriptor numbers again.  The events of libzmq come in order and before the frames of their connection,
and the guard compares the address of the peer before it shuts anything down, so that it never cuts the next connection
with the same number.
"""

import os
import socket
import struct
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

from meshim.runtime.sockets.memory import resident_bytes, return_free_memory
from meshim.runtime.sockets.options import HANDSHAKE_S
from meshim.runtime.sockets.statistics import RouterStatistics

CHECK_MEMORY_S = 0.1
"""How often to call `check_memory`, which takes ten microseconds."""
CHECK_STRANGERS_S = 0.02
"""The same while there are connections that are not authenticated: over a fast network they fill memory quickly."""
CHECK_S = 1.0
"""How often to call `check`."""
LAST_FRAME_S = 0.2
"""Time for the last frame to a closed peer to leave, before its own frames are counted."""
GROWTH_BYTES = 64 << 20
"""How much the memory of the process may grow before the guard compares what connections sent and what was read."""
STRANGERS_GROWTH_BYTES = 16 << 20
"""The same for the connections that are not authenticated."""
COMPARE_STRANGERS_S = 60e-6
"""For each of them there is so much time between two comparisons, if memory does not grow: comparing takes 3 µs."""

_BYTES_RECEIVED = struct.Struct("=128xQ")  # the place of tcpi_bytes_received in struct tcp_info: linux/tcp.h
_FRAME_OVERHEAD_BYTES = 64
"""Of ZMTP and CURVE, rounded up."""
_HEARTBEAT_BYTES_PER_S = 256
"""PING and PONG come over the connection and are read by libzmq: two of them, encrypted, every half second."""


class Guarding(NamedTuple):
    """Which connections may stay; counts, bytes and seconds."""

    is_authenticated: Callable[[bytes], bool]
    """Whether a peer, by its routing id, is authenticated or about to be."""
    connections: int
    """At most so many; beyond, the oldest that is not authenticated is cut."""
    unauthenticated_s: float
    unauthenticated_frames: int
    unauthenticated_bytes: int
    """Of a peer that was authenticated: it may have windows under way."""
    greeting_bytes: int
    """Of a peer that never was: what it sends to be authenticated, and its handshake."""
    unfinished_bytes: int
    """Of all peers that are not authenticated: received and not read."""
    unread_bytes: int
    """More than an honest authenticated peer ever has under way."""
    linger_s: float = 2.0
    """From `Guard.close` to the end of the connection."""
    handshake_s: float = HANDSHAKE_S
    """`Guard.close` ends a connection that was never authenticated no sooner than this after it was accepted."""
    on_gone: Callable[[bytes], None] = lambda peer: None
    """Called for each peer that had sent a frame, when its connection has ended; again, if a last frame comes later."""


class Connection:
    """An accepted connection.  `peer` is its routing id, None before its first frame."""

    __slots__ = (
        "accepted_at", "address", "bytes_read", "bytes_unauthenticated", "counted_from", "cut", "descriptor", "frames",
        "is_authenticated", "peer", "since", "was_authenticated",
    )  # fmt: skip

    def __init__(self, descriptor: int, address: Any, now: float) -> None:
        self.descriptor = descriptor
        self.address = address
        self.accepted_at = now
        self.peer: bytes | None = None
        self.cut = False
        self.since: float
        """Since when it is not authenticated: accepted, or authenticated for the last time."""
        self.is_authenticated: bool
        """As of the last check."""
        self.was_authenticated: bool
        """At any time."""
        self.counted_from: float
        """No check counts its frames sooner: the last frame to it has to leave."""
        self.frames: int
        """Since it was last authenticated, as `bytes_unauthenticated`."""
        self.bytes_unauthenticated: int
        self.bytes_read: int
        self.reset()

    def reset(self) -> None:
        """Count from its first frame on."""
        self.since = self.counted_from = self.accepted_at
        self.is_authenticated = self.was_authenticated = False
        self.frames = self.bytes_unauthenticated = self.bytes_read = 0


class Guard:
    """Knows the connections of one socket.  Time is an argument, in seconds."""

    def __init__(self, guarding: Guarding, statistics: RouterStatistics) -> None:
        """`statistics.cut` counts the connections that were shut down."""
        self._guarding = guarding
        self.statistics = statistics
        self._connections: dict[int, Connection] = {}
        self._by_peer: dict[bytes, Connection] = {}
        self._strangers: OrderedDict[int, Connection] = OrderedDict()
        """By descriptor, those that are not authenticated as of the last check, and not cut; the oldest first.

        Not a dict: it finds its first key by looking at all that were deleted before."""
        self._memory_bytes = self._memory_with_strangers = resident_bytes()
        """Of the process, as of the last time that connections were compared."""
        self._compare_strangers_at = 0.0
        self._may_return_memory = False
        """Connections that held much were cut since the last check."""

    # ---------------------------------------------------------------- events of libzmq, and frames

    def accepted(self, descriptor: int, now: float) -> None:
        """A connection was accepted; if there are too many now, cut the oldest that is not authenticated."""
        self.ended(descriptor)
        address = _address(descriptor)
        if address is None:
            return
        self._connections[descriptor] = self._strangers[descriptor] = Connection(descriptor, address, now)
        if len(self._connections) > self._guarding.connections:
            while self._strangers:
                oldest = next(iter(self._strangers.values()))
                self._ask(oldest, now)
                if not oldest.is_authenticated:
                    self._cut(oldest)
                    break

    @property
    def has_strangers(self) -> bool:
        """Whether there are connections that are not authenticated."""
        return bool(self._strangers)

    def ended(self, descriptor: int) -> None:
        """Forget a connection."""
        self._strangers.pop(descriptor, None)
        connection = self._connections.pop(descriptor, None)
        if connection is not None and connection.peer is not None:
            self._forget(connection.peer)

    def _forget(self, peer: bytes) -> None:
        if self._by_peer.pop(peer, None) is not None:
            self._guarding.on_gone(peer)

    def connection(self, peer: bytes) -> Connection | None:
        """The connection of a peer from which a frame was read before."""
        return self._by_peer.get(peer)

    def first_frame(self, peer: bytes, descriptor: int) -> Connection | None:
        """The connection of a peer whose first frame was read; None when that connection has ended already.

        By then the descriptor may be that of the next connection.  ROUTER counts routing ids up, so the peer with the
        higher id holds the descriptor; what was counted before its first frame belongs to the earlier peer, and is
        forgotten.
        """
        connection = self._connections.get(descriptor)
        if connection is None:
            return None
        if connection.peer is not None:
            if not _is_later(peer, connection.peer):
                return None
            self._forget(connection.peer)
            connection.reset()
            self._add_stranger(connection)
        connection.peer = peer
        self._by_peer[peer] = connection
        return connection

    def may_pass(self, connection: Connection, size: int) -> bool:
        """Count a frame; False when its connection was cut, or may be cut for this frame: ask `is_forgiven`."""
        connection.bytes_read += size + _FRAME_OVERHEAD_BYTES
        if connection.is_authenticated:
            return True
        connection.frames += 1
        connection.bytes_unauthenticated += size
        return (
            not connection.cut
            and connection.frames <= self._guarding.unauthenticated_frames
            and connection.bytes_unauthenticated <= self._bytes_of(connection)
        )

    def is_forgiven(self, connection: Connection) -> bool:
        """Whether a frame may pass all the same, as its peer is authenticated; else the connection is cut.

        Call it when all earlier frames were handed over: a greeting may be among them.
        """
        if not connection.cut:
            if not connection.is_authenticated:  # else its session has ended meanwhile, and the last frame has to leave
                self._ask(connection, connection.since)
            if connection.is_authenticated:
                return True
            self._cut(connection)
        return False

    def _bytes_of(self, connection: Connection) -> int:
        """What it may send while it is not authenticated."""
        guarding = self._guarding
        return guarding.unauthenticated_bytes if connection.was_authenticated else guarding.greeting_bytes

    # ---------------------------------------------------------------- ending connections

    def close(self, peer: bytes, now: float, *, was_authenticated: bool) -> None:
        """Cut the connection of a peer at the first `check` after `linger_s`, unless it is authenticated again by then.

        A connection that no `check` has seen authenticated keeps the time for its handshake: the last frame of a peer
        that has left may be taken for the first of the next peer with the same descriptor.  Nothing happens when the
        connection has ended already.
        """
        connection = self._by_peer.get(peer)
        if connection is not None:
            # As if it had been accepted so long ago that `linger_s` is what is left of `unauthenticated_s`.  A second
            # call does not put the end off.  Its frames are counted from the next `check` on: a flood that is under way
            # must not cut the connection before the last frame has left.
            limit_s = self._guarding.unauthenticated_s
            since = now - max(0.0, limit_s - self._guarding.linger_s)
            if not connection.is_authenticated:
                since = max(since, connection.accepted_at + self._guarding.handshake_s - limit_s)
            connection.since = min(connection.since, since)
            # The last `check` may have been before it authenticated: its frames must not be counted either.
            connection.is_authenticated = connection.is_authenticated or was_authenticated
            connection.was_authenticated = connection.was_authenticated or was_authenticated
            if connection.is_authenticated:
                connection.counted_from = now + LAST_FRAME_S
                connection.frames = connection.bytes_unauthenticated = 0
                self._strangers.pop(connection.descriptor, None)  # `_compare_strangers` would count it at once

    def check(self, now: float) -> None:
        """Cut the connections that are not authenticated for too long.  Call it every `CHECK_S`."""
        for connection in list(self._connections.values()):
            if now < connection.counted_from:
                continue
            self._ask(connection, now)
            if not connection.is_authenticated and now - connection.since >= self._guarding.unauthenticated_s:
                self._cut(connection)
        if self._may_return_memory:
            self._may_return_memory = False
            return_free_memory()

    def check_memory(self, now: float) -> None:
        """Cut connections that sent far more than was read: strangers often, others when memory has grown.

        Call it every `CHECK_MEMORY_S`, or every `CHECK_STRANGERS_S` while there are strangers.
        """
        resident = resident_bytes()
        self._memory_with_strangers = min(self._memory_with_strangers, resident)
        grown = resident - self._memory_with_strangers >= STRANGERS_GROWTH_BYTES
        if self._strangers and (grown or now >= self._compare_strangers_at):
            self._memory_with_strangers = resident
            self._compare_strangers_at = now + COMPARE_STRANGERS_S * len(self._strangers)
            self._compare_strangers(now)
        self._memory_bytes = min(self._memory_bytes, resident)
        if resident - self._memory_bytes >= GROWTH_BYTES:
            self._memory_bytes = resident
            for connection in list(self._connections.values()):
                if connection.is_authenticated and _unread_bytes(connection, now) > self._guarding.unread_bytes:
                    self._cut_full(connection)

    def _compare_strangers(self, now: float) -> None:
        """Cut those that sent too much, and those that sent most of what is too much together."""
        unread: list[tuple[int, int]] = []  # with descriptors
        total = 0
        for connection in list(self._strangers.values()):
            self._ask(connection, now)
            if connection.is_authenticated:
                continue
            size = _unread_bytes(connection, now)
            if size > self._bytes_of(connection):
                self._cut_full(connection)
            else:
                unread.append((size, connection.descriptor))
                total += size
        if total > self._guarding.unfinished_bytes:
            for size, descriptor in sorted(unread, reverse=True):
                self._cut_full(self._connections[descriptor])
                total -= size
                if total <= self._guarding.unfinished_bytes:
                    break

    def _ask(self, connection: Connection, now: float) -> None:
        peer = connection.peer
        connection.is_authenticated = peer is not None and self._guarding.is_authenticated(peer)
        if connection.is_authenticated:
            connection.since = now
            connection.frames = connection.bytes_unauthenticated = 0
            connection.was_authenticated = True
            self._strangers.pop(connection.descriptor, None)
        else:
            self._add_stranger(connection)

    def _add_stranger(self, connection: Connection) -> None:
        if not connection.cut:
            self._strangers[connection.descriptor] = connection

    def _cut_full(self, connection: Connection) -> None:
        """Cut a connection for what it holds, which is free soon."""
        self._cut(connection)
        self._may_return_memory = True

    def _cut(self, connection: Connection) -> None:
        if connection.cut:
            return
        connection.cut = True
        self._strangers.pop(connection.descriptor, None)
        self.statistics.cut += 1
        with suppress(OSError), _duplicate(connection.descriptor) as ours:  # it may have ended by itself
            if ours.getpeername() == connection.address:
                ours.shutdown(socket.SHUT_RDWR)


def _is_later(peer: bytes, other: bytes) -> bool:
    """Whether ROUTER assigned `peer` after `other`: a routing id is a zero byte and a count of 32 bits, which wraps."""
    return 0 < (int.from_bytes(peer, "big") - int.from_bytes(other, "big")) % (1 << 32) < 1 << 31


def _duplicate(descriptor: int) -> socket.socket:
    """A descriptor of our own for the same connection: the number of libzmq's may be used again at any time."""
    return socket.socket(fileno=os.dup(descriptor))


def _address(descriptor: int) -> Any:
    """The address of the other end; None when the connection has ended already."""
    try:
        with _duplicate(descriptor) as ours:
            return ours.getpeername()
    except OSError:
        return None


def _unread_bytes(connection: Connection, now: float) -> int:
    """Bytes that TCP received and the socket has not read, without heartbeats."""
    heartbeat_bytes = int(_HEARTBEAT_BYTES_PER_S * (now - connection.accepted_at))
    return _received_bytes(connection) - connection.bytes_read - heartbeat_bytes


def _received_bytes(connection: Connection) -> int:
    """Bytes that TCP received over this connection; 0 where the system does not tell (`TCP_INFO`).

    Not over a descriptor of our own, which would take four times as long: where the number belongs to another
    connection by now, that one is safe, because `_cut` compares addresses.
    """
    if not hasattr(socket, "TCP_INFO"):
        return 0
    try:
        theirs = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, connection.descriptor)
        try:
            info = theirs.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_RECEIVED.size)
        finally:
            theirs.detach()
    except OSError:
        return 0
    return int(_BYTES_RECEIVED.unpack(info)[0]) if len(info) == _BYTES_RECEIVED.size else 0
