"""In any order of events each message ends in outcomes for all its copies, in BUSY, or in a loss that is allowed.

One loss is allowed: a copy that a connector had acknowledged before it died.  Its sender resends the message.
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
from tests.unit.transfer.world import A1, ALICE, Connector, Transfer, route

ORIGIN = ALICE
OTHERS = (BOB, CAROL) = (2, 3)
"""Users, and the connectors with their numbers."""
DEVICES = {ALICE: (A1, 12), BOB: (21, 22), CAROL: (31,)}
USER = st.sampled_from(OTHERS)
WHICH = st.integers(0, 7)
BINDINGS = st.sampled_from([[ALICE, ALICE, BOB, BOB, CAROL], [CAROL] * 5]) | st.lists(
    st.sampled_from([0, ALICE, BOB, CAROL, 99]), min_size=5, max_size=5
)


class Accounting(RuleBasedStateMachine):
    """Alice submits all messages through one connector, which lives on; the other connectors come and go."""

    def __init__(self) -> None:
        super().__init__()
        self.transfer = Transfer(pending=8, publishes=4, presence_cache_ttl_s=3.0)
        self.origin = self.transfer.connector(ORIGIN)
        self.others: dict[int, Connector] = {user: self.transfer.connector(user) for user in OTHERS}
        self.sent: dict[int, bool] = {}
        """seq -> whether the message is durable."""
        self.unsettled: list[tuple[int, Deliver, int]] = []
        """Copies that a connector acknowledged and has no outcome for, as (connector, deliver, device)."""
        self.died: set[tuple[int, Copy]] = set()
        """(seq, copy) of those whose connector died."""
        self.logged: dict[Copy, set[bytes]] = {}
        """The envelopes in the log."""
        self.position = 0

    # ---- what connectors do

    @rule(user=USER, durable=st.sampled_from([True, True, False]), copies=st.booleans())
    def submit(self, user: int, durable: bool, copies: bool) -> None:
        seq = len(self.sent) + 1
        self.sent[seq] = durable
        destination = Destination(DestinationType.USER, user)
        mine = ((ALICE, 12),) if copies else ()
        kind = Kind.TEXT if durable else Kind.TYPING
        self.origin.send_items(route(seq, destination, A1, origin=ORIGIN, kind=kind, copies=mine))

    @rule(user=USER)
    def acknowledge(self, user: int) -> None:
        """A connector acknowledges all frames so far; from here on their copies are unsettled there."""
        connector = self.others[user]
        connector.mute = False
        frames = list(connector.frames)
        connector.frames.clear()
        connector.items.clear()
        for frame in frames:
            connector.receive(frame)
        self._receive(user)

    @rule(user=USER)
    def mute(self, user: int) -> None:
        self.others[user].mute = True

    @precondition(lambda self: self._receive_all())
    @rule(which=WHICH, result=st.sampled_from(["delivered", "returned", "absent"]))
    def settle(self, which: int, result: str) -> None:
        user, deliver, device = self.unsettled.pop(which % len(self.unsettled))
        connector = self.others.get(user, self.origin)
        if result == "delivered":
            if deliver.stamp.kind < 128:
                connector.send_items(
                    *outcomes_of([(deliver.stamp, ((deliver.user, device),))], OutcomeStatus.DELIVERED)
                )
        else:
            connector.send_items(Return(deliver.user, (device,), result == "absent", deliver.stamp, deliver.envelope))

    @rule(user=USER, greets=st.booleans())
    def die(self, user: int, greets: bool) -> None:
        self._receive(user)
        before = self.others[user]
        for _, deliver, device in [each for each in self.unsettled if each[0] == user]:
            self.died.add((deliver.stamp.seq, (deliver.user, device)))
        self.unsettled = [each for each in self.unsettled if each[0] != user]
        if not greets:
            self.transfer.tell(e.ConnectorGone(before.peer))
        self.others[user] = self.transfer.connector(user)

    def _receive(self, user: int) -> None:
        connector = self.others.get(user, self.origin)
        for item in connector.items:
            if isinstance(item, Deliver):
                self.unsettled += [(user, item, device) for device, _ in item.bindings]
        if connector is not self.origin:
            connector.items.clear()
        else:
            connector.items = [item for item in connector.items if not isinstance(item, Deliver)]

    def _receive_all(self) -> bool:
        """Return whether a connector has unsettled copies."""
        for user in (*self.others, ORIGIN):
            self._receive(user)
        return bool(self.unsettled)

    # ---- what presence and the log do

    @precondition(lambda self: self.transfer.lookups())
    @rule(where=BINDINGS, readable=st.sampled_from([True, True, False]))
    def answer_lookup(self, where: list[int], readable: bool) -> None:
        """`where` is the connector of each device: a linked one, one that is not linked, or 0 for none."""
        (read, *others) = self.transfer.take(e.ReadPresence)
        self.transfer.pending += others
        connectors = dict(zip(sorted(d for known in DEVICES.values() for d in known), where, strict=True))
        found = {}
        for user in read.users:
            bindings = tuple(Binding(user, d, connectors[d], 7) for d in DEVICES[user] if connectors[d])
            if bindings:
                found[user] = UserPresence(DEVICES[user], bindings)
        self.transfer.tell(e.PresenceRead(read.users, found) if readable else e.PresenceReadFailed(read.users))

    @rule(user=st.none() | USER)
    def change_presence(self, user: int | None) -> None:
        self.transfer.tell(e.PresenceChanged(None if user is None else (user,)))

    @precondition(lambda self: any(isinstance(action, e.Publish) for action in self.transfer.pending))
    @rule(which=WHICH, taken=st.booleans())
    def answer_publish(self, which: int, taken: bool) -> None:
        publishes = self.transfer.take(e.Publish)
        publish = publishes.pop(which % len(publishes))
        self.transfer.pending += publishes
        if not taken:
            self.transfer.tell(e.PublishFailed(publish.record))
            return
        self.position += 1
        for entry in decode_record(publish.data).entries:
            for device in entry.devices or (0,):
                self.logged.setdefault((entry.user, device), set()).add(entry.envelope)
        self.transfer.tell(e.Published(publish.record, self.position))

    @rule(seconds=st.sampled_from([0.3, 1.0, 4.0]))
    def pass_time(self, seconds: float) -> None:
        self.transfer.pass_time(seconds)
        for user, connector in list(self.others.items()):
            connector.send(Ping(connector.link))
            if connector.received(Reset):
                # It was mute for too long: the transfer has stored what the connector had not acknowledged.
                self.die(user=user, greets=True)

    # ---- promises

    @invariant()
    def outcomes_are_true(self) -> None:
        for outcome in self.origin.outcomes:
            for seq in range(outcome.first, outcome.last + 1):
                assert self.sent[seq], "ephemeral messages have no outcomes"
                if outcome.status == OutcomeStatus.STORED:
                    assert all(b"%04d" % seq in self.logged[copy] for copy in outcome.done)
        ephemeral = {b"%04d" % seq for seq, durable in self.sent.items() if not durable}
        assert not any(ephemeral & envelopes for envelopes in self.logged.values())

    def teardown(self) -> None:
        """In the end all look-ups and publishes succeed, and the connectors deliver their copies."""
        for _ in range(30):
            for user in OTHERS:
                self.acknowledge(user=user)
            while self.transfer.lookups():
                self.answer_lookup(where=[0] * 5, readable=True)
            while any(isinstance(action, e.Publish) for action in self.transfer.pending):
                self.answer_publish(which=0, taken=True)
            while self._receive_all():
                self.settle(which=0, result="delivered")
        assert self.transfer.core.idle
        self.outcomes_are_true()
        for seq in (seq for seq, durable in self.sent.items() if durable):
            outcomes = [outcome for outcome in self.origin.outcomes if outcome.first <= seq <= outcome.last]
            if any(outcome.status == OutcomeStatus.BUSY for outcome in outcomes):
                continue
            copies = {copy for outcome in outcomes for copy in outcome.copies}
            done = {copy for outcome in outcomes for copy in outcome.done}
            lost = {copy for number, copy in self.died if number == seq}
            assert outcomes or lost, f"{seq} has no outcome"
            assert copies <= done | lost, f"{seq}: {copies - done - lost} are not accounted for"


TestAccounting = Accounting.TestCase
TestAccounting.settings = settings(max_examples=150, stateful_step_count=40)
