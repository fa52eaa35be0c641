"""Outcomes of copies, and streams whose recipients must not wait in vain."""

from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from meshim.connector.accounting import audience
from meshim.errors import Code
from meshim.protocol.ordering import OrderingOptions, StreamOrder
from meshim.protocol.outcome import REJECTED, OutStream, OutStreamOptions, outcomes_of
from meshim.wire.envelope import Destination, DestinationType
from meshim.wire.mesh import Stamp
from meshim.wire.outcome import Copy, CopyOutcome, OutcomeStatus

ALICE, BOB = 1, 2
PHONE, LAPTOP = (BOB, 21), (BOB, 22)


# ---------------------------------------------------------------- outcomes of copies


def stamp(seq: int, *, to: int = BOB, device: int = 11, copies: tuple[Copy, ...] = (PHONE,), **fields: Any) -> Stamp:
    values: dict[str, Any] = {"session": 6, "after": ()} | fields
    to_user = Destination(DestinationType.USER, to)
    return Stamp(origin=9, user=ALICE, device=device, epoch=5, to=to_user, seq=seq, kind=1, copies=copies, **values)


def shared(*copies: tuple[Stamp, tuple[Copy, ...]]) -> list[tuple[int, int, tuple[Copy, ...]]]:
    """First, last and done of each outcome for these copies."""
    return [(each.first, each.last, each.done) for each in outcomes_of(copies, OutcomeStatus.STORED, 77)]


def test_neighbours_with_one_status_share_an_outcome() -> None:
    assert shared(*((stamp(seq), (PHONE,)) for seq in (4, 5, 6))) == [(4, 6, (PHONE,))]
    assert outcomes_of([], OutcomeStatus.STORED) == []


def test_an_outcome_has_every_field_of_its_message_and_status() -> None:
    positions = ((BOB, 21, 8),)
    busy = [(stamp(4, after=positions), (PHONE,))]
    (only,) = outcomes_of(busy, OutcomeStatus.BUSY, code=Code.BUSY, sentence="later")
    to = Destination(DestinationType.USER, BOB)
    assert only == CopyOutcome(
        9, 6, ALICE, 11, 5, to, 4, 4, OutcomeStatus.BUSY, (PHONE,), (PHONE,), 0, positions, Code.BUSY, "later"
    )  # fmt: skip


@pytest.mark.parametrize(
    "other",
    [
        stamp(6),
        stamp(4),
        stamp(5, to=3),
        stamp(5, device=12),
        stamp(5, copies=(PHONE, LAPTOP)),
        stamp(5, session=7),
        stamp(5, after=((BOB, 21, 8),)),
    ],
)
def test_messages_that_differ_in_any_field_have_separate_outcomes(other: Stamp) -> None:
    assert shared((stamp(4), (PHONE,)), (other, (PHONE,))) == [(4, 4, (PHONE,)), (other.seq, other.seq, (PHONE,))]


def test_neighbours_with_different_copies_done_have_separate_outcomes() -> None:
    copies = (PHONE, LAPTOP)
    one, other = stamp(4, copies=copies), stamp(5, copies=copies)
    assert shared((one, (PHONE,)), (other, (LAPTOP,))) == [(4, 4, (PHONE,)), (5, 5, (LAPTOP,))]


# ---------------------------------------------------------------- a stream

SENT, SENT_TO_BOTH = 77, 78
"""The audiences of final outcomes."""
OPTIONS = OutStreamOptions(in_flight=4)


def stream(next_seq: int = 1) -> OutStream:
    return OutStream(OPTIONS, next_seq)


def test_base_is_the_lowest_unsettled_or_the_message_itself() -> None:
    out = stream()
    assert [out.assign() for _ in range(3)] == [(1, 1), (2, 1), (3, 1)]
    assert not out.settle(1, SENT)
    assert out.assign() == (4, 2)
    for seq in (3, 2, 4):
        assert not out.settle(seq, SENT)
    assert out.base == 5
    assert out.assign() == (5, 5)


def test_a_stream_is_full_from_its_lowest_unsettled_message_on() -> None:
    out = stream()
    for _ in range(4):
        assert not out.full
        out.assign()
    assert out.full
    for seq in (2, 3, 4):
        out.settle(seq, SENT)
    assert out.full, "one unsettled message holds all later ones back"
    out.settle(1, SENT)
    assert not out.full


def test_a_rejected_message_before_a_sent_one_owes_a_base_update() -> None:
    out = stream()
    out.assign()
    out.assign()
    assert not out.settle(1, REJECTED)
    assert out.settle(2, SENT)


def test_a_rejected_message_that_is_settled_last_owes_a_base_update() -> None:
    out = stream()
    out.assign()
    out.assign()
    assert not out.settle(2, SENT)
    assert out.settle(1, REJECTED)


def test_neighbours_with_different_copies_owe_a_base_update() -> None:
    out = stream()
    out.assign()
    out.assign()
    assert not out.settle(1, SENT)
    assert out.settle(2, SENT_TO_BOTH)


@pytest.mark.parametrize("result", [SENT, SENT_TO_BOTH, REJECTED])
def test_one_result_for_all_owes_no_base_update(result: int) -> None:
    out = stream()
    for _ in range(3):
        out.assign()
    assert not any(out.settle(seq, result) for seq in (3, 1, 2))
    assert not out.owes_base


def test_messages_that_never_overlapped_owe_no_base_update() -> None:
    out = stream()
    for seq, result in enumerate((SENT, REJECTED, SENT_TO_BOTH, SENT), 1):
        assert out.assign() == (seq, seq)
        assert not out.settle(seq, result)


def test_a_base_update_waits_while_a_message_is_unsettled() -> None:
    out = stream()
    for _ in range(3):
        out.assign()
    out.settle(1, REJECTED)
    assert not out.settle(2, SENT)
    assert out.owes_base
    assert out.settle(3, SENT)
    assert out.assign() == (4, 4)
    assert not out.owes_base


def test_a_second_outcome_of_a_settled_message_changes_nothing() -> None:
    out = stream()
    out.assign()
    out.assign()
    out.settle(1, REJECTED)
    assert out.settle(2, SENT)
    assert not out.settle(2, SENT)
    assert not out.settle(77, SENT)


def test_after_a_restart_an_unsettled_run_owes_no_base_update() -> None:
    out = stream(next_seq=4)
    out.restore(2, 2)
    out.restore(3, 2)
    assert out.base == 2
    assert not out.settle(2, SENT)
    assert not out.settle(3, SENT)


@pytest.mark.parametrize("restored", [{2: 1}, {1: 1}, {1: 1, 3: 1}])
def test_after_a_restart_a_partly_settled_run_owes_a_base_update(restored: dict[int, int]) -> None:
    out = stream(next_seq=4)
    for seq, base in restored.items():
        out.restore(seq, base)
    assert [out.settle(seq, SENT) for seq in restored] == [False] * (len(restored) - 1) + [True]


def test_only_an_assigned_seq_can_be_restored() -> None:
    for seq, base in ((1, 1), (3, 4)):
        with pytest.raises(AssertionError):
            stream().restore(seq, base)


class Conversation(RuleBasedStateMachine):
    """One sending device, three receiving ones, and a clock that stands still: a device that waits, waits for ever.

    Messages go to some of the devices or are rejected; they arrive in any order, and the sender restarts.
    """

    devices = (21, 22, 23)
    options = OutStreamOptions(in_flight=8)

    def __init__(self) -> None:
        super().__init__()
        self.out = OutStream(self.options)
        self.orders = {device: StreamOrder[int](OrderingOptions(gap_release_s=1.0)) for device in self.devices}
        self.updates: set[int] = set()
        self.results: list[tuple[int, ...]] = []
        """The devices of each settled message of this run."""
        self.unknown = False

    def assign(self, *, update: bool = False) -> None:
        if not self.out.unsettled:
            self.results, self.unknown = [], False
        seq, base = self.out.assign()
        assert base == min(self.out.unsettled)
        if update:
            self.updates.add(seq)

    @precondition(lambda self: not self.out.full)
    @rule()
    def send(self) -> None:
        self.assign()

    @precondition(lambda self: self.out.unsettled)
    @rule(which=st.integers(0, 100), to=st.sets(st.sampled_from(devices)))
    def settle(self, which: int, to: set[int]) -> None:
        seq, base = list(self.out.unsettled.items())[which % len(self.out.unsettled)]
        if seq in self.updates:
            # A rejected update cannot be repaired: friendship ended, and gap_release_s releases the messages.
            to = set(self.devices)
        for device in to:
            released = self.orders[device].receive(seq, base, seq, 0.0)
            assert released is not None
        result = audience(tuple((BOB, device) for device in to)) if to else REJECTED
        self.results.append(tuple(sorted(to)))
        owed = self.out.settle(seq, result)
        assert owed == (not self.out.unsettled and (self.unknown or len(set(self.results)) > 1))
        if owed:
            self.assign(update=True)

    @rule()
    def restart(self) -> None:
        known = self.out
        self.out = OutStream(self.options, known.next_seq, known.cookie)
        for seq, base in known.unsettled.items():
            self.out.restore(seq, base)
        self.unknown |= bool(self.results) and bool(known.unsettled)
        self.results = []

    @invariant()
    def no_device_waits_when_all_is_settled(self) -> None:
        if not self.out.unsettled:
            assert not any(order.early for order in self.orders.values())

    @invariant()
    def bounds(self) -> None:
        assert self.out.next_seq - self.out.base <= self.options.in_flight
        for order in self.orders.values():
            assert len(order.early) <= self.options.in_flight

    def teardown(self) -> None:
        while self.out.unsettled:
            self.settle(0, set(self.devices))
        self.no_device_waits_when_all_is_settled()


TestConversation = Conversation.TestCase
TestConversation.settings = settings(max_examples=150, stateful_step_count=40)
