"""Whatever order things happen in, each message ends in outcomes for all its copies, in `busy`, or in an honest loss.

Honest is: a copy that a connector had acknowledged when it died (its sender sends the message again); nothing else.
"""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from meshim.protocol.outcome import outcomes_of
from meshim.stores.ports import Binding, UserPresence
from meshim.transfer import events as e
from meshim.wire.envelope import Destination, DestinationType, Kind
from meshim.wire.link import Ping, Reset
from meshim.wire.mesh import Deliver, Return
from meshim.wire.offline_log import decode_record
from meshim.wire.outcome import Copy, OutcomeStatus
from tests.unit.transfer_world import A1, ALICE, Connector, Transfer, route

ORIGIN = ALICE
OTHERS = (BOB, CAROL) = (2, 3)
"""Users, and the connectors that their devices like to be on."""
DEVICES = {ALICE: (A1, 12), BOB: (21, 22), CAROL: (31,)}
USER = st.sampled_from(OTHERS)
WHICH = st.integers(0, 7)
BINDINGS = st.sampled_from([[ALICE, ALICE, BOB, BOB, CAROL], [CAROL] * 5]) | st.lists(
    st.sampled_from([0, ALICE, BOB, CAROL, 99]), min_size=5, max_size=5
)


class Accounting(RuleBasedStateMachine):
    """alice submits everything through a connector that lives; the others come and go."""

    def __init__(self) -> None:
        super().__init__()
        self.transfer = Transfer(waiting=8, publishes=4, presence_cache_ttl_s=3.0)
        self.origin = self.transfer.connector(ORIGIN)
        self.others: dict[int, Connector] = {user: self.transfer.connector(user) for user in OTHERS}
        self.sent: dict[int, bool] = {}
        """By seq: whether it is durable."""
        self.held: list[tuple[int, Deliver, int]] = []
        """Copies that a connector has in its hands, as (connector, place, device)."""
        self.died: set[tuple[int, Copy]] = set()
        self.logged: dict[tuple[int, int], set[bytes]] = {}
        self.position = 0

    # ---- what connectors do

    @rule(user=USER, durable=st.sampled_from([True, True, False]), to=st.integers(0, 2), copies=st.booleans())
    def submit(self, user: int, durable: bool, to: int, copies: bool) -> None:
        seq = len(self.sent) + 1
        self.sent[seq] = durable
        known = DEVICES[user]
        destination = (
            Destination(DestinationType.DEVICE, user, known[to % len(known)])
            if to == 2
            else Destination(DestinationType.USER, user)
        )
        mine = ((ALICE, 12),) if copies else ()
        kind = Kind.TEXT if durable else Kind.TYPING
        self.origin.give(route(seq, destination, A1, origin=ORIGIN, kind=kind, copies=mine))

    @rule(user=USER)
    def takes_in(self, user: int) -> None:
        """A connector acknowledges what came; from here on the copies are in its hands."""
        connector = self.others[user]
        connector.mute = False
        frames = list(connector.frames)
        connector.frames.clear()
        connector.items.clear()
        for frame in frames:
            connector.hear(frame)
        self._receive(user)

    @rule(user=USER)
    def stops_reading(self, user: int) -> None:
        self.others[user].mute = True

    @precondition(lambda self: self._receive_all())
    @rule(which=WHICH, status=st.sampled_from(["delivered", "returned", "absent"]))
    def settles(self, which: int, status: str) -> None:
        user, place, device = self.held.pop(which % len(self.held))
        connector = self.others.get(user, self.origin)
        if status == "delivered":
            if place.stamp.kind < 128:
                connector.give(*outcomes_of([(place.stamp, ((place.user, device),))], OutcomeStatus.DELIVERED))
        else:
            connector.give(Return(place.user, (device,), status == "absent", place.stamp, place.envelope))

    @rule(user=USER, greets=st.booleans())
    def dies(self, user: int, greets: bool) -> None:
        self._receive(user)
        before = self.others[user]
        for _, place, device in [each for each in self.held if each[0] == user]:
            self.died.add((place.stamp.seq, (place.user, device)))
        self.held = [each for each in self.held if each[0] != user]
        if not greets:
            self.transfer.tell(e.ConnectorGone(before.peer))
        self.others[user] = self.transfer.connector(user)

    def _receive(self, user: int) -> None:
        connector = self.others.get(user, self.origin)
        for item in connector.items:
            if isinstance(item, Deliver):
                self.held += [(user, item, device) for device, _ in item.bindings]
        if connector is not self.origin:
            connector.items.clear()
        else:
            connector.items = [item for item in connector.items if not isinstance(item, Deliver)]

    def _receive_all(self) -> bool:
        """Whether any connector holds something."""
        for user in (*self.others, ORIGIN):
            self._receive(user)
        return bool(self.held)

    # ---- what presence and the log do

    @precondition(lambda self: self.transfer.looked_up())
    @rule(where=BINDINGS, readable=st.sampled_from([True, True, False]))
    def presence(self, where: list[int], readable: bool) -> None:
        """Each device is on one of the connectors, on one that is not linked, or nowhere (0)."""
        (read, *later) = self.transfer.take(e.ReadPresence)
        self.transfer.asked += later
        places = dict(zip(sorted(d for known in DEVICES.values() for d in known), where, strict=True))
        found = {}
        for user in read.users:
            bindings = tuple(Binding(user, d, places[d], 7) for d in DEVICES[user] if places[d])
            if bindings:
                found[user] = UserPresence(DEVICES[user], bindings)
        self.transfer.tell(e.PresenceRead(read.users, found) if readable else e.PresenceUnreadable(read.users))

    @rule(user=st.none() | USER)
    def changes(self, user: int | None) -> None:
        self.transfer.tell(e.PresenceChanged(None if user is None else (user,)))

    @precondition(lambda self: any(isinstance(action, e.Publish) for action in self.transfer.asked))
    @rule(which=WHICH, taken=st.booleans())
    def log(self, which: int, taken: bool) -> None:
        publishes = self.transfer.take(e.Publish)
        publish = publishes.pop(which % len(publishes))
        self.transfer.asked += publishes
        if not taken:
            self.transfer.tell(e.Unpublished(publish.record))
            return
        self.position += 1
        for entry in decode_record(publish.data).entries:
            for device in entry.devices or (0,):
                self.logged.setdefault((entry.user, device), set()).add(entry.envelope)
        self.transfer.tell(e.Published(publish.record, self.position))

    @rule(seconds=st.sampled_from([0.3, 1.0, 4.0]))
    def time_passes(self, seconds: float) -> None:
        self.transfer.pass_time(seconds)
        for user, connector in list(self.others.items()):
            connector.send(Ping(connector.link))
            if connector.came(Reset):
                # It was mute for too long: what it had not acknowledged is the transfer's again.
                self.dies(user=user, greets=True)

    # ---- what has to hold

    @invariant()
    def nothing_is_claimed_that_is_not_so(self) -> None:
        for outcome in self.origin.outcomes:
            for seq in range(outcome.first, outcome.last + 1):
                assert self.sent[seq], "nothing is said of ephemeral ones"
                if outcome.status == OutcomeStatus.STORED:
                    assert all(b"%04d" % seq in self.logged[copy] for copy in outcome.done)
        ephemeral = {b"%04d" % seq for seq, durable in self.sent.items() if not durable}
        assert not any(ephemeral & envelopes for envelopes in self.logged.values())

    def teardown(self) -> None:
        """Everything is answered in the end; the connectors deliver what they hold."""
        for _ in range(30):
            for user in OTHERS:
                self.takes_in(user=user)
            while self.transfer.looked_up():
                self.presence(where=[0] * 5, readable=True)
            while any(isinstance(action, e.Publish) for action in self.transfer.asked):
                self.log(which=0, taken=True)
            while self._receive_all():
                self.settles(which=0, status="delivered")
        assert self.transfer.core.idle
        self.nothing_is_claimed_that_is_not_so()
        for seq in (seq for seq, durable in self.sent.items() if durable):
            told = [outcome for outcome in self.origin.outcomes if outcome.first <= seq <= outcome.last]
            if any(outcome.status == OutcomeStatus.BUSY for outcome in told):
                continue
            copies = {copy for outcome in told for copy in outcome.copies}
            done = {copy for outcome in told for copy in outcome.done}
            lost = {copy for number, copy in self.died if number == seq}
            assert told or lost, f"nothing was said of {seq}"
            assert copies <= done | lost, f"{seq}: {copies - done - lost} are not accounted for"


TestAccounting = Accounting.TestCase
TestAccounting.settings = settings(
    max_examples=150, stateful_step_count=40, derandomize=True, deadline=None, database=None
)
