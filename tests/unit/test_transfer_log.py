"""What goes to the log: gathered, bounded, and told as stored only when the log has said so."""

import pytest

from meshim.errors import Code
from meshim.transfer import events as e
from meshim.wire.envelope import Kind
from meshim.wire.offline_log import Entry, decode_record
from meshim.wire.outcome import OutcomeStatus
from tests.unit.transfer_world import ALICE, B1, BOB, CAROL, Transfer, here, route

# The connector of each user has the number of the user.


def test_while_the_log_is_busy_entries_travel_together() -> None:
    transfer = Transfer()
    alice = transfer.connector(ALICE)
    alice.give(*(route(seq=seq) for seq in range(1, 6)), route(seq=9, to=CAROL))
    transfer.absent()
    first, carols = transfer.take(e.Publish)
    assert (first.partition, carols.partition) == (2, 3), "one at a time for each partition"
    assert [entry.envelope for entry in decode_record(first.data).entries] == [b"0001", b"0002", b"0003"]
    transfer.tell(e.Published(first.record, 1))
    assert transfer.stored() == [(2, [Entry(BOB, (), b"0004"), Entry(BOB, (), b"0005")])]


def test_records_are_bounded_in_items_and_bytes() -> None:
    transfer = Transfer(waiting=99, waiting_bytes=99_999)
    alice = transfer.connector(ALICE)
    alice.give(*(route(seq=seq) for seq in range(1, 8)))
    transfer.absent()
    sizes = []
    while records := transfer.stored():
        sizes += [len(entries) for _, entries in records]
    assert max(sizes) == 3
    assert sum(sizes) == 7
    alice.give(*(route(seq=seq, size=120) for seq in range(11, 16)), route(seq=16, size=900))
    sizes = []
    while records := transfer.stored():
        sizes += [sum(len(entry.envelope) for entry in entries) for _, entries in records]
    assert sum(sizes) == 5 * 120 + 900
    assert max(size for size in sizes if size != 900) <= 300
    assert 900 in sizes, "one that is larger travels alone"


def test_one_outcome_tells_of_all_of_a_record() -> None:
    transfer = Transfer()
    alice = transfer.connector(ALICE)
    alice.give(*(route(seq=seq) for seq in range(1, 5)))
    transfer.absent()
    while transfer.stored():
        pass
    assert alice.told() == [(1, 3, OutcomeStatus.STORED, ((BOB, 0),)), (4, 4, OutcomeStatus.STORED, ((BOB, 0),))]


def test_what_the_log_does_not_take_is_busy_and_the_sender_keeps_it() -> None:
    """R7."""
    transfer = Transfer()
    alice = transfer.connector(ALICE)
    alice.give(route(seq=1))
    transfer.absent()
    assert transfer.refused() == 1
    assert [(o.first, o.status, o.code, o.done) for o in alice.outcomes] == [(1, OutcomeStatus.BUSY, Code.BUSY, ())]
    assert transfer.count.busy == 1
    alice.give(route(seq=1))
    assert transfer.stored()
    assert [o.status for o in alice.outcomes] == [OutcomeStatus.BUSY, OutcomeStatus.STORED]


def test_what_waits_for_the_log_is_bounded_in_entries() -> None:
    transfer = Transfer()
    alice = transfer.connector(ALICE)
    alice.give(route(seq=1))
    transfer.absent()
    for seq in range(2, 10):
        alice.give(route(seq=seq), route(seq=seq, kind=Kind.TYPING))
    assert [(o.first, o.status) for o in alice.outcomes] == [(8, OutcomeStatus.BUSY), (9, OutcomeStatus.BUSY)]


def test_what_waits_for_the_log_is_bounded_in_bytes() -> None:
    transfer = Transfer(waiting=99)
    alice = transfer.connector(ALICE)
    for seq in range(1, 6):
        alice.give(route(seq=seq, size=400))
        transfer.absent()
    assert [(o.first, o.status) for o in alice.outcomes] == [(5, OutcomeStatus.BUSY)], (
        "one under way, and the last may exceed it"
    )
    while transfer.stored():
        pass
    alice.give(route(seq=6, size=400))
    assert transfer.stored(), "what left does not count any more"


@pytest.mark.parametrize(("size", "most"), [(4, 6), (400, 3)])
def test_what_waits_for_presence_is_bounded(size: int, most: int) -> None:
    transfer = Transfer(waiting_bytes=1_000 if size > 100 else 99_999)
    alice, bob = transfer.connector(ALICE), transfer.connector(BOB)
    alice.give(*(route(seq=seq, size=size) for seq in range(1, most + 1)))
    alice.give(route(seq=most + 1, kind=Kind.TYPING), route(seq=most + 1))
    assert [(o.first, o.status) for o in alice.outcomes] == [(most + 1, OutcomeStatus.BUSY)]
    assert transfer.count.ephemeral_dropped == 1
    transfer.present({BOB: here(BOB, B1)})
    assert [seq for seq, _ in bob.places] == list(range(1, most + 1))
    alice.give(route(seq=most + 1))
    assert bob.places[-1][0] == most + 1


def test_a_connector_that_takes_too_little_costs_its_devices_a_trip_to_the_store() -> None:
    transfer = Transfer(waiting=99, waiting_bytes=99_999)
    alice, bob = transfer.connector(ALICE), transfer.connector(BOB)
    alice.give(route(seq=1))
    transfer.present({BOB: here(BOB, B1)})
    bob.mute = True
    for seq in range(2, 40):
        alice.give(route(seq=seq))
    entries = [entry.envelope for _, record in transfer.stored() for entry in record]
    assert entries[0] == b"0026", "8 bundles of one under way, and 16 in the queue"
    assert not any(o.status == OutcomeStatus.BUSY for o in alice.outcomes)
