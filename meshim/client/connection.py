"""Keeps a client connected: one connection at a time, with back-off and jitter, each to another living connector."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Literal, TypeAlias
from urllib.parse import urlsplit

from meshim.addresses import is_loopback
from meshim.client import events as e
from meshim.errors import ApiError, BackendUnavailable, Code, PeerError, Refused, as_sentence
from meshim.runtime.driver import Driver
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


class Connection:
    """One connection at a time, and a new one after each, as long as `run` runs."""

    def __init__(
        self,
        driver: Driver[e.Event, e.Action],
        connectors: Callable[[bool], Awaitable[Sequence[Connector]]],
        token: Callable[[bytes | None], Awaitable[bytes]],
        transport: Transport = "auto",
        *,
        insecure: bool = False,
    ) -> None:
        """`connectors(fresh)` returns the living connectors; with `fresh` it asks the REST service.

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
        self._backoff_s = BACKOFF_MIN_S
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
        # The first attempt, and the one after a stable connection, use the connectors known from the last answer: REST
        # may be unavailable, or busy with thousands of clients that reconnect at the same time.
        fresh_list = False
        refused: bytes | None = None
        while True:
            await self._may_connect.wait()
            token: bytes | None = None
            told_s = 0.0
            self._reached = ""
            try:
                token = await self._token(refused)
                end = await self._connect_once(token, await self._connectors(fresh_list))
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
            fresh_list = not self._succeeded(end)
            if not fresh_list:
                self._backoff_s = BACKOFF_MIN_S
            # As long as REST says, and not at the same moment as all others that were told so.
            wait_s = max(self._backoff_s * _random.uniform(0.5, 1.5), told_s * _random.uniform(1.0, 1.5))
            await asyncio.sleep(wait_s)
            self._backoff_s = min(2 * self._backoff_s, BACKOFF_MAX_S)

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
        if not connectors:
            raise BackendUnavailable("No connector is running.")
        reachable = [each for each in connectors if self._address(each)]
        if not reachable:
            raise BackendUnavailable(
                f"No connector can be reached with transport {self._transport}"
                " (plain ws:// to another machine is not used)."
            )
        others = [each for each in reachable if self._address(each) != self._last] or reachable
        connector = _random.choice(others)
        self._last = self._address(connector)
        self._reached = self._last
        self._made = False
        self._ended = asyncio.get_running_loop().create_future()
        self._socket = self._connect(connector, token)
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S) as self._timeout:
                return await self._ended
        except TimeoutError:
            return e.Disconnect(None, "the connector does not answer")
        finally:
            self._set_offline()
            self._socket.close(linger_ms=200)
            self._socket = None

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
