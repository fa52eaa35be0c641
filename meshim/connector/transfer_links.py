"""The connector's links to transfers.

::

    CONNECTING ──connected──▶ GREETING ──HelloOk──▶ OPEN
        ▲                        │                    │
        └──────── lost, reset, silent, no longer living ──▶ what it held goes to another transfer (R6)

A conversation belongs to one open link by rendezvous hashing.  A link that is lost is made anew, with a new
epoch, for as long as the transfer's lease lives.
"""

import enum
from collections.abc import Callable, Iterable

import msgspec

from meshim.connector.events import Action, ConnectTransfer, DisconnectTransfer, SendTransfer
from meshim.connector.statistics import Statistics
from meshim.errors import Code, PeerError
from meshim.protocol.flush_queue import FlushQueue
from meshim.protocol.link import Link, LinkOptions
from meshim.protocol.routing import conversation_of, pick
from meshim.wire import mesh as wire
from meshim.wire.envelope import EPHEMERAL_FROM, WIRE_VERSION, DestinationType
from meshim.wire.link import Close, Data
from meshim.wire.mesh import FromConnector, FromTransfer, Hello, HelloOk, Return, Route
from meshim.wire.outcome import Outcome
from meshim.wire.sizes import mesh_item_size

ROUTES = 100_000
"""Conversations whose link is remembered."""
_GROUP = int(DestinationType.GROUP)  # as a plain number: what is compared with every message


class State(enum.Enum):
    CONNECTING = enum.auto()
    GREETING = enum.auto()
    OPEN = enum.auto()
    WAITING = enum.auto()
    """Lost; to be tried again."""


class _Transfer:
    __slots__ = ("link", "retry_at", "state")

    def __init__(self) -> None:
        self.state = State.CONNECTING
        self.link: Link[FromConnector, FromTransfer] | None = None
        self.retry_at = 0.0


class TransferLinks:
    """All links of one connector."""

    def __init__(
        self, incarnation: int, name: str, options: LinkOptions, reconnect_s: float, statistics: Statistics,
        perform: Callable[[Action], None],
    ) -> None:  # fmt: skip
        self._incarnation = incarnation
        self._name = name
        self._options = options
        self._reconnect_s = reconnect_s
        self._statistics = statistics
        self._perform = perform
        self._transfers: dict[int, _Transfer] = {}
        self._open: dict[int, Link[FromConnector, FromTransfer]] = {}
        self._routes: dict[tuple[int, int], tuple[int, Link[FromConnector, FromTransfer]]] = {}
        self._flush_queue: FlushQueue[int] = FlushQueue()
        self._living: set[int] = set()
        self._epoch = incarnation

    # ---- routing

    def send(self, item: Route | Return) -> bool:
        """Queue a message on the link of its conversation; False when no transfer is open or the link is full."""
        stamp = item.stamp
        to = stamp.to
        route = self._route(stamp.user, to.id if to.type != _GROUP else 0)
        if route is None or not route[1].push(item):
            return False
        self._flush_queue.mark(*route)
        return True

    def tell(self, outcome: Outcome) -> bool:
        """The same for what became of one, which can wait for others."""
        route = self._route(outcome.user, outcome.to.id)
        if route is None or not route[1].push(outcome, deferrable=True):
            return False
        self._flush_queue.mark(*route)
        return True

    def _route(self, one: int, other: int) -> "tuple[int, Link[FromConnector, FromTransfer]] | None":
        """The transfer of their conversation, whoever of them speaks, and the link to it."""
        route = self._routes.get((one, other))
        if route is None:
            transfer = pick(conversation_of(one, other), self._open)
            if transfer is None:
                return None
            if len(self._routes) >= ROUTES:
                self._routes.clear()
            route = self._routes[one, other] = (transfer, self._open[transfer])
        return route

    @property
    def flush_at(self) -> float:
        """When something that waits for others has to leave; `inf` when nothing does."""
        return self._flush_queue.flush_at

    @property
    def open(self) -> int:
        return len(self._open)

    @property
    def idle(self) -> bool:
        """Nothing waits for an acknowledgement."""
        return all(link.window.idle for link in self._open.values())

    # ---- membership

    def living(self, transfers: Iterable[int]) -> None:
        self._living = wanted = set(transfers)
        for gone in self._transfers.keys() - wanted:
            if self._transfers[gone].state is State.OPEN:
                # A lapsed lease and a working connection: the lease may be late (R9); the heartbeat decides.
                continue
            self._transfers.pop(gone)
            self._perform(DisconnectTransfer(gone))
        for new in wanted - self._transfers.keys():
            self._transfers[new] = _Transfer()
            self._perform(ConnectTransfer(new))

    def connected(self, transfer: int, now: float) -> None:
        entry = self._transfers.get(transfer)
        if entry is None or entry.state is not State.CONNECTING:
            return
        self._epoch = (self._epoch + 1) & ((1 << 63) - 1)
        entry.state = State.GREETING
        entry.link = Link(self._epoch, self._options, mesh_item_size, now, size_of_received=mesh_item_size)
        hello = Hello(WIRE_VERSION, self._epoch, self._incarnation, self._name, self._options.window.credit)
        self._perform(SendTransfer(transfer, wire.encode(hello)))

    def lost(self, transfer: int, now: float) -> None:
        """Hand what the link held to the others and try again in a moment."""
        entry = self._transfers.get(transfer)
        if entry is None or entry.state is State.WAITING:
            return
        link, entry.link = entry.link, None
        entry.state = State.WAITING
        entry.retry_at = now + self._reconnect_s
        self._perform(DisconnectTransfer(transfer))
        if transfer not in self._living:
            del self._transfers[transfer]
        self._flush_queue.discard(transfer)
        if self._open.pop(transfer, None) is None or link is None:
            return
        self._routes.clear()
        for item in link.window.abandon():
            self._reroute(item)

    def _reroute(self, item: FromConnector) -> None:
        count = self._statistics
        if not isinstance(item, Outcome) and item.stamp.kind >= EPHEMERAL_FROM:
            count.ephemeral_dropped += 1
        elif self.tell(item) if isinstance(item, Outcome) else self.send(item):
            count.rerouted += 1
        elif isinstance(item, Outcome):
            count.outcomes_lost += 1
        elif isinstance(item, Route):
            count.unrouted += 1
        else:
            count.unreturned += 1

    # ---- frames

    def receive(self, transfer: int, batch: Iterable[bytes], now: float) -> list[FromTransfer]:
        """Take in frames of one transfer; the items to process, in order."""
        items: list[FromTransfer] = []
        entry = self._transfers.get(transfer)
        for data in batch:
            if entry is None or entry.link is None:
                break
            try:
                frame = wire.decode_from_transfer(data)
                if frame.link != entry.link.epoch:
                    continue  # what an earlier epoch of this link still had under way
                if isinstance(frame, HelloOk):
                    self._opened(transfer, entry, frame)
                else:
                    if isinstance(frame, Data) and frame.number <= entry.link.window.received_number:
                        self._statistics.deduplicated += 1
                    items.extend(entry.link.receive(frame, now)[0])
            except (msgspec.DecodeError, PeerError):
                self._statistics.malformed += 1
                self.lost(transfer, now)
                break
            if entry.link.closed_by is not None:
                self.lost(transfer, now)
                break
        if transfer in self._open:
            self._flush_queue.mark(transfer, self._open[transfer])
        return items

    def _opened(self, transfer: int, entry: _Transfer, frame: HelloOk) -> None:
        assert entry.link is not None
        if entry.state is State.GREETING and frame.incarnation == transfer:
            entry.state = State.OPEN
            entry.link.window.credit = min(frame.window, self._options.window.credit)
            self._open[transfer] = entry.link
            self._routes.clear()

    def flush(self, now: float) -> None:
        for transfer, frame in self._flush_queue.flush(now):
            self._perform(SendTransfer(transfer, wire.encode(frame)))

    def tick(self, now: float) -> None:
        for transfer, entry in list(self._transfers.items()):
            if entry.state is State.WAITING:
                if now >= entry.retry_at:
                    entry.state = State.CONNECTING
                    self._perform(ConnectTransfer(transfer))
            elif entry.link is not None:
                if entry.link.failed(now):
                    self.lost(transfer, now)
                elif entry.state is State.OPEN:
                    resent = entry.link.window.resent
                    for frame in entry.link.tick(now):
                        self._perform(SendTransfer(transfer, wire.encode(frame)))
                    self._statistics.resent += entry.link.window.resent - resent

    def close(self) -> None:
        """Say farewell; what is under way on the links is the other ends'."""
        for transfer, entry in self._transfers.items():
            if entry.link is not None:
                close = Close(entry.link.epoch, Code.SHUTTING_DOWN, "this connector is leaving")
                self._perform(SendTransfer(transfer, wire.encode(close)))

    def next_deadline(self) -> float | None:
        deadlines: list[float] = []
        for entry in self._transfers.values():
            if entry.state is State.WAITING:
                deadlines.append(entry.retry_at)
            elif entry.link is not None:
                # While greeting there is nothing to do but give up.
                silent = entry.link.received_at + self._options.silence_s
                deadlines.append(entry.link.next_deadline() if entry.state is State.OPEN else silent)
        return min(deadlines, default=None)
