"""A client that speaks the wire protocol and is as impolite as it is told to be.

It keeps no promise: no outbox, no resend, no state file.  It needs two file descriptors.
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
from meshim.wire.link import Ack, Close, Data, Frame, Reset
from scripts.harness.mesh.users import Person

WINDOW = 32
TIMEOUT_S = 20.0

Socket = zmq.Socket[bytes]


ZmqContext = zmq.Context[Socket]


def context() -> ZmqContext:
    made: ZmqContext = zmq.Context()
    made.set(zmq.MAX_SOCKETS, 65_535)
    return made


class Rude:
    """One connection.  Deaf ones never read; the others acknowledge what comes and call `hear`."""

    def __init__(self, zmq_context: ZmqContext, connector: Lease, person: Person | None, *, deaf: bool = False) -> None:
        self.person = person
        self.link = secrets.randbits(64)
        self.sent_number = self.acknowledged = self.taken = 0
        self.deliveries = 0
        self.welcomed: asyncio.Future[Welcome] = asyncio.get_running_loop().create_future()
        self.over: Close | Reset | None = None
        self.hear: Callable[[Delivery], None] | None = None
        self.moved = asyncio.Event()
        """Set whenever something came."""
        self._deaf = deaf
        self.socket = socket = zmq_context.socket(zmq.DEALER)
        socket.set(zmq.LINGER, 0)
        socket.set(zmq.RECONNECT_IVL, -1)
        if connector.key:
            public, secret = zmq.curve_keypair()
            socket.set(zmq.CURVE_SERVERKEY, connector.key.encode())
            socket.set(zmq.CURVE_PUBLICKEY, public)
            socket.set(zmq.CURVE_SECRETKEY, secret)
        if deaf:  # nothing is taken off the wire beyond one message
            socket.set(zmq.RCVHWM, 1)
            socket.set(zmq.RCVBUF, 4_096)
        socket.connect(connector.endpoint)
        if not deaf:
            asyncio.get_running_loop().add_reader(socket.FD, self._read)

    def close(self) -> None:
        if not self.socket.closed:
            if not self._deaf:
                asyncio.get_running_loop().remove_reader(self.socket.FD)
            self.socket.close(0)

    # ---------------------------------------------------------------- saying

    def say(self, frame: Frame) -> bool:
        """False when there is no room."""
        return self.throw(wire.encode(frame))

    def throw(self, data: bytes) -> bool:
        """Send any bytes; False when there is no room."""
        try:
            self.socket.send(data, zmq.NOBLOCK)
        except zmq.Again:
            return False
        if not self._deaf:
            asyncio.get_running_loop().call_soon(self._read)  # the send may have taken in the news of the descriptor
        return True

    def greet(self) -> None:
        assert self.person is not None
        self.say(Greet(WIRE_VERSION, self.person.token, self.person.epoch, self.link, WINDOW))

    async def welcome(self) -> Welcome:
        """Greet and wait; raises TimeoutError, or ConnectionRefusedError with what was said."""
        self.greet()
        async with asyncio.timeout(TIMEOUT_S):
            return await self.welcomed

    def submit(self, envelopes: list[bytes], number: int | None = None) -> bool:
        """One data frame, whatever the window says; with `number` any number."""
        if number is None:
            self.sent_number += 1
            number = self.sent_number
        return self.say(Data(self.link, number, self.taken, (), tuple(Submit(envelope) for envelope in envelopes)))

    async def room(self) -> bool:
        """Wait until the window has room; False when the link is over."""
        while self.over is None and self.sent_number - self.acknowledged >= WINDOW:
            self.moved.clear()
            await self.moved.wait()
        return self.over is None

    # ---------------------------------------------------------------- hearing

    def _read(self) -> None:
        try:
            while not self.socket.closed:
                self._take(wire.decode_from_connector(self.socket.recv(zmq.NOBLOCK)))
        except zmq.Again:
            pass
        self.moved.set()

    def _take(self, frame: ConnectorFrame) -> None:
        if isinstance(frame, Welcome):
            if not self.welcomed.done():
                self.welcomed.set_result(frame)
        elif isinstance(frame, Data):
            self.acknowledged = max(self.acknowledged, frame.ack)
            if frame.number == self.taken + 1:
                self.taken = frame.number
                for item in frame.items:
                    if isinstance(item, Delivery):
                        self.deliveries += 1
                        if self.hear is not None:
                            self.hear(item)
            self.say(Ack(self.link, self.taken))
        elif isinstance(frame, Ack):
            self.acknowledged = max(self.acknowledged, frame.ack)
        elif isinstance(frame, Close | Reset):
            self.over = frame
            if not self.welcomed.done():
                self.welcomed.set_exception(ConnectionRefusedError(str(frame)))
                self.welcomed.exception()  # whoever waits for no welcome is not warned that nobody looked at it


async def until(stop_at: float, pause_s: float) -> bool:
    """Pause; False when the time is over."""
    await asyncio.sleep(pause_s)
    return time.monotonic() < stop_at
