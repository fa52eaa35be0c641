"""Entries for the log: batched, bounded, and reported as stored only when the log has acknowledged them."""

import pytest

from meshim.errors import Code
from meshim.transfer import events as e
from meshim.wire.envelope import Kind
from meshim.wire.offline_log import Entry, decode_record
from meshim.wire.outcome import OutcomeStatus
from tests.unit.transfer.world import ALICE, B1, BOB, CAROL, Transfer, presence_of, route

# The connector of each user has the number of the user.


def test_while_a_record_is_in_flight_entries_are_batched() -> None:
    transfer = Transfer()
    alice = transfer.connector(ALICE)
    alice.send_items(*(route(seq=seq) for seq in range(1, 6)), route(seq=9, to=CAROL))
    transfer.answer_lookups()
    first, carols = transfer.take(e.Publish)
    assert (first.partition, carols.partition) == (2, 3), "one record in flight for each partition"
    assert [entry.envelope for entry in decode_record(first.data).entries] == [b"0001", b"0002", b"0003"]
    transfer.tell(e.Published(first.record, 1))
    assert transfer.publish_all() == [(2, [Entry(BOB, (), b"0004"), Entry(BOB, (), b"0005")])]


def test_records_are_bounded_in_items_and_bytes() -> None:
    transfer = Transfer(pending=99, pending_bytes=99_999)
    alice = transfer.connector(ALICE)
    alice.send_items(*(route(seq=seq) for seq in range(1, 8)))
    transfer.answer_lookups()
    sizes = []
    while records := transfer.publish_all():
        sizes += [len(entries) for _, entries in records]
    assert max(sizes) == 3
    assert sum(sizes) == 7
    alice.send_items(*(route(seq=seq, size=120) for seq in range(11, 16)), route(seq=16, size=900))
    sizes = []
    while records := transfer.publish_all():
        sizes += [sum(len(entry.envelope) for entry in entries) for _, entries in records]
    assert sum(sizes) == 5 * 120 + 900
    assert max(size for size in sizes if size != 900) <= 300
    assert 900 in sizes, "a larger entry has a record of its own"


def test_one_outcome_covers_all_messages_of_a_record() -> None:
    transfer = Transfer()
    alice = transfer.connector(ALICE)
    alice.send_items(*(route(seq=seq) for seq in range(1, 5)))
    transfer.answer_lookups()
    while transfer.publish_all():
        pass
    assert [(first, last) for first, last, *_ in alice.brief_outcomes()] == [(1, 3), (4, 4)]
    assert {outcome[2:] for outcome in alice.brief_outcomes()} == {(OutcomeStatus.STORED, ((BOB, 0),))}


def test_a_failed_publish_is_busy_and_the_sender_resends() -> None:
    """R7."""
    transfer = Transfer()
    alice = transfer.connector(ALICE)
    alice.send_items(route(seq=1))
    transfer.answer_lookups()
    assert transfer.fail_publishes() == 1
    assert [(o.first, o.status, o.code, o.done) for o in alice.outcomes] == [(1, OutcomeStatus.BUSY, Code.BUSY, ())]
    assert transfer.count.busy == 1
    alice.send_items(route(seq=1))
    assert transfer.publish_all()
    assert [o.status for o in alice.outcomes] == [OutcomeStatus.BUSY, OutcomeStatus.STORED]


def test_entries_that_wait_are_bounded_in_count() -> None:
    transfer = Transfer()
    alice = transfer.connector(ALICE)
    alice.send_items(route(seq=1))
    transfer.answer_lookups()
    for seq in range(2, 10):
        alice.send_items(route(seq=seq), route(seq=seq, kind=Kind.TYPING))
    assert [(o.first, o.status) for o in alice.outcomes] == [(8, OutcomeStatus.BUSY), (9, OutcomeStatus.BUSY)]


def test_entries_that_wait_are_bounded_in_bytes() -> None:
    transfer = Transfer(pending=99)
    alice = transfer.connector(ALICE)
    for seq in range(1, 6):
        alice.send_items(route(seq=seq, size=400))
        transfer.answer_lookups()
    assert [(o.first, o.status) for o in alice.outcomes] == [(5, OutcomeStatus.BUSY)], (
        "one is in flight, and the last one may exceed the limit"
    )
    while transfer.publish_all():
        pass
    alice.send_items(route(seq=6, size=400))
    assert transfer.publish_all(), "published entries do not count"


@pytest.mark.parametrize(("size", "most"), [(4, 6), (400, 3)])
def test_messages_that_wait_for_presence_are_bounded(size: int, most: int) -> None:
    transfer = Transfer(pending_bytes=1_000 if size > 100 else 99_999)
    alice, bob = transfer.connector(ALICE), transfer.connector(BOB)
    alice.send_items(*(route(seq=seq, size=size) for seq in range(1, most + 1)))
    alice.send_items(route(seq=most + 1, kind=Kind.TYPING), route(seq=most + 1))
    assert [(o.first, o.status) for o in alice.outcomes] == [(most + 1, OutcomeStatus.BUSY)]
    assert transfer.count.ephemeral_dropped == 1
    transfer.answer_lookups({BOB: presence_of(BOB, B1)})
    assert [seq for seq, _ in bob.delivered] == list(range(1, most + 1))
    alice.send_items(route(seq=most + 1))
    assert bob.delivered[-1][0] == most + 1


def test_copies_for_a_connector_whose_link_is_full_are_stored() -> None:
    transfer = Transfer(pending=99, pending_bytes=99_999)
    alice, bob = transfer.connector(ALICE), transfer.connector(BOB)
    alice.send_items(route(seq=1))
    transfer.answer_lookups({BOB: presence_of(BOB, B1)})
    bob.mute = True
    for seq in range(2, 40):
        alice.send_items(route(seq=seq))
    entries = [entry.envelope for _, record in transfer.publish_all() for entry in record]
    assert entries[0] == b"0026", "8 bundles of one message are in flight, and 16 messages in the queue"
    assert not any(o.status == OutcomeStatus.BUSY for o in alice.outcomes)
