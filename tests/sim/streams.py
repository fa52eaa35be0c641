"""Byte streams between processes, as TCP is: what WebSocket connections are made of.

`Loop.create_server` and `Loop.create_connection` end here, so the real server and the real client of
`meshim.runtime.websocket` run on it, with every byte of their protocol.  Within one direction no byte is lost, doubled
or overtaken, and nothing says where a write ended: what arrives at once is a random piece of what is under way.  What
goes wrong is the connection, as in `network.py`, and more of it than there:

    breaks      both ends are reset some time after a write
    silence     nothing arrives any more, in one direction or both; no heartbeat of the transport finds it in time
    cut         no byte arrives for some time, nor does the news that the other end has closed, died or been reset
    full        so much seems to wait in the socket that the next message finds no room
    half-closed an end that dies or closes leaves bytes behind that still arrive; the other end writes on until then
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from tests.sim.scheduler import Process

if TYPE_CHECKING:
    from tests.sim.network import Network

SOCKET_BYTES: Final = 65_536
"""In the buffers of the two systems; what is beyond waits in the sending process."""
PIECES_SHARE: Final = 0.2
"""Share of arrivals that are only a part of what has been sent."""
RESET_SHARE: Final = 0.5
"""Share of connections of a dying process that are reset at once; the others end when what it wrote has arrived."""
BREAK_S: Final = 0.05
"""Maximum time from a write until the connection that it breaks has ended."""
KEEPALIVE_S: Final = 90.0
"""Until the system ends a silent connection (runtime/websocket/listening.py): long after the heartbeats of a client."""
UNANSWERED_S: Final = 10.0
"""Until an attempt fails that gets no answer."""
_FULL: Final = 1 << 40

_ENDED: Final = object()
_RESET: Final = object()


class Port:
    """The listening socket of a process; stands in for `socket.socket` and `asyncio.Server`."""

    def __init__(self, network: "Network", process: Process, host: str) -> None:
        self.process = process
        self.make: Callable[[], asyncio.Protocol] | None = None
        self._network = network
        self._host = host

    def listen(self, make: Callable[[], asyncio.Protocol]) -> None:
        """Accept connections, with a protocol from `make` for each."""
        self.make = make
        self._network.streams.ports[self._host] = self

    def close(self) -> None:
        self._network.streams.ports.pop(self._host, None)


class Streams:
    """All byte streams of a run."""

    def __init__(self, network: "Network") -> None:
        self.ports: dict[str, Port] = {}
        """By host."""
        self.open: dict[Stream, None] = {}
        self.pieces = 0
        """Arrivals that were a part of what had been sent."""
        self._network = network

    async def connect(self, process: Process, make: Callable[[], asyncio.Protocol], host: str) -> None:
        """Connect a process to a host.  Raises OSError."""
        made: asyncio.Future[None] = process.loop.create_future()
        scheduler = self._network.scheduler

        def fail(error: OSError) -> None:
            process.loop.call_soon(failed, error)

        def failed(error: OSError) -> None:
            if not made.done():
                made.set_exception(error)

        def asked() -> None:
            port = self.ports.get(host)
            if port is None or port.make is None:
                scheduler.after(self._network.delay(), lambda: fail(ConnectionRefusedError()))
            elif self._network.are_cut(process.name, port.process.name):
                scheduler.after(UNANSWERED_S, lambda: fail(TimeoutError()))
            else:
                self._accept(process, make, port, made)

        scheduler.after(self._network.delay(), asked)
        await made

    def _accept(
        self, process: Process, make: Callable[[], asyncio.Protocol], port: Port, made: "asyncio.Future[None]"
    ) -> None:
        """The system of a stopped process accepts, too: what is written waits."""
        stream = Stream(self._network, process, port.process)
        self.open[stream] = None
        assert port.make is not None
        server = port.make
        port.process.loop.call_soon(lambda: stream.server.start(server()))

        def connected() -> None:
            if made.done():
                stream.client.abort()
            elif stream.client.is_closing():
                made.set_exception(ConnectionResetError())
            else:
                stream.client.start(make())
                made.set_result(None)

        def answered() -> None:
            process.loop.call_soon(connected)

        self._network.scheduler.after(self._network.delay(), answered)

    # ---- faults

    def release(self) -> None:
        """Let arrive what a cut has held back."""
        for stream in list(self.open):
            stream.client.arrive_later()
            stream.server.arrive_later()

    def died(self, process: Process) -> None:
        """Close the sockets of a dead process, as the operating system does."""
        self.ports = {host: port for host, port in self.ports.items() if port.process is not process}
        for stream in list(self.open):
            for end in (stream.client, stream.server):
                if end.process is process:
                    end.died()


class Stream:
    """One connection."""

    def __init__(self, network: "Network", client: Process, server: Process) -> None:
        self.client = End(network, self, client)
        self.server = End(network, self, server)
        self.client.other, self.server.other = self.server, self.client
        self._network = network

    def fall_silent(self) -> None:
        random = self._network.scheduler.random
        for end in random.choice([(self.client,), (self.server,), (self.client, self.server)]):
            end.is_silent = True
        self._network.scheduler.after(KEEPALIVE_S, self.reset)

    def reset(self) -> None:
        """Both ends learn that the connection has ended; what is under way is lost."""
        for end in (self.client, self.server):
            end.lose_all(ConnectionResetError())

    def forget(self) -> None:
        if self.client.is_over and self.server.is_over:
            self._network.streams.open.pop(self, None)


class End(asyncio.Transport):
    """One end: the transport of its protocol, and the direction from the other end to this one."""

    def __init__(self, network: "Network", stream: Stream, process: Process) -> None:
        super().__init__()
        self.process = process
        self.other: End
        self.is_silent = False
        self.is_over = False
        """Its protocol knows that the connection has ended, or its process is dead."""
        self._network = network
        self._stream = stream
        self._protocol: asyncio.Protocol | None = None
        self._closing = False
        self._eof_sent = False
        self._under_way: deque[bytes | object] = deque()
        """To this end: bytes, then perhaps the end of the stream."""
        self._last_at = 0.0
        self._unread = 0
        """Bytes that this end's process has not read."""

    def start(self, protocol: asyncio.Protocol) -> None:
        self._protocol = protocol
        protocol.connection_made(self)

    # ---- as the protocol of this end sees it

    def write(self, data: Any) -> None:
        if self._closing or not data:
            return
        assert not self._eof_sent, "write after write_eof"
        network = self._network
        faults, random = network.link_faults, network.scheduler.random
        network.note(data)
        if faults.silence and random.random() < faults.silence:
            self._stream.fall_silent()
        if faults.breaks and random.random() < faults.breaks:
            network.scheduler.after(random.uniform(0.0, BREAK_S), self._stream.reset)
        self.other._unread += len(data)
        self.other._put(bytes(data))

    def get_write_buffer_size(self) -> int:
        faults, random = self._network.link_faults, self._network.scheduler.random
        if faults.full and random.random() < faults.full:
            return _FULL
        return max(0, self.other._unread - SOCKET_BYTES)

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        if not self._eof_sent and not self._closing:
            self._eof_sent = True
            self.other._put(_ENDED)

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        if not self._closing:
            self.write_eof()
            self._closing = True
            self.process.loop.call_soon(self._lost, None)

    def abort(self) -> None:
        if not self.is_over:
            self.other._put(_RESET)
            self._closing = True
            self.process.loop.call_soon(self._lost, None)

    def _lost(self, error: Exception | None) -> None:
        if not self.is_over:
            self._over()
            if self._protocol is not None:
                self._protocol.connection_lost(error)

    def _over(self) -> None:
        self.is_over = self._closing = True
        self._stream.forget()

    # ---- what happens to it

    def died(self) -> None:
        """Its process is dead."""
        if not self.is_over:
            is_reset = self._network.scheduler.random.random() < RESET_SHARE
            if is_reset:
                self.other._drop()
            self.other._put(_RESET if is_reset else _ENDED)
            self._over()

    def lose_all(self, error: Exception) -> None:
        self._drop()
        if not self.is_over:
            self.process.loop.call_soon(self._lost, error)

    def _drop(self) -> None:
        self._under_way.clear()

    def _put(self, what: bytes | object) -> None:
        """The other end sent something."""
        self._under_way.append(what)
        self.arrive_later()

    def arrive_later(self) -> None:
        if self._under_way:
            scheduler = self._network.scheduler
            self._last_at = max(scheduler.now + self._network.delay(), self._last_at)
            scheduler.after(self._last_at - scheduler.now, self._arrive)

    def _arrive(self) -> None:
        """All that is under way arrives, or a piece of it: TCP knows no boundaries."""
        under_way = self._under_way
        network = self._network
        if not under_way or self.is_silent or (self.other.process.name, self.process.name) in network.cuts:
            return
        data = b""
        while under_way and isinstance(under_way[0], bytes):
            data += under_way.popleft()  # type: ignore[operator]
        random = network.scheduler.random
        if len(data) > 1 and random.random() < PIECES_SHARE:
            cut = random.randrange(1, len(data))
            under_way.appendleft(data[cut:])
            data = data[:cut]
            network.streams.pieces += 1
            self.arrive_later()
        if data:
            self.process.loop.call_soon(self._read, data)
        if under_way and not isinstance(under_way[0], bytes):
            self.process.loop.call_soon(self._ends, under_way.popleft())

    def _read(self, data: bytes) -> None:
        self._unread -= len(data)
        if self._closing:
            self.other._put(_RESET)  # nobody reads here any more
        elif self._protocol is not None:
            self._protocol.data_received(data)

    def _ends(self, how: object) -> None:
        if self.is_over:
            return
        if how is _RESET:
            self._lost(ConnectionResetError())
        elif self._protocol is None or not self._protocol.eof_received():
            self.close()
