"""The sender's book against two dictionaries: where copies really are, and what was told of them.

A mesh that is honest and unreliable: it tells only what is so, but loses what it tells, tells it twice and in any
order; meanwhile the recipient's devices come and go, and messages are submitted again.  `sent` must never be said
too early.
"""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from meshim.protocol.outcome import AFTER_MAX, DeliveryStatus, OutStream, OutStreamOptions
from meshim.wire.envelope import Destination, DestinationType
from meshim.wire.outcome import Copy, Outcome, OutcomeStatus

ALICE, BOB = 1, 2
DEVICES: tuple[Copy, ...] = ((BOB, 21), (BOB, 22), (BOB, 23), (ALICE, 12))
EVERYBODY = (BOB, 0)
"""What a transfer writes that knows nothing of Bob: a copy for each device that the registry knows."""
WHICH = st.integers(0, 40)
OPTIONS = OutStreamOptions(in_flight=8)


class Book(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.out = OutStream(OPTIONS)
        self.tallies: dict[int, DeliveryStatus] = {}
        self.registry = set(DEVICES[:1])
        self.attempts: dict[int, list[frozenset[Copy]]] = {}
        """By seq: whom each attempt meant."""
        self.safe: dict[int, set[Copy]] = {}
        """By seq: which copies are on their device or fsynced."""
        self.on_device: dict[int, set[Copy]] = {}
        self.refused: set[int] = set()
        self.told: list[tuple[int, Outcome]] = []
        self.position = 0
        self.positions: dict[Copy, int] = {}
        """The highest that was told of each copy."""

    # ---- the sender

    @precondition(lambda self: not self.out.full)
    @rule()
    def send(self) -> None:
        seq, base = self.out.assign()
        assert seq == len(self.attempts) + 1
        assert base == min(self.out.unsettled)
        self.tallies[seq] = DeliveryStatus()
        self.safe[seq], self.on_device[seq], self.attempts[seq] = set(), set(), []

    @precondition(lambda self: self.told)
    @rule(which=WHICH, again=st.booleans())
    def hear(self, which: int, again: bool) -> None:
        which %= len(self.told)
        seq, outcome = self.told[which]
        if not again:
            del self.told[which]
        progress = self.tallies[seq]
        settled, before = progress.settled, (progress.state, progress.delivered)
        assert progress.add(outcome, ALICE) == ((progress.state, progress.delivered) != before)
        assert not (settled and progress.state != before[0]), "settled is for good"
        if outcome.status == OutcomeStatus.STORED:
            for copy in outcome.done:
                self.out.stored(copy, outcome.position)
                self.positions[copy] = max(self.positions.get(copy, 0), outcome.position)
        if progress.settled:
            self.out.settle(seq, progress)

    @rule()
    def restart(self) -> None:
        """What was accounted for is not in the state file: it is told again when the message is sent again."""
        known = self.out
        self.out = OutStream(OPTIONS, known.next_seq, known.after)
        for seq, base in known.unsettled.items():
            self.out.restore(seq, base)
            self.tallies[seq] = DeliveryStatus()

    # ---- the mesh

    @rule(device=st.sampled_from(DEVICES[1:]), there=st.booleans())
    def devices_come_and_go(self, device: Copy, there: bool) -> None:
        (self.registry.add if there else self.registry.discard)(device)

    @precondition(lambda self: self.out.unsettled)
    @rule(
        which=WHICH, live=st.sets(st.sampled_from(DEVICES)), lost=st.sets(st.sampled_from(DEVICES)), blind=st.booleans()
    )
    def attempt(self, which: int, live: set[Copy], lost: set[Copy], blind: bool) -> None:
        """Some copies are delivered, some are lost on the way, all others are stored together."""
        seq = list(self.out.unsettled)[which % len(self.out.unsettled)]
        meant = frozenset(self.registry)
        self.attempts[seq].append(meant)
        if blind and not live:
            bobs = {copy for copy in meant if copy[0] == BOB}
            copies = (EVERYBODY, *sorted(meant - bobs))
            if not lost:
                self.safe[seq] |= bobs
                self.tell(seq, OutcomeStatus.STORED, copies, (EVERYBODY,))
        else:
            copies = tuple(sorted(meant))
        for copy in sorted((meant & live) - lost):
            self.safe[seq].add(copy)
            self.on_device[seq].add(copy)
            self.tell(seq, OutcomeStatus.DELIVERED, copies, (copy,))
        absent = tuple(copy for copy in copies if copy not in live | lost and copy != EVERYBODY)
        if absent:
            self.safe[seq].update(absent)
            self.tell(seq, OutcomeStatus.STORED, copies, absent)

    @precondition(lambda self: self.out.unsettled)
    @rule(which=WHICH, for_good=st.booleans())
    def refuse(self, which: int, for_good: bool) -> None:
        seq = list(self.out.unsettled)[which % len(self.out.unsettled)]
        self.refused |= {seq} if for_good else set()
        self.tell(seq, OutcomeStatus.REJECTED if for_good else OutcomeStatus.BUSY, (), ())

    @precondition(lambda self: self.told)
    @rule(which=WHICH)
    def lose(self, which: int) -> None:
        del self.told[which % len(self.told)]

    def tell(self, seq: int, status: OutcomeStatus, copies: tuple[Copy, ...], done: tuple[Copy, ...]) -> None:
        self.position += status == OutcomeStatus.STORED
        position = self.position if status == OutcomeStatus.STORED else 0
        to = Destination(DestinationType.USER, BOB)
        self.told.append((seq, Outcome(9, ALICE, 11, 5, to, seq, seq, status, done, copies, position)))

    # ---- what has to hold

    @invariant()
    def sent_is_safe(self) -> None:
        for seq, progress in self.tallies.items():
            if progress.state == DeliveryStatus.SENT:
                assert any(meant <= self.safe[seq] for meant in self.attempts[seq]), "sent before all copies are safe"
            if progress.delivered:
                assert any(user == BOB for user, _ in self.on_device[seq])
            if progress.state == DeliveryStatus.REJECTED:
                assert seq in self.refused

    @invariant()
    def unsettled_is_what_is_not_settled(self) -> None:
        assert list(self.out.unsettled) == [seq for seq, progress in self.tallies.items() if not progress.settled]
        assert self.out.next_seq - self.out.base <= OPTIONS.in_flight

    @invariant()
    def after_is_the_highest_position_told_of_each(self) -> None:
        assert len(self.out.after) <= AFTER_MAX
        after = {(user, device): position for user, device, position in self.out.after}
        for copy in DEVICES:
            all_of_them = (copy[0], 0)
            told = max(self.positions.get(copy, 0), self.positions.get(all_of_them, 0))
            carried = max(after.get(copy, 0), after.get(all_of_them, 0))
            assert carried >= told, "a live copy could overtake a stored one"
            if all_of_them not in self.positions:
                assert carried == told

    def teardown(self) -> None:
        """When the mesh works again, another attempt settles everything."""
        self.told.clear()
        for seq in list(self.out.unsettled):
            self.attempt(list(self.out.unsettled).index(seq), set(), set(), blind=False)
            while self.told:
                self.hear(0, again=False)
        assert not self.out.unsettled
        self.sent_is_safe()


TestBook = Book.TestCase
TestBook.settings = settings(
    max_examples=80, stateful_step_count=40, derandomize=True, deadline=None, database=None
)  # fmt: skip
