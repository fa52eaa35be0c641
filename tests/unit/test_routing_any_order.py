"""Transfers come, go and come back; connectors learn of it one by one, in any order: who handles which conversation?

The dictionary remembers who handled what, for each set of open transfers that ever was.  Against it: the same set gives
the same answer in every connector, whatever happened there before, and who comes or goes moves only its own share.
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
from meshim.wire.outcome import Outcome, OutcomeStatus

PAIRS = [(one, other) for other in range(2, 7) for one in range(1, other)]
TRANSFER = st.integers(0, 5).map(lambda number: mix(number) >> 2)
"""One of six, so that what left comes back."""
WHO = st.integers(0, 1)
RECONNECT_S = 0.5
WINDOW = WindowOptions(
    credit=64, queue=10_000, frame_items=64, frame_bytes=1 << 20, resend_s=100.0, give_up_s=1_000.0
)  # fmt: skip
OPTIONS = LinkOptions(WINDOW, heartbeat_s=100.0, silence_s=1_000.0)

Pair = tuple[int, int]


def items(pair: Pair) -> list[FromConnector]:
    """Everything that connectors say of a conversation, from both ends of it."""
    found: list[FromConnector] = []
    for sender, to in (pair, pair[::-1]):
        stamp = Stamp(1, sender, sender * 10, 7, Destination(DestinationType.USER, to), 1, Kind.TEXT)
        found.append(Route(stamp, b""))
        found.append(Return(to, (to * 10,), True, stamp, b""))
        found.append(Outcome(1, sender, sender * 10, 7, stamp.to, 1, 1, OutcomeStatus.DELIVERED))
        receipt = Stamp(1, sender, sender * 10, 7, Destination(DestinationType.DEVICE, to, to * 10), 1, Kind.RECEIPT)
        found.append(Route(receipt, b""))
    return found


class Connector:
    """The links of one connector, over connections that work at once to transfers that acknowledge when told to."""

    def __init__(self, number: int) -> None:
        self.actions: list[e.Action] = []
        self.mesh = TransferLinks(number, f"c{number}", OPTIONS, RECONNECT_S, Statistics(), self.actions.append)
        self.links: dict[int, int] = {}
        """Epochs of open links, by transfer."""
        self.numbers: dict[int, int] = {}
        """Of the last frame on each."""
        self.held: list[tuple[int, FromConnector]] = []
        """What came and is not acknowledged, each with its transfer."""

    def work(self, now: float) -> None:
        """Let the transfers do what is asked of them, until nothing is."""
        self.mesh.flush(now)
        while self.actions:
            action = self.actions.pop(0)
            if isinstance(action, e.ConnectTransfer):
                self.mesh.connected(action.transfer, now)
            elif isinstance(action, e.DisconnectTransfer):
                self.links.pop(action.transfer, None)
                self.held = [(transfer, item) for transfer, item in self.held if transfer != action.transfer]
            elif isinstance(action, e.SendTransfer):
                self.heard(action.transfer, wire.decode_from_connector(action.frame), now)
            self.mesh.flush(now)

    def heard(self, transfer: int, frame: wire.ConnectorToTransfer, now: float) -> None:
        if isinstance(frame, Hello):
            self.links[transfer] = frame.link
            self.say(transfer, HelloOk(WIRE_VERSION, frame.link, transfer, WINDOW.credit), now)
        elif isinstance(frame, Data):
            self.numbers[transfer] = frame.number
            self.held += [(transfer, item) for item in frame.items]

    def say(self, transfer: int, frame: wire.TransferToConnector, now: float) -> None:
        self.mesh.receive(transfer, [wire.encode(frame)], now)

    def acknowledge(self, now: float) -> None:
        for transfer in {transfer for transfer, _ in self.held}:
            self.say(transfer, Ack(self.links[transfer], self.numbers[transfer], ()), now)
        self.held.clear()

    def give(self, now: float) -> dict[Pair, int]:
        """Send everything of every conversation; who handles each.  Empty when no transfer is open."""
        handlers: dict[Pair, set[int]] = {}
        for pair in PAIRS:
            for item in items(pair):
                sent = self.mesh.tell(item) if isinstance(item, Outcome) else self.mesh.send(item)
                assert sent == bool(self.links), "somebody is picked from anybody, nobody from nobody"
        self.work(now)
        for transfer, item in self.held:
            handlers.setdefault(pair_of(item), set()).add(transfer)
        assert all(len(each) == 1 for each in handlers.values()), "a conversation has one transfer, both ways"
        assert handlers.keys() == (set(PAIRS) if self.links else set())
        return {pair: next(iter(each)) for pair, each in handlers.items()}


def pair_of(item: FromConnector) -> Pair:
    sender, to = (item.user, item.to.id) if isinstance(item, Outcome) else (item.stamp.user, item.stamp.to.id)
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
        """Who handles each conversation, by the set of open transfers."""

    @rule(transfer=TRANSFER)
    def comes(self, transfer: int) -> None:
        self.living.add(transfer)

    @rule(transfer=TRANSFER)
    def ends(self, transfer: int) -> None:
        """Its lease ended; whose link still works goes on with it."""
        self.living.discard(transfer)

    @rule(who=WHO, backwards=st.booleans())
    def learns(self, who: int, backwards: bool) -> None:
        connector = self.connectors[who]
        connector.mesh.living(sorted(self.living, reverse=backwards))
        connector.work(self.now)

    @precondition(lambda self: any(connector.links for connector in self.connectors))
    @rule(who=WHO, which=st.integers(0, 5), leaves=st.booleans())
    def link_is_lost(self, who: int, which: int, leaves: bool) -> None:
        """What it had under way goes to whoever handles it now, and nothing else moves (R6)."""
        connector = self.connectors[who]
        if not connector.links:
            return
        lost = list(connector.links)[which % len(connector.links)]
        connector.give(self.now)
        held, connector.held = connector.held, []
        if leaves:
            connector.say(lost, Close(connector.links[lost], Code.SHUTTING_DOWN), self.now)
        else:
            connector.mesh.lost(lost, self.now)
        connector.work(self.now)
        rerouted = by_pair([item for transfer, item in held if transfer == lost])
        assert by_pair([item for _, item in connector.held]) == (rerouted if connector.links else {})
        for transfer, link in connector.links.items():
            connector.say(transfer, Ack(link, connector.numbers.get(transfer, 0), ()), self.now)
        connector.held.clear()

    @rule(seconds=st.sampled_from([0.1, RECONNECT_S]))
    def time_passes(self, seconds: float) -> None:
        """A link that was lost is made anew while the transfer lives."""
        self.now += seconds
        for connector in self.connectors:
            for transfer, link in connector.links.items():
                connector.say(transfer, Pong(link), self.now)
            connector.mesh.tick(self.now)
            connector.work(self.now)

    @invariant()
    def the_dictionary_agrees(self) -> None:
        for connector in self.connectors:
            now = connector.give(self.now)
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
TestComingAndGoing.settings = settings(
    max_examples=60, stateful_step_count=25, derandomize=True, deadline=None, database=None
)
