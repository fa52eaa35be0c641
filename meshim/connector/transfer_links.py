"""The connector's links to transfers.

::

    CONNECTING ──CONNECTED──▶ GREETING ──HELLO_OK──▶ OPEN
     ▲     │                     │                    │
     │     └──────LOST───────────┴─────────LOST───────┘   closed, silent, protocol broken, socket full: the
     │                           ▼                        unacknowledged items of the link go to other transfers (R6)
     └────────RETRY────────── WAITING                     after `reconnect_s`, with a new epoch

A conversation belongs to one open link by rendezvous hashing.  What goes back to the connector that a message came from
takes a link whose transfer has delivered for that connector, if the one of the conversation has not: connectors find a
new transfer at different times, and a transfer drops what is for a connector that it does not know yet.  A link is made
again for as long as its transfer holds a lease.
"""

import enum
from collections.abc import Callable, Iterable

import msgspec

from meshim.connector.events import (
    Action,
    ConnectTransfer,
    DisconnectTransfer,
    SendTransfer,
    TransferConnected,
    TransferLost,
    TransfersDiscovered,
)
from meshim.connector.statistics import Statistics
from meshim.errors import Code, PeerError
from meshim.protocol.flush_queue import FlushQueue
from meshim.protocol.link import Link, LinkOptions
from meshim.protocol.routing import conversation_of, pick
from meshim.wire import mesh as wire
from meshim.wire.bounds import INTEGER_MAX
from meshim.wire.envelope import EPHEMERAL_FROM, WIRE_VERSION, DestinationType
from meshim.wire.link import Close
from meshim.wire.mesh import FromConnector, FromTransfer, Hello, HelloOk, Return, Route
from meshim.wire.outcome import CopyOutcome
from meshim.wire.sizes import mesh_item_size

ROUTES = 100_000
"""Conversations whose link is cached."""
ORIGINS = 4_096
"""Connectors of which it is kept which transfers have delivered for them."""
_GROUP = int(DestinationType.GROUP)  # as a plain number, because it is compared with every message


class State(enum.Enum):
    CONNECTING = enum.auto()
    GREETING = enum.auto()
    OPEN = enum.auto()
    WAITING = enum.auto()
    """Lost; connected again at `retry_at`."""


class _Trigger(enum.Enum):
    CONNECTED = enum.auto()
    HELLO_OK = enum.auto()
    LOST = enum.auto()
    RETRY = enum.auto()


_TRANSITIONS: dict[tuple[State, _Trigger], State] = {
    (State.CONNECTING, _Trigger.CONNECTED): State.GREETING,
    (State.CONNECTING, _Trigger.LOST): State.WAITING,
    (State.GREETING, _Trigger.HELLO_OK): State.OPEN,
    (State.GREETING, _Trigger.LOST): State.WAITING,
    (State.OPEN, _Trigger.LOST): State.WAITING,
    (State.WAITING, _Trigger.RETRY): State.CONNECTING,
}
"""A trigger without an entry is late, of an earlier connection, or sent twice by the transfer: nothing happens."""


class _Transfer:
    __slots__ = ("link", "retry_at", "state")

    def __init__(self) -> None:
        self.state = State.CONNECTING
        self.link: Link[FromConnector, FromTransfer] | None = None
        self.retry_at = 0.0

    def move(self, trigger: _Trigger) -> bool:
        """Change `state` by the table; False, and no change, when the trigger has no entry."""
        state = _TRANSITIONS.get((self.state, trigger))
        if state is None:
            return False
        self.state = state
        return True


class TransferLinks:
    """All links of one connector."""

    def __init__(
        self, incarnation: int, name: str, options: LinkOptions, reconnect_s: float, statistics: Statistics,
        emit: Callable[[Action], None],
    ) -> None:  # fmt: skip
        """`emit` takes the actions."""
        self._incarnation = incarnation
        self._name = name
        self._options = options
        self._reconnect_s = reconnect_s
        self._statistics = statistics
        self._emit = emit
        self._transfers: dict[int, _Transfer] = {}
        self._open: dict[int, Link[FromConnector, FromTransfer]] = {}
        self._routes: dict[tuple[int, int], tuple[int, Link[FromConnector, FromTransfer]]] = {}
        self._delivered_for: dict[int, set[int]] = {}
        """Incarnation of a connector to the open transfers that have delivered messages of it."""
        self._flush_queue: FlushQueue[int] = FlushQueue()
        self._discovered: set[int] = set()
        self._epoch = incarnation

    # ---- routing

    def send(self, item: Route | Return) -> bool:
        """Queue a message on the link of its conversation; False when no transfer is open or the link is full."""
        stamp = item.stamp
        to = stamp.to
        route = self._route(stamp.user, to.id if to.type != _GROUP else 0)
        if stamp.origin != self._incarnation:
            route = self._back(stamp.origin, route)
        if route is None or not route[1].push(item):
            return False
        self._flush_queue.mark(*route)
        return True

    def send_outcome(self, outcome: CopyOutcome) -> bool:
        """The same for an outcome, which may be coalesced with others."""
        route = self._back(outcome.origin, self._route(outcome.user, outcome.to.id))
        if route is None or not route[1].push(outcome, deferrable=True):
            return False
        self._flush_queue.mark(*route)
        return True

    def _route(self, one: int, other: int) -> "tuple[int, Link[FromConnector, FromTransfer]] | None":
        """The transfer of the conversation of two users, in either order, and the link to it."""
        route = self._routes.get((one, other))
        if route is None:
            transfer = pick(conversation_of(one, other), self._open)
            if transfer is None:
                return None
            if len(self._routes) >= ROUTES:
                self._routes.clear()
            route = self._routes[one, other] = (transfer, self._open[transfer])
        return route

    def _back(
        self, origin: int, route: "tuple[int, Link[FromConnector, FromTransfer]] | None"
    ) -> "tuple[int, Link[FromConnector, FromTransfer]] | None":
        """The link of the conversation, or else one whose transfer has a link to the connector `origin`."""
        if route is None or len(self._open) == 1:
            return route
        transfers = self._delivered_for.get(origin)
        if not transfers or route[0] in transfers:
            return route
        transfer = next(iter(transfers))
        return transfer, self._open[transfer]

    @property
    def flush_at(self) -> float:
        """When coalesced outcomes have to leave; `inf` when there are none."""
        return self._flush_queue.flush_at

    @property
    def open(self) -> int:
        """The number of open links."""
        return len(self._open)

    @property
    def idle(self) -> bool:
        """Whether nothing waits for an acknowledgement."""
        return all(link.window.idle for link in self._open.values())

    # ---- membership

    def discovered(self, event: TransfersDiscovered, now: float) -> None:
        """Connect to new transfers, and leave those whose lease ended and whose link is not open."""
        self._discovered = wanted = set(event.transfers)
        for gone in self._transfers.keys() - wanted:
            if self._transfers[gone].state is State.OPEN:
                # Without a lease, but connected: the lease may be renewed late (R9), so the heartbeat decides.
                continue
            self._transfers.pop(gone)
            self._emit(DisconnectTransfer(gone))
        for new in wanted - self._transfers.keys():
            self._transfers[new] = _Transfer()
            self._emit(ConnectTransfer(new))

    def connected(self, event: TransferConnected, now: float) -> None:
        """Greet the transfer, with a new epoch of the link."""
        transfer = event.transfer
        entry = self._transfers.get(transfer)
        if entry is None or not entry.move(_Trigger.CONNECTED):
            return
        self._epoch = (self._epoch + 1) & INTEGER_MAX
        entry.link = Link(self._epoch, self._options, mesh_item_size, now)
        hello = Hello(
            version=WIRE_VERSION, link=self._epoch, incarnation=self._incarnation, name=self._name,
            window=self._options.window.credit,
        )  # fmt: skip
        self._emit(SendTransfer(transfer, wire.encode(hello)))

    def lost(self, event: TransferLost, now: float) -> None:
        """The connection ended, was not made, or had no room for a frame."""
        self._lose(event.transfer, now)

    def _lose(self, transfer: int, now: float) -> None:
        """Send the unacknowledged items of the link to other transfers, and connect again after `reconnect_s`."""
        entry = self._transfers.get(transfer)
        if entry is None or not entry.move(_Trigger.LOST):
            return
        link, entry.link = entry.link, None
        entry.retry_at = now + self._reconnect_s
        self._emit(DisconnectTransfer(transfer))
        if transfer not in self._discovered:
            del self._transfers[transfer]
        self._flush_queue.discard(transfer)
        if self._open.pop(transfer, None) is None or link is None:
            return
        self._routes.clear()
        for transfers in self._delivered_for.values():
            transfers.discard(transfer)
        for item in link.window.abandon():
            self._reroute(item)

    def _reroute(self, item: FromConnector) -> None:
        count = self._statistics
        if not isinstance(item, CopyOutcome) and item.stamp.kind >= EPHEMERAL_FROM:
            count.ephemeral_dropped += 1
        elif self.send_outcome(item) if isinstance(item, CopyOutcome) else self.send(item):
            count.rerouted += 1
        elif isinstance(item, CopyOutcome):
            count.outcomes_lost += 1
        elif isinstance(item, Route):
            count.route_failures += 1
        else:
            count.return_failures += 1

    # ---- frames

    def receive(self, transfer: int, batch: Iterable[bytes], now: float) -> list[FromTransfer]:
        """Receive frames of one transfer; returns the items to process, in order."""
        items: list[FromTransfer] = []
        entry = self._transfers.get(transfer)
        for data in batch:
            if entry is None or entry.link is None:
                break
            try:
                frame = wire.decode_from_transfer(data)
                if frame.link != entry.link.epoch:
                    continue  # of an earlier epoch of this link
                if isinstance(frame, HelloOk):
                    self._opened(transfer, entry, frame)
                else:
                    items.extend(entry.link.receive(frame, now)[0])
            except (msgspec.DecodeError, PeerError):
                self._statistics.malformed += 1
                self._lose(transfer, now)
                break
            if entry.link.closed_by is not None:
                self._lose(transfer, now)
                break
        if transfer in self._open:
            self._flush_queue.mark(transfer, self._open[transfer])
            self._note_origins(transfer, items)
        return items

    def _note_origins(self, transfer: int, items: Iterable[FromTransfer]) -> None:
        known = self._delivered_for
        for item in items:
            if isinstance(item, CopyOutcome):
                continue
            origin = item.stamp.origin
            if (transfers := known.get(origin)) is None:
                if len(known) >= ORIGINS:
                    known.clear()
                transfers = known[origin] = set()
            transfers.add(transfer)

    def _opened(self, transfer: int, entry: _Transfer, frame: HelloOk) -> None:
        assert entry.link is not None
        if frame.incarnation == transfer and entry.move(_Trigger.HELLO_OK):
            entry.link.window.credit = min(frame.window, self._options.window.credit)
            self._open[transfer] = entry.link
            self._routes.clear()

    def flush(self, now: float) -> None:
        for transfer, frame in self._flush_queue.flush(now):
            self._emit(SendTransfer(transfer, wire.encode(frame)))

    def tick(self, now: float) -> None:
        """Connect again, send heartbeats, and give up silent links."""
        for transfer, entry in list(self._transfers.items()):
            if entry.state is State.WAITING:
                if now >= entry.retry_at:
                    entry.move(_Trigger.RETRY)
                    self._emit(ConnectTransfer(transfer))
            elif entry.link is not None:
                if entry.link.failed(now):
                    self._lose(transfer, now)
                elif entry.state is State.OPEN:
                    for frame in entry.link.tick(now):
                        self._emit(SendTransfer(transfer, wire.encode(frame)))

    def close(self) -> None:
        """Send Close on every link.  The transfers go on with the items that they have received."""
        for transfer, entry in self._transfers.items():
            if entry.link is not None:
                close = Close(entry.link.epoch, Code.SHUTTING_DOWN, "this connector is leaving")
                self._emit(SendTransfer(transfer, wire.encode(close)))

    def next_deadline(self) -> float | None:
        deadlines: list[float] = []
        for entry in self._transfers.values():
            if entry.state is State.WAITING:
                deadlines.append(entry.retry_at)
            elif entry.link is not None:
                # A link that is greeting can only give up.
                silent = entry.link.received_at + self._options.silence_s
                deadlines.append(entry.link.next_deadline() if entry.state is State.OPEN else silent)
        return min(deadlines, default=None)
