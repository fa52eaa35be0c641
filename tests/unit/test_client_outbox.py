"""The outbox: what is submitted when, and what outcomes and receipts make of it; nothing leaves before it is safe."""

from collections.abc import Sequence

import pytest

from meshim.client.events import NoteReceipt, Progress, PutOut, PutStream, SettleOut, Snapshot
from meshim.client.outbox import Outbox, OutboxOptions, Settled, ranges_of
from meshim.errors import Code
from meshim.wire.envelope import (
    WIRE_VERSION,
    Destination,
    DestinationType,
    Envelope,
    Kind,
    Receipt,
    ReceiptKind,
    decode_envelope,
    encode_envelope,
)
from meshim.wire.outcome import Copy, Outcome, OutcomeStatus

ME, DEVICE, EPOCH, PEER = 1, 10, 7, 2
BOB = Destination(DestinationType.USER, PEER)
CAROL = Destination(DestinationType.USER, 3)
OPTIONS = OutboxOptions(resend_s=4.0, busy_s=0.5, longest_s=15.0, tracked=4)
EMPTY = Snapshot([], [], [], [], [])
PHONE, LAPTOP, MY_OTHER = (PEER, 20), (PEER, 21), (ME, 11)


def outbox(snapshot: Snapshot = EMPTY, options: OutboxOptions = OPTIONS) -> Outbox:
    return Outbox(ME, options, snapshot)


def composed(box: Outbox, to: Destination = BOB, *, saved: bool = True) -> int:
    seq, base = box.reserve(to)
    box.add(envelope(seq, base, to))
    if saved:
        box.saved([(to, seq)])
    return seq


def envelope(seq: int, base: int = 1, to: Destination = BOB) -> Envelope:
    return Envelope(WIRE_VERSION, bytes(16), ME, DEVICE, EPOCH, to, seq, base, Kind.TEXT, 1, 0, b"body")


def submitted(box: Outbox, now: float = 0.0, room: int = 99) -> list[int]:
    return [decode_envelope(submit.envelope).seq for submit in box.take(room, now)]


def outcome(
    seq: int,
    status: OutcomeStatus,
    done: Sequence[Copy] = (PHONE,),
    copies: Sequence[Copy] = (PHONE,),
    *,
    last: int | None = None,
    to: Destination = BOB,
    position: int = 0,
    code: int = 0,
) -> Outcome:
    return Outcome(
        0, ME, DEVICE, EPOCH, to, seq, last or seq, status, tuple(done), tuple(copies), position, code, "why"
    )  # fmt: skip


def reached(settled: Settled) -> list[tuple[int, str]]:
    return [(each.seq, each.state) for each in settled.progress]


def receipt(kind: ReceiptKind, *ranges: tuple[int, int], to: Destination = BOB) -> Receipt:
    return Receipt(kind, EPOCH, to, ranges)


# ---------------------------------------------------------------- submitting


def test_nothing_leaves_before_it_is_in_the_state_file() -> None:
    box = outbox()
    composed(box, saved=False)
    assert submitted(box) == []
    box.disconnected()
    assert submitted(box) == []
    box.saved([(BOB, 1)])
    assert submitted(box) == [1]
    box.saved([(BOB, 9)])  # settled and forgotten meanwhile, whatever
    assert submitted(box) == []


def test_messages_leave_in_the_order_they_were_composed_and_no_more_than_there_is_room_for() -> None:
    box = outbox()
    for _ in range(5):
        composed(box)
    assert submitted(box, room=2) == [1, 2]
    assert submitted(box, room=0) == submitted(box, room=-7) == []
    assert submitted(box) == [3, 4, 5]


def test_what_is_not_settled_is_sent_again_less_and_less_often() -> None:
    box = outbox()
    composed(box)
    times = [now for now in range(60) if submitted(box, float(now))]
    assert times == [0, 4, 12, 27, 42, 57]
    assert box.resent == 5
    assert box.next_deadline() == 72.0


def test_another_connection_gets_everything_that_is_not_settled_at_once_and_in_order() -> None:
    box = outbox()
    for _ in range(3):
        composed(box)
    assert submitted(box, 0.0) == [1, 2, 3]
    box.outcome(outcome(2, OutcomeStatus.DELIVERED), 0.0)
    assert submitted(box, 4.0) == [1, 3]
    box.disconnected()
    assert box.next_deadline() is None
    assert submitted(box, 5.0) == [1, 3]
    assert submitted(box, 8.9) == []
    assert submitted(box, 9.0) == [1, 3]  # with the patience of a new connection


def test_busy_is_tried_again_soon_and_then_less_often() -> None:
    box = outbox()
    composed(box)
    times: list[float] = []
    now = 0.0
    while len(times) < 6:
        if submitted(box, now):
            times.append(now)
            box.outcome(outcome(1, OutcomeStatus.BUSY, (), ()), now)
        now += 0.25
    assert times == [0.0, 0.5, 1.5, 3.5, 7.5, 11.5]


def test_busy_for_what_has_been_settled_changes_nothing() -> None:
    box = outbox()
    composed(box)
    submitted(box)
    box.outcome(outcome(1, OutcomeStatus.DELIVERED), 0.0)
    assert box.outcome(outcome(1, OutcomeStatus.BUSY, (), ()), 0.0) == ([], [], [])
    assert submitted(box, 99.0) == []


def test_later_messages_name_the_position_that_earlier_ones_were_stored_at() -> None:
    box = outbox()
    composed(box)
    [first] = box.take(9, 0.0)
    assert first.after == ()
    settled = box.outcome(outcome(1, OutcomeStatus.STORED, position=17), 0.0)
    assert settled.changes[0] == PutStream(BOB, 2, ((*PHONE, 17),))
    box.outcome(outcome(1, OutcomeStatus.STORED, position=5), 0.0)  # late, of an earlier attempt
    composed(box)
    [second] = box.take(9, 0.0)
    assert second.after == ((*PHONE, 17),)
    composed(box, CAROL)
    [third] = box.take(9, 0.0)
    assert third.after == ()


def test_a_stream_is_full_until_its_lowest_is_settled_and_others_are_not() -> None:
    box = outbox()
    for _ in range(256):
        assert not box.full(BOB)
        composed(box)
    assert box.full(BOB)
    assert not box.full(CAROL)
    box.outcome(outcome(2, OutcomeStatus.DELIVERED, last=256), 0.0)
    assert box.full(BOB)
    box.outcome(outcome(1, OutcomeStatus.DELIVERED), 0.0)
    assert not box.full(BOB)


# ---------------------------------------------------------------- outcomes


def test_sent_when_every_copy_is_accounted_for_and_delivered_with_the_first_device() -> None:
    box = outbox()
    composed(box)
    copies = (PHONE, LAPTOP, MY_OTHER)
    assert reached(box.outcome(outcome(1, OutcomeStatus.STORED, (LAPTOP,), copies, position=3), 0.0)) == []
    assert reached(box.outcome(outcome(1, OutcomeStatus.DELIVERED, (MY_OTHER,), copies), 0.0)) == []
    assert box.unsettled == 1
    settled = box.outcome(outcome(1, OutcomeStatus.DELIVERED, (PHONE,), copies), 0.0)
    assert reached(settled) == [(1, "delivered")]
    assert settled.changes == [SettleOut(BOB, 1, "delivered")]
    assert box.unsettled == 0


def test_my_own_other_device_is_nobody_it_was_delivered_to() -> None:
    box = outbox()
    composed(box)
    copies = (PHONE, MY_OTHER)
    box.outcome(outcome(1, OutcomeStatus.DELIVERED, (MY_OTHER,), copies), 0.0)
    assert reached(box.outcome(outcome(1, OutcomeStatus.STORED, (PHONE,), copies, position=1), 0.0)) == [(1, "sent")]
    assert reached(box.outcome(outcome(1, OutcomeStatus.DELIVERED, (MY_OTHER,), copies), 0.0)) == []
    assert reached(box.outcome(outcome(1, OutcomeStatus.DELIVERED, (PHONE,), copies), 0.0)) == [(1, "delivered")]


def test_one_outcome_for_many_messages() -> None:
    box = outbox()
    for _ in range(3):
        composed(box)
    assert reached(box.outcome(outcome(1, OutcomeStatus.DELIVERED, last=3), 0.0)) == [
        (n, "delivered") for n in (1, 2, 3)
    ]


@pytest.mark.parametrize("last", [OPTIONS.tracked + 2, 1 << 62])
def test_an_outcome_for_more_messages_than_there_can_be_is_no_work(last: int) -> None:
    box = outbox()
    composed(box)
    assert box.outcome(outcome(1, OutcomeStatus.DELIVERED, last=last), 0.0) == ([], [], [])


def test_outcomes_of_streams_that_there_are_not_change_nothing() -> None:
    assert outbox().outcome(outcome(1, OutcomeStatus.DELIVERED), 0.0) == ([], [], [])


def test_rejected_is_told_with_its_reason_and_stays() -> None:
    box = outbox()
    composed(box)
    settled = box.outcome(outcome(1, OutcomeStatus.REJECTED, (), (), code=Code.NOT_FRIENDS), 0.0)
    assert settled.progress == [Progress(BOB, 1, "rejected", Code.NOT_FRIENDS, "why")]
    assert settled.changes == [SettleOut(BOB, 1, "rejected", Code.NOT_FRIENDS, "why")]
    assert reached(box.outcome(outcome(1, OutcomeStatus.DELIVERED), 0.0)) == []
    assert reached(box.receipt(PEER, receipt(ReceiptKind.READ, (1, 1)))) == []
    assert submitted(box, 99.0) == []


def test_a_base_update_is_owed_when_not_all_copies_of_a_run_were_the_same() -> None:
    box = outbox()
    composed(box)
    composed(box)
    assert box.outcome(outcome(1, OutcomeStatus.REJECTED, (), ()), 0.0).owing_base == []
    assert box.outcome(outcome(2, OutcomeStatus.DELIVERED), 0.0).owing_base == [BOB]


# ---------------------------------------------------------------- receipts


def test_receipts_carry_a_settled_message_on_and_never_back() -> None:
    box = outbox()
    composed(box)
    box.outcome(outcome(1, OutcomeStatus.STORED, position=1), 0.0)
    assert reached(box.receipt(PEER, receipt(ReceiptKind.DELIVERED, (1, 1)))) == [(1, "delivered")]
    assert reached(box.receipt(PEER, receipt(ReceiptKind.READ, (1, 1)))) == [(1, "read")]
    for late in (receipt(ReceiptKind.DELIVERED, (1, 1)), receipt(ReceiptKind.READ, (1, 1))):
        assert box.receipt(PEER, late) == ([], [], [])
    assert reached(box.outcome(outcome(1, OutcomeStatus.DELIVERED), 0.0)) == []


def test_a_receipt_that_outran_the_outcome_is_kept_and_settles_nothing() -> None:
    box = outbox()
    composed(box)
    early = box.receipt(PEER, receipt(ReceiptKind.READ, (1, 1)))
    assert early == ([], [NoteReceipt(BOB, 1, "read")], [])
    assert box.receipt(PEER, receipt(ReceiptKind.DELIVERED, (1, 1))) == ([], [], [])
    assert box.unsettled == 1
    assert reached(box.outcome(outcome(1, OutcomeStatus.STORED, position=1), 0.0)) == [(1, "read")]


def test_a_receipt_of_somebody_else_changes_nothing() -> None:
    box = outbox()
    composed(box)
    box.outcome(outcome(1, OutcomeStatus.STORED, position=1), 0.0)
    assert box.receipt(3, receipt(ReceiptKind.READ, (1, 1))) == ([], [], [])


def test_a_receipt_for_messages_that_there_never_were_is_little_work() -> None:
    box = outbox(options=OutboxOptions(tracked=1_000))
    composed(box)
    box.outcome(outcome(1, OutcomeStatus.STORED, position=1), 0.0)
    endless = receipt(ReceiptKind.READ, (1, 1), (5, 1 << 62), (1, 1 << 62))
    assert reached(box.receipt(PEER, endless)) == [(1, "read")]


def test_only_the_latest_settled_messages_are_followed() -> None:
    box = outbox()
    for seq in range(1, 7):
        composed(box)
        box.outcome(outcome(seq, OutcomeStatus.STORED, position=seq), 0.0)
    assert reached(box.receipt(PEER, receipt(ReceiptKind.READ, (1, 2)))) == []
    assert reached(box.receipt(PEER, receipt(ReceiptKind.READ, (3, 6)))) == [(n, "read") for n in (3, 4, 5, 6)]


# ---------------------------------------------------------------- another life


def test_after_a_restart_the_outbox_goes_on_where_it_was() -> None:
    def unsettled(seq: int, base: int, note: str = "") -> PutOut:
        return PutOut(BOB, seq, base, Kind.TEXT, bytes(16), encode_envelope(envelope(seq, base)), note)

    box = outbox(
        Snapshot(
            streams=[PutStream(BOB, 8, ((PEER, 0, 5),))],
            unsettled=[unsettled(4, 4), unsettled(6, 4, "read")],
            settled=[SettleOut(BOB, 5, "sent"), SettleOut(BOB, 3, "rejected", 6, "no")],
            orders=[],
            held=[],
        )
    )
    assert [submit.after for submit in box.take(9, 0.0)] == [((PEER, 0, 5),)] * 2
    box.disconnected()
    assert submitted(box, 1.0) == [4, 6]
    assert box.reserve(BOB) == (8, 4)
    box.add(envelope(8, 4))
    assert reached(box.receipt(PEER, receipt(ReceiptKind.DELIVERED, (3, 5)))) == [(5, "delivered")]
    assert reached(box.outcome(outcome(6, OutcomeStatus.STORED, position=9), 0.0)) == [(6, "read")]
    # What became of 5 and 7 was forgotten, so that somebody may wait for them: the last one of the run says so.
    assert box.outcome(outcome(4, OutcomeStatus.DELIVERED), 0.0).owing_base == []
    assert box.outcome(outcome(8, OutcomeStatus.DELIVERED), 0.0).owing_base == [BOB]


@pytest.mark.parametrize(
    ("numbers", "ranges"),
    [
        ([], ()),
        ([4], ((4, 4),)),
        ([3, 1, 2, 2, 7, 9, 8], ((1, 3), (7, 9))),
    ],
)
def test_ranges_cover_exactly_the_numbers(numbers: list[int], ranges: tuple[tuple[int, int], ...]) -> None:
    assert ranges_of(numbers) == ranges
