"""Connections between processes, as faithful to TCP as the promises need.

Within one connection no frame is lost, doubled or overtaken.  What goes wrong is the connection:

    breaks      it ends some time after a frame was sent; the frames that have not arrived by then, in both directions,
                are lost
    silence     from one frame on nothing arrives any more, in one direction or both, and neither end is told; the
                heartbeats of ZMTP or the keepalive of TCP end the connection later, if no timer of the ends does
    cut         no frame arrives for some time; then all of them do, in order, unless the connection has ended
    full        a frame finds no room in the socket, and the sender is told: by chance, or because the other end has
                not read `hwm` frames

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
from tests.sim.streams import Streams

HWM = 1_000
"""Frames that may wait in a socket, unless its owner says otherwise."""
HEARTBEATS_S = 6.0
"""Until heartbeats end a silent connection: one every 2 s, and a timeout of 4 s."""
KEEPALIVE_S = 10.0
"""Until TCP keepalive ends the connection to a host that does not answer (options.py)."""

BREAK_S = 0.05
"""Maximum time from a frame until the connection that it breaks has ended: it may arrive, and others behind it."""
UNTOLD = 0.5
"""Share of the connections that end without news for the ROUTER: a host has vanished, or a load balancer stays."""
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

            def is_silent(wire: "Wire", heartbeats: bool = heartbeats) -> bool:
                return self.is_cut(wire) and wire.dealer.heartbeats == heartbeats

            self.scheduler.after(within_s, functools.partial(self._end_silent, is_silent))

    def restore(self, one: str, other: str) -> None:
        """Let frames arrive in both directions again: TCP sends those that were held back."""
        self.cuts -= {(one, other), (other, one)}
        for router in list(self.routers.values()):
            for wire in list(router.wires.values()):
                wire.release()
        self.streams.release()

    def is_cut(self, wire: "Wire") -> bool:
        return self.are_cut(wire.dealer.process.name, wire.router.process.name)

    def are_cut(self, one: str, other: str) -> bool:
        return (one, other) in self.cuts or (other, one) in self.cuts

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
        self.streams.died(process)

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
        names = dealer.process.name, router.process.name
        self._up = Direction(self, names, lambda frame: router.process.loop.call_soon(self._take_up, frame), router.hwm)
        self._down = Direction(
            self, names[::-1], lambda frame: dealer.process.loop.call_soon(self._take_down, frame), dealer.hwm
        )

    def to_router(self, frame: bytes) -> bool:
        self.recent.append((self._network.scheduler.now, frame))
        return self._up.send(frame)

    def to_dealer(self, frame: bytes) -> bool:
        return self._down.send(frame)

    def _take_up(self, frame: bytes) -> None:
        self._up.unread -= 1
        self.router.take(self, frame)

    def _take_down(self, frame: bytes) -> None:
        self._down.unread -= 1
        self.dealer.take(frame)

    def release(self) -> None:
        """Send what was held back, if the way is free again."""
        self._up.release()
        self._down.release()

    def fall_silent(self) -> None:
        """Let nothing arrive any more, in one direction or both; the system finds it later."""
        random = self._network.scheduler.random
        directions = random.choice([(self._up,), (self._down,), (self._up, self._down)])
        for direction in directions:
            direction.is_silent = True
        self._network.scheduler.after(HEARTBEATS_S if self.dealer.heartbeats else KEEPALIVE_S, self.end)

    def end(self) -> None:
        """End the connection: the dealer gets `lose`, the router loses the peer.

        The router is told a little later, or not at all: then it notices when it next sends.
        """
        if self.is_open:
            self.is_open = False
            self.router.wires.pop(self.peer, None)
            self._network.scheduler.after(self._network.delay(), self.dealer.lose)
            if self._network.scheduler.random.random() >= UNTOLD and not self._network.is_cut(self):
                self._network.scheduler.after(self._network.delay(), lambda: self.router.lose(self.peer))


class Direction:
    """One direction of a connection: frames arrive in order, once, or not any more."""

    def __init__(self, wire: Wire, names: tuple[str, str], arrive: Callable[[bytes], object], hwm: int) -> None:
        self.is_silent = False
        self.unread = 0
        """Frames that the other end has not taken: under way, held back, or waiting in its socket."""
        self._wire = wire
        self._names = names
        self._arrive = arrive
        self._hwm = hwm
        self._network = wire._network
        self._under_way: deque[bytes] = deque()
        self._last_at = 0.0

    def send(self, frame: bytes) -> bool:
        """Send a frame, and let happen what its faults are; False when there is no room for it."""
        network = self._network
        faults, random = network.link_faults, network.scheduler.random
        if self.unread >= self._hwm or (faults.full and random.random() < faults.full):
            return False
        network.note(frame)
        if faults.silence and random.random() < faults.silence:
            self._wire.fall_silent()
        if faults.breaks and random.random() < faults.breaks:
            network.scheduler.after(random.uniform(0.0, BREAK_S), self._wire.end)
        self.unread += 1
        self._under_way.append(frame)
        self._arrive_later()
        return True

    def release(self) -> None:
        for _ in self._under_way:
            self._arrive_later()

    def _arrive_later(self) -> None:
        scheduler = self._network.scheduler
        self._last_at = max(scheduler.now + self._network.delay(), self._last_at)
        scheduler.after(self._last_at - scheduler.now, self._next_arrives)

    def _next_arrives(self) -> None:
        """The oldest frame under way arrives, unless something holds all of them back."""
        is_held = self.is_silent or self._names in self._network.cuts
        if self._wire.is_open and self._under_way and not is_held:
            self._arrive(self._under_way.popleft())


class Router:
    """As `meshim.runtime.sockets.Router`."""

    def __init__(
        self,
        network: Network,
        process: Process,
        endpoint: str,
        on_batch: Callable[[list[tuple[bytes, bytes]]], None],
        guarding: Guarding | None,
        hwm: int,
    ) -> None:
        self.statistics = RouterStatistics()
        self.hwm = hwm
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
        if wire.to_dealer(frame):
            return SendResult.OK
        self.statistics.full += 1
        return SendResult.FULL

    def lose(self, peer: bytes) -> None:
        if self._guarding is not None and self.process.alive:
            self.process.loop.call_soon(self._report, peer)

    def _report(self, peer: bytes) -> None:
        if self._guarding is not None and not self.is_closed:
            self._guarding.on_gone(peer)

    def close_peer(self, peer: bytes, *, was_authenticated: bool = False) -> None:
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
        hwm: int,
    ) -> None:
        self.hwm = hwm
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
        return self.wire.to_router(frame)

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
        hwm: int = HWM,
        **_: object,
    ) -> Router:
        return Router(self._network, self._process, bind, on_batch, guarding, hwm)

    def dealer(
        self,
        endpoint: str,
        *,
        on_batch: Callable[[list[bytes]], None],
        on_lost: Callable[[], None] | None,
        on_connected: Callable[[], None] | None = None,
        heartbeat_s: float | None = 2.0,
        hwm: int = HWM,
        **_: object,
    ) -> Dealer:
        heartbeats = heartbeat_s is not None
        return Dealer(
            self._network, self._process, endpoint, on_batch, on_connected, on_lost, heartbeats=heartbeats, hwm=hwm
        )

    def close(self) -> None:
        """Nothing to do: sockets are closed one by one, or when the process dies."""
