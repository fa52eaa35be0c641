"""The sender's book: a tally against its rules, and a stream whose devices must never wait for nothing."""

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
        9,
        ALICE,
        11,
        5,
        Destination(DestinationType.USER, BOB),
        1,
        1,
        status,
        done,
        copies,
        code=code,
        sentence=sentence,
    )


def progress(*outcomes: Outcome) -> DeliveryStatus:
    book = DeliveryStatus()
    for each in outcomes:
        book.add(each, ALICE)
    return book


# ---------------------------------------------------------------- one message


def test_a_message_is_sent_and_delivered_by_one_outcome_when_there_is_one_copy() -> None:
    book = DeliveryStatus()
    assert book.add(outcome(OutcomeStatus.DELIVERED, (PHONE,), PHONE), ALICE)
    assert (book.state, book.delivered, book.settled) == (DeliveryStatus.SENT, True, True)


def test_stored_is_sent_and_not_delivered() -> None:
    book = progress(outcome(OutcomeStatus.STORED, (PHONE,), PHONE))
    assert (book.state, book.delivered) == (DeliveryStatus.SENT, False)


def test_a_message_is_sent_when_its_last_copy_is_accounted_for() -> None:
    book = DeliveryStatus()
    copies = (PHONE, LAPTOP, OWN)
    assert book.add(outcome(OutcomeStatus.DELIVERED, (PHONE,), *copies), ALICE)
    assert not book.add(outcome(OutcomeStatus.STORED, (LAPTOP,), *copies), ALICE)
    assert (book.state, book.delivered) == (DeliveryStatus.PENDING, True)
    assert book.add(outcome(OutcomeStatus.STORED, (OWN,), *copies), ALICE)
    assert book.state == DeliveryStatus.SENT


def test_ones_own_other_device_does_not_make_it_delivered() -> None:
    book = progress(
        outcome(OutcomeStatus.DELIVERED, (OWN,), OWN, PHONE), outcome(OutcomeStatus.STORED, (PHONE,), OWN, PHONE)
    )
    assert (book.state, book.delivered) == (DeliveryStatus.SENT, False)


def test_stored_for_all_devices_accounts_for_each_of_them() -> None:
    assert progress(outcome(OutcomeStatus.STORED, (ALL_OF_BOB,), ALL_OF_BOB)).state == DeliveryStatus.SENT
    later = outcome(OutcomeStatus.DELIVERED, (OWN,), OWN, PHONE, LAPTOP)
    assert progress(outcome(OutcomeStatus.STORED, (ALL_OF_BOB,), ALL_OF_BOB, OWN), later).state == DeliveryStatus.SENT


def test_some_devices_do_not_account_for_all_that_the_registry_knows() -> None:
    assert progress(outcome(OutcomeStatus.DELIVERED, (PHONE, LAPTOP), ALL_OF_BOB)).state == DeliveryStatus.PENDING


def test_the_copies_of_the_latest_attempt_count_and_what_was_accounted_for_stays_so() -> None:
    first = outcome(OutcomeStatus.DELIVERED, (PHONE,), PHONE, LAPTOP)
    assert progress(first, outcome(OutcomeStatus.STORED, (OWN,), PHONE, OWN)).state == DeliveryStatus.SENT
    assert progress(first, outcome(OutcomeStatus.STORED, (OWN,), PHONE, OWN, LAPTOP)).state == DeliveryStatus.PENDING


def test_nothing_is_sent_to_no_copies_at_all() -> None:
    assert progress(outcome(OutcomeStatus.DELIVERED, ())).state == DeliveryStatus.PENDING
    assert progress(outcome(OutcomeStatus.STORED, (PHONE,))).state == DeliveryStatus.PENDING


def test_rejected_is_for_good_and_says_why() -> None:
    book = DeliveryStatus()
    assert book.add(outcome(OutcomeStatus.REJECTED, (), code=Code.NOT_FRIENDS, sentence="not friends"), ALICE)
    assert (book.state, book.code, book.sentence) == (DeliveryStatus.REJECTED, Code.NOT_FRIENDS, "not friends")
    assert not book.add(outcome(OutcomeStatus.REJECTED, (), code=Code.TOO_LARGE, sentence="another"), ALICE)
    assert book.code == Code.NOT_FRIENDS


def test_an_earlier_attempt_of_a_rejected_message_may_have_arrived() -> None:
    book = progress(outcome(OutcomeStatus.REJECTED, (), code=Code.NOT_FRIENDS))
    assert book.add(outcome(OutcomeStatus.DELIVERED, (PHONE,), PHONE), ALICE)
    assert (book.state, book.delivered) == (DeliveryStatus.REJECTED, True)


def test_a_sent_message_is_not_rejected_any_more_but_may_still_be_delivered() -> None:
    book = progress(outcome(OutcomeStatus.STORED, (PHONE,), PHONE))
    assert not book.add(outcome(OutcomeStatus.REJECTED, (), code=Code.NOT_FRIENDS), ALICE)
    assert (book.state, book.code) == (DeliveryStatus.SENT, 0)
    assert book.add(outcome(OutcomeStatus.DELIVERED, (PHONE,), PHONE), ALICE)
    assert book.delivered


@pytest.mark.parametrize("status", [OutcomeStatus.BUSY, 99])
def test_busy_and_what_a_later_version_may_say_settle_nothing(status: OutcomeStatus) -> None:
    book = DeliveryStatus()
    assert not book.add(outcome(status, (PHONE,), PHONE), ALICE)
    assert (book.state, book.delivered, book.accounted) == (DeliveryStatus.PENDING, False, set())


_copies = st.lists(st.sampled_from((PHONE, LAPTOP, OWN, ALL_OF_BOB)), unique=True, max_size=4).map(tuple)


@settings(max_examples=300, derandomize=True, deadline=None, database=None)
@given(st.lists(st.tuples(st.sampled_from(OutcomeStatus), _copies, _copies), max_size=8))
def test_sent_exactly_when_all_copies_of_the_latest_attempt_are_accounted_for(
    told: list[tuple[OutcomeStatus, tuple[Copy, ...], tuple[Copy, ...]]],
) -> None:
    book = DeliveryStatus()
    state, delivered, known = DeliveryStatus.PENDING, False, set[Copy]()
    for status, done, copies in told:
        before = (state, delivered)
        if status in (OutcomeStatus.DELIVERED, OutcomeStatus.STORED):
            known.update(done)
            expanded = known | ({PHONE, LAPTOP} if ALL_OF_BOB in known else set())
            if state == DeliveryStatus.PENDING and copies and expanded.issuperset(copies):
                state = DeliveryStatus.SENT
            delivered |= status == OutcomeStatus.DELIVERED and any(user == BOB for user, _ in done)
        elif status == OutcomeStatus.REJECTED and state == DeliveryStatus.PENDING:
            state = DeliveryStatus.REJECTED
        assert book.add(outcome(status, done, *copies), ALICE) == (before != (state, delivered))
        assert (book.state, book.delivered) == (state, delivered)


# ---------------------------------------------------------------- what the mesh tells


def stamp(seq: int, *, to: int = BOB, device: int = 11, copies: tuple[Copy, ...] = (PHONE,)) -> Stamp:
    return Stamp(9, ALICE, device, 5, Destination(DestinationType.USER, to), seq, 1, (), copies)


def told(*copies: tuple[Stamp, tuple[Copy, ...]]) -> list[tuple[int, int, tuple[Copy, ...]]]:
    return [(each.first, each.last, each.done) for each in outcomes_of(copies, OutcomeStatus.STORED, 77)]


def test_neighbours_with_one_fate_share_an_outcome() -> None:
    assert told(*((stamp(seq), (PHONE,)) for seq in (4, 5, 6))) == [(4, 6, (PHONE,))]
    assert outcomes_of([], OutcomeStatus.STORED) == []


def test_an_outcome_says_all_that_the_sender_has_to_know() -> None:
    (only,) = outcomes_of([(stamp(4), (PHONE,))], OutcomeStatus.BUSY, code=Code.BUSY, sentence="later")
    to = Destination(DestinationType.USER, BOB)
    assert only == Outcome(9, ALICE, 11, 5, to, 4, 4, OutcomeStatus.BUSY, (PHONE,), (PHONE,), 0, Code.BUSY, "later")


@pytest.mark.parametrize(
    "other", [stamp(6), stamp(4), stamp(5, to=3), stamp(5, device=12), stamp(5, copies=(PHONE, LAPTOP))]
)
def test_what_differs_in_anything_has_an_outcome_of_its_own(other: Stamp) -> None:
    assert told((stamp(4), (PHONE,)), (other, (PHONE,))) == [(4, 4, (PHONE,)), (other.seq, other.seq, (PHONE,))]


def test_copies_done_tell_neighbours_apart() -> None:
    copies = (PHONE, LAPTOP)
    one, other = stamp(4, copies=copies), stamp(5, copies=copies)
    assert told((one, (PHONE,)), (other, (LAPTOP,))) == [(4, 4, (PHONE,)), (5, 5, (LAPTOP,))]


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


def test_a_stream_is_full_by_what_recipients_may_hold_back() -> None:
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


def test_a_rejected_message_that_held_others_up_owes_a_base_update() -> None:
    out = stream()
    out.assign()
    out.assign()
    assert not out.settle(1, REJECTED)
    assert out.settle(2, SENT)


def test_a_rejected_message_that_is_settled_last_owes_one_as_well() -> None:
    out = stream()
    out.assign()
    out.assign()
    assert not out.settle(2, SENT)
    assert out.settle(1, REJECTED)


def test_neighbours_that_went_to_other_copies_owe_one() -> None:
    out = stream()
    out.assign()
    out.assign()
    assert not out.settle(1, SENT)
    assert out.settle(2, SENT_TO_BOTH)


@pytest.mark.parametrize("last_result", [SENT, SENT_TO_BOTH, REJECTED])
def test_one_fate_for_all_owes_nothing(last_result: DeliveryStatus) -> None:
    out = stream()
    for _ in range(3):
        out.assign()
    assert not any(out.settle(seq, last_result) for seq in (3, 1, 2))
    assert not out.owes_base


def test_copies_are_the_same_in_any_order() -> None:
    out = stream()
    out.assign()
    out.assign()
    out.settle(1, SENT_TO_BOTH)
    assert not out.settle(2, progress(outcome(OutcomeStatus.STORED, (PHONE, LAPTOP), PHONE, LAPTOP)))


def test_rejected_is_one_fate_whatever_an_earlier_attempt_had_reached() -> None:
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


def test_messages_that_never_overlapped_owe_nothing() -> None:
    out = stream()
    for seq, last_result in enumerate((SENT, REJECTED, SENT_TO_BOTH, SENT), 1):
        assert out.assign() == (seq, seq)
        assert not out.settle(seq, last_result)


def test_what_is_owed_waits_while_something_is_under_way() -> None:
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


def test_a_message_is_settled_by_a_settled_tally_only() -> None:
    out = stream()
    out.assign()
    with pytest.raises(AssertionError):
        out.settle(1, DeliveryStatus())


def test_after_a_restart_all_is_known_when_the_whole_run_is_unsettled() -> None:
    out = stream(next_seq=4)
    out.restore(2, 2)
    out.restore(3, 2)
    assert out.base == 2
    assert not out.settle(2, SENT)
    assert not out.settle(3, SENT)


@pytest.mark.parametrize("restored", [{2: 1}, {1: 1}, {1: 1, 3: 1}])
def test_after_a_restart_what_became_of_the_settled_ones_is_unknown(restored: dict[int, int]) -> None:
    out = stream(next_seq=4)
    for seq, base in restored.items():
        out.restore(seq, base)
    assert [out.settle(seq, SENT) for seq in restored] == [False] * (len(restored) - 1) + [True]


def test_only_what_was_assigned_can_be_restored() -> None:
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


def test_a_position_for_all_devices_of_a_user_stands_for_each_until_one_has_a_higher() -> None:
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
    """One sending device, three receiving ones, and no time that passes: whoever waits, waits for ever.

    Messages go to some of the devices or are rejected, arrive in any order, and the sender restarts.
    """

    devices = (21, 22, 23)
    options = OutStreamOptions(in_flight=8)

    def __init__(self) -> None:
        super().__init__()
        self.out = OutStream(self.options)
        self.orders = {device: StreamOrder[int](OrderingOptions(gap_release_s=1.0)) for device in self.devices}
        self.updates: set[int] = set()
        self.fates: list[tuple[int, ...]] = []
        """Of the settled messages of this run."""
        self.unknown = False

    def assign(self, *, update: bool = False) -> None:
        if not self.out.unsettled:
            self.fates, self.unknown = [], False
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
            # One that is rejected cannot be mended: friendship ended, and gap_release_s does the rest.
            to = set(self.devices)
        for device in to:
            released = self.orders[device].receive(seq, base, seq, 0.0)
            assert released is not None
        copies = tuple((BOB, device) for device in to)
        last_result = progress(outcome(OutcomeStatus.STORED, copies, *copies)) if copies else REJECTED
        self.fates.append(tuple(sorted(to)))
        owed = self.out.settle(seq, last_result)
        assert owed == (not self.out.unsettled and (self.unknown or len(set(self.fates)) > 1))
        if owed:
            self.assign(update=True)

    @rule()
    def restart(self) -> None:
        known = self.out
        self.out = OutStream(self.options, known.next_seq, known.after)
        for seq, base in known.unsettled.items():
            self.out.restore(seq, base)
        self.unknown |= bool(self.fates) and bool(known.unsettled)
        self.fates = []

    @invariant()
    def nobody_waits_when_all_is_settled(self) -> None:
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
        self.nobody_waits_when_all_is_settled()


TestConversation = Conversation.TestCase
TestConversation.settings = settings(
    max_examples=150, stateful_step_count=40, derandomize=True, deadline=None, database=None
)
