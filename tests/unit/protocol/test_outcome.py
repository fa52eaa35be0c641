"""The delivery status of a message against its rules, and streams whose recipients must not wait in vain."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from meshim.errors import Code
from meshim.protocol.ordering import OrderingOptions, StreamOrder
from meshim.protocol.outcome import AFTER_MAX, DeliveryStatus, OutStream, OutStreamOptions, outcomes_of
from meshim.wire.envelope import Destination, DestinationType
from meshim.wire.mesh import Stamp
from meshim.wire.outcome import Copy, Outcome, OutcomeStatus

ALICE, BOB = 1, 2
PHONE, LAPTOP, OWN = (BOB, 21), (BOB, 22), (ALICE, 12)
ALL_OF_BOB = (BOB, 0)


def outcome(status: OutcomeStatus, done: tuple[Copy, ...], *copies: Copy, code: int = 0, sentence: str = "") -> Outcome:
    return Outcome(
        origin=9,
        user=ALICE,
        device=11,
        epoch=5,
        to=Destination(DestinationType.USER, BOB),
        first=1,
        last=1,
        status=status,
        done=done,
        copies=copies,
        code=code,
        sentence=sentence,
    )


def progress(*outcomes: Outcome) -> DeliveryStatus:
    message = DeliveryStatus()
    for each in outcomes:
        message.add(each, ALICE)
    return message


# ---------------------------------------------------------------- one message


def test_a_message_is_sent_and_delivered_by_one_outcome_when_there_is_one_copy() -> None:
    message = DeliveryStatus()
    assert message.add(outcome(OutcomeStatus.DELIVERED, (PHONE,), PHONE), ALICE)
    assert (message.state, message.delivered, message.settled) == (DeliveryStatus.SENT, True, True)


def test_stored_is_sent_and_not_delivered() -> None:
    message = progress(outcome(OutcomeStatus.STORED, (PHONE,), PHONE))
    assert (message.state, message.delivered) == (DeliveryStatus.SENT, False)


def test_a_message_is_sent_when_its_last_copy_is_accounted_for() -> None:
    message = DeliveryStatus()
    copies = (PHONE, LAPTOP, OWN)
    assert message.add(outcome(OutcomeStatus.DELIVERED, (PHONE,), *copies), ALICE)
    assert not message.add(outcome(OutcomeStatus.STORED, (LAPTOP,), *copies), ALICE)
    assert (message.state, message.delivered) == (DeliveryStatus.PENDING, True)
    assert message.add(outcome(OutcomeStatus.STORED, (OWN,), *copies), ALICE)
    assert message.state == DeliveryStatus.SENT


def test_the_senders_other_device_does_not_make_it_delivered() -> None:
    message = progress(
        outcome(OutcomeStatus.DELIVERED, (OWN,), OWN, PHONE), outcome(OutcomeStatus.STORED, (PHONE,), OWN, PHONE)
    )
    assert (message.state, message.delivered) == (DeliveryStatus.SENT, False)


def test_stored_for_all_devices_accounts_for_each_of_them() -> None:
    assert progress(outcome(OutcomeStatus.STORED, (ALL_OF_BOB,), ALL_OF_BOB)).state == DeliveryStatus.SENT
    later = outcome(OutcomeStatus.DELIVERED, (OWN,), OWN, PHONE, LAPTOP)
    assert progress(outcome(OutcomeStatus.STORED, (ALL_OF_BOB,), ALL_OF_BOB, OWN), later).state == DeliveryStatus.SENT


def test_some_devices_do_not_account_for_all_registered_devices() -> None:
    assert progress(outcome(OutcomeStatus.DELIVERED, (PHONE, LAPTOP), ALL_OF_BOB)).state == DeliveryStatus.PENDING


def test_the_copies_of_the_latest_attempt_count_and_what_was_accounted_for_stays_so() -> None:
    first = outcome(OutcomeStatus.DELIVERED, (PHONE,), PHONE, LAPTOP)
    assert progress(first, outcome(OutcomeStatus.STORED, (OWN,), PHONE, OWN)).state == DeliveryStatus.SENT
    assert progress(first, outcome(OutcomeStatus.STORED, (OWN,), PHONE, OWN, LAPTOP)).state == DeliveryStatus.PENDING


def test_a_message_without_copies_is_not_sent() -> None:
    assert progress(outcome(OutcomeStatus.DELIVERED, ())).state == DeliveryStatus.PENDING
    assert progress(outcome(OutcomeStatus.STORED, (PHONE,))).state == DeliveryStatus.PENDING


def test_rejected_is_final_and_has_a_reason() -> None:
    message = DeliveryStatus()
    assert message.add(outcome(OutcomeStatus.REJECTED, (), code=Code.NOT_FRIENDS, sentence="not friends"), ALICE)
    assert (message.state, message.code, message.sentence) == (DeliveryStatus.REJECTED, Code.NOT_FRIENDS, "not friends")
    assert not message.add(outcome(OutcomeStatus.REJECTED, (), code=Code.TOO_LARGE, sentence="another"), ALICE)
    assert message.code == Code.NOT_FRIENDS


def test_an_earlier_attempt_of_a_rejected_message_may_have_arrived() -> None:
    message = progress(outcome(OutcomeStatus.REJECTED, (), code=Code.NOT_FRIENDS))
    assert message.add(outcome(OutcomeStatus.DELIVERED, (PHONE,), PHONE), ALICE)
    assert (message.state, message.delivered) == (DeliveryStatus.REJECTED, True)


def test_a_sent_message_is_not_rejected_any_more_but_may_still_be_delivered() -> None:
    message = progress(outcome(OutcomeStatus.STORED, (PHONE,), PHONE))
    assert not message.add(outcome(OutcomeStatus.REJECTED, (), code=Code.NOT_FRIENDS), ALICE)
    assert (message.state, message.code) == (DeliveryStatus.SENT, 0)
    assert message.add(outcome(OutcomeStatus.DELIVERED, (PHONE,), PHONE), ALICE)
    assert message.delivered


@pytest.mark.parametrize("status", [OutcomeStatus.BUSY, 99])
def test_busy_and_unknown_statuses_settle_nothing(status: OutcomeStatus) -> None:
    message = DeliveryStatus()
    assert not message.add(outcome(status, (PHONE,), PHONE), ALICE)
    assert (message.state, message.delivered, message.accounted) == (DeliveryStatus.PENDING, False, set())


_copies = st.lists(st.sampled_from((PHONE, LAPTOP, OWN, ALL_OF_BOB)), unique=True, max_size=4).map(tuple)


@settings(max_examples=300, derandomize=True, deadline=None, database=None)
@given(st.lists(st.tuples(st.sampled_from(OutcomeStatus), _copies, _copies), max_size=8))
def test_sent_exactly_when_all_copies_of_the_latest_attempt_are_accounted_for(
    outcomes: list[tuple[OutcomeStatus, tuple[Copy, ...], tuple[Copy, ...]]],
) -> None:
    message = DeliveryStatus()
    state, delivered, known = DeliveryStatus.PENDING, False, set[Copy]()
    for status, done, copies in outcomes:
        before = (state, delivered)
        if status in (OutcomeStatus.DELIVERED, OutcomeStatus.STORED):
            known.update(done)
            expanded = known | ({PHONE, LAPTOP} if ALL_OF_BOB in known else set())
            if state == DeliveryStatus.PENDING and copies and expanded.issuperset(copies):
                state = DeliveryStatus.SENT
            delivered |= status == OutcomeStatus.DELIVERED and any(user == BOB for user, _ in done)
        elif status == OutcomeStatus.REJECTED and state == DeliveryStatus.PENDING:
            state = DeliveryStatus.REJECTED
        assert message.add(outcome(status, done, *copies), ALICE) == (before != (state, delivered))
        assert (message.state, message.delivered) == (state, delivered)


# ---------------------------------------------------------------- outcomes of copies


def stamp(seq: int, *, to: int = BOB, device: int = 11, copies: tuple[Copy, ...] = (PHONE,)) -> Stamp:
    return Stamp(9, ALICE, device, 5, Destination(DestinationType.USER, to), seq, 1, (), copies)


def shared(*copies: tuple[Stamp, tuple[Copy, ...]]) -> list[tuple[int, int, tuple[Copy, ...]]]:
    """First, last and done of each outcome for these copies."""
    return [(each.first, each.last, each.done) for each in outcomes_of(copies, OutcomeStatus.STORED, 77)]


def test_neighbours_with_one_status_share_an_outcome() -> None:
    assert shared(*((stamp(seq), (PHONE,)) for seq in (4, 5, 6))) == [(4, 6, (PHONE,))]
    assert outcomes_of([], OutcomeStatus.STORED) == []


def test_an_outcome_has_every_field_of_its_message_and_status() -> None:
    (only,) = outcomes_of([(stamp(4), (PHONE,))], OutcomeStatus.BUSY, code=Code.BUSY, sentence="later")
    to = Destination(DestinationType.USER, BOB)
    assert only == Outcome(9, ALICE, 11, 5, to, 4, 4, OutcomeStatus.BUSY, (PHONE,), (PHONE,), 0, Code.BUSY, "later")


@pytest.mark.parametrize(
    "other", [stamp(6), stamp(4), stamp(5, to=3), stamp(5, device=12), stamp(5, copies=(PHONE, LAPTOP))]
)
def test_messages_that_differ_in_any_field_have_separate_outcomes(other: Stamp) -> None:
    assert shared((stamp(4), (PHONE,)), (other, (PHONE,))) == [(4, 4, (PHONE,)), (other.seq, other.seq, (PHONE,))]


def test_neighbours_with_different_copies_done_have_separate_outcomes() -> None:
    copies = (PHONE, LAPTOP)
    one, other = stamp(4, copies=copies), stamp(5, copies=copies)
    assert shared((one, (PHONE,)), (other, (LAPTOP,))) == [(4, 4, (PHONE,)), (5, 5, (LAPTOP,))]


# ---------------------------------------------------------------- a stream

SENT = progress(outcome(OutcomeStatus.STORED, (PHONE,), PHONE))
SENT_TO_BOTH = progress(outcome(OutcomeStatus.STORED, (PHONE, LAPTOP), LAPTOP, PHONE))
REJECTED = progress(outcome(OutcomeStatus.REJECTED, (), code=Code.TOO_LARGE))
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
def test_one_result_for_all_owes_no_base_update(result: DeliveryStatus) -> None:
    out = stream()
    for _ in range(3):
        out.assign()
    assert not any(out.settle(seq, result) for seq in (3, 1, 2))
    assert not out.owes_base


def test_the_order_of_copies_does_not_matter() -> None:
    out = stream()
    out.assign()
    out.assign()
    out.settle(1, SENT_TO_BOTH)
    assert not out.settle(2, progress(outcome(OutcomeStatus.STORED, (PHONE, LAPTOP), PHONE, LAPTOP)))


def test_rejected_is_one_result_regardless_of_earlier_attempts() -> None:
    out = stream()
    out.assign()
    out.assign()
    out.settle(
        1,
        progress(
            outcome(OutcomeStatus.DELIVERED, (PHONE,), PHONE, LAPTOP), outcome(OutcomeStatus.REJECTED, (), code=6)
        ),
    )
    assert not out.settle(2, REJECTED)


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


def test_settle_requires_a_settled_message() -> None:
    out = stream()
    out.assign()
    with pytest.raises(AssertionError):
        out.settle(1, DeliveryStatus())


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


def test_after_names_the_highest_position_for_each_device() -> None:
    out = OutStream(OPTIONS, after=((BOB, 21, 5),))
    out.stored((BOB, 21), 4)
    out.stored((ALICE, 11), 1)
    out.stored((BOB, 22), 3)
    assert out.after == ((BOB, 21, 5), (ALICE, 11, 1), (BOB, 22, 3))
    out.stored((BOB, 22), 6)
    assert out.after == ((BOB, 21, 5), (ALICE, 11, 1), (BOB, 22, 6))


def test_a_position_for_all_devices_holds_for_each_until_one_has_a_higher() -> None:
    out = OutStream(OPTIONS, after=((BOB, 21, 5), (ALICE, 11, 1)))
    out.stored((BOB, 0), 4)
    assert sorted(out.after) == [(ALICE, 11, 1), (BOB, 0, 5)]
    out.stored((BOB, 21), 5)
    assert sorted(out.after) == [(ALICE, 11, 1), (BOB, 0, 5)]
    out.stored((BOB, 21), 6)
    assert sorted(out.after) == [(ALICE, 11, 1), (BOB, 0, 5), (BOB, 21, 6)]


def test_positions_of_many_devices_become_one_for_all() -> None:
    out = OutStream(OPTIONS)
    for device in range(1, AFTER_MAX + 1):
        out.stored((BOB, device), 100 + device)
    out.stored((BOB, 3), 200)
    assert len(out.after) == AFTER_MAX
    out.stored((BOB, AFTER_MAX + 1), 150)
    assert out.after == ((BOB, 0, 200),)


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
        copies = tuple((BOB, device) for device in to)
        result = progress(outcome(OutcomeStatus.STORED, copies, *copies)) if copies else REJECTED
        self.results.append(tuple(sorted(to)))
        owed = self.out.settle(seq, result)
        assert owed == (not self.out.unsettled and (self.unknown or len(set(self.results)) > 1))
        if owed:
            self.assign(update=True)

    @rule()
    def restart(self) -> None:
        known = self.out
        self.out = OutStream(self.options, known.next_seq, known.after)
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
TestConversation.settings = settings(
    max_examples=150, stateful_step_count=40, derandomize=True, deadline=None, database=None
)
