"""Windows: each rule of the module, and two windows over a link that loses, duplicates and reorders frames."""

import copy
import random
from dataclasses import dataclass, field

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from meshim.errors import Code, PeerError
from meshim.protocol.window import Window, WindowOptions
from meshim.wire.bounds import LIST_MAX
from meshim.wire.link import Ack, Data

LINK = 7
OPTIONS = WindowOptions(credit=4, queue=8, frame_items=3, frame_bytes=10, resend_s=1.0, give_up_s=10.0)

Frame = Data[int] | Ack
Numbers = Window[int, int]


def window(*, manual_ack: bool = False, options: WindowOptions = OPTIONS) -> Numbers:
    return Window(LINK, options, size_of, manual_ack=manual_ack)


def size_of(item: int) -> int:
    """The last two digits, so that tests can predict the packing and distinguish the items."""
    return item % 100


def push(end: Numbers, *items: int) -> None:
    for item in items:
        assert end.push(item)


# ---------------------------------------------------------------- sending


def test_frames_are_numbered_from_one_and_carry_link_and_acknowledgement() -> None:
    end = window()
    end.receive(1, (5,))
    push(end, 1, 2)
    assert end.take(0.0) == [Data(LINK, 1, 1, (), (1, 2))]
    push(end, 3)
    assert end.take(0.0) == [Data(LINK, 2, 1, (), (3,))]


def test_items_are_packed_up_to_both_limits() -> None:
    end = window()
    push(end, 1, 1, 1, 1, 5, 6, 4, 5)
    assert [frame.items for frame in end.take(0.0)] == [(1, 1, 1), (1, 5), (6, 4), (5,)]


def test_an_item_beyond_the_limit_of_a_frame_travels_alone() -> None:
    end = window()
    push(end, 1, 99, 1)
    assert [frame.items for frame in end.take(0.0)] == [(1,), (99,), (1,)]


def test_no_more_frames_than_credit_are_in_flight_and_the_queue_is_bounded() -> None:
    end = window()
    push(end, *[9] * 8)
    assert not end.push(9)
    assert len(end.take(0.0)) == 4
    assert (end.unacknowledged, end.queued) == (4, 4)
    assert end.take(0.0) == []
    assert end.acknowledged(1, (), 0.0) == [9]
    assert [frame.number for frame in end.take(0.0)] == [5]


def test_credit_may_be_lowered_to_the_window_of_the_peer() -> None:
    end = window()
    end.credit = 1
    push(end, 9, 9)
    assert len(end.take(0.0)) == 1


def test_an_acknowledgement_is_cumulative_and_returns_each_item_once() -> None:
    end = window()
    push(end, 9, 8, 7)
    end.take(0.0)
    assert end.acknowledged(2, (), 0.0) == [9, 8]
    assert end.acknowledged(2, (), 0.0) == []
    assert end.acknowledged(1, (), 0.0) == []
    assert end.acknowledged(3, (), 0.0) == [7]
    assert end.idle


def test_stashed_frames_remain_with_the_sender() -> None:
    end = window()
    push(end, 9, 8)
    end.take(0.0)
    assert end.acknowledged(0, (2,), 0.0) == []
    assert end.abandon() == [9, 8]


def test_a_frame_that_was_never_sent_cannot_be_acknowledged() -> None:
    end = window()
    push(end, 9)
    end.take(0.0)
    with pytest.raises(PeerError) as caught:
        end.acknowledged(2, (), 0.0)
    assert caught.value.code == Code.MALFORMED
    assert end.unacknowledged == 1


@pytest.mark.parametrize("ack", [0, -1, -(2**63)])
def test_numbers_below_all_that_was_sent_acknowledge_nothing(ack: int) -> None:
    end = window()
    push(end, 9)
    end.take(0.0)
    assert end.acknowledged(ack, (-1, 0, 2, 2**63), 0.0) == []
    assert end.unacknowledged == 1


def test_resending_backs_off_by_doubling() -> None:
    end = window()
    push(end, 9)
    (frame,) = end.take(0.0)
    due = []
    for tenth in range(1, 100):
        due += [tenth / 10 for again in end.resend(tenth / 10) if again == frame]
    assert due == [1.0, 3.0, 7.0]
    assert end.resent == 3


def test_a_stashed_frame_is_resent_later_and_a_repeated_acknowledgement_does_not_delay_it_further() -> None:
    end = window()
    push(end, 5)
    end.take(0.0)
    push(end, 4)
    end.take(0.0)
    end.acknowledged(0, (2,), 0.5)
    assert [frame.number for frame in end.resend(1.0)] == [1]
    end.acknowledged(0, (2,), 4.0)
    assert end.next_deadline() == 3.0
    assert [frame.number for frame in end.resend(4.5)] == [1, 2]


def test_one_full_frame_at_most_is_resent_at_a_time() -> None:
    end = window()
    push(end, 9, 8, 1, 7)
    assert [sum(frame.items) for frame in end.take(0.0)] == [9, 9, 7]
    assert [frame.number for frame in end.resend(1.0)] == [1]
    assert end.next_deadline() == 2.0
    assert not end.resend(1.9)
    assert [frame.number for frame in end.resend(2.0)] == [2]
    assert [frame.number for frame in end.resend(3.0)] == [1], "the oldest frame that is due"


def test_nothing_is_resent_while_the_peer_acknowledges_frames() -> None:
    end = window()
    push(end, 9, 8, 7)
    end.take(0.0)
    for number, now in ((1, 0.9), (2, 1.8)):
        end.acknowledged(number, (), now)
        assert not end.resend(now + 0.9)
    assert end.next_deadline() == 3.6, "twice the last acknowledgement delay"
    assert [frame.number for frame in end.resend(3.6)] == [3]


def test_a_frame_lost_behind_a_slow_one_is_resent_before_the_link_has_failed() -> None:
    end = window()
    push(end, 9)
    end.take(0.0)
    end.acknowledged(1, (), 6.0)
    push(end, 8)
    end.take(6.0)
    assert end.next_deadline() == 11.0, "half of give_up_s"
    assert [frame.number for frame in end.resend(11.0)] == [2]
    assert not end.failed(15.9)
    assert end.failed(16.0)


def test_the_queue_is_bounded_in_bytes_too() -> None:
    end = window(options=msgspec.structs.replace(OPTIONS, queue_bytes=10))
    push(end, 9, 1)
    assert not end.push(1)
    end.take(0.0)
    push(end, 99)
    assert not end.push(1)
    assert end.abandon() == [9, 1, 99]
    assert end.push(1)


def test_a_link_has_failed_when_the_peer_acknowledged_nothing_for_too_long() -> None:
    end = window()
    assert not end.failed(1e9)
    push(end, 9)
    end.take(0.0)
    push(end, 8)
    end.take(5.0)
    assert not end.failed(9.9)
    assert end.failed(10.0)
    end.acknowledged(1, (), 10.0)
    assert not end.failed(19.9)
    assert end.failed(20.0)


def test_an_idle_time_before_the_first_frame_does_not_count_as_failure() -> None:
    end = window()
    push(end, 9)
    end.take(0.0)
    end.acknowledged(1, (), 1.0)
    push(end, 8)
    end.take(50.0)
    assert not end.failed(59.9)
    assert end.failed(60.0)


def test_the_next_deadline_is_a_resend_or_giving_up() -> None:
    end = window()
    assert end.next_deadline() is None
    push(end, 9)
    end.take(0.0)
    assert end.next_deadline() == 1.0
    for now in (1.0, 3.0, 7.0):
        assert end.resend(now)
    assert end.next_deadline() == 10.0


def test_a_deadline_of_an_acknowledged_frame_is_moved_when_it_passes() -> None:
    end = window()
    push(end, 1)
    end.take(0.0)
    push(end, 2)
    end.take(0.4)
    end.acknowledged(1, (), 0.5)
    deadline = end.next_deadline()
    assert deadline is not None
    assert deadline <= 1.5
    assert not end.resend(1.0)
    assert end.next_deadline() == 1.5
    assert [frame.number for frame in end.resend(1.5)] == [2]
    end.acknowledged(2, (), 1.6)
    assert end.next_deadline() is None
    push(end, 3)
    end.take(5.0)
    assert end.next_deadline() == 6.0


def test_abandon_returns_unacknowledged_items_in_order_and_empties_the_window() -> None:
    end = window()
    push(end, 9, 8, 7, 6, 5)
    end.take(0.0)
    push(end, 4)
    end.acknowledged(1, (3,), 0.0)
    assert end.abandon() == [8, 7, 6, 5, 4]
    assert (end.queued, end.unacknowledged, end.next_deadline()) == (0, 0, None)
    assert end.abandon() == []


def test_credit_beyond_the_list_of_an_acknowledgement_is_an_assertion_error() -> None:
    with pytest.raises(AssertionError):
        window(options=msgspec.structs.replace(OPTIONS, credit=LIST_MAX + 1))


# ---------------------------------------------------------------- receiving


def test_an_early_frame_is_stashed_and_returned_behind_the_missing_one() -> None:
    end = window()
    assert end.receive(3, (30,)) == []
    assert end.receive(2, (20, 21)) == []
    assert end.pending_ack() == Ack(LINK, 0, (3, 2))
    assert end.receive(1, (10,)) == [10, 20, 21, 30]
    assert end.pending_ack() == Ack(LINK, 3, ())
    assert end.pending_ack() is None


def test_a_duplicate_is_acknowledged_again_and_not_returned() -> None:
    end = window()
    assert end.receive(1, (10,)) == [10]
    assert end.pending_ack() == Ack(LINK, 1, ())
    assert end.receive(1, (10,)) == []
    assert end.pending_ack() == Ack(LINK, 1, ())


def test_the_first_of_two_early_frames_with_one_number_counts() -> None:
    end = window()
    end.receive(2, (20,))
    end.receive(2, (99,))
    assert end.receive(1, ()) == [20]


def test_the_stash_is_bounded_in_bytes() -> None:
    end: Numbers = Window(
        LINK, msgspec.structs.replace(OPTIONS, stash_bytes=15), size_of, size_of_received=size_of
    )  # fmt: skip
    for number, item in ((2, 9), (3, 8), (4, 6)):
        end.receive(number, (item,))
    assert end.pending_ack() == Ack(LINK, 0, (2, 4)), "the sender resends 3"
    end.receive(2, (9,))
    assert end.receive(1, (1,)) == [1, 9]
    end.receive(5, (9,))
    assert end.receive(3, (8,)) == [8, 6, 9], "taken frames made room in the stash"


def test_a_frame_beyond_credit_is_dropped_and_far_beyond_is_an_error() -> None:
    end = window()
    assert end.receive(4, (40,)) == []
    assert end.receive(5, (50,)) == []
    assert end.receive(9, (90,)) == []
    assert end.pending_ack() == Ack(LINK, 0, (4,))
    for number in (10, 2**63 - 1):
        with pytest.raises(PeerError) as caught:
            end.receive(number, ())
        assert caught.value.code == Code.WINDOW_EXCEEDED


@pytest.mark.parametrize("number", [0, -1])
def test_frames_are_numbered_from_one(number: int) -> None:
    with pytest.raises(PeerError) as caught:
        window().receive(number, ())
    assert caught.value.code == Code.MALFORMED


def test_data_carries_an_owed_acknowledgement() -> None:
    end = window()
    end.receive(1, (10,))
    assert not end.idle
    push(end, 9)
    assert end.take(0.0)[0].ack == 1
    assert end.pending_ack() is None


def test_manual_ack_acknowledges_processed_frames_only() -> None:
    end = window(manual_ack=True)
    assert end.receive(1, (10,)) == [10]
    assert end.receive(2, (20,)) == [20]
    assert end.received_number == 2
    assert end.pending_ack() == Ack(LINK, 0, ())
    end.processed(1)
    assert end.pending_ack() == Ack(LINK, 1, ())
    push(end, 9)
    assert end.take(0.0)[0].ack == 1
    with pytest.raises(AssertionError):
        end.processed(3)


# ---------------------------------------------------------------- two ends


@dataclass
class End:
    """One of two ends, and what a test records of it."""

    window: Numbers
    outbound: list[Frame] = field(default_factory=list)
    """Frames in flight to the other end."""
    pushed: list[int] = field(default_factory=list)
    received: list[int] = field(default_factory=list)
    """The items that the other end received."""
    acknowledged: list[int] = field(default_factory=list)
    frames: dict[int, int] = field(default_factory=dict)
    """The number of items in each frame that arrived."""

    def flush(self, now: float) -> None:
        self.outbound += self.window.take(now)
        if (ack := self.window.pending_ack()) is not None:
            self.outbound.append(ack)


def receive(frame: Frame, sender: End, receiver: End, now: float) -> None:
    receiver.acknowledged += receiver.window.acknowledged(frame.ack, frame.stash, now)
    if isinstance(frame, Data):
        sender.received += receiver.window.receive(frame.number, frame.items)
        sender.frames[frame.number] = len(frame.items)


class TwoWindows(RuleBasedStateMachine):
    """One end acknowledges received frames, the other processed ones; the link loses, duplicates and reorders."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.ends = (End(window()), End(window(manual_ack=True)))

    @initialize(credit=st.integers(1, 4))
    def greet(self, credit: int) -> None:
        self.ends[0].window.credit = credit

    @rule(at=st.integers(0, 1), sizes=st.lists(st.integers(0, 12), max_size=6))
    def push(self, at: int, sizes: list[int]) -> None:
        end = self.ends[at]
        for size in sizes:
            full = end.window.queued == OPTIONS.queue
            item = 100 * len(end.pushed) + size
            assert end.window.push(item) is not full
            end.pushed += [] if full else [item]

    @rule(at=st.integers(0, 1))
    def flush(self, at: int) -> None:
        self.ends[at].flush(self.now)

    @rule(at=st.integers(0, 1), which=st.integers(0, 100), again=st.booleans())
    def deliver(self, at: int, which: int, again: bool) -> None:
        """Deliver any frame in flight, not only the first; with `again` it stays in flight to arrive twice."""
        sender, receiver = self.ends[at], self.ends[1 - at]
        if sender.outbound:
            which %= len(sender.outbound)
            receive(sender.outbound[which], sender, receiver, self.now)
            if not again:
                del sender.outbound[which]

    @rule(at=st.integers(0, 1), which=st.integers(0, 100))
    def lose(self, at: int, which: int) -> None:
        outbound = self.ends[at].outbound
        if outbound:
            del outbound[which % len(outbound)]

    @rule(at=st.integers(0, 1), seconds=st.floats(0.0, 3.0))
    def resend(self, at: int, seconds: float) -> None:
        self.now += seconds
        end = self.ends[at]
        deadline = end.window.next_deadline()
        frames = end.window.resend(self.now)
        assert not frames or (deadline is not None and deadline <= self.now)
        end.outbound += frames

    @precondition(lambda self: self.ends[1].window.processed_number < self.ends[1].window.received_number)
    @rule(share=st.floats(0.0, 1.0))
    def process(self, share: float) -> None:
        manual = self.ends[1].window
        waiting = manual.received_number - manual.processed_number
        manual.processed(manual.processed_number + round(waiting * share))

    @invariant()
    def once_and_in_order(self) -> None:
        for end in self.ends:
            assert end.received == end.pushed[: len(end.received)]

    @invariant()
    def only_processed_items_are_acknowledged(self) -> None:
        for end, other in (self.ends, self.ends[::-1]):
            processed = other.window.processed_number
            safe = sum(count for number, count in end.frames.items() if number <= processed)
            assert end.acknowledged == end.pushed[: len(end.acknowledged)]
            assert len(end.acknowledged) <= safe

    @invariant()
    def bounds(self) -> None:
        for end, other in (self.ends, self.ends[::-1]):
            assert end.window.unacknowledged <= end.window.credit
            assert end.window.queued <= OPTIONS.queue
            for frame in end.outbound:
                assert len(frame.stash) < OPTIONS.credit
                assert frame.ack <= end.window.processed_number
                if isinstance(frame, Data):
                    assert 0 < len(frame.items) <= OPTIONS.frame_items
                    assert sum(map(size_of, frame.items)) <= OPTIONS.frame_bytes or len(frame.items) == 1
                    assert frame.number <= other.window.received_number + OPTIONS.credit

    @invariant()
    def abandon_returns_the_unacknowledged_items(self) -> None:
        for end in self.ends:
            assert copy.deepcopy(end.window).abandon() == end.pushed[len(end.acknowledged) :]

    def teardown(self) -> None:
        """Over a reliable link every item arrives and is acknowledged."""
        for _ in range(100):
            if all(end.window.idle and not end.outbound for end in self.ends):
                break
            self.now += 100.0
            for at, end in enumerate(self.ends):
                end.outbound += end.window.resend(self.now)
                end.flush(self.now)
                while end.outbound:
                    receive(end.outbound.pop(0), end, self.ends[1 - at], self.now)
            manual = self.ends[1].window
            if manual.processed_number < manual.received_number:
                manual.processed(manual.received_number)
        for end in self.ends:
            assert end.received == end.acknowledged == end.pushed


TestTwoWindows = TwoWindows.TestCase
TestTwoWindows.settings = settings(
    max_examples=80, stateful_step_count=60, derandomize=True, deadline=None, database=None
)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("manual_ack", [False, True])
def test_a_long_conversation_over_a_bad_link(seed: int, manual_ack: bool) -> None:
    chance = random.Random(seed)
    ends = (End(window()), End(window(manual_ack=manual_ack)))
    most, now, tick_s = 2_000, 0.0, 0.05
    arrivals: list[tuple[float, int, Frame]] = []
    while any(len(end.acknowledged) < most for end in ends):
        now += tick_s
        assert now < 10_000
        for at, end in enumerate(ends):
            while len(end.pushed) < most and end.window.push(item := 100 * len(end.pushed) + len(end.pushed) % 7):
                end.pushed.append(item)
            end.flush(now)
            end.outbound += end.window.resend(now)
            for frame in end.outbound:
                copies = chance.choices((0, 1, 2), (15, 75, 10))[0]
                arrivals += [(now + chance.expovariate(10.0), at, frame) for _ in range(copies)]
            end.outbound.clear()
        due = sorted((arrival for arrival in arrivals if arrival[0] <= now), key=lambda arrival: arrival[0])
        arrivals = [arrival for arrival in arrivals if arrival[0] > now]
        for _, at, frame in due:
            receive(frame, ends[at], ends[1 - at], now)
        last = ends[1].window
        if manual_ack and chance.random() < 0.3:
            last.processed(last.received_number)
    for end in ends:
        assert end.received == end.acknowledged == end.pushed
        assert end.window.resent > 0
