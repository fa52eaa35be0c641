"""Final outcomes against two dictionaries: where copies really are, and which outcomes reported them.

The mesh is honest and unreliable: its outcomes are true, but it loses them, delivers them twice and in any order;
meanwhile the recipient's devices come and go, and the sender submits messages again.  No message may become final too
early.
"""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from meshim.connector.accounting import Accounting, audience
from meshim.protocol.outcome import REJECTED, OutStream, OutStreamOptions
from meshim.wire.envelope import Destination, DestinationType
from meshim.wire.outcome import Copy, CopyOutcome, OutcomeStatus

ALICE, BOB = 1, 2
DEVICES: tuple[Copy, ...] = ((BOB, 21), (BOB, 22), (BOB, 23), (ALICE, 12))
ALL_OF_BOB = (BOB, 0)
"""The copy of a transfer that knows nothing of Bob: the writer expands it to each registered device."""
WHICH = st.integers(0, 40)
OPTIONS = OutStreamOptions(in_flight=8)


class Sender(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.out = OutStream(OPTIONS)
        self.accounting = Accounting()
        """Of the session; the next one has another."""
        self.states: dict[int, str] = {}
        self.delivered: set[int] = set()
        self.registry = set(DEVICES[:1])
        self.attempts: dict[int, list[frozenset[Copy]]] = {}
        """By seq: the copies of each attempt."""
        self.safe: dict[int, set[Copy]] = {}
        """By seq: the copies that are on their device or fsynced."""
        self.on_device: dict[int, set[Copy]] = {}
        self.rejected: set[int] = set()
        self.outcomes: list[tuple[int, CopyOutcome]] = []
        self.position = 0

    # ---- the sender

    @precondition(lambda self: not self.out.full)
    @rule()
    def send(self) -> None:
        seq, base = self.out.assign()
        assert seq == len(self.attempts) + 1
        assert base == min(self.out.unsettled)
        self.states[seq] = "pending"
        self.safe[seq], self.on_device[seq], self.attempts[seq] = set(), set(), []

    @precondition(lambda self: self.outcomes)
    @rule(which=WHICH, again=st.booleans())
    def receive(self, which: int, again: bool) -> None:
        which %= len(self.outcomes)
        seq, outcome = self.outcomes[which]
        if not again:
            del self.outcomes[which]
        if outcome.status == OutcomeStatus.REJECTED:
            self.settle(seq, "rejected", REJECTED)
        elif outcome.status in (OutcomeStatus.DELIVERED, OutcomeStatus.STORED):
            for progress in self.accounting.add(outcome):
                assert progress.first == progress.last == seq
                if progress.status == OutcomeStatus.DELIVERED:
                    self.delivered.add(seq)
                if progress.final:
                    self.settle(seq, "sent", audience(outcome.copies))

    def settle(self, seq: int, state: str, fate: int) -> None:
        if self.states[seq] == "pending":
            self.states[seq] = state
            self.out.settle(seq, fate)

    @rule()
    def restart(self) -> None:
        """The next session knows no accounted copies: outcomes of the next attempt report them again."""
        self.accounting = Accounting()
        self.outcomes.clear()  # the connector drops those of another session
        known = self.out
        self.out = OutStream(OPTIONS, known.next_seq, known.cookie)
        for seq, base in known.unsettled.items():
            self.out.restore(seq, base)

    # ---- the mesh

    @rule(device=st.sampled_from(DEVICES[1:]), there=st.booleans())
    def registration_changes(self, device: Copy, there: bool) -> None:
        (self.registry.add if there else self.registry.discard)(device)

    @precondition(lambda self: self.out.unsettled)
    @rule(
        which=WHICH, live=st.sets(st.sampled_from(DEVICES)), lost=st.sets(st.sampled_from(DEVICES)), blind=st.booleans()
    )
    def attempt(self, which: int, live: set[Copy], lost: set[Copy], blind: bool) -> None:
        """Some copies are delivered, some are lost, and all others are stored together."""
        seq = list(self.out.unsettled)[which % len(self.out.unsettled)]
        meant = frozenset(self.registry)
        self.attempts[seq].append(meant)
        if blind and not live:
            bobs = {copy for copy in meant if copy[0] == BOB}
            copies = (ALL_OF_BOB, *sorted(meant - bobs))
            if not lost:
                self.safe[seq] |= bobs
                self.report(seq, OutcomeStatus.STORED, copies, (ALL_OF_BOB,))
        else:
            copies = tuple(sorted(meant))
        for copy in sorted((meant & live) - lost):
            self.safe[seq].add(copy)
            self.on_device[seq].add(copy)
            self.report(seq, OutcomeStatus.DELIVERED, copies, (copy,))
        absent = tuple(copy for copy in copies if copy not in live | lost and copy != ALL_OF_BOB)
        if absent:
            self.safe[seq].update(absent)
            self.report(seq, OutcomeStatus.STORED, copies, absent)

    @precondition(lambda self: self.out.unsettled)
    @rule(which=WHICH, final=st.booleans())
    def reject(self, which: int, final: bool) -> None:
        seq = list(self.out.unsettled)[which % len(self.out.unsettled)]
        self.rejected |= {seq} if final else set()
        self.report(seq, OutcomeStatus.REJECTED if final else OutcomeStatus.BUSY, (), ())

    @precondition(lambda self: self.outcomes)
    @rule(which=WHICH)
    def lose(self, which: int) -> None:
        del self.outcomes[which % len(self.outcomes)]

    def report(self, seq: int, status: OutcomeStatus, copies: tuple[Copy, ...], done: tuple[Copy, ...]) -> None:
        self.position += status == OutcomeStatus.STORED
        position = self.position if status == OutcomeStatus.STORED else 0
        to = Destination(DestinationType.USER, BOB)
        outcome = CopyOutcome(
            origin=9, session=6, user=ALICE, device=11, epoch=5, to=to, first=seq, last=seq,
            status=status, done=done, copies=copies, position=position,
        )  # fmt: skip
        self.outcomes.append((seq, outcome))

    # ---- invariants

    @invariant()
    def sent_is_safe(self) -> None:
        for seq, state in self.states.items():
            if state == "sent":
                assert any(meant <= self.safe[seq] for meant in self.attempts[seq]), "sent before all copies are safe"
            if state == "rejected":
                assert seq in self.rejected
            if seq in self.delivered:
                assert any(user == BOB for user, _ in self.on_device[seq])

    @invariant()
    def unsettled_are_the_messages_that_are_not_settled(self) -> None:
        assert list(self.out.unsettled) == [seq for seq, state in self.states.items() if state == "pending"]
        assert self.out.next_seq - self.out.base <= OPTIONS.in_flight

    def teardown(self) -> None:
        """When the mesh works again, another attempt settles every message."""
        self.outcomes.clear()
        for seq in list(self.out.unsettled):
            self.attempt(list(self.out.unsettled).index(seq), set(), set(), blind=False)
            while self.outcomes:
                self.receive(0, again=False)
        assert not self.out.unsettled
        self.sent_is_safe()


TestSender = Sender.TestCase
TestSender.settings = settings(
    max_examples=80, stateful_step_count=40
)  # fmt: skip
