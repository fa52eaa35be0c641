"""Stays connected: to any living connector, with back-off and jitter, from one to the next."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable, Sequence

from meshim.client import events as e
from meshim.errors import ApiError, BackendUnavailable, Code, Refused
from meshim.runtime.crank import Crank
from meshim.runtime.sockets import Context, Dealer
from meshim.wire.rest import Connector

FRAME_BYTES = 1_048_576
"""More than any connector sends: its limit is announced in the welcome."""
FIRST_WAIT_S = 0.05
LONGEST_WAIT_S = 5.0

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

    `connectors()` gives those that live, asking the REST service if `fresh`; `token()` what to greet with, after a new
    login if `fresh`.  Both raise BackendUnavailable when they cannot tell now.
    """

    def __init__(
        self,
        crank: Crank[e.Event, e.Action],
        connectors: Callable[[bool], Awaitable[Sequence[Connector]]],
        token: Callable[[bool], Awaitable[bytes]],
    ) -> None:
        self.online = asyncio.Event()
        self._crank = crank
        self._connectors = connectors
        self._token = token
        self._context = borrow_context()
        self._dealer: Dealer | None = None
        self._ended: asyncio.Future[e.Disconnect] | None = None
        self._wait_s = FIRST_WAIT_S
        self._last = ""
        self._ousted = False

    # ---- performed for the core

    def send(self, frame: bytes) -> None:
        if self._dealer is not None:
            # What finds no room is sent again by the window.
            self._dealer.send(frame)

    def welcomed(self) -> None:
        self._wait_s = FIRST_WAIT_S
        self._ousted = False
        self.online.set()

    def ended(self, disconnect: e.Disconnect) -> None:
        self.online.clear()
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(disconnect)

    # ---- the loop

    async def run(self) -> None:
        """Connect for ever.  Raises Refused when there is no sense in going on: somebody else is this device now."""
        fresh_list = fresh_token = False
        while True:
            try:
                end = await self._once(fresh_list=fresh_list, fresh_token=fresh_token)
            except BackendUnavailable as error:
                end = e.Disconnect(None, error.sentence)
            except ApiError as error:
                if not error.temporary:
                    raise Refused(Code.BAD_TOKEN, error.sentence) from error
                end = e.Disconnect(None, error.sentence)
            fresh_token = self._judge(end)
            fresh_list = True
            await asyncio.sleep(self._wait_s * _random.uniform(0.5, 1.5))
            self._wait_s = min(2 * self._wait_s, LONGEST_WAIT_S)

    def _judge(self, end: e.Disconnect) -> bool:
        """Whether to log in again; raises Refused when the device is not ours any more."""
        if end.code in (Code.VERSION, Code.LOGGED_OUT, Code.IMPERSONATION):
            raise Refused(end.code, end.sentence)
        if end.code is Code.BAD_TOKEN and self._ousted:
            # Our token was revoked by a login of the same device with another state file.
            raise Refused(Code.REPLACED, "this device was taken over with another state file")
        self._ousted = self._ousted or end.code is Code.REPLACED
        return end.code is Code.BAD_TOKEN

    async def _once(self, *, fresh_list: bool, fresh_token: bool) -> e.Disconnect:
        """One connection, from first to last."""
        token = await self._token(fresh_token)
        connectors = await self._connectors(fresh_list)
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
            on_batch=lambda batch: self._crank.receive(e.FramesReceived(batch)),
            on_connected=lambda: self._crank.receive(e.Connected(secrets.randbits(63), token)),
            on_lost=self._lost,
        )
        try:
            return await self._ended
        finally:
            self.online.clear()
            self._dealer.close(linger_ms=200)
            self._dealer = None

    def _lost(self) -> None:
        self._crank.receive(e.ConnectionLost())
        self.ended(e.Disconnect(None, "the connection was lost"))

    def close(self) -> None:
        return_context()
