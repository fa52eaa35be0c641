"""The inbox: each message once, in order, with what the state file has to know for that after a restart."""

from collections.abc import Sequence

from meshim.client.events import Change, Drop, HeldMessage, PutIn, PutOrder, Release, Snapshot
from meshim.client.inbox import Arrival, Inbox
from meshim.protocol.ordering import Flag, OrderingOptions
from meshim.wire.envelope import WIRE_VERSION, Destination, DestinationType, Envelope, Kind, Stream, encode_envelope

OPTIONS = OrderingOptions(gap_release_s=30.0, early_max=4)
EMPTY = Snapshot([], [], [], [], [])
ME = Destination(DestinationType.USER, 1)
BOB = Stream(2, 20, 5, ME)
CAROL = Stream(3, 30, 5, ME)


def inbox(snapshot: Snapshot = EMPTY, now: float = 0.0, options: OrderingOptions = OPTIONS) -> Inbox:
    return Inbox(options, snapshot, now)


def envelope(seq: int, base: int = 1, stream: Stream = BOB, kind: int = Kind.TEXT) -> Envelope:
    return Envelope(
        WIRE_VERSION, bytes(16), stream.user, stream.device, stream.epoch, stream.to, seq, base, kind, 1, 0, b"b"
    )  # fmt: skip


def receive(
    box: Inbox, seq: int, base: int = 1, *, stream: Stream = BOB, kind: int = Kind.TEXT, now: float = 0.0
) -> Arrival:
    message = envelope(seq, base, stream, kind)
    return box.receive(message, encode_envelope(message), stored=False, now=now)


def released(changes: Sequence[Change]) -> list[tuple[int, int]]:
    return [(change.seq, change.flag) for change in changes if isinstance(change, Release)]


class PendingEntry:
    """A state file as far as the inbox goes."""

    def __init__(self) -> None:
        self.orders: dict[Stream, PutOrder] = {}
        self.held: dict[tuple[Stream, int], HeldMessage] = {}
        self.shown: list[int] = []

    def apply(self, changes: Sequence[Change]) -> None:
        for change in changes:
            if isinstance(change, PutOrder):
                self.orders[change.stream] = change
            elif isinstance(change, PutIn):
                self.held[change.stream, change.seq] = HeldMessage(change.stream, change.seq, change.envelope)
            elif isinstance(change, Release):
                del self.held[change.stream, change.seq]
                self.shown.append(change.seq)
            elif isinstance(change, Drop):
                del self.held[change.stream, change.seq]

    def snapshot(self) -> Snapshot:
        return Snapshot([], [], [], list(self.orders.values()), list(self.held.values()))


def test_what_comes_in_order_is_kept_and_released_at_once() -> None:
    message = envelope(1)
    arrival = receive(inbox(), 1)
    assert arrival == Arrival(
        [PutIn(BOB, 1, encode_envelope(message), False), Release(BOB, 1, Flag.IN_ORDER), PutOrder(BOB, 2, ())], True
    )


def test_what_comes_early_is_kept_and_held_back() -> None:
    box = inbox()
    early = receive(box, 2)
    assert not early.grew
    assert released(early.changes) == []
    assert isinstance(early.changes[0], PutIn)
    assert released(receive(box, 1).changes) == [(1, Flag.IN_ORDER), (2, Flag.IN_ORDER)]
    assert box.next_deadline() is None


def test_a_duplicate_is_no_change_and_is_counted() -> None:
    box = inbox()
    receive(box, 1)
    receive(box, 3)
    for seq in (1, 3):
        assert receive(box, seq) == Arrival([], False)
    assert box.duplicates == 2


def test_streams_do_not_wait_for_each_other() -> None:
    box = inbox()
    receive(box, 2)
    assert released(receive(box, 1, stream=CAROL).changes) == [(1, Flag.IN_ORDER)]
    another_epoch = Stream(BOB.user, BOB.device, BOB.epoch + 1, ME)
    assert released(receive(box, 1, stream=another_epoch).changes) == [(1, Flag.IN_ORDER)]


def test_a_base_update_releases_what_waited_and_is_not_shown() -> None:
    box = inbox()
    receive(box, 2)
    arrival = receive(box, 3, 3, kind=Kind.BASE)
    assert released(arrival.changes) == [(2, Flag.IN_ORDER)]
    assert Drop(BOB, 3) in arrival.changes
    assert arrival.grew
    alone = receive(box, 4, 4, kind=Kind.BASE)
    assert not alone.grew
    assert alone.changes[-1] == PutOrder(BOB, 5, ((1, 1),))


def test_a_gap_is_given_up_in_time_and_what_filled_it_later_is_late() -> None:
    box = inbox()
    receive(box, 2, now=1.0)
    assert box.next_deadline() == 31.0
    assert box.tick(30.9) == Arrival([], False)
    given_up = box.tick(31.0)
    assert given_up == Arrival([Release(BOB, 2, Flag.AFTER_GAP), PutOrder(BOB, 3, ((1, 1),))], True)
    assert box.gaps_released == 1
    assert box.next_deadline() is None
    assert released(receive(box, 1, now=40.0).changes) == [(1, Flag.LATE)]


def test_the_next_deadline_is_that_of_the_oldest_gap() -> None:
    box = inbox()
    receive(box, 2, stream=CAROL, now=3.0)
    receive(box, 2, now=1.0)
    assert box.next_deadline() == 31.0
    receive(box, 1, now=2.0)
    assert box.next_deadline() == 33.0


def test_after_a_restart_everything_is_as_it_was() -> None:
    kept = PendingEntry()
    box = inbox()
    for seq in (1, 2, 5, 4, 7):
        kept.apply(receive(box, seq).changes)
    for _ in range(2):
        box = inbox(kept.snapshot(), now=100.0)
        assert box.next_deadline() == 130.0
        for seq in (1, 2, 4, 5, 7):
            assert receive(box, seq, now=100.0) == Arrival([], False)
    kept.apply(receive(box, 3, now=101.0).changes)
    assert kept.shown == [1, 2, 3, 4, 5]
    box = inbox(kept.snapshot(), now=200.0)
    kept.apply(receive(box, 6, now=201.0).changes)
    assert kept.shown == [1, 2, 3, 4, 5, 6, 7]
    assert kept.held == {}


def test_a_restart_with_less_room_releases_what_does_not_fit() -> None:
    kept = PendingEntry()
    box = inbox()
    for seq in (2, 3, 5, 7):
        kept.apply(receive(box, seq).changes)
    box = inbox(kept.snapshot(), options=OrderingOptions(gap_release_s=30.0, early_max=1))
    assert box.next_deadline() == 0.0
    arrival = box.tick(0.0)
    assert arrival.grew
    kept.apply(arrival.changes)
    assert kept.shown == [2, 3, 5]
    assert list(kept.held) == [(BOB, 7)]
    assert box.next_deadline() == 30.0


def test_a_message_above_its_base_waits_after_a_restart_too() -> None:
    """Its base was taken in when it came: it must not release it now."""
    kept = PendingEntry()
    box = inbox()
    kept.apply(receive(box, 5, 3).changes)
    assert kept.shown == []
    box = inbox(kept.snapshot())
    kept.apply(receive(box, 3, 3).changes)
    kept.apply(receive(box, 4, 3).changes)
    assert kept.shown == [3, 4, 5]
