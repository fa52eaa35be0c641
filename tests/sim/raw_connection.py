"""One connection to a connector without the client library: it sends any frames, and keeps no rule by itself."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from meshim.client.connection import FRAME_BYTES, Transport
from meshim.runtime.websocket import WebSocketClient
from meshim.wire import client as wire
from meshim.wire.client import Greet, Welcome
from meshim.wire.envelope import WIRE_VERSION
from meshim.wire.link import Close, Frame, Ping, Pong, Reset
from tests.sim.network import Network
from tests.sim.scheduler import Process
from tests.sim.servers import Backends
from tests.sim.sockets import Context, Dealer

ANSWER_S = 4.0
"""How long it waits for a connection, or for the answer to a greeting."""


class RawConnection:
    """A connection of the process that makes it, to a random living connector."""

    def __init__(self, process: Process, network: Network, backends: Backends, transport: Transport) -> None:
        self.link = process.scheduler.random.getrandbits(53)
        self.closed_by: Close | None = None
        self.on_frame: Callable[[Any], None] = lambda frame: None
        """Called with each frame from the connector, after a Ping was answered."""
        self.welcome: Welcome | None = None
        self._process = process
        self._network = network
        self._backends = backends
        self._transport = transport
        self._socket: Dealer | WebSocketClient | None = None
        self._made = asyncio.Event()
        self._answered = asyncio.Event()
        self.ended = asyncio.Event()
        """Whether the connection was closed or lost."""

    async def open(self) -> bool:
        """Connect; False when that fails.  Raises BackendUnavailable when presence does not say where to."""
        living = await self._backends.leases().living("connector")
        if not living:
            return False
        lease = self._process.scheduler.random.choice(living)
        if self._transport == "websocket":
            self._socket = WebSocketClient(
                lease.url, frame_bytes=FRAME_BYTES, on_batch=self._heard, on_connected=self._made.set,
                on_lost=self._lost,
            )  # fmt: skip
        else:
            self._socket = Context(self._network, self._process).dealer(
                lease.endpoint, on_batch=self._heard, on_connected=self._made.set, on_lost=self._lost, heartbeat_s=None
            )
        return await _within(self._made, ANSWER_S) and not self.ended.is_set()

    async def greet(self, token: bytes, epoch: int) -> bool:
        """Greet; return whether a Welcome came."""
        self.send(Greet(version=WIRE_VERSION, token=token, epoch=epoch, link=self.link, window=8))
        await _within(self._answered, ANSWER_S)
        return self.welcome is not None and not self.ended.is_set()

    async def ends_within(self, seconds: float) -> bool:
        """Wait until the connection ends, or so long; return whether it has."""
        return await _within(self.ended, seconds)

    def send(self, frame: Frame | bytes) -> bool:
        """Send a frame, or the bytes of one; False when there is no connection or no room."""
        data = frame if isinstance(frame, bytes) else wire.encode(frame)
        return self._socket is not None and not self.ended.is_set() and self._socket.send(data)

    def close(self) -> None:
        """End the connection without a Close."""
        if self._socket is not None:
            self._socket.close(linger_ms=50)
        self.ended.set()

    def _lost(self) -> None:
        self.ended.set()
        self._made.set()
        self._answered.set()

    def _heard(self, batch: Sequence[bytes]) -> None:
        for data in batch:
            frame = wire.decode_from_connector(data)
            if isinstance(frame, Welcome):
                self.welcome = frame
                self._answered.set()
            elif isinstance(frame, Close | Reset):
                self.closed_by = frame if isinstance(frame, Close) else None
                self._lost()
            elif isinstance(frame, Ping):
                self.send(Pong(self.link))
            self.on_frame(frame)


async def _within(event: asyncio.Event, seconds: float) -> bool:
    try:
        async with asyncio.timeout(seconds):
            await event.wait()
    except TimeoutError:
        return False
    return True
