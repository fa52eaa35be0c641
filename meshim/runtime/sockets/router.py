"""A bound ROUTER socket."""

import asyncio
import enum
import errno
from collections.abc import Callable
from typing import NamedTuple

import zmq

from meshim.runtime.sockets.guard import SEARCH_S, SWEEP_S, Guard, Guarding
from meshim.runtime.sockets.pump import (
    HANDSHAKE_FAILED,
    NOBLOCK,
    READ_BYTES_MAX,
    READ_MESSAGES_MAX,
    Monitor,
    Pump,
    Socket,
    is_readable,
    skip,
)

_SEND_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)
_EVENTS = sum(HANDSHAKE_FAILED) + zmq.EVENT_ACCEPTED + zmq.EVENT_DISCONNECTED


class Sent(enum.Enum):
    """What became of a frame handed to a Router."""

    OK = enum.auto()
    FULL = enum.auto()
    """The peer reads too slowly; try later, or give up on it."""
    GONE = enum.auto()
    """No such peer is connected (any more)."""


class RouterStatistics(NamedTuple):
    """Counted since the start.

    `lost` are connections that ended, whatever the reason: also those cut because of a frame that was too
    large, which libzmq does not tell apart.  `failed_handshakes` are among them: strangers, unknown keys,
    and peers that were silent.  `malformed` are messages that had several parts or none, `foreign` messages
    of peers with a routing id of their own choice; both were dropped.  `cut` are the connections that
    were ended because they were nobody's.
    """

    accepted: int
    lost: int
    failed_handshakes: int
    malformed: int
    foreign: int
    full: int
    gone: int
    cut: int = 0


class Router:
    """A bound ROUTER.  `endpoint` is what it is bound to, with the port that was taken for 0."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        socket: Socket,
        bind: str,
        on_batch: Callable[[list[tuple[bytes, bytes]]], None],
        on_closed: Callable[["Router"], None],
        guarding: Guarding | None,
    ) -> None:
        self._loop = loop
        self._socket = socket
        self._on_batch = on_batch
        self._on_closed = on_closed
        self._guard = Guard(guarding) if guarding is not None else None
        self._malformed = self._foreign = self._full = self._gone = 0
        self._accepted = self._lost = self._failed = 0
        # The send of libzmq; the one of zmq.Socket only adds options of drafts, and doubles the cost.
        self._send = super(zmq.Socket, socket).send
        self._monitor = Monitor(loop, socket, _EVENTS, self._note)
        try:
            socket.bind(bind)
        except zmq.ZMQError:
            self._monitor.close()
            raise
        self.endpoint = socket.get_string(zmq.LAST_ENDPOINT)
        self._pump = Pump(loop, socket, self._take)
        if self._guard is not None:
            self._swept_at = loop.time()
            self._sweeping = loop.call_later(SEARCH_S, self._sweep, self._guard)

    def send(self, peer: bytes, frame: bytes) -> Sent:
        """Queue one frame for a peer; never waits."""
        try:
            self._send(peer, _SEND_MORE)
            self._send(frame, NOBLOCK)  # goes where the line above went, or nowhere: it cannot fail by itself
        except zmq.Again:
            self._full += 1
            return Sent.FULL
        except zmq.ZMQError as error:
            if error.errno != errno.EHOSTUNREACH:
                raise
            self._gone += 1
            return Sent.GONE
        finally:
            self._pump.nudge()
        return Sent.OK

    def statistics(self) -> RouterStatistics:
        return RouterStatistics(
            accepted=self._accepted,
            lost=self._lost,
            failed_handshakes=self._failed,
            malformed=self._malformed,
            foreign=self._foreign,
            full=self._full,
            gone=self._gone,
            cut=self._guard.cut if self._guard is not None else 0,
        )

    def close(self, linger_ms: int = 0) -> None:
        """Unbind and cut every connection, after at most that many milliseconds for what is queued."""
        if not self._socket.closed:
            if self._guard is not None:
                self._sweeping.cancel()
            self._pump.stop()
            self._monitor.close()
            self._socket.close(linger_ms)
            self._on_closed(self)

    def _take(self) -> bool:
        recv = self._socket.recv
        guard = self._guard
        batch: list[tuple[bytes, bytes]] = []
        size = 0
        full = first = True
        try:
            for _ in range(READ_MESSAGES_MAX):
                peer = recv(NOBLOCK)
                part = recv(NOBLOCK, False)  # as a Frame: it knows `more`, at half the price of asking the socket
                if part.more or not (frame := part.bytes):
                    skip(self._socket, part)
                    self._malformed += 1
                elif peer[0]:
                    self._foreign += 1
                elif guard is None or self._passes(guard, peer, part):
                    batch.append((peer, frame))
                    size += len(frame)
                    if size > READ_BYTES_MAX:
                        break
                if first and not is_readable(self._socket):  # as after most frames, when there is little to do
                    full = False
                    break
                first = False
        except zmq.Again:
            full = False
        if batch:
            self._on_batch(batch)
        return full

    def _passes(self, guard: Guard, peer: bytes, frame: zmq.Frame) -> bool:
        connection = guard.connection(peer)
        if connection is None:
            self._monitor.read_events()  # whose descriptor it is was told before its first frame came
            connection = guard.heard(peer, int(frame.get(zmq.SRCFD)))
        # Of one that has ended meanwhile nothing is known: its last words.
        return connection is None or guard.may_pass(connection, len(frame))

    def _sweep(self, guard: Guard) -> None:
        self._monitor.read_events()
        now = self._loop.time()
        guard.search(now)
        if now - self._swept_at >= SWEEP_S:
            self._swept_at = now
            guard.sweep(now)
        self._sweeping = self._loop.call_later(SEARCH_S, self._sweep, guard)

    def _note(self, event: int, value: int) -> None:
        if event == zmq.EVENT_ACCEPTED:
            self._accepted += 1
            if self._guard is not None:
                self._guard.accepted(value, self._loop.time())
        elif event == zmq.EVENT_DISCONNECTED:
            self._lost += 1
            if self._guard is not None:
                self._guard.ended(value)
        elif event in HANDSHAKE_FAILED:
            self._failed += 1
