"""What a device knows of `delivered` and `read` beside its own outbox, and which receipts it owes."""

from collections.abc import Sequence

import pytest

from meshim.client.events import PutReceipts, StreamProgressed
from meshim.client.statistics import Statistics
from meshim.client.streams.receipts import AHEAD_MAX, Receipts
from meshim.protocol.ranges import Range
from meshim.wire.envelope import (
    WIRE_VERSION,
    Destination,
    DestinationType,
    Envelope,
    Kind,
    Receipt,
    ReceiptKind,
    Stream,
)

ME, BEN, CAROL = 1, 2, 3
TO_ME, TO_BEN = (Destination(DestinationType.USER, user) for user in (ME, BEN))
FROM_BEN = Stream(BEN, 20, 5, TO_ME)
MINE_ELSEWHERE = Stream(ME, 11, 6, TO_BEN)
"""What another device of this user sends to ben."""
DELIVERED, READ = ReceiptKind.DELIVERED, ReceiptKind.READ


def receipts(*rows: PutReceipts, ranges_max: int = 64) -> Receipts:
    return Receipts(ME, rows, ranges_max, Statistics())


def envelope(user: int, to: Destination) -> Envelope:
    return Envelope(WIRE_VERSION, bytes(16), user, user * 10, 9, to, 1, 1, Kind.RECEIPT, 0, 0, b"")


def of_ben(
    box: Receipts, kind: int, *ranges: Range, stream: Stream = MINE_ELSEWHERE, has: bool = True
) -> list[StreamProgressed]:
    """ben says this of what this user sent."""
    receipt = Receipt(kind, stream.device, stream.epoch, stream.to, ranges)
    return box.apply(envelope(BEN, TO_ME), receipt, lambda stream: has)


def of_my_phone(box: Receipts, kind: int, *ranges: Range, stream: Stream = FROM_BEN) -> list[StreamProgressed]:
    """Another device of this user says this to ben."""
    receipt = Receipt(kind, stream.device, stream.epoch, stream.to, ranges)
    return box.apply(envelope(ME, TO_BEN), receipt, lambda stream: False)


def taken(
    box: Receipts, full: Sequence[Destination] = (), now: float = 0.0
) -> list[tuple[Destination, int, tuple[Range, ...]]]:
    found = list(box.take(lambda to: to in full, now))
    assert all((receipt.device, receipt.epoch, receipt.to) == (20, 5, TO_ME) for _, receipt in found)
    return [(to, receipt.kind, receipt.ranges) for to, receipt in found]


def states(box: Receipts, stream: Stream, *numbers: int) -> list[str]:
    return [box.state(stream, seq) for seq in numbers]


# ---------------------------------------------------------------- what receipts say


def test_a_friend_tells_what_became_of_the_messages_of_another_device_of_this_user() -> None:
    box = receipts()
    assert of_ben(box, DELIVERED, (1, 3)) == [StreamProgressed(MINE_ELSEWHERE, "delivered", ((1, 3),))]
    assert of_ben(box, READ, (1, 2)) == [StreamProgressed(MINE_ELSEWHERE, "read", ((1, 2),))]
    assert states(box, MINE_ELSEWHERE, 1, 2, 3, 4) == ["read", "read", "delivered", ""]
    assert box.changes() == [PutReceipts(MINE_ELSEWHERE, ((1, 3),), ((1, 2),), (), ())]
    assert of_ben(box, READ, (1, 2)) == []
    assert box.changes() == [], "twice does no harm"
    assert of_ben(box, READ, (1, 4)) == [StreamProgressed(MINE_ELSEWHERE, "read", ((3, 4),))]
    assert of_ben(box, DELIVERED, (4, 4)) == [], "no message goes back"
    assert of_ben(box, DELIVERED, (4, 5)) == [StreamProgressed(MINE_ELSEWHERE, "delivered", ((5, 5),))]
    assert taken(box) == [], "a receipt is never answered by a receipt"


def test_more_ranges_than_are_kept_are_no_news_each_time() -> None:
    """A friend can send hundreds of such receipts a second: of the lowest ranges none is ever kept."""
    box = receipts()
    many = tuple((2 * number, 2 * number) for number in range(1, 1025))
    [progressed] = of_ben(box, READ, *many)
    assert progressed.ranges == many[-256:]
    assert of_ben(box, READ, *many) == of_ben(box, READ, *reversed(many)) == []
    assert states(box, MINE_ELSEWHERE, 2048, 2046, 2047) == ["read", "read", ""]


def test_ranges_that_touch_are_one_before_they_are_counted() -> None:
    box = receipts()
    [progressed] = of_ben(box, READ, *((number, number) for number in range(1024, 0, -1)))
    assert progressed.ranges == ((1, 1024),)


def test_another_device_of_this_user_tells_what_was_read_there() -> None:
    box = receipts()
    assert of_my_phone(box, READ, (1, 2)) == [StreamProgressed(FROM_BEN, "read", ((1, 2),))]
    assert states(box, FROM_BEN, 2, 3) == ["read", ""]
    box.owe_read(FROM_BEN, 2)
    assert taken(box) == [], "the phone has told it"
    assert of_my_phone(box, DELIVERED, (1, 9)) == [], "what is on the phone need not be here"


@pytest.mark.parametrize(
    "of", [TO_ME, Destination(DestinationType.USER, CAROL), Destination(DestinationType.GROUP, BEN)]
)
def test_nobody_else_can_tell_of_a_message(of: Destination) -> None:
    box = receipts()
    assert of_ben(box, READ, (1, 9), stream=Stream(ME, 11, 6, of)) == []
    assert box.changes() == []


def test_another_kind_of_receipt_is_ignored() -> None:
    box = receipts()
    assert of_ben(box, 77, (1, 9)) == []
    assert of_my_phone(box, 77, (1, 9)) == []


def test_only_so_many_streams_may_be_ahead_of_their_messages() -> None:
    box = receipts()
    for epoch in range(AHEAD_MAX):
        assert of_ben(box, READ, (1, 1), stream=Stream(ME, 11, epoch, TO_BEN), has=False)
    one_more = Stream(ME, 11, 99, TO_BEN)
    assert of_ben(box, READ, (1, 1), stream=one_more, has=False) == []
    assert box._statistics.receipts_ignored == 1
    assert of_ben(box, READ, (2, 2), stream=Stream(ME, 11, 0, TO_BEN), has=False), "a known one goes on"
    assert of_ben(box, READ, (1, 1), stream=one_more, has=True), "and one of which there is a message"


# ---------------------------------------------------------------- what is owed


def test_a_read_receipt_is_a_cursor() -> None:
    box = receipts()
    for seq in (1, 2):
        box.owe_read(FROM_BEN, seq)
    assert taken(box) == [(TO_BEN, READ, ((1, 2),))]
    box.owe_read(FROM_BEN, 2)
    assert taken(box) == [], "it is known"
    box.owe_read(FROM_BEN, 5)
    assert taken(box) == [(TO_BEN, READ, ((5, 5),))]
    box.owe_read(FROM_BEN, 3)
    assert taken(box) == [(TO_BEN, READ, ((1, 3),))], "from the lowest one without a gap"


def test_receipts_and_base_updates_do_not_cut_a_range() -> None:
    box = receipts()
    for seq in (1, 3, 5):
        box.owe_read(FROM_BEN, seq)
    for seq in (2, 4):
        box.hidden(FROM_BEN, seq)
    assert taken(box) == [(TO_BEN, READ, ((1, 5),))]
    box.hidden(FROM_BEN, 6)
    assert taken(box) == [], "they are owed no receipt"
    box.hidden(MINE_ELSEWHERE, 1)
    assert states(box, MINE_ELSEWHERE, 1) == [""]


def test_delivered_names_what_was_stored_and_nothing_else() -> None:
    box = receipts()
    for seq in (4, 1, 2):
        box.owe_delivered(FROM_BEN, seq)
    assert taken(box) == [(TO_BEN, DELIVERED, ((1, 2), (4, 4)))]
    assert box.changes() == [], "the receipt is in the outbox: nothing else has to be on disk"
    box.owe_delivered(FROM_BEN, 1)
    assert taken(box) == [(TO_BEN, DELIVERED, ((1, 1),))], "a stored duplicate: the first receipt may be lost"


def test_own_messages_are_owed_no_receipt() -> None:
    box = receipts()
    box.owe_read(MINE_ELSEWHERE, 1)
    assert (taken(box), box.changes()) == ([], [])


def test_receipts_wait_on_disk_while_their_stream_is_full() -> None:
    box = receipts()
    box.owe_delivered(FROM_BEN, 1)
    box.owe_read(FROM_BEN, 1)
    assert taken(box, full=[TO_BEN]) == []
    assert box.owed == 1
    [row] = box.changes()
    assert row == PutReceipts(FROM_BEN, (), ((1, 1),), (), ((1, 1),))
    for waiting in (box, receipts(row)):
        waiting.owe_read(FROM_BEN, 2)
        assert waiting.owed == 1
        assert taken(waiting) == [(TO_BEN, READ, ((1, 2),))], "it says that the message is delivered, too"
        assert waiting.owed == 0
        assert waiting.changes() == [PutReceipts(FROM_BEN, (), ((1, 2),), (), ())]
        assert taken(waiting) == []


def test_a_stream_that_becomes_full_in_between_keeps_the_rest() -> None:
    box = receipts(ranges_max=2)
    for seq in (1, 3, 5, 7, 9):
        box.owe_read(FROM_BEN, seq)
    room = iter([False, True])
    first = [receipt.ranges for _, receipt in box.take(lambda to: next(room), 0.0)]
    assert first == [((1, 1), (3, 3))]
    assert box.owed == 1
    assert [ranges for _, _, ranges in taken(box)] == [((5, 5), (7, 7)), ((9, 9),)]


# ---------------------------------------------------------------- what may wait


def test_what_came_straight_is_told_after_a_delay_and_is_on_disk_meanwhile() -> None:
    box = receipts()
    box.owe_delivered(FROM_BEN, 1, due=2.0)
    box.owe_delivered(FROM_BEN, 2, due=3.0)
    assert (taken(box, now=1.0), box.next_deadline(), box.owed, box.delayed) == ([], 2.0, 0, 1)
    [row] = box.changes()
    assert row == PutReceipts(FROM_BEN, (), (), ((1, 2),), ())
    assert taken(box, now=2.0) == [(TO_BEN, DELIVERED, ((1, 2),))]
    assert (box.next_deadline(), box.delayed) == (None, 0)
    assert box.changes() == [PutReceipts(FROM_BEN, (), (), (), ())]
    assert taken(receipts(row), now=-5.0) == [(TO_BEN, DELIVERED, ((1, 2),))], "after a restart it is told at once"


def test_read_or_a_receipt_of_a_sibling_makes_it_needless() -> None:
    box = receipts()
    for seq in (1, 2, 3):
        box.owe_delivered(FROM_BEN, seq, due=2.0)
    box.owe_read(FROM_BEN, 1)
    assert taken(box, now=0.0) == [(TO_BEN, READ, ((1, 1),)), (TO_BEN, DELIVERED, ((2, 3),))][::-1]
    for seq in (4, 5, 6):
        box.owe_delivered(FROM_BEN, seq, due=4.0)
    box.changes()
    assert of_my_phone(box, DELIVERED, (1, 4)) == []
    assert box.changes() == [PutReceipts(FROM_BEN, (), ((1, 1),), ((5, 6),), ())]
    assert of_my_phone(box, READ, (5, 6)) == [StreamProgressed(FROM_BEN, "read", ((5, 6),))]
    assert taken(box, now=4.0) == []
    assert box.changes() == [PutReceipts(FROM_BEN, (), ((1, 1), (5, 6)), (), ())]
    assert box.next_deadline() is None


def test_a_receipt_that_waits_for_room_sets_no_alarm() -> None:
    box = receipts()
    box.owe_delivered(FROM_BEN, 1, due=2.0)
    assert taken(box, full=[TO_BEN], now=2.0) == []
    assert (box.next_deadline(), box.owed, box.delayed) == (None, 1, 0)
    assert taken(box, now=2.5) == [(TO_BEN, DELIVERED, ((1, 1),))]
