"""One connection between a DEALER and a ROUTER, in two directions: what may happen to it is in `network.py`."""

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.sim.network import Network
    from tests.sim.sockets import Dealer, Router

HEARTBEATS_S = 6.0
"""Until heartbeats end a silent connection: one every 2 s, and a timeout of 4 s."""
KEEPALIVE_S = 10.0
"""Until TCP keepalive ends the connection to a host that does not answer (options.py)."""
BREAK_S = 0.05
"""Maximum time from a frame until the connection that it breaks has ended: it may arrive, and others behind it."""
UNTOLD = 0.5
"""Share of the connections that end without news for the ROUTER: a host has vanished, or a load balancer stays."""


class Wire:
    """One connection between a DEALER and a ROUTER."""

    def __init__(self, network: "Network", dealer: "Dealer", router: "Router", peer: bytes) -> None:
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
