"""Reading ZeroMQ sockets on an event loop without missing an edge."""

import asyncio
import itertools
import struct
from collections.abc import Callable
from typing import ClassVar

import zmq

Socket = zmq.Socket[bytes]

READ_MESSAGES_MAX = 1_000
"""Messages read at once before other callbacks of the loop run."""
READ_BYTES_MAX = 8 << 20
"""The same in bytes: the high-water marks limit each peer, not all of them together."""

NOBLOCK = int(zmq.NOBLOCK)  # as a plain number: arithmetic with enums costs as much as a send

HANDSHAKE_FAILED = frozenset(
    map(
        int,
        (
            zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL,
            zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL,
            zmq.EVENT_HANDSHAKE_FAILED_AUTH,
        ),
    )
)

_EVENTS = int(zmq.EVENTS)
_POLLIN = int(zmq.POLLIN)

_MONITOR_EVENTS = 100_000
"""High-water mark of a monitor: an I/O thread blocks at it, so it is more than a storm of connections makes."""
_EVENT = struct.Struct("=Hi")


class Pump:
    """Calls `take` while there is something to read.

    libzmq's descriptor is edge-triggered: it reports new messages once, and any call on the socket, a send too, may
    consume the report.  So the pump looks at the socket again after each send.  `take` returns True when it stopped at
    its limit and not because the socket was empty; the rest of the loop then goes first.

    Asking a socket whether it is readable costs a third of a read that finds nothing, so only the descriptor leads to a
    read without that question.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, socket: Socket, take: Callable[[], bool]) -> None:
        self._loop = loop
        self._socket = socket
        self._take = take
        self._due = False
        self._used = False
        """Whether `nudge` was called since the socket was last seen empty."""
        self._stopped = False
        loop.add_reader(socket.FD, self._read)
        self.nudge()  # messages may have arrived before

    def nudge(self) -> None:
        """The socket was used: look at it again before the loop sleeps."""
        self._used = True
        if not self._due:
            self._due = True
            self._loop.call_soon(self._look)

    def stop(self) -> None:
        """Call before the socket is closed."""
        self._stopped = True
        self._loop.remove_reader(self._socket.FD)

    def _read(self) -> None:
        if self._stopped:
            return
        self._due = True  # a send within `take` needs no callback of its own
        self._used = False
        more = self._take() or (self._used and self._readable())
        if more:
            self._loop.call_soon(self._read)
        else:
            self._due = False

    def _look(self) -> None:
        if self._stopped:
            return
        self._used = False
        if is_readable(self._socket):
            self._read()
        else:
            self._due = False

    def _readable(self) -> bool:
        return not self._stopped and is_readable(self._socket)  # it may have been stopped by `take`


def is_readable(socket: Socket) -> bool:
    """Whether a read finds a message now."""
    events = socket.get(_EVENTS)
    assert isinstance(events, int)
    return bool(events & _POLLIN)


class Monitor:
    """Reports the events of a socket's connections to `on_event(event, value)`.

    `value` is a descriptor for the events of which `zmq_socket_monitor` says so.  Make a monitor before its socket
    binds or connects.
    """

    _names: ClassVar = itertools.count(1)

    def __init__(
        self, loop: asyncio.AbstractEventLoop, watched: Socket, events: int, on_event: Callable[[int, int], None]
    ) -> None:
        endpoint = f"inproc://monitor-{next(self._names)}"
        self._watched = watched
        self._on_event = on_event
        watched.monitor(endpoint, events)
        self._socket = watched.context.socket(zmq.PAIR)
        self._socket.set(zmq.LINGER, 0)
        self._socket.set(zmq.RCVHWM, _MONITOR_EVENTS)
        self._socket.connect(endpoint)
        self._pump = Pump(loop, self._socket, self._take)

    def read_events(self) -> None:
        """Report all events that happened before now."""
        while self._take():
            pass

    def close(self) -> None:
        """Call before the watched socket is closed."""
        self._pump.stop()
        self._watched.monitor(None, 0)  # first: an I/O thread would wait for a reader that is closed
        self._socket.close()

    def _take(self) -> bool:
        try:
            for _ in range(READ_MESSAGES_MAX):
                event, value = _EVENT.unpack(self._socket.recv(NOBLOCK))
                self._socket.recv(NOBLOCK)  # the address
                self._on_event(event, value)
                if self._socket.closed:
                    return False
        except zmq.Again:
            return False
        return True


def skip(socket: Socket, part: zmq.Frame) -> None:
    """Read the other parts of a message; libzmq hands over whole messages, so they are there."""
    while part.more:
        part = socket.recv(NOBLOCK, False)
