"""A DEALER socket that connects once."""

import asyncio
from collections.abc import Callable

import zmq

from meshim.runtime.sockets.pump import (
    HANDSHAKE_FAILED,
    NOBLOCK,
    READ_BYTES_MAX,
    READ_MESSAGES_MAX,
    Monitor,
    Pump,
    Socket,
    is_readable,
    skip,
)
from meshim.runtime.sockets.statistics import DealerStatistics

_ENDED = HANDSHAKE_FAILED | {
    int(zmq.EVENT_DISCONNECTED),
    int(zmq.EVENT_CLOSED),  # no connection was made
    int(zmq.EVENT_CONNECT_RETRIED),  # nor even a socket: no descriptor was left.  libzmq would try again; `options.py`
}
_EVENTS = sum(_ENDED) + zmq.EVENT_HANDSHAKE_SUCCEEDED


class Dealer:
    """A DEALER to one peer, for one connection (adr/0010)."""

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
        self.statistics = DealerStatistics()
        self._connected = False
        self._lost = False
        self._socket = socket
        self._on_batch = on_batch
        self._on_connected = on_connected
        self._on_lost = on_lost
        self._on_closed = on_closed
        self._send = super(zmq.Socket, socket).send
        self._monitor = Monitor(loop, socket, _EVENTS, self._on_event)
        try:
            socket.connect(endpoint)
        except zmq.ZMQError:
            self._monitor.close()
            raise
        self._pump = Pump(loop, socket, self._take)

    def send(self, frame: bytes) -> bool:
        """Queue one frame; False when there is no connection or no room for it.  Never waits."""
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
        """End the connection; queued frames have `linger_ms` to leave.  A later `send` returns False."""
        if not self._socket.closed:
            self._connected = False
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
            for _ in range(READ_MESSAGES_MAX):
                part = recv(NOBLOCK, False)
                if part.more or not (frame := part.bytes):
                    skip(self._socket, part)
                    self.statistics.malformed += 1
                else:
                    batch.append(frame)
                    size += len(frame)
                    if size > READ_BYTES_MAX:
                        break
                if first and not is_readable(self._socket):  # under low load most reads find one frame
                    full = False
                    break
                first = False
        except zmq.Again:
            full = False
        if batch:
            self._on_batch(batch)
        return full

    def _on_event(self, event: int, _: int = 0) -> None:
        if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._connected = True
            if self._on_connected is not None:
                self._on_connected()
        elif event in _ENDED and not self._lost:
            self._connected = False
            self._lost = True
            while not self._socket.closed and self._take():  # the last frames are handed over before `on_lost`
                pass
            if self._on_lost is not None:  # `close` was not called meanwhile
                self._on_lost()
