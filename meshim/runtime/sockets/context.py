"""The ZeroMQ context of one event loop: opens and closes its sockets."""

import asyncio
import errno
import functools
from collections.abc import Callable

import zmq

from meshim.errors import BackendUnavailable, UsageError
from meshim.runtime.exhaustion import is_exhausted
from meshim.runtime.sockets import options
from meshim.runtime.sockets.dealer import Dealer
from meshim.runtime.sockets.guard import Guarding
from meshim.runtime.sockets.options import KeyPair
from meshim.runtime.sockets.router import Router
from meshim.runtime.sockets.zap import Admit, ZapHandler


class Context:
    """The sockets of one event loop.  Make it in that loop, and `close` it there."""

    def __init__(self, *, io_threads: int = 1, max_sockets: int = 65_535) -> None:
        """`max_sockets` limits sockets, not connections; a Dealer takes three."""
        self._loop = asyncio.get_running_loop()
        self._zmq = zmq.Context(io_threads)
        self._zmq.set(zmq.MAX_SOCKETS, max_sockets)
        self._zap_handler: ZapHandler | None = None
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
        """Bind a ROUTER; `on_batch` gets (peer, frame) pairs in the order of arrival.

        With `keys` (CURVE) only peers that know the public key can connect.  `admit` then decides by the peer's own
        key, and names its owner (`Router.user_ids`); `domain` must be a name that no other socket uses.  Without
        `admit` every key is accepted: the link is still encrypted, and each connection has one pipe less (adr/0022).
        Without `keys` the link is plain and `admit` is not called.  At most `hwm` frames wait for a peer, and as many
        from it.  Without `heartbeat_s` the owner has to notice silent peers (adr/0027).  `guarding` ends the
        connections of peers that do not authenticate (adr/0014).

        Raises UsageError when the address is malformed, in use or not an address of this machine.
        """
        assert bool(domain) == (admit is not None), "one without the other would admit every key"
        if keys is None or admit is None:
            domain = ""
        else:
            if self._zap_handler is None:
                self._zap_handler = ZapHandler(self._loop, self._zmq)
            self._zap_handler.guard(domain, admit)  # before the first peer connects
        socket = self._zmq.socket(zmq.ROUTER)
        options.set_common(
            socket, bind, frame_bytes=frame_bytes, curve=keys is not None, hwm=hwm, heartbeat_s=heartbeat_s
        )
        options.set_router(socket)
        if keys is not None:
            options.set_curve_server(socket, secret=keys.secret, domain=domain)
        on_closed = functools.partial(self._closed, domain=domain)
        try:
            router = Router(self._loop, socket, bind, on_batch, on_closed, guarding, admits=bool(domain))
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
        """Connect a DEALER to one endpoint, once: after `on_lost` close it and make another.

        With `server_key` (CURVE) the other end must own that key; our own keys are `keys`, or new ones.  `on_connected`
        is called when both ends have proved their keys; `on_lost` once, after the last batch, when the connection
        failed or ended.  Neither is called after `close`.  For an unreachable peer `on_lost` comes after at most 10 s
        of TCP and 10 s of handshake.

        Raises UsageError when the endpoint or a key is malformed, and BackendUnavailable when the process has no
        descriptor left.
        """
        try:
            socket = self._zmq.socket(zmq.DEALER)
        except zmq.ZMQError as error:
            raise _not_opened(endpoint, error) from error
        options.set_common(
            socket, endpoint, frame_bytes=frame_bytes, curve=server_key is not None, hwm=hwm, heartbeat_s=heartbeat_s
        )
        options.set_dealer(socket, heartbeat_s=heartbeat_s)
        if server_key is not None:
            ours = keys or KeyPair.new()
            try:
                options.set_curve_client(socket, server=server_key, public=ours.public, secret=ours.secret)
            except zmq.ZMQError as error:
                socket.close(0)
                raise UsageError(f"The key of {endpoint} is not a CURVE key of 40 characters in Z85.") from error
        try:
            dealer = Dealer(self._loop, socket, endpoint, on_batch, on_connected, on_lost, self._closed)
        except zmq.ZMQError as error:
            socket.close(0)
            if is_exhausted(error):
                raise _not_opened(endpoint, error) from error
            raise UsageError(f"Cannot connect to {endpoint}: write it as tcp://HOST:PORT ({error}).") from error
        self._open.add(dealer)
        return dealer

    def close(self) -> None:
        """Close every socket, and wait for frames that linger (see `Dealer.close` and `Router.close`)."""
        for each in list(self._open):
            each.close()
        if self._zap_handler is not None:
            self._zap_handler.close()
            self._zap_handler = None
        self._zmq.term()

    def _closed(self, socket: "Router | Dealer | None", *, domain: str = "") -> None:
        if socket is not None:
            self._open.discard(socket)
        if domain and self._zap_handler is not None:
            self._zap_handler.leave(domain)


def _not_opened(endpoint: str, error: zmq.ZMQError) -> BackendUnavailable:
    return BackendUnavailable(
        f"No socket can be opened for {endpoint} ({error}): close files, or raise the limit (`ulimit -n`)."
    )


def _cannot_bind(bind: str, error: zmq.ZMQError) -> str:
    if error.errno == zmq.EADDRINUSE:
        return f"{bind} is in use: stop what listens there, or choose another port (0 takes a free one)"
    if error.errno in (zmq.EADDRNOTAVAIL, errno.ENODEV):
        return f"{bind} is not an address of this machine: bind to one of its own, or to 0.0.0.0"
    if error.errno == errno.EACCES:
        return f"{bind} is not allowed to this user: choose a port from 1024 on"
    return f"Cannot listen on {bind}: write it as tcp://ADDRESS:PORT ({error})"
