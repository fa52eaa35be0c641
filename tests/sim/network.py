"""Connections between processes: frames take time, and are lost, duplicated and reordered as `LinkFaults` say.

Stands in for `meshim.runtime.sockets`: `Context`, `Router` and `Dealer` have the same methods.  A connection
is made once.  It ends when one end closes it or dies, when ZMTP heartbeats find the other end stopped or unreachable,
or, without heartbeats, when TCP keepalive finds the other end unreachable.
"""

import functools
import itertools
import zlib
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from meshim.runtime.sockets import Guarding, RouterStatistics, SendResult
from tests.sim.scheduler import Process, Scheduler

HEARTBEATS_S = 6.0
"""Until heartbeats end a silent connection: one every 2 s, and a timeout of 4 s."""
KEEPALIVE_S = 10.0
"""Until TCP keepalive ends the connection to a host that does not answer (options.py)."""

QUEUED_S = 0.5
"""Frames that a DEALER sent within this time may still be queued in it when the other end dies."""


class LinkFaults(NamedTuple):
    """The delay of frames in seconds, and the shares of frames with a fault."""

    delay_s: float = 0.002
    """Maximum delay of a frame without a fault; the minimum is half of it."""
    loss: float = 0.0
    duplication: float = 0.0
    reordering: float = 0.0
    """Share of frames that take up to `reorder_delay_s` longer, so that later frames overtake them."""
    reorder_delay_s: float = 0.5


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
        """(sender, receiver), names of processes: no frame passes in this direction."""
        self.routers: dict[str, Router] = {}
        """By endpoint."""
        self.on_stale: Callable[[], None] = lambda: None
        """Called for every frame for a dead process that its successor gets."""
        self._replayed = replayed
        self._stale: dict[str, list[bytes]] = {}
        self._numbers = itertools.count(1)

    # ---- faults

    def cut(self, one: str, other: str, *, both: bool) -> None:
        """Let no frame pass from one process to the other, nor back with `both`."""
        self.cuts.add((one, other))
        if both:
            self.cuts.add((other, one))
        for within_s, heartbeats in ((HEARTBEATS_S, True), (KEEPALIVE_S, False)):

            def is_silent(wire: "Wire", heartbeats: bool = heartbeats) -> bool:
                return self.is_cut(wire) and wire.dealer.heartbeats == heartbeats

            self.scheduler.after(within_s, functools.partial(self._end_silent, is_silent))

    def restore(self, one: str, other: str) -> None:
        """Let frames pass in both directions again."""
        self.cuts -= {(one, other), (other, one)}

    def is_cut(self, wire: "Wire") -> bool:
        names = wire.dealer.process.name, wire.router.process.name
        return names in self.cuts or names[::-1] in self.cuts

    def stopped(self, process: Process) -> None:
        """A process was paused: heartbeats end its connections if the pause lasts."""
        since = process.paused_at

        def is_silent(wire: "Wire") -> bool:
            ends = wire.dealer.process, wire.router.process
            still = not process.running and process.paused_at == since
            return process in ends and still and wire.dealer.heartbeats

        self.scheduler.after(HEARTBEATS_S, lambda: self._end_silent(is_silent))

    def _end_silent(self, is_silent: Callable[["Wire"], bool]) -> None:
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

    def _keep_stale(self, name: str, wire: "Wire") -> None:
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


class Wire:
    """One connection between a DEALER and a ROUTER."""

    def __init__(self, network: Network, dealer: "Dealer", router: "Router", peer: bytes) -> None:
        self.dealer = dealer
        self.router = router
        self.peer = peer
        self.is_open = True
        self.recent: deque[tuple[float, bytes]] = deque(maxlen=16)
        """(time of sending, frame) of the latest frames to the router."""
        self._network = network
        self._last = [0.0, 0.0]

    def to_router(self, frame: bytes) -> None:
        self._network.note(frame)
        self.recent.append((self._network.scheduler.now, frame))
        names = self.dealer.process.name, self.router.process.name

        def arrive() -> None:
            if self.is_open:
                self.router.process.loop.call_soon(self.router.take, self, frame)

        self._send(0, names, arrive)

    def to_dealer(self, frame: bytes) -> None:
        self._network.note(frame)
        names = self.router.process.name, self.dealer.process.name

        def arrive() -> None:
            if self.is_open:
                self.dealer.process.loop.call_soon(self.dealer.take, frame)

        self._send(1, names, arrive)

    def _send(self, direction: int, names: tuple[str, str], arrive: Callable[[], None]) -> None:
        network, link_faults = self._network, self._network.link_faults
        scheduler = network.scheduler
        chance = scheduler.random.random
        if names in network.cuts or (link_faults.loss and chance() < link_faults.loss):
            return
        delay = network.delay()
        if link_faults.reordering and chance() < link_faults.reordering:
            scheduler.after(delay + link_faults.reorder_delay_s * chance(), arrive)
        else:
            at = self._last[direction] = max(scheduler.now + delay, self._last[direction])
            scheduler.after(at - scheduler.now, arrive)
        if link_faults.duplication and chance() < link_faults.duplication:
            scheduler.after(delay + link_faults.reorder_delay_s * chance(), arrive)

    def end(self) -> None:
        """End the connection: the dealer gets `lose`, the router notices when it next sends."""
        if self.is_open:
            self.is_open = False
            self.router.wires.pop(self.peer, None)
            self._network.scheduler.after(self._network.delay(), self.dealer.lose)


class Router:
    """As `meshim.runtime.sockets.Router`."""

    def __init__(
        self,
        network: Network,
        process: Process,
        endpoint: str,
        on_batch: Callable[[list[tuple[bytes, bytes]]], None],
        guarding: Guarding | None,
    ) -> None:
        self.statistics = RouterStatistics()
        self.process = process
        self.endpoint = endpoint
        self.on_batch = on_batch
        self.wires: dict[bytes, Wire] = {}
        self.is_closed = False
        self._network = network
        self._guarding = guarding
        network.bind(self)

    def take(self, wire: Wire, frame: bytes) -> None:
        if not self.is_closed:
            self.on_batch([(wire.peer, frame)])

    def send(self, peer: bytes, frame: bytes) -> SendResult:
        wire = self.wires.get(peer)
        if wire is None:
            return SendResult.GONE
        wire.to_dealer(frame)
        return SendResult.OK

    def close_peer(self, peer: bytes) -> None:
        wire, guarding = self.wires.get(peer), self._guarding
        assert guarding is not None, "only a guarded ROUTER knows the connections of its peers"

        def cut() -> None:
            if wire is not None and not guarding.is_authenticated(peer):
                wire.end()

        self.process.loop.call_later(guarding.linger_s, cut)

    def close(self, linger_ms: int = 0) -> None:
        self.is_closed = True
        self._network.routers.pop(self.endpoint, None)
        for wire in list(self.wires.values()):
            self._network.scheduler.after(linger_ms / 1000, wire.end)


class Dealer:
    """As `meshim.runtime.sockets.Dealer`."""

    def __init__(
        self,
        network: Network,
        process: Process,
        endpoint: str,
        on_batch: Callable[[list[bytes]], None],
        on_connected: Callable[[], None] | None,
        on_lost: Callable[[], None] | None,
        *,
        heartbeats: bool,
    ) -> None:
        self.process = process
        self.endpoint = endpoint
        self.heartbeats = heartbeats
        self.wire: Wire | None = None
        self.is_closed = False
        self._on_batch = on_batch
        self._on_connected = on_connected
        self._on_lost = on_lost
        network.connect(self)

    def connected(self) -> None:
        if self._on_connected is not None:
            self.process.loop.call_soon(lambda: self._on_connected and self._on_connected())

    def lose(self) -> None:
        if self._on_lost is not None:
            self.process.loop.call_soon(lambda: self._on_lost and self._on_lost())

    def take(self, frame: bytes) -> None:
        if not self.is_closed:
            self._on_batch([frame])

    def send(self, frame: bytes) -> bool:
        if self.wire is None or not self.wire.is_open:
            return False
        self.wire.to_router(frame)
        return True

    def close(self, linger_ms: int = 0) -> None:
        if not self.is_closed:
            self.is_closed = True
            self._on_connected = self._on_lost = None
            if self.wire is not None:
                # Frames that linger are sent first.
                self.wire.router.process.scheduler.after(linger_ms / 1000, self.wire.end)


class Context:
    """As `meshim.runtime.sockets.Context`, for one process."""

    def __init__(self, network: Network, process: Process) -> None:
        self._network = network
        self._process = process

    def router(
        self,
        bind: str,
        *,
        on_batch: Callable[[list[tuple[bytes, bytes]]], None],
        guarding: Guarding | None = None,
        **_: object,
    ) -> Router:
        return Router(self._network, self._process, bind, on_batch, guarding)

    def dealer(
        self,
        endpoint: str,
        *,
        on_batch: Callable[[list[bytes]], None],
        on_lost: Callable[[], None] | None,
        on_connected: Callable[[], None] | None = None,
        heartbeat_s: float | None = 2.0,
        **_: object,
    ) -> Dealer:
        heartbeats = heartbeat_s is not None
        return Dealer(self._network, self._process, endpoint, on_batch, on_connected, on_lost, heartbeats=heartbeats)

    def close(self) -> None:
        """Nothing to do: sockets are closed one by one, or when the process dies."""
