"""Transfers come, go and come back, and connectors learn of it one by one, in any order.

A dictionary records the transfer of each conversation, for each set of open transfers that occurred.  The same set must
give the same answer in every connector, whatever happened there before, and a transfer that comes or goes must move
its own share only.
"""

from collections.abc import Sequence

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from meshim.connector import events as e
from meshim.connector.statistics import Statistics
from meshim.connector.transfer_links import TransferLinks
from meshim.errors import Code
from meshim.protocol.link import LinkOptions
from meshim.protocol.routing import mix
from meshim.protocol.window import WindowOptions
from meshim.wire import mesh as wire
from meshim.wire.envelope import WIRE_VERSION, Destination, DestinationType, Kind
from meshim.wire.link import Ack, Close, Data, Pong
from meshim.wire.mesh import FromConnector, Hello, HelloOk, Return, Route, Stamp
from meshim.wire.outcome import CopyOutcome, OutcomeStatus

PAIRS = [(one, other) for other in range(2, 7) for one in range(1, other)]
TRANSFER = st.integers(0, 5).map(lambda number: mix(number) >> 2)
"""One of six, so that a transfer that left comes back."""
CONNECTOR = st.integers(0, 1)
RECONNECT_S = 0.5
WINDOW = WindowOptions(
    credit=64, queue=10_000, frame_items=64, frame_bytes=1 << 20, give_up_s=1_000.0
)  # fmt: skip
OPTIONS = LinkOptions(WINDOW, heartbeat_s=100.0, silence_s=1_000.0)

Pair = tuple[int, int]


def items(pair: Pair) -> list[FromConnector]:
    """Every kind of item that connectors send about a conversation, from both ends of it."""
    found: list[FromConnector] = []
    for sender, to in (pair, pair[::-1]):
        stamp = Stamp(1, 5, sender, sender * 10, 7, Destination(DestinationType.USER, to), 1, Kind.TEXT)
        found.append(Route(stamp, b""))
        found.append(Return(to, (to * 10,), True, stamp, b""))
        found.append(CopyOutcome(1, 5, sender, sender * 10, 7, stamp.to, 1, 1, OutcomeStatus.DELIVERED))
        receipt = Stamp(1, 5, sender, sender * 10, 7, stamp.to, 1, Kind.RECEIPT)
        found.append(Route(receipt, b""))
    return found


class Connector:
    """The links of one connector to transfers that accept every connection and acknowledge on request."""

    def __init__(self, number: int) -> None:
        self.actions: list[e.Action] = []
        self.mesh = TransferLinks(number, f"c{number}", OPTIONS, RECONNECT_S, Statistics(), self.actions.append)
        self.links: dict[int, int] = {}
        """Transfer -> epoch of its open link."""
        self.numbers: dict[int, int] = {}
        """Transfer -> number of the last frame on its link."""
        self.unacked: list[tuple[int, FromConnector]] = []
        """The items that are not acknowledged, each with its transfer."""

    def work(self, now: float) -> None:
        """Perform the actions of the core until there are none."""
        self.mesh.flush(now)
        while self.actions:
            action = self.actions.pop(0)
            if isinstance(action, e.ConnectTransfer):
                self.mesh.connected(e.TransferConnected(action.transfer), now)
            elif isinstance(action, e.DisconnectTransfer):
                self.links.pop(action.transfer, None)
                self.unacked = [(transfer, item) for transfer, item in self.unacked if transfer != action.transfer]
            elif isinstance(action, e.SendTransfer):
                self.receive(action.transfer, wire.decode_from_connector(action.frame), now)
            self.mesh.flush(now)

    def receive(self, transfer: int, frame: wire.ConnectorToTransfer, now: float) -> None:
        if isinstance(frame, Hello):
            self.links[transfer] = frame.link
            self.send(transfer, HelloOk(WIRE_VERSION, frame.link, transfer, WINDOW.credit), now)
        elif isinstance(frame, Data):
            self.numbers[transfer] = frame.number
            self.unacked += [(transfer, item) for item in frame.items]

    def send(self, transfer: int, frame: wire.TransferToConnector, now: float) -> None:
        self.mesh.receive(transfer, [wire.encode(frame)], now)

    def acknowledge(self, now: float) -> None:
        for transfer in {transfer for transfer, _ in self.unacked}:
            self.send(transfer, Ack(self.links[transfer], self.numbers[transfer]), now)
        self.unacked.clear()

    def send_all(self, now: float) -> dict[Pair, int]:
        """Send every item of every conversation; return the transfer of each.  Empty when no transfer is open."""
        handlers: dict[Pair, set[int]] = {}
        for pair in PAIRS:
            for item in items(pair):
                sent = self.mesh.send_outcome(item) if isinstance(item, CopyOutcome) else self.mesh.send(item)
                assert sent == bool(self.links), "an open transfer takes each item; without one no item is sent"
        self.work(now)
        for transfer, item in self.unacked:
            handlers.setdefault(pair_of(item), set()).add(transfer)
        assert all(len(each) == 1 for each in handlers.values()), "a conversation has one transfer, in both directions"
        assert handlers.keys() == (set(PAIRS) if self.links else set())
        return {pair: next(iter(each)) for pair, each in handlers.items()}


def pair_of(item: FromConnector) -> Pair:
    sender, to = (item.user, item.to.id) if isinstance(item, CopyOutcome) else (item.stamp.user, item.stamp.to.id)
    return min(sender, to), max(sender, to)


def by_pair(items: Sequence[FromConnector]) -> dict[Pair, list[FromConnector]]:
    return {pair: [item for item in items if pair_of(item) == pair] for pair in set(map(pair_of, items))}


class ComingAndGoing(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.living: set[int] = set()
        self.connectors = [Connector(1), Connector(2)]
        self.handlers: dict[frozenset[int], dict[Pair, int]] = {}
        """Set of open transfers -> conversation -> the transfer that handles it."""

    @rule(transfer=TRANSFER)
    def comes(self, transfer: int) -> None:
        self.living.add(transfer)

    @rule(transfer=TRANSFER)
    def ends(self, transfer: int) -> None:
        """Its lease ends; a link that works remains."""
        self.living.discard(transfer)

    @rule(which_connector=CONNECTOR, backwards=st.booleans())
    def learns(self, which_connector: int, backwards: bool) -> None:
        connector = self.connectors[which_connector]
        connector.mesh.discovered(e.TransfersDiscovered(sorted(self.living, reverse=backwards)), self.now)
        connector.work(self.now)

    @precondition(lambda self: any(connector.links for connector in self.connectors))
    @rule(which_connector=CONNECTOR, which=st.integers(0, 5), leaves=st.booleans())
    def link_is_lost(self, which_connector: int, which: int, leaves: bool) -> None:
        """Its unacknowledged items go to the transfers that handle them now; no other item moves (R6)."""
        connector = self.connectors[which_connector]
        if not connector.links:
            return
        lost = list(connector.links)[which % len(connector.links)]
        connector.send_all(self.now)
        unacked, connector.unacked = connector.unacked, []
        if leaves:
            connector.send(lost, Close(connector.links[lost], Code.SHUTTING_DOWN), self.now)
        else:
            connector.mesh.lost(e.TransferLost(lost), self.now)
        connector.work(self.now)
        rerouted = by_pair([item for transfer, item in unacked if transfer == lost])
        assert by_pair([item for _, item in connector.unacked]) == (rerouted if connector.links else {})
        for transfer, link in connector.links.items():
            connector.send(transfer, Ack(link, connector.numbers.get(transfer, 0)), self.now)
        connector.unacked.clear()

    @rule(seconds=st.sampled_from([0.1, RECONNECT_S]))
    def time_passes(self, seconds: float) -> None:
        """A lost link is connected again while the transfer lives."""
        self.now += seconds
        for connector in self.connectors:
            for transfer, link in connector.links.items():
                connector.send(transfer, Pong(link), self.now)
            connector.mesh.tick(self.now)
            connector.work(self.now)

    @invariant()
    def every_connector_agrees_with_the_dictionary(self) -> None:
        for connector in self.connectors:
            now = connector.send_all(self.now)
            connector.acknowledge(self.now)
            transfers = frozenset(connector.links)
            assert set(now.values()) <= transfers
            assert self.handlers.setdefault(transfers, now) == now, "another answer for the same transfers"

    @invariant()
    def nothing_moves_without_need(self) -> None:
        for transfers, now in self.handlers.items():
            for newcomer in transfers:
                before = self.handlers.get(transfers - {newcomer}, {})
                assert all(now[pair] in (handler, newcomer) for pair, handler in before.items())


TestComingAndGoing = ComingAndGoing.TestCase
TestComingAndGoing.settings = settings(max_examples=60, stateful_step_count=25)
