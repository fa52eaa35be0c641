"""Keeps a client connected: one connection at a time, with back-off and jitter, each to another living connector.

When connectors restart, thousands of clients come back at the same time.  A client tries the connectors that it knows
before it asks the REST service for others; while it waits for the answer, it goes on with those (adr/0046).
"""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Literal, Protocol, TypeAlias
from urllib.parse import urlsplit

from meshim.addresses import is_loopback
from meshim.client import events as e
from meshim.errors import ApiError, BackendUnavailable, Code, MeshimError, PeerError, Refused, as_sentence
from meshim.runtime.sockets import Context, Dealer
from meshim.runtime.websocket import WebSocketClient
from meshim.wire.rest import Connector

FRAME_BYTES = 1_048_576
"""More than any connector sends: the welcome announces its limit."""
BACKOFF_MIN_S = 0.05
BACKOFF_MAX_S = 5.0
STABLE_S = 10.0
"""A connection that lasted this long counts as a success, and resets the back-off.

A shorter one counts as a failure: two processes with copies of one state file, which replace each other, must not spin.
"""
CONNECT_TIMEOUT_S = 3.0
"""For the handshake.  A connector process that is stopped accepts connections and never completes it."""
CONNECT_TIMEOUT_MAX_S = 10.0
"""After each handshake that took too long the next one may take twice as long, up to this: where thousands connect at
once, a client that gives up has made work for nothing, and makes it again."""
TRIES_MAX = 5
"""So many of the connectors that it knows a client tries before it asks for others."""
REST_WAIT_S = 2.0
"""So long a client waits for the list that it has asked for; then it tries again those that it knows meanwhile."""
Transport: TypeAlias = Literal["zeromq", "websocket", "auto"]

_random = secrets.SystemRandom()
_contexts: dict[asyncio.AbstractEventLoop, tuple[Context, int]] = {}
"""Event loop to (context, number of users): the clients of one loop share the I/O threads of one context."""


def borrow_context() -> Context:
    """Return the context of the running loop; give it back with `return_context`."""
    loop = asyncio.get_running_loop()
    context, users = _contexts.get(loop) or (Context(), 0)
    _contexts[loop] = (context, users + 1)
    return context


def return_context() -> None:
    """Give back the context of the running loop; the last user closes it."""
    loop = asyncio.get_running_loop()
    context, users = _contexts.pop(loop)
    if users > 1:
        _contexts[loop] = (context, users - 1)
    else:
        context.close()


class Receiver(Protocol):
    """What happens on the connection goes here: a driver, and behind it the core."""

    def receive(self, event: e.Event) -> None:
        """Take in one event."""


class Connection:
    """One connection at a time, and a new one after each, as long as `run` runs."""

    def __init__(
        self,
        driver: Receiver,
        connectors: Callable[[bool], Awaitable[Sequence[Connector]]],
        token: Callable[[bytes | None], Awaitable[bytes]],
        transport: Transport = "auto",
        *,
        insecure: bool = False,
    ) -> None:
        """`connectors(fresh)` returns the living connectors; with `fresh` it asks the REST service, for as long as that
        takes.  It is cancelled when `run` is.

        `token(refused)` returns the token to greet with; it logs in again when the current token is the refused one.
        Both raise BackendUnavailable when REST is needed and unavailable.  `auto` is ZeroMQ where a connector has it.
        `insecure` allows plain WebSocket to another machine: the token could be read on the way.
        """
        self.online = asyncio.Event()
        self.offline = asyncio.Event()
        self.offline.set()
        self.failure: str | None = None
        """Why the latest attempt failed, as a sentence; None before the first one, and after a welcome."""
        self._may_connect = asyncio.Event()
        self._may_connect.set()
        self._driver = driver
        self._connectors = connectors
        self._token = token
        self._context = borrow_context()
        self._transport = transport
        self._insecure = insecure
        self._socket: Dealer | WebSocketClient | None = None
        self._ended: asyncio.Future[e.Disconnect] | None = None
        self._asking: asyncio.Future[Sequence[Connector]] | None = None
        """A question for fresh connectors that is under way."""
        self._backoff_s = BACKOFF_MIN_S
        self._handshake_s = CONNECT_TIMEOUT_S
        self._tried: set[str] = set()
        """Endpoints of the attempts that failed, since the last success and the last fresh list."""
        self._untried = True
        """Whether the latest list had others."""
        self._last = ""
        """The endpoint of the latest attempt."""
        self._reached = ""
        """The endpoint of this attempt, for `failure`; empty while there is none."""
        self._made = False
        """Whether this attempt has led to a connection."""
        self._welcomed_at: float | None = None
        self._replaced = False
        """The latest welcomed connection ended with REPLACED."""

    # ---------------------------------------------------------------- actions of the core

    def send(self, frame: bytes) -> None:
        """Send a frame; end the connection when the socket has no room for it."""
        if self._socket is not None and not self._socket.send(frame):
            self._socket.close()  # nothing may follow a frame that is missing
            self._lost()

    @property
    def endpoint(self) -> str | None:
        """The endpoint of the connector that has welcomed this client; None while none has."""
        return self._last if self.online.is_set() else None

    def welcomed(self) -> None:
        """The connector has accepted the greeting."""
        self._welcomed_at = asyncio.get_running_loop().time()
        self._replaced = False
        self._handshake_s = CONNECT_TIMEOUT_S
        self.failure = None
        self.offline.clear()
        self.online.set()

    def ended(self, disconnect: e.Disconnect) -> None:
        """End the current connection, for this reason."""
        self._set_offline()
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(disconnect)

    def pause(self, sentence: str) -> None:
        """Make no connection until `resume`, for this reason; the one that there is has to be ended."""
        self._may_connect.clear()
        self.failure = sentence

    def resume(self) -> None:
        """Connect again after `pause`."""
        self._may_connect.set()

    @property
    def paused(self) -> bool:
        """Whether `pause` was called, and `resume` not since."""
        return not self._may_connect.is_set()

    def _set_offline(self) -> None:
        self.online.clear()
        self.offline.set()

    # ---------------------------------------------------------------- the loop

    async def run(self) -> None:
        """Connect again and again.  Raises Refused when no further attempt can succeed, as after a takeover."""
        try:
            await self._run()
        finally:
            if self._asking is not None:
                self._asking.cancel()
                with suppress(asyncio.CancelledError, MeshimError):
                    await self._asking

    async def _run(self) -> None:
        refused: bytes | None = None
        while True:
            await self._may_connect.wait()
            token: bytes | None = None
            told_s = 0.0
            self._reached = ""
            try:
                token = await self._token(refused)
                end = await self._connect_once(token, await self._list())
                told_s = end.wait_s
            except PeerError as error:
                end = e.Disconnect(error.code, error.sentence)
            except BackendUnavailable as error:
                end = e.Disconnect(None, error.sentence)
            except ApiError as error:
                if not error.temporary:
                    raise Refused(Code.BAD_TOKEN, error.sentence) from error
                told_s = error.retry_after_s or 0.0
                end = e.Disconnect(None, error.sentence)
            if self._welcomed_at is None:
                self.failure = _sentence(end.sentence, self._reached)
            self._raise_if_final(end)
            if end.code is Code.BAD_TOKEN:
                refused = token
            if self._succeeded(end):
                self._backoff_s = BACKOFF_MIN_S
                self._tried.clear()
                self._untried = True
            # As long as the other end says, and not at the same moment as all others that were told so.
            await self._pause(max(self._backoff_s * _random.uniform(0.5, 1.5), told_s * _random.uniform(1.0, 1.5)))
            self._backoff_s = min(2 * self._backoff_s, BACKOFF_MAX_S)

    async def _list(self) -> Sequence[Connector]:
        """The connectors to choose from: those that are known, and fresh ones when these have been tried."""
        if self._asking is None and not self._untried:
            self._asking = asyncio.ensure_future(self._connectors(True))
            await asyncio.wait([self._asking], timeout=REST_WAIT_S)
        if self._asking is None or not self._asking.done():
            return await self._connectors(False)
        asking, self._asking = self._asking, None
        self._tried.clear()
        return asking.result()

    async def _pause(self, wait_s: float) -> None:
        """Wait; no longer than for the answer to a question that is under way, which may name others."""
        if self._asking is None:
            await asyncio.sleep(wait_s)
        else:
            await asyncio.wait([self._asking], timeout=wait_s)

    def _succeeded(self, end: e.Disconnect) -> bool:
        """Whether the connection that just ended was stable, or ended because its connector is shutting down."""
        since, self._welcomed_at = self._welcomed_at, None
        if since is None:
            return False
        # A connector that is shutting down welcomes no client, so a mesh that ends does not make this loop spin.
        return end.code is Code.SHUTTING_DOWN or asyncio.get_running_loop().time() - since >= STABLE_S

    def _raise_if_final(self, end: e.Disconnect) -> None:
        """Raise Refused when the device belongs to another state file now, or was logged out."""
        if end.code in (Code.VERSION, Code.LOGGED_OUT, Code.IMPERSONATION):
            raise Refused(end.code, as_sentence(end.sentence))
        if end.code is Code.BAD_TOKEN and self._replaced:
            # A login of the same device with another state file has revoked our token.
            raise Refused(Code.REPLACED, "This device was taken over with another state file.")
        self._replaced = self._replaced or end.code is Code.REPLACED

    async def _connect_once(self, token: bytes, connectors: Sequence[Connector]) -> e.Disconnect:
        """Connect to one connector, other than the last one if there is another; return when that connection ends."""
        self._untried = False
        if not connectors:
            raise BackendUnavailable("No connector is running.")
        reachable = [each for each in connectors if self._address(each)]
        if not reachable:
            raise BackendUnavailable(
                f"No connector can be reached with transport {self._transport}"
                " (plain ws:// to another machine is not used)."
            )
        connector = _random.choice(self._best(reachable))
        self._last = self._address(connector)
        self._tried.add(self._last)
        self._untried = len(self._tried) < TRIES_MAX and any(
            self._address(each) not in self._tried for each in reachable
        )
        self._reached = self._last
        self._made = False
        self._ended = asyncio.get_running_loop().create_future()
        self._socket = self._connect(connector, token)
        try:
            async with asyncio.timeout(self._handshake_s) as self._timeout:
                return await self._ended
        except TimeoutError:
            self._handshake_s = min(2 * self._handshake_s, CONNECT_TIMEOUT_MAX_S)
            return e.Disconnect(None, "the connector does not answer")
        finally:
            self._set_offline()
            self._socket.close(linger_ms=200)
            self._socket = None

    def _best(self, reachable: Sequence[Connector]) -> Sequence[Connector]:
        """Those that were not tried, else those that are not the last one, else all."""
        untried = [each for each in reachable if self._address(each) not in self._tried]
        return untried or [each for each in reachable if self._address(each) != self._last] or reachable

    def _address(self, connector: Connector) -> str:
        """Where to connect to this connector; empty when it has no address for our transport."""
        if self._transport == "websocket" or (self._transport == "auto" and not connector.endpoint):
            return connector.url if self._insecure or _is_private(connector.url) else ""
        return connector.endpoint

    def _connect(self, connector: Connector, token: bytes) -> Dealer | WebSocketClient:
        def on_batch(batch: Sequence[bytes]) -> None:
            self._driver.receive(e.FramesReceived(batch))

        def on_connected() -> None:
            self._connected(token)

        if self._last == connector.url:
            return WebSocketClient(
                connector.url, frame_bytes=FRAME_BYTES, on_batch=on_batch, on_connected=on_connected, on_lost=self._lost
            )
        return self._context.dealer(
            connector.endpoint, server_key=connector.key.encode() or None, keys=None, frame_bytes=FRAME_BYTES,
            heartbeat_s=None, on_batch=on_batch, on_connected=on_connected, on_lost=self._lost,
        )  # fmt: skip

    def _connected(self, token: bytes) -> None:
        if self._timeout.expired():
            return  # at the same moment: the attempt is being given up
        self._made = True
        self._timeout.reschedule(None)
        self._driver.receive(e.Connected(secrets.randbits(53), token))

    def _lost(self) -> None:
        self._driver.receive(e.ConnectionLost())
        sentence = "the connection was lost" if self._made else "the connector cannot be reached"
        self.ended(e.Disconnect(None, sentence))

    def close(self) -> None:
        """Give back the context; call it once `run` has ended."""
        return_context()


def _sentence(text: str, endpoint: str) -> str:
    """Why an attempt failed; `endpoint` is empty where it was the fault of no connector."""
    return f"{as_sentence(text).rstrip('.')} ({endpoint})." if endpoint else text


def _is_private(url: str) -> bool:
    """Whether nobody on the way can read what goes to this URL."""
    return url.startswith("wss://") or is_loopback(urlsplit(url).hostname or "")
