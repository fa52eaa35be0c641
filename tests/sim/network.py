"""Connections between processes, as faithful to TCP as the promises need.

Within one connection no frame is lost, doubled or overtaken.  What goes wrong is the connection:

    breaks      it ends some time after a frame was sent; the frames that have not arrived by then, in both directions,
                are lost
    silence     from one frame on nothing arrives any more, in one direction or both, and neither end is told; the
                heartbeats of ZMTP or the keepalive of TCP end the connection later, if no timer of the ends does
    cut         no frame arrives for some time; then all of them do, in order, unless the connection has ended
    full        a frame finds no room in the socket, and the sender is told: by chance, or because the other end has
                not read `hwm` frames

`sockets.py` stands in for `meshim.runtime.sockets`, `wires.py` is one connection.  It is made once.  It ends when one
end closes it or dies, when ZMTP heartbeats find the other end stopped or unreachable, or, without heartbeats, when TCP
keepalive finds the other end unreachable.
"""

import functools
import itertools
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from tests.sim.scheduler import Process, Scheduler
from tests.sim.streams import Streams
from tests.sim.wires import HEARTBEATS_S, KEEPALIVE_S, Wire

if TYPE_CHECKING:
    from tests.sim.sockets import Dealer, Router

QUEUED_S = 0.5
"""Frames that a DEALER sent within this time may still be queued in it when the other end dies."""


class LinkFaults(NamedTuple):
    """The delay of frames in seconds, and the shares of frames with which something happens to their connection."""

    delay_s: float = 0.002
    """Maximum delay of a frame; the minimum is half of it."""
    breaks: float = 0.0
    """Share of frames after which the connection breaks, within `BREAK_S`."""
    silence: float = 0.0
    """Share of frames from which on the connection is silent."""
    full: float = 0.0
    """Share of frames that find no room in the socket."""


NO_LINK_FAULTS = LinkFaults()


class Network:
    """All connections of a run."""

    def __init__(self, scheduler: Scheduler, *, replayed: float = 0.0) -> None:
        """`replayed`: of the frames queued for a process that dies, the share that its successor gets (R13)."""
        self.scheduler = scheduler
        self.link_faults = NO_LINK_FAULTS
        self.digest = 0
        """CRC-32 of all frames that were sent, in order: equal for two equal runs."""
        self.cuts: set[tuple[str, str]] = set()
        """(sender, receiver), names of processes: no frame arrives in this direction."""
        self.routers: dict[str, Router] = {}
        """By endpoint."""
        self.on_stale: Callable[[], None] = lambda: None
        """Called for every frame for a dead process that its successor gets."""
        self._replayed = replayed
        self._stale: dict[str, list[bytes]] = {}
        self._numbers = itertools.count(1)
        self.streams = Streams(self)
        """The connections of WebSocket."""

    # ---- faults

    def cut(self, one: str, other: str, *, both: bool) -> None:
        """Let no frame arrive from one process at the other, nor back with `both`."""
        self.cuts.add((one, other))
        if both:
            self.cuts.add((other, one))
        for within_s, heartbeats in ((HEARTBEATS_S, True), (KEEPALIVE_S, False)):

            def is_silent(wire: Wire, heartbeats: bool = heartbeats) -> bool:
                return self.is_cut(wire) and wire.dealer.heartbeats == heartbeats

            self.scheduler.after(within_s, functools.partial(self._end_silent, is_silent))

    def restore(self, one: str, other: str) -> None:
        """Let frames arrive in both directions again: TCP sends those that were held back."""
        self.cuts -= {(one, other), (other, one)}
        for router in list(self.routers.values()):
            for wire in list(router.wires.values()):
                wire.release()
        self.streams.release()

    def is_cut(self, wire: Wire) -> bool:
        return self.are_cut(wire.dealer.process.name, wire.router.process.name)

    def are_cut(self, one: str, other: str) -> bool:
        return (one, other) in self.cuts or (other, one) in self.cuts

    def stopped(self, process: Process) -> None:
        """A process was paused: heartbeats end its connections if the pause lasts."""
        since = process.paused_at

        def is_silent(wire: Wire) -> bool:
            ends = wire.dealer.process, wire.router.process
            still = not process.running and process.paused_at == since
            return process in ends and still and wire.dealer.heartbeats

        self.scheduler.after(HEARTBEATS_S, lambda: self._end_silent(is_silent))

    def _end_silent(self, is_silent: Callable[[Wire], bool]) -> None:
        for router in list(self.routers.values()):
            for wire in list(router.wires.values()):
                if is_silent(wire):
                    wire.end()

    def died(self, process: Process) -> None:
        """Close the sockets of a dead process, as the operating system does."""
        for endpoint, router in list(self.routers.items()):
            for wire in list(router.wires.values()):
                if wire.dealer.process is process:
                    wire.end()
                elif router.process is process:
                    self._keep_stale(process.name, wire)
                    wire.end()
            if router.process is process:
                del self.routers[endpoint]
        self.streams.died(process)

    def _keep_stale(self, name: str, wire: Wire) -> None:
        """R13: a DEALER that reconnects by itself, as a client in another language may, sends its queued frames."""
        random = self.scheduler.random
        frames = [frame for at, frame in wire.recent if self.scheduler.now - at < QUEUED_S]
        self._stale.setdefault(name, []).extend(frame for frame in frames if random.random() < self._replayed)

    # ---- connections

    def bind(self, router: "Router") -> None:
        self.routers[router.endpoint] = router
        for frame in self._stale.pop(router.process.name, ()):
            self._deliver_stale(router, frame)

    def _deliver_stale(self, router: "Router", frame: bytes) -> None:
        self.on_stale()
        peer = self.number()
        router.process.loop.call_soon(router.on_batch, [(peer, frame)])

    def connect(self, dealer: "Dealer") -> None:
        router = self.routers.get(dealer.endpoint)
        delay = self.delay()
        if router is None:
            self.scheduler.after(delay, dealer.lose)  # refused
            return

        def accepted() -> None:
            wire = Wire(self, dealer, router, self.number())
            if dealer.is_closed or router.is_closed:
                dealer.lose()
            elif router.process.running and not self.is_cut(wire):
                router.wires[wire.peer] = dealer.wire = wire
                self.scheduler.after(self.delay(), dealer.connected)
            else:
                self.scheduler.after(10.0, dealer.lose)  # the handshake gets no answer

        self.scheduler.after(delay, accepted)

    def note(self, frame: bytes) -> None:
        self.digest = zlib.crc32(frame, self.digest)

    def number(self) -> bytes:
        return next(self._numbers).to_bytes(5, "big")

    def delay(self) -> float:
        longest = self.link_faults.delay_s
        return self.scheduler.random.uniform(longest / 2, longest)
