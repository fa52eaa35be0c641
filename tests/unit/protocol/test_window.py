"""Windows: each rule of the module, and two windows over connections that break."""

import copy
from collections import deque
from dataclasses import dataclass, field
from math import inf

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from meshim.errors import Code, PeerError
from meshim.protocol.window import Window, WindowOptions
from meshim.wire.link import Ack, Data

LINK = 7
OPTIONS = WindowOptions(credit=4, queue=8, frame_items=3, frame_bytes=10, give_up_s=10.0)

Frame = Data[int] | Ack
Numbers = Window[int]


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
    end.receive(1)
    push(end, 1, 2)
    assert end.take(0.0) == [Data(LINK, 1, 1, (1, 2))]
    push(end, 3)
    assert end.take(0.0) == [Data(LINK, 2, 1, (3,))]


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
    assert end.acknowledged(1, 0.0) == [9]
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
    assert end.acknowledged(2, 0.0) == [9, 8]
    assert end.acknowledged(2, 0.0) == []
    assert end.acknowledged(1, 0.0) == []
    assert end.acknowledged(3, 0.0) == [7]
    assert end.idle


def test_a_frame_that_was_never_sent_cannot_be_acknowledged() -> None:
    end = window()
    push(end, 9)
    end.take(0.0)
    with pytest.raises(PeerError) as caught:
        end.acknowledged(2, 0.0)
    assert caught.value.code == Code.MALFORMED
    assert end.unacknowledged == 1


@pytest.mark.parametrize("ack", [0, -1, -(2**63)])
def test_numbers_below_all_that_was_sent_acknowledge_nothing(ack: int) -> None:
    end = window()
    push(end, 9)
    end.take(0.0)
    assert end.acknowledged(ack, 0.0) == []
    assert end.unacknowledged == 1


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
    end.acknowledged(1, 10.0)
    assert not end.failed(19.9)
    assert end.failed(20.0)


def test_an_idle_time_before_the_first_frame_does_not_count_as_failure() -> None:
    end = window()
    push(end, 9)
    end.take(0.0)
    end.acknowledged(1, 1.0)
    push(end, 8)
    end.take(50.0)
    assert not end.failed(59.9)
    assert end.failed(60.0)


def test_abandon_returns_unacknowledged_items_in_order_and_empties_the_window() -> None:
    end = window()
    push(end, 9, 8, 7, 6, 5)
    end.take(0.0)
    push(end, 4)
    end.acknowledged(1, 0.0)
    assert end.abandon() == [8, 7, 6, 5, 4]
    assert (end.queued, end.unacknowledged, end.give_up_at) == (0, 0, inf)
    assert end.abandon() == []


# ---------------------------------------------------------------- receiving


@pytest.mark.parametrize("number", [-1, 0, 1, 3, 4, 2**53 - 1])
def test_a_frame_that_is_not_the_next_one_is_an_error(number: int) -> None:
    """One is missing, or came twice: a connection does neither, so the peer did."""
    end = window()
    end.receive(1)
    with pytest.raises(PeerError, match="2 was expected") as caught:
        end.receive(number)
    assert caught.value.code == Code.MALFORMED
    assert end.received_number == 1


def test_the_window_counts_from_the_last_acknowledgement_that_was_sent() -> None:
    end = window()
    for number in (1, 2, 3, 4):
        end.receive(number)
    assert end.processed_number == 4, "an acknowledgement is owed, but the peer cannot know it"
    with pytest.raises(PeerError) as caught:
        end.receive(5)
    assert caught.value.code == Code.WINDOW_EXCEEDED
    assert end.pending_ack() == Ack(LINK, 4)
    end.receive(5)


def test_an_acknowledgement_in_a_data_frame_opens_the_window_too() -> None:
    end = window()
    for number in (1, 2, 3, 4):
        end.receive(number)
    push(end, 9)
    assert [frame.ack for frame in end.take(0.0)] == [4]
    end.receive(5)


def test_the_window_of_the_peer_does_not_shrink_with_credit() -> None:
    """`credit` is how many frames this end may send."""
    end = window()
    end.credit = 1
    for number in (1, 2, 3, 4):
        end.receive(number)


def test_data_carries_an_owed_acknowledgement() -> None:
    end = window()
    end.receive(1)
    assert not end.idle
    push(end, 9)
    assert end.take(0.0)[0].ack == 1
    assert end.pending_ack() is None


def test_manual_ack_acknowledges_processed_frames_only() -> None:
    end = window(manual_ack=True)
    end.receive(1)
    end.receive(2)
    assert end.received_number == 2
    assert not end.owes_ack
    assert end.pending_ack() is None
    end.processed(1)
    assert end.pending_ack() == Ack(LINK, 1)
    push(end, 9)
    assert end.take(0.0)[0].ack == 1
    with pytest.raises(AssertionError):
        end.processed(3)


# ---------------------------------------------------------------- two ends


@dataclass
class End:
    """One of two ends on one connection after another, and what a test records of it."""

    manual_ack: bool
    window: Numbers = field(init=False)
    outbound: deque[Frame] = field(default_factory=deque)
    """Frames under way to the other end."""
    queue: list[int] = field(default_factory=list)
    """Items that the windows before this one have handed back."""
    pushed: list[int] = field(default_factory=list)
    acknowledged: list[int] = field(default_factory=list)
    arrived: list[int] = field(default_factory=list)
    """Items that arrived at the other end, on any connection."""
    processed: set[int] = field(default_factory=set)
    """Those that the other end was done with, so that it might acknowledge them."""
    frames: list[tuple[int, ...]] = field(default_factory=list)
    """The items of each frame that arrived on this connection."""

    def __post_init__(self) -> None:
        self.window = window(manual_ack=self.manual_ack)

    def flush(self, now: float) -> None:
        while self.queue and self.window.push(self.queue[0]):
            del self.queue[0]
        self.outbound += self.window.take(now)
        if (ack := self.window.pending_ack()) is not None:
            self.outbound.append(ack)

    def reconnect(self) -> None:
        self.outbound.clear()
        self.frames.clear()
        self.queue = self.window.abandon() + self.queue
        self.window = window(manual_ack=self.manual_ack)


def deliver(sender: End, receiver: End, now: float) -> None:
    """Let the oldest frame under way arrive."""
    frame = sender.outbound.popleft()
    receiver.acknowledged += receiver.window.acknowledged(frame.ack, now)
    if isinstance(frame, Data):
        receiver.window.receive(frame.number)
        sender.arrived += frame.items
        sender.frames.append(frame.items)
    for items in sender.frames[: receiver.window.processed_number]:
        sender.processed |= set(items)


class TwoWindows(RuleBasedStateMachine):
    """One end acknowledges received frames, the other processed ones; a connection breaks at any time."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.ends = (End(manual_ack=False), End(manual_ack=True))

    @initialize(credit=st.integers(1, 4))
    def greet(self, credit: int) -> None:
        self.ends[0].window.credit = credit

    @rule(at=st.integers(0, 1), sizes=st.lists(st.integers(0, 12), max_size=6))
    def push(self, at: int, sizes: list[int]) -> None:
        end = self.ends[at]
        for size in sizes:
            full = end.window.queued == OPTIONS.queue
            item = 100 * len(end.pushed) + size
            if not end.queue:
                assert end.window.push(item) is not full
                end.pushed += [] if full else [item]

    @rule(at=st.integers(0, 1), seconds=st.floats(0.0, 3.0))
    def flush(self, at: int, seconds: float) -> None:
        self.now += seconds
        self.ends[at].flush(self.now)

    @rule(at=st.integers(0, 1), count=st.integers(1, 6))
    def deliver(self, at: int, count: int) -> None:
        for _ in range(min(count, len(self.ends[at].outbound))):
            deliver(self.ends[at], self.ends[1 - at], self.now)

    @rule()
    def break_connection(self) -> None:
        """What is under way is lost, in both directions."""
        for end in self.ends:
            end.reconnect()

    @precondition(lambda self: self.ends[1].window.processed_number < self.ends[1].window.received_number)
    @rule(share=st.floats(0.0, 1.0))
    def process(self, share: float) -> None:
        manual = self.ends[1].window
        waiting = manual.received_number - manual.processed_number
        manual.processed(manual.processed_number + round(waiting * share))
        for items in self.ends[0].frames[: manual.processed_number]:
            self.ends[0].processed |= set(items)

    @invariant()
    def in_order_without_a_gap(self) -> None:
        """What arrives a second time is what was not acknowledged: the first arrivals are in order."""
        for end in self.ends:
            first = list(dict.fromkeys(end.arrived))
            assert first == end.pushed[: len(first)]

    @invariant()
    def only_processed_items_are_acknowledged(self) -> None:
        for end in self.ends:
            assert end.acknowledged == end.pushed[: len(end.acknowledged)]
            assert set(end.acknowledged) <= end.processed

    @invariant()
    def bounds(self) -> None:
        for end in self.ends:
            assert end.window.unacknowledged <= end.window.credit
            assert end.window.queued <= OPTIONS.queue
            for frame in end.outbound:
                assert frame.ack <= end.window.processed_number
                if isinstance(frame, Data):
                    assert 0 < len(frame.items) <= OPTIONS.frame_items
                    assert sum(map(size_of, frame.items)) <= OPTIONS.frame_bytes or len(frame.items) == 1

    @invariant()
    def abandon_returns_the_unacknowledged_items(self) -> None:
        for end in self.ends:
            assert copy.deepcopy(end.window).abandon() + end.queue == end.pushed[len(end.acknowledged) :]

    def teardown(self) -> None:
        """Over a connection that lasts every item arrives and is acknowledged."""
        for _ in range(200):
            if all(end.window.idle and not end.outbound and not end.queue for end in self.ends):
                break
            for at, end in enumerate(self.ends):
                end.flush(self.now)
                while end.outbound:
                    deliver(end, self.ends[1 - at], self.now)
            manual = self.ends[1].window
            manual.processed(manual.received_number)
        for end in self.ends:
            assert end.acknowledged == end.pushed


TestTwoWindows = TwoWindows.TestCase
TestTwoWindows.settings = settings(max_examples=80, stateful_step_count=60)
