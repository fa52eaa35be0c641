"""The connections of a ROUTER, and the end of those that are nobody's.

libzmq closes no connection because its owner wants it closed: whoever has shaken hands may stay for ever, send what it
likes and read nothing.  But it tells the descriptor of each connection, and a descriptor can be shut down; what libzmq
does then is what it does when the network fails.  So whoever knows which peers are wanted (`Guarding.known`)
has the others cut:

    never known           `unknown_s` after it was accepted, after so many frames or bytes, when connections run out
    known once            `farewell_s` after it was not any more: time for the last frame to leave
    known or not          when it has sent far more than was read: one ZeroMQ message of parts without end is
                          gathered by libzmq in memory, which no high-water mark counts (adr/0014)

A descriptor number is used again.  Events come in order and before the frames of their connection, and the
address of the peer is compared before anything is shut down, so that nobody else is cut.
"""

import os
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

SEARCH_S = 0.1
"""How often the memory of the process is looked at: ten microseconds."""
SWEEP_S = 1.0
"""How often connections are looked at."""
GROWTH_BYTES = 64 << 20
"""How much memory the process may take before it is asked who has sent what."""

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_BYTES_RECEIVED = struct.Struct("=128xQ")  # the place of tcpi_bytes_received in struct tcp_info: linux/tcp.h
_FRAME_OVERHEAD_BYTES = 64
"""Of ZMTP and CURVE, rounded up."""
_HEARTBEAT_BYTES_PER_S = 256
"""PING and PONG come over the connection and are read by libzmq: two of them, encrypted, every half second."""


class Guarding(NamedTuple):
    """Whom to keep; counts, bytes and seconds."""

    known: Callable[[bytes], bool]
    """Whether a peer, by its routing id, is wanted."""
    connections: int
    unknown_s: float
    unknown_frames: int
    unknown_bytes: int
    unread_bytes: int
    """More than an honest peer ever has under way."""
    farewell_s: float = 2.0


class Connection:
    """One that was accepted.  `peer` is not known before its first frame."""

    __slots__ = (
        "accepted_at", "address", "bytes_read", "bytes_unknown", "cut", "descriptor", "frames", "known", "peer",
        "since",
    )  # fmt: skip

    def __init__(self, descriptor: int, address: Any, now: float) -> None:
        self.descriptor = descriptor
        self.address = address
        self.accepted_at = now
        self.peer: bytes | None = None
        self.cut = False
        self.since: float
        """Accepted, or known for the last time."""
        self.known: bool
        self.frames: int
        """Since it was known, as the next."""
        self.bytes_unknown: int
        self.bytes_read: int
        self.begin()

    def begin(self) -> None:
        """Nothing of it was heard yet."""
        self.since = self.accepted_at
        self.known = False
        self.frames = self.bytes_unknown = self.bytes_read = 0


class Guard:
    """Knows the connections of one socket.  Time is an argument, in seconds."""

    def __init__(self, guarding: Guarding) -> None:
        self.cut = 0
        """Connections that were shut down."""
        self._guarding = guarding
        self._connections: dict[int, Connection] = {}
        self._by_peer: dict[bytes, Connection] = {}
        self._memory_bytes = _resident_bytes()

    # ---------------------------------------------------------------- what happens

    def accepted(self, descriptor: int, now: float) -> None:
        self.ended(descriptor)
        address = _address(descriptor)
        if address is None:
            return
        self._connections[descriptor] = Connection(descriptor, address, now)
        if len(self._connections) > self._guarding.connections:
            # Insertion order: the one that is nobody's for the longest time.
            for each in list(self._connections.values()):
                if not each.cut and not self._is_known(each, now):
                    self._cut(each)
                    break

    def ended(self, descriptor: int) -> None:
        connection = self._connections.pop(descriptor, None)
        if connection is not None and connection.peer is not None:
            self._by_peer.pop(connection.peer, None)

    def connection(self, peer: bytes) -> Connection | None:
        """The connection of a peer that was heard before."""
        return self._by_peer.get(peer)

    def heard(self, peer: bytes, descriptor: int) -> Connection | None:
        """The first frame of a peer, or one that was read when its connection had ended already: None for that.

        The number may be of the next connection by then.  ROUTER counts its peers up, so the later one is right, and
        what was counted before it was heard is forgotten: that was of the one before.
        """
        connection = self._connections.get(descriptor)
        if connection is None:
            return None
        if connection.peer is not None:
            if not _is_later(peer, connection.peer):
                return None
            del self._by_peer[connection.peer]
            connection.begin()
        connection.peer = peer
        self._by_peer[peer] = connection
        return connection

    def may_pass(self, connection: Connection, size: int) -> bool:
        """Count a frame; False when it comes from a connection that was, or has to be, cut."""
        connection.bytes_read += size + _FRAME_OVERHEAD_BYTES
        if connection.known:
            return True
        connection.frames += 1
        connection.bytes_unknown += size
        guarding = self._guarding
        if connection.frames > guarding.unknown_frames or connection.bytes_unknown > guarding.unknown_bytes:
            self._look(connection, connection.since)
            if not connection.known:
                self._cut(connection)
        return not connection.cut

    # ---------------------------------------------------------------- what is nobody's

    def sweep(self, now: float) -> None:
        """Cut who is not wanted.  To be called every `SWEEP_S`."""
        farewell_s, unknown_s = self._guarding.farewell_s, self._guarding.unknown_s
        for connection in list(self._connections.values()):
            was_known = connection.known
            self._look(connection, now)
            if was_known and not connection.known:
                # Its session ended: as if it had been accepted so long ago that only the farewell is left.
                connection.since = now - max(0.0, unknown_s - farewell_s)
            if not connection.known and now - connection.since >= unknown_s:
                self._cut(connection)

    def _is_known(self, connection: Connection, now: float) -> bool:
        """What was seen a second ago, and looked at again where that was nothing."""
        if not connection.known:
            self._look(connection, now)
        return connection.known

    def _look(self, connection: Connection, now: float) -> None:
        connection.known = connection.peer is not None and self._guarding.known(connection.peer)
        if connection.known:
            connection.since = now
            connection.frames = connection.bytes_unknown = 0

    def search(self, now: float) -> None:
        """Where memory has grown, cut who has sent what was never read.  To be called every `SEARCH_S`."""
        resident = _resident_bytes()
        self._memory_bytes = min(self._memory_bytes, resident)
        if resident - self._memory_bytes < GROWTH_BYTES:
            return
        self._memory_bytes = resident
        for connection in list(self._connections.values()):
            most = self._guarding.unread_bytes if connection.known else self._guarding.unknown_bytes
            heartbeat_bytes = _HEARTBEAT_BYTES_PER_S * (now - connection.accepted_at)
            if _received_bytes(connection) - connection.bytes_read > most + heartbeat_bytes:
                self._cut(connection)

    def _cut(self, connection: Connection) -> None:
        if connection.cut:
            return
        connection.cut = True
        self.cut += 1
        with suppress(OSError), _duplicate(connection.descriptor) as ours:  # it may have ended by itself
            if ours.getpeername() == connection.address:
                ours.shutdown(socket.SHUT_RDWR)


def _is_later(peer: bytes, other: bytes) -> bool:
    """Of two routing ids: a zero byte and a count of 32 bits, which begins again."""
    return 0 < (int.from_bytes(peer, "big") - int.from_bytes(other, "big")) % (1 << 32) < 1 << 31


def _duplicate(descriptor: int) -> socket.socket:
    """The same connection, whatever becomes of the number."""
    return socket.socket(fileno=os.dup(descriptor))


def _address(descriptor: int) -> Any:
    """Of the other end; None when the connection has ended already."""
    try:
        with _duplicate(descriptor) as ours:
            return ours.getpeername()
    except OSError:
        return None


def _received_bytes(connection: Connection) -> int:
    """What came over this connection in its life; 0 where the system does not say."""
    if not hasattr(socket, "TCP_INFO"):
        return 0
    try:
        with _duplicate(connection.descriptor) as ours:
            if ours.getpeername() != connection.address:
                return 0
            info = ours.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _BYTES_RECEIVED.size)
    except OSError:
        return 0
    return int(_BYTES_RECEIVED.unpack(info)[0]) if len(info) == _BYTES_RECEIVED.size else 0


def _resident_bytes() -> int:
    """Of this process; 0 where the system does not say, and then nothing ever grows."""
    try:
        return int(Path("/proc/self/statm").read_bytes().split()[1]) * _PAGE_BYTES
    except OSError:
        return 0
