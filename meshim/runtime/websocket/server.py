"""A WebSocket server for many peers, and the end of those that do not authenticate."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import NamedTuple

from websockets.typing import Origin

from meshim.errors import Code, PeerError
from meshim.runtime.send_result import SendResult
from meshim.runtime.websocket.admission import Admission
from meshim.runtime.websocket.connection import Connection
from meshim.runtime.websocket.listening import BACKLOG, Listening
from meshim.runtime.websocket.messages import GOING_AWAY
from meshim.runtime.websocket.statistics import WebSocketStatistics

CHECK_S = 1.0
"""How often connections are looked at that are not authenticated."""
ADMIT_S = 0.01
"""How often connections are served that wait."""
FRAGMENT_BYTES = 1_024
"""A smaller one, unless it is the last of its message, is charged as a control frame.  What a library or a proxy splits
is larger."""
APPLICATION_CODE = 4_000
"""Plus a `Code`: the code of the Close frame of WebSocket (RFC 6455, 7.4.2)."""


class ServerOptions(NamedTuple):
    """Limits in counts, bytes and seconds."""

    tag: int
    """The first byte of the id of each peer."""
    origins: Sequence[str]
    """The web pages that may connect, as browsers write them; `*` for all.  Others than browsers send no origin."""
    is_authenticated: Callable[[bytes], bool]
    """Whether a peer is authenticated or about to be."""
    connections: int
    """At most so many; beyond, the oldest that is not authenticated is cut."""
    unauthenticated: int
    """At most so many of them are not authenticated."""
    unauthenticated_s: float
    unauthenticated_frames: int
    unauthenticated_bytes: int
    """Of one of them: in all, and so of a message, too."""
    handshakes: int
    """A second; what comes faster waits."""
    handshakes_at_once: int
    waiting: int
    """At most so many wait; beyond, one is cut (`Admission.to_cut_for`)."""
    message_bytes: int
    """A larger message ends its connection before it is in memory."""
    write_bytes: int
    """May wait for one peer that does not read."""
    handshake_s: float = 10.0
    linger_s: float = 2.0
    """From a Close frame to the end of a connection whose peer does not answer it."""


class WebSocketServer:
    """Accepts connections from `start` on.

    A peer is authenticated once `is_authenticated` has said so: the owner closes it (`close_peer`) when it no longer
    is.  All that arrived in one round of the event loop is one batch.
    """

    def __init__(
        self,
        listening: Listening,
        options: ServerOptions,
        on_batch: Callable[[list[tuple[bytes, bytes]]], None],
        on_gone: Callable[[bytes], None],
    ) -> None:
        self._listening = listening
        self._options = options
        self._on_batch = on_batch
        self._on_gone = on_gone
        self.loop = asyncio.get_running_loop()
        self._server: asyncio.Server | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._batch: list[tuple[bytes, bytes]] = []
        self._greeting: dict[Connection, None] = {}
        """The connections of the batch that were not known to be authenticated."""
        self._peers: dict[bytes, Connection] = {}
        self._connections: set[Connection] = set()
        self._strangers: OrderedDict[Connection, None] = OrderedDict()
        """The connections that are served and not known to be authenticated, the oldest first."""
        self._admission: Admission[Connection] = Admission(
            options.handshakes, options.handshakes_at_once, self.loop.time()
        )
        self._admitting: asyncio.TimerHandle | None = None
        self._leaving: OrderedDict[Connection, None] = OrderedDict()
        """Those that wait for the answer to a Close, or for its arrival; the oldest first."""
        self._count = 0
        self._prefix = bytes((options.tag,))
        self._none_left = asyncio.Event()
        self._none_left.set()
        self.statistics = WebSocketStatistics()
        self.origins: list[Origin | None] | None = (
            None if "*" in options.origins else [None, *(Origin(origin) for origin in options.origins)]
        )
        self.message_bytes = options.message_bytes
        self.unauthenticated_bytes = min(options.unauthenticated_bytes, options.message_bytes)
        self.write_bytes = options.write_bytes
        self.linger_s = options.linger_s

    async def start(self) -> None:
        """Accept connections."""
        tls = self._listening.tls
        self._server = await self.loop.create_server(
            lambda: Connection(self),
            sock=self._listening.socket,
            backlog=BACKLOG,
            ssl=tls,
            ssl_handshake_timeout=self._options.handshake_s if tls is not None else None,
            ssl_shutdown_timeout=self._options.linger_s if tls is not None else None,
        )
        self._timer = self.loop.call_later(CHECK_S, self._check)

    def send(self, peer: bytes, frame: bytes) -> SendResult:
        """Queue one frame for a peer; never waits."""
        connection = self._peers.get(peer)
        if connection is None:
            self.statistics.gone += 1
            return SendResult.GONE
        return connection.send(frame)

    def set_close(self, peer: bytes, code: int, sentence: str) -> None:
        """Have `close_peer` close this peer with a code of WebSocket and a sentence; 1000 otherwise."""
        if (connection := self._peers.get(peer)) is not None:
            connection.close_with = code, sentence

    def close_peer(self, peer: bytes) -> None:
        """Close the connection of a peer after the frames that are queued; nothing happens when it is gone."""
        if (connection := self._peers.pop(peer, None)) is not None:
            connection.close(*connection.close_with)

    def close(self, linger_ms: int = 0) -> None:
        """Accept nothing any more and close every connection; queued frames have `linger_ms` to leave."""
        if self._timer is not None:
            self._timer.cancel()
        if self._admitting is not None:
            self._admitting.cancel()
        if self._server is not None:
            self._server.close()
        else:
            self._listening.socket.close()
        peers, self._peers = self._peers, {}
        for connection in peers.values():
            connection.close(GOING_AWAY, "this process shuts down")
        for connection in list(self._connections):
            if linger_ms:
                self.loop.call_later(linger_ms / 1000, connection.abort)
            else:
                connection.abort()

    async def wait_closed(self) -> None:
        """Wait until no connection is left; call it after `close`."""
        await self._none_left.wait()

    # ---------------------------------------------------------------- of connections

    def accepted(self, connection: Connection) -> None:
        """Serve it, or let it wait; if there are too many now, cut some that are not authenticated."""
        self.statistics.accepted += 1
        now = connection.accepted_at = self.loop.time()
        self._connections.add(connection)
        self._none_left.clear()
        if self._admission.admit(now):
            self._strangers[connection] = None
        else:
            self.statistics.delayed += 1
            connection.is_waiting = True
            self._admission.wait(connection, connection.host)
            if self._admitting is None:
                self._admitting = self.loop.call_later(ADMIT_S, self._admit)
        self._make_room(connection)

    def _admit(self) -> None:
        self._admitting = None
        for connection in self._admission.due(self.loop.time()):
            self._strangers[connection] = None
            connection.serve()
            self._make_room(connection)
        if len(self._admission):
            self._admitting = self.loop.call_later(ADMIT_S, self._admit)

    def _make_room(self, newest: Connection) -> None:
        """A flood from one address takes the room of what waits from there; from many, the oldest has to go."""
        options = self._options
        while len(self._connections) > options.connections and self._leaving:
            self._forget(next(iter(self._leaving))).abort()
        while len(self._connections) > options.connections or len(self._admission) > options.waiting:
            oldest = self._admission.to_cut_for(newest) or self._oldest_stranger()
            if oldest is None:
                break
            self._cut_for_room(oldest)
        while len(self._strangers) > options.unauthenticated and (oldest := self._oldest_stranger()) is not None:
            self._cut_for_room(oldest)

    def _cut_for_room(self, connection: Connection) -> None:
        self._cut(connection, Code.BUSY, "newer connections needed the room")
        self._forget(connection).leave_now()

    def _oldest_stranger(self) -> Connection | None:
        while self._strangers:
            oldest = next(iter(self._strangers))
            if not self._is_authenticated(oldest):
                return oldest
        return None

    def opened(self, connection: Connection) -> bytes:
        """The handshake is complete: returns the id of the peer, which no other ever has."""
        self.statistics.opened += 1
        self._count += 1
        peer = self._prefix + self._count.to_bytes(8, "big")
        self._peers[peer] = connection
        return peer

    def received(self, connection: Connection, frame: bytes) -> None:
        if connection.is_stranger:
            if not self._passes(connection, len(frame)):
                return
            if connection in self._greeting:  # the answer to its first frame may be a Close
                self._deliver()
                if connection.is_ending:
                    return
            self._greeting[connection] = None
        if not self._batch:
            self.loop.call_soon(self._deliver)
        self._batch.append((connection.peer, frame))

    def continued(self, connection: Connection, size: int) -> None:
        """A part of a message came that is not its last."""
        if size < FRAGMENT_BYTES:
            self.controlled(connection)
        elif connection.is_stranger:
            self._passes(connection, 0)

    def controlled(self, connection: Connection) -> None:
        """A control frame came, or what costs as much and brings as little."""
        if not connection.is_stranger or self._passes(connection, 0):
            try:
                connection.unnumbered.charge(self.loop.time())
            except PeerError as error:
                self._cut(connection, error.code, error.sentence)

    def ending(self, connection: Connection) -> None:
        """One end has closed it: the owner learns that at once, after the last frames."""
        self._strangers.pop(connection, None)
        self._admission.withdraw(connection)
        self._leaving[connection] = None
        if self._peers.pop(connection.peer, None) is not None:
            self._deliver()
            self._on_gone(connection.peer)

    def lost(self, connection: Connection) -> None:
        self.statistics.lost += 1
        self._forget(connection)
        if not self._connections:
            self._none_left.set()

    def _forget(self, connection: Connection) -> Connection:
        self._connections.discard(connection)
        self._leaving.pop(connection, None)
        return connection

    def _deliver(self) -> None:
        if self._batch:
            batch, self._batch = self._batch, []
            greeting, self._greeting = self._greeting, {}
            self._on_batch(batch)
            for connection in greeting:
                self._is_authenticated(connection)

    # ---------------------------------------------------------------- those that are not authenticated

    def _passes(self, connection: Connection, size: int) -> bool:
        """Count a frame; False when its connection is cut for it."""
        connection.frames += 1
        connection.size += size
        options = self._options
        if connection.frames <= options.unauthenticated_frames and connection.size <= options.unauthenticated_bytes:
            return True
        self._deliver()  # a greeting may be among the frames that wait
        if self._is_authenticated(connection):
            return True
        self._cut(connection, Code.NOT_GREETED, "too much came before a greeting")
        return False

    def _check(self) -> None:
        now = self.loop.time()
        options = self._options
        for connection in (*self._admission, *self._strangers):
            age_s = now - connection.accepted_at
            if age_s < options.handshake_s:
                continue
            if not connection.peer:
                self.statistics.refused_late += 1
                connection.refuse(408, f"the handshake was not complete after {options.handshake_s:g} s")
            elif not self._is_authenticated(connection) and age_s >= options.unauthenticated_s:
                self._cut(connection, Code.NOT_GREETED, f"no greeting came within {options.unauthenticated_s:g} s")
        self._timer = self.loop.call_later(CHECK_S, self._check)

    def _is_authenticated(self, connection: Connection) -> bool:
        if connection.peer and self._options.is_authenticated(connection.peer):
            connection.authenticated()
            self._strangers.pop(connection, None)
            return True
        return False

    def _cut(self, connection: Connection, code: Code, sentence: str) -> None:
        self.statistics.cut += 1
        connection.close(APPLICATION_CODE + code, sentence)
