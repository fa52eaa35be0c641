"""The sockets of the simulation: `Context`, `Router` and `Dealer` have the methods of `meshim.runtime.sockets`."""

from collections.abc import Callable

from meshim.runtime.sockets import Guarding, RouterStatistics, SendResult
from tests.sim.network import Network
from tests.sim.scheduler import Process
from tests.sim.wires import Wire

HWM = 1_000
"""Frames that may wait in a socket, unless its owner says otherwise."""


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
