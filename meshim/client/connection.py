"""Stays connected: to any living connector, with back-off and jitter, from one to the next."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence

from meshim.client import events as e
from meshim.errors import ApiError, BackendUnavailable, Code, PeerError, Refused
from meshim.runtime.driver import Driver
from meshim.runtime.sockets import Context, Dealer
from meshim.wire.rest import Connector

FRAME_BYTES = 1_048_576
"""More than any connector sends: its limit is announced in the welcome."""
FIRST_WAIT_S = 0.05
LONGEST_WAIT_S = 5.0
STEADY_S = 10.0
"""A connection that lasted so long was a good one.  Others count as failures, or two who oust each other would spin."""
CONNECT_S = 3.0
"""A connector that does not complete the handshake by then is stopped: try another."""

_random = secrets.SystemRandom()
_contexts: dict[asyncio.AbstractEventLoop, tuple[Context, int]] = {}
"""Clients of one loop share sockets' threads: (context, users)."""


def borrow_context() -> Context:
    """The context of the running loop; give it back with `return_context`."""
    loop = asyncio.get_running_loop()
    context, users = _contexts.get(loop) or (Context(), 0)
    _contexts[loop] = (context, users + 1)
    return context


def return_context() -> None:
    loop = asyncio.get_running_loop()
    context, users = _contexts.pop(loop)
    if users > 1:
        _contexts[loop] = (context, users - 1)
    else:
        context.close()


class Connection:
    """One connection at a time, made anew for as long as `run` runs.

    `connectors(fresh)` gives those that live, asking the REST service if `fresh`; `token(refused)` what to greet with,
    after a new login if that is the one that was refused.  Both raise BackendUnavailable when they cannot tell now.
    """

    def __init__(
        self,
        driver: Driver[e.Event, e.Action],
        connectors: Callable[[bool], Awaitable[Sequence[Connector]]],
        token: Callable[[bytes | None], Awaitable[bytes]],
    ) -> None:
        self.online = asyncio.Event()
        self.offline = asyncio.Event()
        self.offline.set()
        self._driver = driver
        self._connectors = connectors
        self._token = token
        self._context = borrow_context()
        self._dealer: Dealer | None = None
        self._ended: asyncio.Future[e.Disconnect] | None = None
        self._wait_s = FIRST_WAIT_S
        self._last = ""
        self._welcomed_at: float | None = None
        self._ousted = False

    # ---- performed for the core

    def send(self, frame: bytes) -> None:
        if self._dealer is not None:
            # What finds no room is sent again by the window.
            self._dealer.send(frame)

    @property
    def endpoint(self) -> str | None:
        """Of the connector that has welcomed us; None while none has."""
        return self._last if self.online.is_set() else None

    def welcomed(self) -> None:
        self._welcomed_at = asyncio.get_running_loop().time()
        self._ousted = False
        self.offline.clear()
        self.online.set()

    def ended(self, disconnect: e.Disconnect) -> None:
        self._note_offline()
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(disconnect)

    def _note_offline(self) -> None:
        self.online.clear()
        self.offline.set()

    # ---- the loop

    async def run(self) -> None:
        """Connect for ever.  Raises Refused when there is no sense in going on: somebody else is this device now."""
        # At first, and after a good connection, to what we know: REST may be away, or asked by thousands like us.
        fresh_list = False
        refused: bytes | None = None
        while True:
            token: bytes | None = None
            try:
                token = await self._token(refused)
                end = await self._once(token, await self._connectors(fresh_list))
            except PeerError as error:
                end = e.Disconnect(error.code, error.sentence)
            except BackendUnavailable as error:
                end = e.Disconnect(None, error.sentence)
            except ApiError as error:
                if not error.temporary:
                    raise Refused(Code.BAD_TOKEN, error.sentence) from error
                end = e.Disconnect(None, error.sentence)
            self._judge(end)
            if end.code is Code.BAD_TOKEN:
                refused = token
            fresh_list = not self._was_good(end)
            if not fresh_list:
                self._wait_s = FIRST_WAIT_S
            await asyncio.sleep(self._wait_s * _random.uniform(0.5, 1.5))
            self._wait_s = min(2 * self._wait_s, LONGEST_WAIT_S)

    def _was_good(self, end: e.Disconnect) -> bool:
        """Whether the connection that just ended was no failure: it lasted, or its connector sends everybody on."""
        since, self._welcomed_at = self._welcomed_at, None
        if since is None:
            return False
        # A connector that leaves welcomes nobody, so that a mesh that ends does not make us spin.
        return end.code is Code.SHUTTING_DOWN or asyncio.get_running_loop().time() - since >= STEADY_S

    def _judge(self, end: e.Disconnect) -> None:
        """Raises Refused when the device is not ours any more."""
        if end.code in (Code.VERSION, Code.LOGGED_OUT, Code.IMPERSONATION):
            raise Refused(end.code, end.sentence)
        if end.code is Code.BAD_TOKEN and self._ousted:
            # Our token was revoked by a login of the same device with another state file.
            raise Refused(Code.REPLACED, "this device was taken over with another state file")
        self._ousted = self._ousted or end.code is Code.REPLACED

    async def _once(self, token: bytes, connectors: Sequence[Connector]) -> e.Disconnect:
        """One connection, from first to last."""
        if not connectors:
            raise BackendUnavailable("no connector is running")
        others = [connector for connector in connectors if connector.endpoint != self._last] or list(connectors)
        connector = _random.choice(others)
        self._last = connector.endpoint
        self._ended = asyncio.get_running_loop().create_future()
        self._dealer = self._context.dealer(
            connector.endpoint,
            server_key=connector.key.encode() or None,
            keys=None,
            frame_bytes=FRAME_BYTES,
            heartbeat_s=None,
            on_batch=lambda batch: self._driver.receive(e.FramesReceived(batch)),
            on_connected=lambda: self._connected(token),
            on_lost=self._lost,
        )
        try:
            async with asyncio.timeout(CONNECT_S) as self._timeout:
                return await self._ended
        except TimeoutError:
            return e.Disconnect(None, "the connector does not answer")
        finally:
            self._note_offline()
            self._dealer.close(linger_ms=200)
            self._dealer = None

    def _connected(self, token: bytes) -> None:
        self._timeout.reschedule(None)
        self._driver.receive(e.Connected(secrets.randbits(63), token))

    def _lost(self) -> None:
        self._driver.receive(e.ConnectionLost())
        self.ended(e.Disconnect(None, "the connection was lost"))

    def close(self) -> None:
        return_context()
