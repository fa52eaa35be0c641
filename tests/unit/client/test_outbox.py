"""The outbox: when it submits a message, and how outcomes and receipts change the state of one."""

import msgspec
import pytest

from meshim.client.events import (
    AddToOutbox,
    DropFromOutbox,
    PutStream,
    RecordReceipt,
    SettleMessage,
    Snapshot,
    StatusChanged,
)
from meshim.client.options import OutboxOptions
from meshim.client.statistics import Statistics
from meshim.client.streams.outbox import Outbox, OutboxUpdate
from meshim.errors import Code
from meshim.wire.client import Outcome
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
from meshim.wire.outcome import OutcomeStatus

ME, DEVICE, EPOCH, PEER = 1, 10, 7, 2
BOB = Destination(DestinationType.USER, PEER)
CAROL = Destination(DestinationType.USER, 3)
OPTIONS = OutboxOptions(resend_s=4.0, busy_s=0.5, resend_max_s=15.0, settled_max=4)
EMPTY = Snapshot([], [], [], [], [])


def outbox(snapshot: Snapshot = EMPTY, options: OutboxOptions = OPTIONS) -> Outbox:
    return Outbox(options, snapshot, Statistics())


def compose(box: Outbox, to: Destination = BOB, *, persisted: bool = True) -> int:
    seq, base = box.reserve(to)
    box.add(envelope(seq, base, to))
    if persisted:
        box.persisted([(to, seq)])
    return seq


def envelope(seq: int, base: int = 1, to: Destination = BOB) -> Envelope:
    return Envelope(WIRE_VERSION, bytes(16), ME, DEVICE, EPOCH, to, seq, base, Kind.TEXT, 1, 0, b"body")


def submit(box: Outbox, now: float = 0.0, room: int = 99) -> list[int]:
    return [decode_envelope(submit.envelope).seq for submit in box.take(room, now)]


def outcome(
    seq: int,
    status: OutcomeStatus,
    *,
    final: bool | None = None,
    audience: int = 1,
    last: int | None = None,
    to: Destination = BOB,
    cookie: bytes = b"",
    code: int = 0,
) -> Outcome:
    """DELIVERED and STORED are `final` unless told otherwise."""
    if final is None:
        final = status in (OutcomeStatus.DELIVERED, OutcomeStatus.STORED)
    return Outcome(to, seq, last or seq, status, final, audience if final else 0, cookie, code, "why")


def states(update: OutboxUpdate) -> list[tuple[int, str]]:
    return [(each.seq, each.state) for each in update.statuses]


def receipt(kind: ReceiptKind, *ranges: tuple[int, int], to: Destination = BOB) -> Receipt:
    return Receipt(kind, DEVICE, EPOCH, to, ranges)


# ---------------------------------------------------------------- submitting


def test_a_message_is_submitted_only_when_persisted() -> None:
    box = outbox()
    compose(box, persisted=False)
    assert submit(box) == []
    box.disconnected()
    assert submit(box) == []
    box.persisted([(BOB, 1)])
    assert submit(box) == [1]
    box.persisted([(BOB, 9)])  # not in the outbox (any more)
    assert submit(box) == []


def test_messages_are_submitted_in_order_up_to_the_room() -> None:
    box = outbox()
    for _ in range(5):
        compose(box)
    assert submit(box, room=2) == [1, 2]
    assert submit(box, room=0) == submit(box, room=-7) == []
    assert submit(box) == [3, 4, 5]


def test_resend_waits_double_up_to_the_limit() -> None:
    box = outbox()
    compose(box)
    times = [now for now in range(60) if submit(box, float(now))]
    assert times == [0, 4, 12, 27, 42, 57]
    assert box._statistics.resent == 5
    assert box.next_deadline() == 72.0


def test_a_new_connection_gets_all_unsettled_messages_at_once_in_order() -> None:
    box = outbox()
    for _ in range(3):
        compose(box)
    assert submit(box, 0.0) == [1, 2, 3]
    box.outcome(outcome(2, OutcomeStatus.DELIVERED), 0.0)
    assert submit(box, 4.0) == [1, 3]
    box.disconnected()
    assert box.next_deadline() is None
    assert submit(box, 5.0) == [1, 3]
    assert submit(box, 8.9) == []
    assert submit(box, 9.0) == [1, 3]  # the wait of a new connection starts at `resend_s` again


def test_waits_after_busy_double_up_to_the_limit() -> None:
    box = outbox()
    compose(box)
    times: list[float] = []
    now = 0.0
    while len(times) < 6:
        if submit(box, now):
            times.append(now)
            box.outcome(outcome(1, OutcomeStatus.BUSY), now)
        now += 0.25
    assert times == [0.0, 0.5, 1.5, 3.5, 7.5, 11.5]


def test_busy_for_a_settled_message_is_ignored() -> None:
    box = outbox()
    compose(box)
    submit(box)
    box.outcome(outcome(1, OutcomeStatus.DELIVERED), 0.0)
    assert box.outcome(outcome(1, OutcomeStatus.BUSY), 0.0) == ([], [], [], [])
    assert submit(box, 99.0) == []


def test_messages_carry_the_cookie_of_the_latest_outcome_of_their_stream() -> None:
    box = outbox()
    compose(box)
    [first] = box.take(9, 0.0)
    assert first.cookie == b""
    update = box.outcome(outcome(1, OutcomeStatus.STORED, final=False, cookie=b"17"), 0.0)
    assert update.changes == [PutStream(BOB, 2, b"17")]
    assert box.outcome(outcome(1, OutcomeStatus.DELIVERED, final=False, cookie=b"17"), 0.0).changes == []
    compose(box)
    [second] = box.take(9, 0.0)
    assert second.cookie == b"17"
    compose(box, CAROL)
    [third] = box.take(9, 0.0)
    assert third.cookie == b"", "of another stream"
    box.outcome(outcome(2, OutcomeStatus.BUSY), 0.0)
    box.outcome(outcome(2, OutcomeStatus.REJECTED), 0.0)
    compose(box)
    [fourth] = box.take(9, 0.0)
    assert fourth.cookie == b"17", "only outcomes of copies have a cookie"
    update = box.outcome(outcome(3, OutcomeStatus.DELIVERED), 0.0)
    assert update.changes[0] == PutStream(BOB, 4, b""), "nothing is stored any more"
    compose(box)
    [fifth] = box.take(9, 0.0)
    assert fifth.cookie == b""


def test_a_stream_is_full_until_its_lowest_message_is_settled() -> None:
    box = outbox()
    for _ in range(256):
        assert not box.full(BOB)
        compose(box)
    assert box.full(BOB)
    assert not box.full(CAROL)
    box.outcome(outcome(2, OutcomeStatus.DELIVERED, last=256), 0.0)
    assert box.full(BOB)
    box.outcome(outcome(1, OutcomeStatus.DELIVERED), 0.0)
    assert not box.full(BOB)


# ---------------------------------------------------------------- outcomes


def test_a_message_settles_when_its_outcome_is_final() -> None:
    box = outbox()
    compose(box)
    assert states(box.outcome(outcome(1, OutcomeStatus.STORED, final=False), 0.0)) == []
    assert states(box.outcome(outcome(1, OutcomeStatus.DELIVERED, final=False), 0.0)) == []
    assert box.unsettled == 1
    update = box.outcome(outcome(1, OutcomeStatus.STORED), 0.0)
    assert states(update) == [(1, "delivered")]
    assert update.changes == [SettleMessage(BOB, 1, "delivered")]
    assert box.unsettled == 0


def test_a_message_that_was_sent_may_be_delivered_later() -> None:
    box = outbox()
    compose(box)
    assert states(box.outcome(outcome(1, OutcomeStatus.STORED), 0.0)) == [(1, "sent")]
    assert states(box.outcome(outcome(1, OutcomeStatus.STORED), 0.0)) == []
    assert states(box.outcome(outcome(1, OutcomeStatus.DELIVERED, final=False), 0.0)) == [(1, "delivered")]


def test_an_unknown_status_settles_nothing() -> None:
    box = outbox()
    compose(box)
    strange = msgspec.structs.replace(outcome(1, OutcomeStatus.STORED, cookie=b"cookie"), status=99)
    assert box.outcome(strange, 0.0) == ([], [], [], [])
    assert box.unsettled == 1


def test_one_outcome_settles_many_messages() -> None:
    box = outbox()
    for _ in range(3):
        compose(box)
    assert states(box.outcome(outcome(1, OutcomeStatus.DELIVERED, last=3), 0.0)) == [
        (n, "delivered") for n in (1, 2, 3)
    ]


@pytest.mark.parametrize("last", [OPTIONS.settled_max + 2, 1 << 62])
def test_an_outcome_for_too_many_messages_is_ignored(last: int) -> None:
    box = outbox()
    compose(box)
    assert box.outcome(outcome(1, OutcomeStatus.DELIVERED, last=last), 0.0) == ([], [], [], [])


def test_an_outcome_of_an_unknown_stream_is_ignored() -> None:
    assert outbox().outcome(outcome(1, OutcomeStatus.DELIVERED), 0.0) == ([], [], [], [])


def test_rejected_has_its_reason_and_is_final() -> None:
    box = outbox()
    compose(box)
    update = box.outcome(outcome(1, OutcomeStatus.REJECTED, code=Code.NOT_FRIENDS), 0.0)
    assert update.statuses == [StatusChanged(BOB, 1, "rejected", Code.NOT_FRIENDS, "why")]
    assert update.changes == [SettleMessage(BOB, 1, "rejected", Code.NOT_FRIENDS, "why")]
    assert states(box.outcome(outcome(1, OutcomeStatus.DELIVERED), 0.0)) == []
    assert states(box.receipt(PEER, receipt(ReceiptKind.READ, (1, 1)))) == []
    assert submit(box, 99.0) == []


def test_a_base_update_follows_a_run_with_different_results() -> None:
    box = outbox()
    compose(box)
    compose(box)
    assert box.outcome(outcome(1, OutcomeStatus.REJECTED), 0.0).base_updates == []
    assert box.outcome(outcome(2, OutcomeStatus.DELIVERED), 0.0).base_updates == [BOB]


@pytest.mark.parametrize(("audience", "owed"), [(1, []), (2, [BOB])])
def test_a_base_update_follows_a_run_with_different_audiences(audience: int, owed: list[Destination]) -> None:
    box = outbox()
    compose(box)
    compose(box)
    box.outcome(outcome(2, OutcomeStatus.STORED), 0.0)
    assert box.outcome(outcome(1, OutcomeStatus.DELIVERED, audience=audience), 0.0).base_updates == owed


# ---------------------------------------------------------------- receipts


def test_receipts_move_a_settled_message_forward_only() -> None:
    box = outbox()
    compose(box)
    box.outcome(outcome(1, OutcomeStatus.STORED), 0.0)
    assert states(box.receipt(PEER, receipt(ReceiptKind.DELIVERED, (1, 1)))) == [(1, "delivered")]
    assert states(box.receipt(PEER, receipt(ReceiptKind.READ, (1, 1)))) == [(1, "read")]
    for late in (receipt(ReceiptKind.DELIVERED, (1, 1)), receipt(ReceiptKind.READ, (1, 1))):
        assert box.receipt(PEER, late) == ([], [], [], [])
    assert states(box.outcome(outcome(1, OutcomeStatus.DELIVERED), 0.0)) == []


def test_a_receipt_before_the_outcome_is_recorded_and_settles_nothing() -> None:
    box = outbox()
    compose(box)
    early = box.receipt(PEER, receipt(ReceiptKind.READ, (1, 1)))
    assert early == ([], [RecordReceipt(BOB, 1, "read")], [], [])
    assert box.receipt(PEER, receipt(ReceiptKind.DELIVERED, (1, 1))) == ([], [], [], [])
    assert box.unsettled == 1
    assert states(box.outcome(outcome(1, OutcomeStatus.STORED), 0.0)) == [(1, "read")]


def test_a_receipt_of_another_user_is_ignored() -> None:
    box = outbox()
    compose(box)
    box.outcome(outcome(1, OutcomeStatus.STORED), 0.0)
    assert box.receipt(3, receipt(ReceiptKind.READ, (1, 1))) == ([], [], [], [])


def test_a_cursor_reports_only_what_is_new() -> None:
    box = outbox(options=OutboxOptions(settled_max=1_000))
    for seq in range(1, 4):
        compose(box)
        box.outcome(outcome(seq, OutcomeStatus.STORED), 0.0)
    assert states(box.receipt(PEER, receipt(ReceiptKind.READ, (1, 2)))) == [(1, "read"), (2, "read")]
    assert states(box.receipt(PEER, receipt(ReceiptKind.READ, (1, 3)))) == [(3, "read")]
    assert states(box.receipt(PEER, receipt(ReceiptKind.READ, (1, 9)))) == [], "a message that is not made yet"
    assert compose(box) == 4
    box.outcome(outcome(4, OutcomeStatus.STORED), 0.0)
    assert states(box.receipt(PEER, receipt(ReceiptKind.READ, (1, 4)))) == [(4, "read")]
    assert box.receipt(PEER, receipt(77, (1, 4))) == ([], [], [], [])  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [Kind.RECEIPT, Kind.BASE])
def test_nothing_is_kept_of_a_settled_receipt_or_base_update(kind: Kind) -> None:
    box = outbox()
    seq, base = box.reserve(BOB)
    box.add(msgspec.structs.replace(envelope(seq, base), kind=kind))
    assert box.receipt(PEER, receipt(ReceiptKind.READ, (1, 1))) == ([], [], [], []), "it names a range around it"
    update = box.outcome(outcome(1, OutcomeStatus.STORED), 0.0)
    assert (states(update), update.changes) == ([(1, "sent")], [DropFromOutbox(BOB, 1)])
    assert (box.unsettled, len(box._settled)) == (0, 0)


def test_a_receipt_for_endless_ranges_costs_little() -> None:
    box = outbox(options=OutboxOptions(settled_max=1_000))
    compose(box)
    box.outcome(outcome(1, OutcomeStatus.STORED), 0.0)
    endless = receipt(ReceiptKind.READ, (1, 1), (5, 1 << 62), (1, 1 << 62))
    assert states(box.receipt(PEER, endless)) == [(1, "read")]


def test_the_same_receipt_for_many_ranges_is_news_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A friend can send hundreds of those a second."""
    options = msgspec.structs.replace(OPTIONS, settled_max=2_000)
    box = outbox(Snapshot([PutStream(BOB, 2_001, b"")], [], [], [], []), options)
    asked: list[int] = []
    monkeypatch.setattr(box, "_one_receipt", lambda key, state, update: asked.append(key[1]))
    read = receipt(ReceiptKind.READ, *((seq, seq) for seq in range(2, 2_001, 2)))
    for _ in range(2):
        box.receipt(PEER, read)
    assert asked == list(range(2, 2_001, 2))


def test_receipts_match_only_the_latest_settled_messages() -> None:
    box = outbox()
    for seq in range(1, 7):
        compose(box)
        box.outcome(outcome(seq, OutcomeStatus.STORED), 0.0)
    assert states(box.receipt(PEER, receipt(ReceiptKind.READ, (1, 2)))) == []
    assert states(box.receipt(PEER, receipt(ReceiptKind.READ, (3, 6)))) == [(n, "read") for n in (3, 4, 5, 6)]


# ---------------------------------------------------------------- restart


def test_a_restart_restores_the_outbox() -> None:
    def unsettled(seq: int, base: int, receipt: str = "") -> AddToOutbox:
        return AddToOutbox(BOB, seq, base, Kind.TEXT, bytes(16), encode_envelope(envelope(seq, base)), receipt)

    box = outbox(
        Snapshot(
            streams=[PutStream(BOB, 8, b"cookie")],
            unsettled=[unsettled(4, 4), unsettled(6, 4, "read")],
            settled=[SettleMessage(BOB, 5, "sent"), SettleMessage(BOB, 3, "rejected", 6, "no")],
            orders=[],
            early=[],
        )
    )
    assert [submit.cookie for submit in box.take(9, 0.0)] == [b"cookie"] * 2
    box.disconnected()
    assert submit(box, 1.0) == [4, 6]
    assert box.reserve(BOB) == (8, 4)
    box.add(envelope(8, 4))
    assert states(box.receipt(PEER, receipt(ReceiptKind.DELIVERED, (3, 5)))) == [(5, "delivered")]
    assert states(box.outcome(outcome(6, OutcomeStatus.STORED), 0.0)) == [(6, "read")]
    # The results of 5 and 7 were forgotten, so a recipient may wait for them: a base update follows the end of the run.
    assert box.outcome(outcome(4, OutcomeStatus.DELIVERED), 0.0).base_updates == []
    assert box.outcome(outcome(8, OutcomeStatus.DELIVERED), 0.0).base_updates == [BOB]
