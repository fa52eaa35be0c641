"""A bound ROUTER socket."""

import asyncio
import errno
from collections.abc import Callable

import zmq

from meshim.runtime.send_result import SendResult
from meshim.runtime.sockets.guard import CHECK_MEMORY_S, CHECK_S, CHECK_STRANGERS_S, Guard, Guarding
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
from meshim.runtime.sockets.statistics import RouterStatistics

USER_IDS_MAX = 4_096
"""User ids of connections that are kept; then they are read from the messages again."""

_SEND_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)
_EVENTS = sum(HANDSHAKE_FAILED) + zmq.EVENT_ACCEPTED + zmq.EVENT_DISCONNECTED


class Router:
    """A bound ROUTER.

    `endpoint` is the address that it is bound to; where the port was 0, with the port that the system chose.
    `user_ids` has, by peer, the user id with which ZAP admitted it: during `on_batch`, of every peer in the batch.  It
    is None where no key is checked.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        socket: Socket,
        bind: str,
        on_batch: Callable[[list[tuple[bytes, bytes]]], None],
        on_closed: Callable[["Router"], None],
        guarding: Guarding | None,
        *,
        admits: bool,
    ) -> None:
        """`admits`: a ZAP handler admits the peers."""
        self.user_ids: dict[bytes, str] | None = {} if admits else None
        self._loop = loop
        self._socket = socket
        self._on_batch = on_batch
        self._on_closed = on_closed
        self.statistics = RouterStatistics()
        self._guard: Guard | None = None
        self._gone: list[bytes] = []
        if guarding is not None:
            self._on_gone = guarding.on_gone
            self._guard = Guard(guarding._replace(on_gone=self._peer_gone), self.statistics)
        # The `send` of pyzmq's backend: the one of zmq.Socket only adds options of drafts, and doubles the cost.
        self._send = super(zmq.Socket, socket).send
        self._monitor = Monitor(loop, socket, _EVENTS, self._on_event)
        try:
            socket.bind(bind)
        except zmq.ZMQError:
            self._monitor.close()
            raise
        self.endpoint = socket.get_string(zmq.LAST_ENDPOINT)
        self._pump = Pump(loop, socket, self._take)
        if self._guard is not None:
            self._checked_at = loop.time()
            self._watch_later(self._guard)

    def send(self, peer: bytes, frame: bytes) -> SendResult:
        """Queue one frame for a peer, and return what became of it; never waits.  GONE after `close`."""
        try:
            self._send(peer, _SEND_MORE)
            self._send(frame, NOBLOCK)  # the second part goes where the first went, or nowhere: it cannot fail
        except zmq.Again:
            self.statistics.full += 1
            return SendResult.FULL
        except zmq.ZMQError as error:
            if error.errno != errno.EHOSTUNREACH and not self._socket.closed:
                raise
            self.statistics.gone += 1
            return SendResult.GONE
        finally:
            self._pump.nudge()
        return SendResult.OK

    def close_peer(self, peer: bytes, *, was_authenticated: bool = False) -> None:
        """End the connection of a peer soon, so that the frames queued for it still leave.

        The guard shuts it down after `Guarding.linger_s`, unless the peer is authenticated again by then.  What one
        sends that `was_authenticated` until now counts from the next check on.  Nothing happens for a peer that is not
        connected.
        """
        assert self._guard is not None, "only a guarded ROUTER knows the connections of its peers"
        self._guard.close(peer, self._loop.time(), was_authenticated=was_authenticated)

    def close(self, linger_ms: int = 0) -> None:
        """Unbind and end every connection; queued frames have `linger_ms` to leave."""
        if not self._socket.closed:
            if self._guard is not None:
                self._timer.cancel()
            self._pump.stop()
            self._monitor.close()
            self._socket.close(linger_ms)
            self._on_closed(self)

    def _take(self) -> bool:
        recv = self._socket.recv
        guard, user_ids = self._guard, self.user_ids
        if user_ids is not None and len(user_ids) > USER_IDS_MAX:
            user_ids.clear()  # before the batch, never within it
        batch: list[tuple[bytes, bytes]] = []
        size = 0
        full = first = True
        try:
            for _ in range(READ_MESSAGES_MAX):
                peer = recv(NOBLOCK)
                part = recv(NOBLOCK, False)  # as a Frame: its `more` costs half of asking the socket
                if part.more or not (frame := part.bytes):
                    skip(self._socket, part)
                    self.statistics.malformed += 1
                elif peer[0]:
                    self.statistics.foreign += 1
                elif guard is None or self._may_pass(guard, peer, part) or self._is_forgiven(guard, peer, batch):
                    if user_ids is not None and peer not in user_ids:
                        user_ids[peer] = str(part.get("User-Id"))
                    batch.append((peer, frame))
                    size += len(frame)
                    if size > READ_BYTES_MAX:
                        break
                elif self._socket.closed:  # by what was handed over within `_is_forgiven`
                    return False
                if first and not is_readable(self._socket):  # under low load most reads find one frame
                    full = False
                    break
                first = False
        except zmq.Again:
            full = False
        if batch:
            self._on_batch(batch)
        return full

    def _may_pass(self, guard: Guard, peer: bytes, frame: zmq.Frame) -> bool:
        connection = guard.connection(peer)
        if connection is None:
            # libzmq reported the descriptor of the connection before this first frame.
            self._monitor.read_events()
            connection = guard.first_frame(peer, int(frame.get(zmq.SRCFD)))
        # Without one: a last frame of a connection that has ended meanwhile.
        return connection is None or guard.may_pass(connection, len(frame))

    def _is_forgiven(self, guard: Guard, peer: bytes, batch: list[tuple[bytes, bytes]]) -> bool:
        """Hand over the batch, with which the peer may have greeted; then ask whether it may send what it does."""
        connection = guard.connection(peer)
        if connection is None or connection.cut:
            return False
        if batch:
            before = batch.copy()
            batch.clear()
            self._on_batch(before)
        return not self._socket.closed and guard.is_forgiven(connection)

    def _peer_gone(self, peer: bytes) -> None:
        """Report the peer when its last frames have been read: libzmq reports the end of a connection before them."""
        if not self._gone:
            self._pump.nudge()
            self._loop.call_soon(self._report_gone)  # behind the read to which `nudge` led
        self._gone.append(peer)

    def _report_gone(self) -> None:
        gone, self._gone = self._gone, []
        for peer in gone:
            if not self._socket.closed:
                self._on_gone(peer)

    def _watch(self, guard: Guard) -> None:
        self._monitor.read_events()
        now = self._loop.time()
        guard.check_memory(now)
        if now - self._checked_at >= CHECK_S:
            self._checked_at = now
            guard.check(now)
        self._watch_later(guard)

    def _watch_later(self, guard: Guard) -> None:
        self._watches_closely = guard.has_strangers
        delay_s = CHECK_STRANGERS_S if self._watches_closely else CHECK_MEMORY_S
        self._timer = self._loop.call_later(delay_s, self._watch, guard)

    def _on_event(self, event: int, value: int) -> None:
        if event == zmq.EVENT_ACCEPTED:
            self.statistics.accepted += 1
            if self._guard is not None:
                self._guard.accepted(value, self._loop.time())
                if not self._watches_closely:
                    self._timer.cancel()
                    self._watch_later(self._guard)
        elif event == zmq.EVENT_DISCONNECTED:
            self.statistics.lost += 1
            if self._guard is not None:
                self._guard.ended(value)
        elif event in HANDSHAKE_FAILED:
            self.statistics.failed_handshakes += 1
