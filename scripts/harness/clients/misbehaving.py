"""A client that speaks the wire protocol and breaks its rules on request.

It has no outbox, no resend and no state file, and takes two file descriptors.
"""

import asyncio
import secrets
import time
from collections.abc import Callable

import zmq

from meshim.stores.ports import Lease
from meshim.wire import client as wire
from meshim.wire.client import ConnectorFrame, Delivery, Greet, Submit, Welcome
from meshim.wire.envelope import WIRE_VERSION
from meshim.wire.link import Ack, Close, Data, Frame, Ping, Pong, Reset
from scripts.harness.clients.connections import WebSocketConnection
from scripts.harness.clients.zmq_context import ZmqContext
from scripts.harness.mesh.users import MeshUser

WINDOW = 32
TIMEOUT_S = 20.0
BUFFER_BYTES = 1 << 20
"""May wait to be sent by WebSocket; a single frame may be larger."""


class MisbehavingClient:
    """One connection: by WebSocket to a connector without an endpoint of ZeroMQ.

    A deaf client never reads; others acknowledge every frame and call `on_delivery`.
    """

    def __init__(self, zmq_context: ZmqContext, connector: Lease, user: MeshUser | None, *, deaf: bool = False) -> None:
        self.user = user
        self.link = secrets.randbits(53)
        self.sent_number = self.acknowledged = self.received_number = 0
        self.deliveries = 0
        self.welcomed: asyncio.Future[Welcome] = asyncio.get_running_loop().create_future()
        self.closed_by: Close | Reset | None = None
        self.on_delivery: Callable[[Delivery], None] | None = None
        self.changed = asyncio.Event()
        """Set after every read."""
        self._deaf = deaf
        self._websocket: WebSocketConnection | None = None
        if not connector.endpoint:
            self._websocket = WebSocketConnection(connector.url, self, deaf=deaf, buffer_bytes=BUFFER_BYTES)
            return
        self.socket = socket = zmq_context.socket(zmq.DEALER)
        socket.set(zmq.LINGER, 0)
        socket.set(zmq.RECONNECT_IVL, -1)
        if connector.key:
            public, secret = zmq.curve_keypair()
            socket.set(zmq.CURVE_SERVERKEY, connector.key.encode())
            socket.set(zmq.CURVE_PUBLICKEY, public)
            socket.set(zmq.CURVE_SECRETKEY, secret)
        if deaf:  # libzmq reads at most one message ahead
            socket.set(zmq.RCVHWM, 1)
            socket.set(zmq.RCVBUF, 4_096)
        socket.connect(connector.endpoint)
        if not deaf:
            asyncio.get_running_loop().add_reader(socket.FD, self._read)

    def close(self) -> None:
        if self._websocket is not None:
            self._websocket.abort()
        elif not self.socket.closed:
            if not self._deaf:
                asyncio.get_running_loop().remove_reader(self.socket.FD)
            self.socket.close(0)

    # ---------------------------------------------------------------- sending

    def send(self, frame: Frame) -> bool:
        """Send a frame; return False when the socket has no room."""
        return self.send_bytes(wire.encode(frame))

    def send_bytes(self, data: bytes) -> bool:
        """Send any bytes; return False when the socket has no room."""
        if self._websocket is not None:
            return self._websocket.send(data)
        try:
            self.socket.send(data, zmq.NOBLOCK)
        except zmq.Again:
            return False
        if not self._deaf:
            asyncio.get_running_loop().call_soon(self._read)  # the send may have consumed the edge of the descriptor
        return True

    def send_greet(self) -> None:
        assert self.user is not None
        self.send(Greet(WIRE_VERSION, self.user.token, self.user.epoch, self.link, WINDOW))

    async def welcome(self) -> Welcome:
        """Greet and return the welcome.  Raises TimeoutError, or ConnectionRefusedError with the connector's answer."""
        self.send_greet()
        async with asyncio.timeout(TIMEOUT_S):
            return await self.welcomed

    def submit(self, envelopes: list[bytes], number: int | None = None) -> bool:
        """Send one data frame without regard to the window; `number` overrides the next frame number."""
        if number is None:
            self.sent_number += 1
            number = self.sent_number
        items = tuple(Submit(envelope) for envelope in envelopes)
        return self.send(Data(self.link, number, self.received_number, items))

    async def room(self) -> bool:
        """Wait until the window has room; return False when the connector has ended the link."""
        while self.closed_by is None and self.sent_number - self.acknowledged >= WINDOW:
            self.changed.clear()
            await self.changed.wait()
        return self.closed_by is None

    # ---------------------------------------------------------------- receiving

    def _read(self) -> None:
        try:
            while not self.socket.closed:
                self._take(wire.decode_from_connector(self.socket.recv(zmq.NOBLOCK)))
        except zmq.Again:
            pass
        self.changed.set()

    def received(self, frame: bytes) -> None:
        """Take a frame (of `Receiver`, as the next two)."""
        self._take(wire.decode_from_connector(frame))

    def received_all(self) -> None:
        self.changed.set()

    def lost(self, why: str) -> None:
        """The WebSocket has ended: a DEALER would not notice."""
        self._take(self.closed_by or Reset(self.link))
        self.changed.set()

    def _take(self, frame: ConnectorFrame) -> None:
        if isinstance(frame, Welcome):
            if not self.welcomed.done():
                self.welcomed.set_result(frame)
        elif isinstance(frame, Data):
            self.acknowledged = max(self.acknowledged, frame.ack)
            if frame.number == self.received_number + 1:
                self.received_number = frame.number
                for item in frame.items:
                    if isinstance(item, Delivery):
                        self.deliveries += 1
                        if self.on_delivery is not None:
                            self.on_delivery(item)
            self.send(Ack(self.link, self.received_number))
        elif isinstance(frame, Ack):
            self.acknowledged = max(self.acknowledged, frame.ack)
        elif isinstance(frame, Ping):
            self.send(Pong(self.link))
        elif isinstance(frame, Close | Reset):
            self.closed_by = frame
            if not self.welcomed.done():
                self.welcomed.set_exception(ConnectionRefusedError(str(frame)))
                self.welcomed.exception()  # retrieved: no warning where no caller awaits the welcome


async def pause(stop_at: float, pause_s: float) -> bool:
    """Sleep for `pause_s`; return False when `stop_at` has passed."""
    await asyncio.sleep(pause_s)
    return time.monotonic() < stop_at
