"""The inbox: each message once, in order, also after a restart with what the state file holds."""

from collections.abc import Sequence

import pytest

from meshim.client.events import AddToInbox, Change, DropFromInbox, EarlyMessage, PutOrder, Release, Snapshot
from meshim.client.statistics import Statistics
from meshim.client.streams.inbox import Inbox, InboxUpdate
from meshim.protocol.ordering import Flag, OrderingOptions
from meshim.wire.envelope import WIRE_VERSION, Destination, DestinationType, Envelope, Kind, Stream, encode_envelope

OPTIONS = OrderingOptions(gap_release_s=30.0, early_max=4)
EMPTY = Snapshot([], [], [], [], [])
ME = Destination(DestinationType.USER, 1)
BOB = Stream(2, 20, 5, ME)
CAROL = Stream(3, 30, 5, ME)


def inbox(snapshot: Snapshot = EMPTY, now: float = 0.0, options: OrderingOptions = OPTIONS) -> Inbox:
    return Inbox(options, snapshot, Statistics(), now)


def envelope(seq: int, base: int = 1, stream: Stream = BOB, kind: int = Kind.TEXT) -> Envelope:
    return Envelope(
        WIRE_VERSION, bytes(16), stream.user, stream.device, stream.epoch, stream.to, seq, base, kind, 1, 0, b"b"
    )  # fmt: skip


def receive(
    box: Inbox, seq: int, base: int = 1, *, stream: Stream = BOB, kind: int = Kind.TEXT, now: float = 0.0
) -> InboxUpdate:
    message = envelope(seq, base, stream, kind)
    return box.receive(message, encode_envelope(message), stored=False, now=now)


def released(changes: Sequence[Change]) -> list[tuple[int, int]]:
    return [(change.seq, change.flag) for change in changes if isinstance(change, Release)]


class InboxTable:
    """The rows of a state file that concern the inbox."""

    def __init__(self) -> None:
        self.orders: dict[Stream, PutOrder] = {}
        self.early: dict[tuple[Stream, int], EarlyMessage] = {}
        self.released: list[int] = []

    def apply(self, changes: Sequence[Change]) -> None:
        for change in changes:
            if isinstance(change, PutOrder):
                self.orders[change.stream] = change
            elif isinstance(change, AddToInbox):
                self.early[change.stream, change.seq] = EarlyMessage(change.stream, change.seq, change.envelope)
            elif isinstance(change, Release):
                del self.early[change.stream, change.seq]
                self.released.append(change.seq)
            elif isinstance(change, DropFromInbox):
                del self.early[change.stream, change.seq]

    def snapshot(self) -> Snapshot:
        return Snapshot([], [], [], list(self.orders.values()), list(self.early.values()))


def test_a_message_in_order_is_released_at_once() -> None:
    message = envelope(1)
    update = receive(inbox(), 1)
    assert update == InboxUpdate(
        [AddToInbox(BOB, 1, encode_envelope(message), False), Release(BOB, 1, Flag.IN_ORDER), PutOrder(BOB, 2, ())],
        True,
    )


def test_an_early_message_waits_for_the_missing_one() -> None:
    box = inbox()
    early = receive(box, 2)
    assert not early.available
    assert released(early.changes) == []
    assert isinstance(early.changes[0], AddToInbox)
    assert released(receive(box, 1).changes) == [(1, Flag.IN_ORDER), (2, Flag.IN_ORDER)]
    assert box.next_deadline() is None


def test_a_duplicate_changes_nothing_and_is_counted() -> None:
    box = inbox()
    receive(box, 1)
    receive(box, 3)
    for seq in (1, 3):
        assert receive(box, seq) == InboxUpdate([], False)
    assert box._statistics.deduplicated == 2


def test_streams_are_independent() -> None:
    box = inbox()
    receive(box, 2)
    assert released(receive(box, 1, stream=CAROL).changes) == [(1, Flag.IN_ORDER)]
    another_epoch = Stream(BOB.user, BOB.device, BOB.epoch + 1, ME)
    assert released(receive(box, 1, stream=another_epoch).changes) == [(1, Flag.IN_ORDER)]


def test_a_base_update_releases_waiting_messages_and_is_dropped() -> None:
    box = inbox()
    receive(box, 2)
    update = receive(box, 3, 3, kind=Kind.BASE)
    assert released(update.changes) == [(2, Flag.IN_ORDER)]
    assert DropFromInbox(BOB, 3, Flag.IN_ORDER) in update.changes
    assert update.available
    alone = receive(box, 4, 4, kind=Kind.BASE)
    assert not alone.available
    assert alone.changes[-1] == PutOrder(BOB, 5, ((1, 1),))


def test_a_receipt_in_order_leaves_no_trace_but_the_order() -> None:
    assert receive(inbox(), 1, kind=Kind.RECEIPT) == InboxUpdate([PutOrder(BOB, 2, ())], False)


def test_a_receipt_that_is_held_back_is_dropped_when_its_turn_comes() -> None:
    box = inbox()
    assert isinstance(receive(box, 2, kind=Kind.RECEIPT).changes[0], AddToInbox)
    update = receive(box, 1)
    assert released(update.changes) == [(1, Flag.IN_ORDER)]
    assert update.changes[-2:] == [DropFromInbox(BOB, 2, Flag.IN_ORDER), PutOrder(BOB, 3, ())]


@pytest.mark.parametrize("restart", [False, True])
def test_the_message_behind_a_receipt_behind_a_gap_tells_of_the_gap(restart: bool) -> None:
    table = InboxTable()
    box = inbox()
    table.apply(receive(box, 2, kind=Kind.RECEIPT, now=0.0).changes)
    update = box.tick(30.0)
    table.apply(update.changes)
    assert update == InboxUpdate(
        [DropFromInbox(BOB, 2, Flag.AFTER_GAP), PutOrder(BOB, 3, ((1, 1),), Flag.AFTER_GAP)], False
    )
    if restart:
        box = inbox(table.snapshot())
    assert released(receive(box, 3).changes) == [(3, Flag.AFTER_GAP)]
    assert released(receive(box, 4).changes) == [(4, Flag.IN_ORDER)]


def test_a_gap_is_released_after_its_timeout_and_the_missing_message_is_late() -> None:
    box = inbox()
    receive(box, 2, now=1.0)
    assert box.next_deadline() == 31.0
    assert box.tick(30.9) == InboxUpdate([], False)
    update = box.tick(31.0)
    assert update == InboxUpdate([Release(BOB, 2, Flag.AFTER_GAP), PutOrder(BOB, 3, ((1, 1),))], True)
    assert box._statistics.gaps_released == 1
    assert box.next_deadline() is None
    assert released(receive(box, 1, now=40.0).changes) == [(1, Flag.LATE)]


def test_the_next_deadline_is_that_of_the_oldest_gap() -> None:
    box = inbox()
    receive(box, 2, stream=CAROL, now=3.0)
    receive(box, 2, now=1.0)
    assert box.next_deadline() == 31.0
    receive(box, 1, now=2.0)
    assert box.next_deadline() == 33.0


def test_a_restart_restores_the_order() -> None:
    table = InboxTable()
    box = inbox()
    for seq in (1, 2, 5, 4, 7):
        table.apply(receive(box, seq).changes)
    for _ in range(2):
        box = inbox(table.snapshot(), now=100.0)
        assert box.next_deadline() == 130.0
        for seq in (1, 2, 4, 5, 7):
            assert receive(box, seq, now=100.0) == InboxUpdate([], False)
    table.apply(receive(box, 3, now=101.0).changes)
    assert table.released == [1, 2, 3, 4, 5]
    box = inbox(table.snapshot(), now=200.0)
    table.apply(receive(box, 6, now=201.0).changes)
    assert table.released == [1, 2, 3, 4, 5, 6, 7]
    assert table.early == {}


def test_a_restart_with_a_lower_limit_releases_the_messages_above_it() -> None:
    table = InboxTable()
    box = inbox()
    for seq in (2, 3, 5, 7):
        table.apply(receive(box, seq).changes)
    box = inbox(table.snapshot(), options=OrderingOptions(gap_release_s=30.0, early_max=1))
    assert box.next_deadline() == 0.0
    update = box.tick(0.0)
    assert update.available
    table.apply(update.changes)
    assert table.released == [2, 3, 5]
    assert list(table.early) == [(BOB, 7)]
    assert box.next_deadline() == 30.0


def test_an_early_message_waits_after_a_restart_whatever_its_base() -> None:
    """Its base applied when it arrived: it must not release the message now."""
    table = InboxTable()
    box = inbox()
    table.apply(receive(box, 5, 3).changes)
    assert table.released == []
    box = inbox(table.snapshot())
    table.apply(receive(box, 3, 3).changes)
    table.apply(receive(box, 4, 3).changes)
    assert table.released == [3, 4, 5]
