"""ZeroMQ sockets on the event loop: everything that is ready is read at once and handed over as one batch.

With the three modules it is made of, the only import of zmq.  Not zmq.asyncio, which costs three times as
much per message (a future for each): the loop watches the socket's descriptor and `Pump` drains it.

A message has one part (a ROUTER adds the routing id of the peer in front).  What a peer
sends otherwise, in several parts or none, is dropped and counted.

Three things libzmq lets a hostile client do, and what is made of them:

* It may choose its routing id.  `ROUTER_HANDOVER` is off, so it cannot take the id of a peer that is
  connected; and nothing is read from ids that ROUTER did not assign itself (those start with a zero
  byte and are not given twice), so no session is ever bound to an id that somebody else can choose later.
* A frame larger than `MAXMSGSIZE` cuts its connection, before it is in memory.
* It may stay for ever, say anything and read nothing.  `guard.py` ends connections that are nobody's.
"""

import asyncio
import enum
import errno
import functools
from collections.abc import Callable
from typing import NamedTuple

import zmq

from meshim.errors import UsageError
from meshim.runtime import options
from meshim.runtime.guard import SEARCH_S, SWEEP_S, Guard, Guarding
from meshim.runtime.pump import NOBLOCK, TURN_BYTES, TURN_MESSAGES, Monitor, Pump, Socket, is_readable
from meshim.runtime.zap import Admit, Doorkeeper

_SEND_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)

_HANDSHAKE_FAILED = frozenset(
    map(
        int,
        (
            zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL,
            zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL,
            zmq.EVENT_HANDSHAKE_FAILED_AUTH,
        ),
    )
)
_ENDED = _HANDSHAKE_FAILED | {int(zmq.EVENT_DISCONNECTED), int(zmq.EVENT_CLOSED)}  # closed: it never came about
_ROUTER_EVENTS = sum(_HANDSHAKE_FAILED) + zmq.EVENT_ACCEPTED + zmq.EVENT_DISCONNECTED
_DEALER_EVENTS = sum(_ENDED) + zmq.EVENT_HANDSHAKE_SUCCEEDED


class KeyPair(NamedTuple):
    """A CURVE key pair in Z85, 40 characters each."""

    public: bytes
    secret: bytes

    @classmethod
    def new(cls) -> "KeyPair":
        return cls(*zmq.curve_keypair())


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


class Context:
    """Sockets of one event loop.  Make it in the loop it is for; `close` it there."""

    def __init__(self, *, io_threads: int = 1, max_sockets: int = 65_535) -> None:
        """`max_sockets` counts sockets, not connections; a Dealer takes three."""
        self._loop = asyncio.get_running_loop()
        self._zmq = zmq.Context(io_threads)
        self._zmq.set(zmq.MAX_SOCKETS, max_sockets)
        self._doorkeeper: Doorkeeper | None = None
        self._open: set[Router | Dealer] = set()

    def router(
        self,
        bind: str,
        *,
        keys: KeyPair | None,
        frame_bytes: int,
        on_batch: Callable[[list[tuple[bytes, bytes]]], None],
        domain: str = "",
        admit: Admit | None = None,
        hwm: int = 1_000,
        heartbeat_s: float | None = 2.0,
        guarding: Guarding | None = None,
    ) -> "Router":
        """Bind a ROUTER; `on_batch` gets (peer, frame) pairs in the order they came.

        With `keys` only peers that know the public one can connect, and `admit` decides by their own key; `domain`
        must be the socket's alone.  Without these two nobody is asked: it is encrypted all the same, and each
        connection has one pipe less (adr/0022).  Without `keys` the link is plain, and nobody is asked either.
        At most `hwm` frames wait for a peer, and as many from it.  Without `heartbeat_s` peers that fall silent are
        the owner's to notice (adr/0027).  With `guarding` connections of peers that are not wanted are ended.

        Raises UsageError when the address is wrong, in use or not this machine's.
        """
        assert bool(domain) == (admit is not None), "one without the other would let everybody in"
        if keys is None or admit is None:
            domain = ""
        else:
            if self._doorkeeper is None:
                self._doorkeeper = Doorkeeper(self._loop, self._zmq)
            self._doorkeeper.guard(domain, admit)  # from before the first question
        socket = self._zmq.socket(zmq.ROUTER)
        options.set_common(
            socket, bind, frame_bytes=frame_bytes, curve=keys is not None, hwm=hwm, heartbeat_s=heartbeat_s
        )
        options.set_router(socket)
        if keys is not None:
            options.set_curve_server(socket, secret=keys.secret, domain=domain)
        on_closed = functools.partial(self._closed, domain=domain)
        try:
            router = Router(self._loop, socket, bind, on_batch, on_closed, guarding)
        except zmq.ZMQError as error:
            socket.close(0)
            on_closed(None)
            raise UsageError(_cannot_bind(bind, error)) from error
        self._open.add(router)
        return router

    def dealer(
        self,
        endpoint: str,
        *,
        server_key: bytes | None,
        keys: KeyPair | None,
        frame_bytes: int,
        on_batch: Callable[[list[bytes]], None],
        on_lost: Callable[[], None] | None,
        on_connected: Callable[[], None] | None = None,
        hwm: int = 1_000,
        heartbeat_s: float | None = 2.0,
    ) -> "Dealer":
        """Start to connect a DEALER to one endpoint, once: after `on_lost` close it and make another.

        With `server_key` the other end must own that key; ours are `keys`, or new ones.  `on_connected` is called
        when both ends have proved their keys, `on_lost` once, when the connection failed or ended, after the
        last batch.  Neither is called after `close`.  An unreachable peer is lost after the time that TCP or
        the handshake takes, at most 10 s each.

        Raises UsageError when the endpoint is malformed.
        """
        socket = self._zmq.socket(zmq.DEALER)
        options.set_common(
            socket, endpoint, frame_bytes=frame_bytes, curve=server_key is not None, hwm=hwm, heartbeat_s=heartbeat_s
        )
        options.set_dealer(socket, heartbeat_s=heartbeat_s)
        if server_key is not None:
            ours = keys or KeyPair.new()
            options.set_curve_client(socket, server=server_key, public=ours.public, secret=ours.secret)
        try:
            dealer = Dealer(self._loop, socket, endpoint, on_batch, on_connected, on_lost, self._closed)
        except zmq.ZMQError as error:
            socket.close(0)
            raise UsageError(f"cannot connect to {endpoint}: write it as tcp://HOST:PORT ({error})") from error
        self._open.add(dealer)
        return dealer

    def close(self) -> None:
        """Close every socket; waits for what lingers (see `Dealer.close` and `Router.close`)."""
        for each in list(self._open):
            each.close()
        if self._doorkeeper is not None:
            self._doorkeeper.close()
            self._doorkeeper = None
        self._zmq.term()

    def _closed(self, socket: "Router | Dealer | None", *, domain: str = "") -> None:
        if socket is not None:
            self._open.discard(socket)
        if domain and self._doorkeeper is not None:
            self._doorkeeper.leave(domain)


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
        self._monitor = Monitor(loop, socket, _ROUTER_EVENTS, self._note)
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
            for _ in range(TURN_MESSAGES):
                peer = recv(NOBLOCK)
                part = recv(NOBLOCK, False)  # as a Frame: it knows `more`, at half the price of asking the socket
                if part.more or not (frame := part.bytes):
                    _skip(self._socket, part)
                    self._malformed += 1
                elif peer[0]:
                    self._foreign += 1
                elif guard is None or self._passes(guard, peer, part):
                    batch.append((peer, frame))
                    size += len(frame)
                    if size > TURN_BYTES:
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
            self._monitor.drain()  # whose descriptor it is was told before its first frame came
            connection = guard.heard(peer, int(frame.get(zmq.SRCFD)))
        # Of one that has ended meanwhile nothing is known: its last words.
        return connection is None or guard.may_pass(connection, len(frame))

    def _sweep(self, guard: Guard) -> None:
        self._monitor.drain()
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
        elif event in _HANDSHAKE_FAILED:
            self._failed += 1


class Dealer:
    """A DEALER to one peer, for one connection."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        socket: Socket,
        endpoint: str,
        on_batch: Callable[[list[bytes]], None],
        on_connected: Callable[[], None] | None,
        on_lost: Callable[[], None] | None,
        on_closed: Callable[["Dealer"], None],
    ) -> None:
        self.endpoint = endpoint
        self.malformed = 0
        """Messages in several parts or none, dropped."""
        self._connected = False
        self._lost = False
        self._socket = socket
        self._on_batch = on_batch
        self._on_connected = on_connected
        self._on_lost = on_lost
        self._on_closed = on_closed
        self._send = super(zmq.Socket, socket).send
        self._monitor = Monitor(loop, socket, _DEALER_EVENTS, self._note)
        try:
            socket.connect(endpoint)
        except zmq.ZMQError:
            self._monitor.close()
            raise
        self._pump = Pump(loop, socket, self._take)

    def send(self, frame: bytes) -> bool:
        """Queue one frame; False when there is no connection or no room.  Never waits."""
        if not self._connected:
            return False
        try:
            self._send(frame, NOBLOCK)
        except zmq.Again:
            return False
        finally:
            self._pump.nudge()
        return True

    def close(self, linger_ms: int = 0) -> None:
        """End the connection, after at most that many milliseconds for what is queued."""
        if not self._socket.closed:
            self._on_connected = self._on_lost = None
            self._pump.stop()
            self._monitor.close()
            self._socket.close(linger_ms)
            self._on_closed(self)

    def _take(self) -> bool:
        recv = self._socket.recv
        batch: list[bytes] = []
        size = 0
        full = first = True
        try:
            for _ in range(TURN_MESSAGES):
                part = recv(NOBLOCK, False)
                if part.more or not (frame := part.bytes):
                    _skip(self._socket, part)
                    self.malformed += 1
                else:
                    batch.append(frame)
                    size += len(frame)
                    if size > TURN_BYTES:
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

    def _note(self, event: int, _: int = 0) -> None:
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._connected = True
            if self._on_connected is not None:
                self._on_connected()
        elif event in _ENDED and not self._lost:
            self._connected = False
            self._lost = True
            while not self._socket.closed and self._take():  # the last words come before the end
                pass
            if self._on_lost is not None:  # not closed meanwhile
                self._on_lost()


def _skip(socket: Socket, part: zmq.Frame) -> None:
    """Read the rest of a message in several parts; libzmq hands over whole messages, so that it is there."""
    while part.more:
        part = socket.recv(NOBLOCK, False)


def _cannot_bind(bind: str, error: zmq.ZMQError) -> str:
    if error.errno == zmq.EADDRINUSE:
        return f"{bind} is in use: stop what listens there, or choose another port (0 takes a free one)"
    if error.errno in (zmq.EADDRNOTAVAIL, errno.ENODEV):
        return f"{bind} is not an address of this machine: bind to one of its own, or to 0.0.0.0"
    if error.errno == errno.EACCES:
        return f"{bind} is not allowed to this user: choose a port from 1024 on"
    return f"cannot listen on {bind}: write it as tcp://ADDRESS:PORT ({error})"
