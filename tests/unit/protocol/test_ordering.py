"""Order at the recipient: each rule of the module, and a stream against a dictionary of the shown messages."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from meshim.protocol.ordering import Flag, OrderingOptions, Released, StreamOrder

OPTIONS = OrderingOptions(gap_release_s=30.0, early_max=4, holes_max=3)

IN_ORDER, AFTER_GAP, LATE = Flag.IN_ORDER, Flag.AFTER_GAP, Flag.LATE


class Stream(StreamOrder[str]):
    """A stream whose items name their seq; `take` returns seqs and flags."""

    def take(self, seq: int, base: int = 1, now: float = 0.0) -> list[tuple[int, Flag]] | None:
        released = self.receive(seq, base, f"item {seq}", now)
        return None if released is None else shown(released)


def stream(watermark: int = 1, *holes: tuple[int, int], options: OrderingOptions = OPTIONS) -> Stream:
    return Stream(options, watermark, holes)


def shown(released: list[Released[str]]) -> list[tuple[int, Flag]]:
    assert all(item == f"item {seq}" for seq, item, _ in released)
    return [(seq, flag) for seq, _, flag in released]


def test_a_message_in_order_is_shown_at_once() -> None:
    order = stream()
    assert order.take(1) == [(1, IN_ORDER)]
    assert order.take(2) == [(2, IN_ORDER)]
    assert order.watermark == 3
    assert order.next_deadline() is None


def test_an_early_message_is_held_back_until_the_gap_is_closed() -> None:
    order = stream()
    assert order.take(3) == []
    assert order.take(2) == []
    assert order.take(1) == [(1, IN_ORDER), (2, IN_ORDER), (3, IN_ORDER)]
    assert order.next_deadline() is None


def test_duplicates_of_shown_and_of_held_messages_are_recognized() -> None:
    order = stream()
    order.take(1)
    assert order.take(1) is None
    order.take(3)
    assert order.take(3) is None
    order.take(2)
    assert order.take(3) is None


@pytest.mark.parametrize("seq", [0, -1])
def test_a_seq_below_1_counts_as_a_duplicate(seq: int) -> None:
    assert stream().take(seq) is None


def test_no_message_waits_for_a_seq_below_base() -> None:
    order = stream()
    assert order.take(3, base=3) == [(3, IN_ORDER)]
    assert order.holes == [(1, 2)]


def test_base_releases_the_messages_held_back_below_it() -> None:
    order = stream()
    order.take(2)
    order.take(4)
    order.take(7)
    assert order.take(6, base=5) == [(2, IN_ORDER), (4, IN_ORDER)]
    assert order.holes == [(1, 1), (3, 3)]
    assert order.take(5) == [(5, IN_ORDER), (6, IN_ORDER), (7, IN_ORDER)]


def test_a_message_of_a_hole_is_shown_late_and_once() -> None:
    order = stream()
    order.take(4, base=4)
    assert order.take(2) == [(2, LATE)]
    assert order.take(2) is None
    assert order.holes == [(1, 1), (3, 3)]
    assert order.take(1) == [(1, LATE)]
    assert order.take(3) == [(3, LATE)]
    assert order.holes == []


def test_a_message_of_a_hole_is_in_order_while_no_later_one_was_shown() -> None:
    order = stream()
    order.take(7, base=5)
    assert order.holes == [(1, 4)]
    assert order.take(2) == [(2, IN_ORDER)]
    assert order.take(1) == [(1, LATE)]
    assert order.take(4) == [(4, IN_ORDER)]
    assert order.take(3) == [(3, LATE)]
    assert order.take(5) == [(5, IN_ORDER)]


def test_a_late_message_carries_its_base_like_any_other() -> None:
    order = stream(5, (1, 3))
    order.take(7)
    assert order.take(2, base=6) == [(2, LATE)]
    assert order.take(6, base=5) == [(6, IN_ORDER), (7, IN_ORDER)]
    assert order.holes == [(1, 1), (3, 3), (5, 5)]


def test_a_gap_is_given_up_after_gap_release_s() -> None:
    order = stream()
    order.take(2, now=10.0)
    order.take(3, now=20.0)
    assert order.next_deadline() == 40.0
    assert order.tick(39.9) == []
    assert shown(order.tick(40.0)) == [(2, AFTER_GAP), (3, IN_ORDER)]
    assert order.next_deadline() is None
    assert order.take(1) == [(1, LATE)]


def test_each_gap_has_its_own_deadline() -> None:
    order = stream()
    order.take(4, now=0.0)
    order.take(2, now=1.0)
    order.take(6, now=2.0)
    assert shown(order.tick(30.0)) == [(2, AFTER_GAP), (4, AFTER_GAP)]
    assert order.next_deadline() == 32.0
    assert shown(order.tick(32.0)) == [(6, AFTER_GAP)]


def test_only_the_message_right_behind_a_gap_is_flagged() -> None:
    order = stream()
    for seq in (2, 3, 5):
        order.take(seq)
    assert shown(order.tick(30.0)) == [(2, AFTER_GAP), (3, IN_ORDER), (5, AFTER_GAP)]


def test_no_more_than_early_max_messages_are_held_back() -> None:
    order = stream()
    for seq in (2, 3, 5, 6):
        assert order.take(seq) == []
    assert order.take(8) == [(2, AFTER_GAP), (3, IN_ORDER)]
    assert sorted(order.early) == [5, 6, 8]


def test_adjacent_holes_are_merged() -> None:
    order = stream()
    order.settle_below(3)
    order.settle_below(5)
    assert order.holes == [(1, 4)]
    assert order.forgotten == 0


def test_the_lowest_hole_is_forgotten_when_there_are_too_many() -> None:
    order = stream()
    for seq in (3, 5, 7, 9):
        order.take(seq, base=seq)
    assert order.holes == [(4, 4), (6, 6), (8, 8)]
    assert order.forgotten == 2
    assert order.take(1) is None


def test_filling_a_hole_keeps_the_bound() -> None:
    order = stream(11, (1, 3), (5, 5), (7, 9))
    assert order.take(8) == [(8, LATE)]
    assert order.holes == [(5, 5), (7, 7), (9, 9)]
    assert order.forgotten == 3


def test_a_base_below_the_watermark_changes_nothing() -> None:
    order = stream()
    order.take(1)
    order.take(3)
    assert order.settle_below(2) == []
    assert order.settle_below(0) == []
    assert (order.watermark, order.holes) == (2, [])


def test_a_stream_continues_from_its_saved_state() -> None:
    order = stream(6, (2, 3))
    assert order.take(5) is None
    assert order.take(3) == [(3, LATE)]
    assert order.take(7) == []
    assert order.take(6) == [(6, IN_ORDER), (7, IN_ORDER)]


def test_a_watermark_beyond_every_seq_of_the_wire_still_counts() -> None:
    order = stream()
    assert order.take(2**62, base=2**62) == [(2**62, IN_ORDER)]
    assert order.watermark == 2**62 + 1
    assert order.holes == [(1, 2**62 - 1)]


@settings(max_examples=200)
@given(st.lists(st.tuples(st.integers(-3, 40), st.integers(-3, 60)), max_size=60))
def test_no_wrong_base_shows_a_message_twice_or_breaks_a_bound(arrivals: list[tuple[int, int]]) -> None:
    order = stream()
    seen: list[int] = []
    for now, (seq, base) in enumerate(arrivals):
        seen += [seq for seq, _ in order.take(seq, base, float(now)) or []]
        seen += [seq for seq, _ in shown(order.tick(float(now)))]
        assert len(order.early) <= OPTIONS.early_max
        assert len(order.holes) <= OPTIONS.holes_max
    assert len(seen) == len(set(seen))


# ---------------------------------------------------------------- against a dictionary


class Recipient(RuleBasedStateMachine):
    """A sender that settles in any order, a mesh that delivers in any order and twice, a device that restarts.

    A restart keeps the state file of a client: watermark, holes, and the messages that are held back.
    """

    options = OrderingOptions(gap_release_s=30.0, early_max=6, holes_max=1_000)

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.order: StreamOrder[int] = StreamOrder(self.options)
        self.bases: dict[int, int] = {}
        """Every sent seq -> its base."""
        self.unsettled: list[int] = []
        self.arrived: dict[int, float] = {}
        """Every seq that arrived -> when it first did."""
        self.shown: dict[int, Flag] = {}
        self.sequence: list[int] = []

    def take_in(self, released: list[Released[int]]) -> None:
        for seq, item, flag in released:
            assert item == seq
            assert seq not in self.shown, "shown twice"
            above = [other for other in self.sequence if other > seq]
            assert bool(above) == (flag == Flag.LATE), "late without a flag, or flagged and not late"
            gap = range(max(self.sequence, default=0) + 1, seq)
            settled_below = max(self.bases[other] for other in self.arrived)
            assert flag != Flag.IN_ORDER or len(gap) == 0 or gap[-1] < settled_below, "an open gap was not flagged"
            assert flag != Flag.AFTER_GAP or len(gap) > 0, "flagged without a gap"
            self.shown[seq] = flag
            self.sequence.append(seq)

    @rule(count=st.integers(1, 3))
    def send(self, count: int) -> None:
        for _ in range(count):
            seq = len(self.bases) + 1
            self.unsettled.append(seq)
            self.bases[seq] = self.unsettled[0]

    @precondition(lambda self: self.unsettled)
    @rule(which=st.integers(0, 100))
    def settle(self, which: int) -> None:
        del self.unsettled[which % len(self.unsettled)]

    @precondition(lambda self: self.bases)
    @rule(back=st.integers(0, 12))
    def arrive(self, back: int) -> None:
        seq = max(1, len(self.bases) - back)
        known = seq in self.arrived
        self.arrived.setdefault(seq, self.now)
        released = self.order.receive(seq, self.bases[seq], seq, self.now)
        assert (released is None) == known
        self.take_in(released or [])

    @rule(seconds=st.floats(0.0, 40.0))
    def wait(self, seconds: float) -> None:
        deadline = self.order.next_deadline()
        self.now += seconds
        released = self.order.tick(self.now)
        assert bool(released) == (deadline is not None and deadline <= self.now)
        self.take_in(released)

    @rule()
    def restart(self) -> None:
        early = dict(self.order.early)
        self.order = StreamOrder(self.options, self.order.watermark, tuple(self.order.holes))
        for seq in early:
            # Their deadlines start again: a device does not know how long it was off.
            self.arrived[seq] = self.now
            assert self.order.receive(seq, self.bases[seq], seq, self.now) == []

    @invariant()
    def never_lost(self) -> None:
        """Every message that arrived is shown, or held back for less than gap_release_s."""
        assert self.arrived.keys() == self.shown.keys() | self.order.early.keys()
        for seq in self.order.early:
            assert self.now - self.arrived[seq] < self.options.gap_release_s
            assert self.order.watermark < seq

    @invariant()
    def below_the_watermark_is_either_shown_or_a_hole(self) -> None:
        holes = {seq for first, last in self.order.holes for seq in range(first, last + 1)}
        below = {seq for seq in self.shown if seq < self.order.watermark}
        assert holes.isdisjoint(below)
        assert holes | below == set(range(1, self.order.watermark))

    @invariant()
    def bounds(self) -> None:
        assert len(self.order.early) <= self.options.early_max
        holes = self.order.holes
        assert all(first <= last for first, last in holes)
        assert all(one[1] + 1 < other[0] for one, other in itertools.pairwise(holes)), "not in order, or adjacent"

    @invariant()
    def the_deadline_is_that_of_the_oldest_early_message(self) -> None:
        times = [self.arrived[seq] for seq in self.order.early]
        assert self.order.next_deadline() == (min(times) + self.options.gap_release_s if times else None)

    def teardown(self) -> None:
        """When every message has arrived, every message is shown and none is held back."""
        for seq, base in self.bases.items():
            self.arrived.setdefault(seq, self.now)
            self.take_in(self.order.receive(seq, base, seq, self.now) or [])
        assert self.shown.keys() == self.bases.keys()
        assert not self.order.early
        assert not self.order.holes
        assert self.order.forgotten == 0


TestRecipient = Recipient.TestCase
TestRecipient.settings = settings(max_examples=100, stateful_step_count=50)
