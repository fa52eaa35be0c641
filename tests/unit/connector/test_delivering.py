"""Live copies are pushed, deferred behind the offline queue, or returned; and their outcomes."""

from collections.abc import Sequence

import msgspec
import pytest

from meshim.connector import events as e
from meshim.errors import Code
from meshim.wire.client import Delivery, Welcome
from meshim.wire.envelope import Kind
from meshim.wire.link import Close, Data
from meshim.wire.mesh import Deliver, FromConnector, Return
from meshim.wire.notification import WakeUp
from meshim.wire.outcome import CopyOutcome, OutcomeStatus
from tests.unit.connector.world import (
    A1,
    A2,
    ALICE,
    B1,
    B2,
    BOB,
    DEFER_S,
    DELIVERY_S,
    ELSEWHERE,
    HERE,
    Connector,
    Transfer,
    envelope,
    live_copy,
    row,
)


def returned(transfer: Transfer) -> list[tuple[int, bool]]:
    """(seq, absent) of the copies that were returned since the last call."""
    items = transfer.take()
    return [(item.stamp.seq, item.absent) for item in items if isinstance(item, Return)]


def delivered(items: Sequence[FromConnector]) -> list[tuple[int, int]]:
    assert all(isinstance(item, CopyOutcome) and item.status == OutcomeStatus.DELIVERED for item in items)
    return [(item.first, item.last) for item in items if isinstance(item, CopyOutcome)]


def test_a_live_copy_is_pushed_and_its_outcome_follows_the_acknowledgement() -> None:
    connector = Connector()
    transfer = connector.transfer()
    bob = connector.online(B1)
    transfer.give(live_copy(seq=3))
    assert bob.items == [Delivery(envelope(A1, BOB, 3))]
    assert not transfer.take(), "no outcome before the device has it"
    bob.acknowledge()
    (outcome,) = transfer.take()
    assert isinstance(outcome, CopyOutcome)
    assert (outcome.status, outcome.origin, outcome.user, outcome.device) == (
        OutcomeStatus.DELIVERED,
        ELSEWHERE,
        ALICE,
        A1,
    )
    assert (outcome.first, outcome.last, outcome.done, outcome.copies) == (3, 3, ((BOB, B1),), ((BOB, B1),))
    assert connector.count.delivered == 1


def test_one_outcome_covers_many_messages() -> None:
    connector = Connector()
    transfer = connector.transfer()
    bob = connector.online(B1)
    transfer.give(*(live_copy(seq=seq) for seq in (1, 2, 3)), live_copy(seq=1, sender=A2), live_copy(seq=4))
    bob.acknowledge()
    assert delivered(transfer.take()) == [(1, 3), (1, 1), (4, 4)]


def test_an_outcome_for_a_sender_on_the_same_connector_takes_no_detour() -> None:
    connector = Connector()
    transfer = connector.transfer()
    alice, bob = connector.online(A1), connector.online(B1)
    transfer.give(live_copy(origin=HERE, session=alice.session))
    bob.acknowledge()
    assert [(outcome.status, outcome.final) for outcome in alice.outcomes] == [(OutcomeStatus.DELIVERED, True)]
    assert not transfer.take()


def test_an_ephemeral_copy_is_pushed_without_an_outcome() -> None:
    connector = Connector()
    transfer = connector.transfer()
    bob = connector.online(B1)
    transfer.give(live_copy(kind=Kind.TYPING), live_copy(seq=2))
    bob.acknowledge()
    assert len(bob.deliveries) == 2
    assert delivered(transfer.take()) == [(2, 2)]


def test_a_copy_for_two_devices_here_goes_to_both() -> None:
    connector = Connector()
    transfer = connector.transfer()
    one, other = connector.online(A1), connector.online(A2)
    both = live_copy(A1, sender=B1)
    transfer.give(Deliver(ALICE, ((A1, 0), (A2, 0)), both.stamp, both.envelope))
    one.acknowledge()
    other.acknowledge()
    outcomes = [item for item in transfer.take() if isinstance(item, CopyOutcome)]
    assert [outcome.done for outcome in outcomes] == [((ALICE, A1),), ((ALICE, A2),)]


# ---------------------------------------------------------------- returned


def test_a_copy_for_a_device_that_is_not_connected_is_returned() -> None:
    connector = Connector()
    transfer = connector.transfer()
    transfer.give(live_copy(seq=1), live_copy(seq=2, kind=Kind.TYPING))
    assert returned(transfer) == [(1, True)]
    assert (connector.count.returned, connector.count.ephemeral_dropped) == (1, 1)


def test_a_copy_for_a_device_without_its_welcome_is_returned() -> None:
    connector = Connector()
    transfer = connector.transfer()
    bob = connector.connect(B1)
    bob.accepted()
    transfer.give(live_copy())
    assert returned(transfer) == [(1, False)]
    connector.receive(e.BindingsWritten([(bob.binding, None)]))
    assert bob.came(Welcome)
    assert not bob.deliveries


def test_while_the_queue_is_synced_live_copies_are_stored_behind_it() -> None:
    connector = Connector()
    transfer = connector.transfer()
    bob = connector.bound(B1)
    transfer.give(live_copy(seq=1))
    connector.checked(waiting=[B1])
    transfer.give(live_copy(seq=2))
    connector.claimed(fence=1)
    transfer.give(live_copy(seq=3))
    assert returned(transfer) == [(1, False), (2, False), (3, False)]
    connector.page(row(1), through=1)
    transfer.give(live_copy(seq=4))
    assert not returned(transfer)
    assert bob.deliveries == [envelope(A1, BOB, 1), envelope(A1, BOB, 4)]


@pytest.mark.parametrize("end", ["closes", "gone", "silent", "breaks the protocol", "kicked"])
def test_copies_that_a_session_had_not_acknowledged_are_returned_in_order(end: str) -> None:
    connector = Connector()
    transfer = connector.transfer()
    bob = connector.online(B1)
    transfer.give(*(live_copy(seq=seq) for seq in (1, 2)))
    transfer.give(live_copy(seq=3))
    transfer.give(live_copy(seq=4, after=50))
    bob.acknowledge(1)
    transfer.take()
    if end == "closes":
        bob.send(Close(bob.link, 0))
    elif end == "gone":
        connector.receive(e.ClientGone(bob.peer))
    elif end == "silent":
        connector.pass_time(DELIVERY_S - 0.01)
        bob.ping()
        assert not bob.closed
        connector.pass_time(0.2)
        assert bob.closed[0][0] == Code.UNRESPONSIVE
    elif end == "breaks the protocol":
        bob.send_bytes(b"garbage")
    else:
        connector.online(B1)
    assert returned(transfer) == [(3, True), (4, True)]
    assert connector.count.return_failures == 0


def test_an_acknowledgement_in_a_frame_that_breaks_the_protocol_loses_no_copy() -> None:
    """The copy counts as delivered or is stored."""
    connector = Connector()
    transfer = connector.transfer()
    bob = connector.online(B1)
    transfer.give(live_copy(seq=1))
    bob.send(Data(bob.link, 100, 1, ()))
    assert bob.closed[0][0] == Code.MALFORMED
    assert returned(transfer) == [(1, True)]


def test_copies_that_cannot_be_returned_are_counted() -> None:
    connector = Connector()
    transfer = connector.transfer()
    bob = connector.online(B1)
    transfer.give(live_copy(seq=1))
    connector.receive(e.TransferLost(transfer.incarnation))
    connector.receive(e.ClientGone(bob.peer))
    assert connector.count.return_failures == 1


# ---------------------------------------------------------------- R2: not before what is stored


def test_a_copy_that_follows_a_stored_one_is_deferred_until_that_was_pushed() -> None:
    connector = Connector()
    transfer = connector.transfer()
    bob = connector.online(B1)
    transfer.give(live_copy(seq=2, after=50))
    assert not bob.deliveries
    assert connector.count.deferred == 1
    connector.checked(waiting=[B1])
    connector.claimed(fence=1)
    connector.page(row(1), through=50)
    assert bob.deliveries == [envelope(A1, BOB, 1), envelope(A1, BOB, 2)]
    bob.acknowledge()
    assert (connector.count.synced, connector.count.delivered) == (1, 1)


def test_a_position_that_was_synced_already_defers_nothing() -> None:
    connector = Connector()
    transfer = connector.transfer()
    bob = connector.bound(B1)
    connector.checked(through=50)
    transfer.give(live_copy(seq=1, after=50))
    assert bob.seqs == [1]


@pytest.mark.parametrize("after", [(ALICE, A1, 50), (ALICE, 0, 50), (BOB, B2, 50)])
def test_a_position_of_another_device_defers_nothing(after: tuple[int, int, int]) -> None:
    connector = Connector()
    transfer = connector.transfer()
    bob = connector.online(B1)
    copy = live_copy(seq=1)
    stamp = msgspec.structs.replace(copy.stamp, after=(after,))
    transfer.give(Deliver(BOB, copy.bindings, stamp, copy.envelope))
    assert bob.seqs == [1]


def test_a_position_of_all_devices_defers_for_each() -> None:
    connector = Connector()
    transfer = connector.transfer()
    bob = connector.online(B1)
    copy = live_copy(seq=1)
    stamp = msgspec.structs.replace(copy.stamp, after=((BOB, 0, 50),))
    transfer.give(Deliver(BOB, copy.bindings, stamp, copy.envelope))
    assert bob.seqs == []


def test_later_copies_of_the_stream_of_a_deferred_one_wait_too_and_others_do_not() -> None:
    connector = Connector()
    transfer = connector.transfer()
    bob = connector.online(B1)
    transfer.give(live_copy(seq=1, after=50), live_copy(seq=2), live_copy(seq=7, sender=A2))
    assert len(bob.deliveries) == 1
    connector.checked(through=49)
    assert len(bob.deliveries) == 1
    connector.receive(e.NotificationReceived(WakeUp(((BOB, B1),))))
    connector.checked(through=50)
    assert bob.deliveries[1:] == [envelope(A1, BOB, 1), envelope(A1, BOB, 2)]
    assert connector.count.woken == 1


def test_a_resent_copy_without_its_position_does_not_overtake_the_deferred_one() -> None:
    connector = Connector()
    transfer = connector.transfer()
    bob = connector.online(B1)
    transfer.give(live_copy(seq=1, after=60), live_copy(seq=2, after=40))
    connector.checked(through=50)
    assert not bob.deliveries
    connector.pass_time(0.2)
    connector.checked(through=60)
    assert bob.seqs == [1, 2]


def test_while_copies_are_deferred_the_queue_is_checked_again_without_a_wake_up() -> None:
    connector = Connector()
    transfer = connector.transfer()
    bob = connector.online(B1)
    transfer.give(live_copy(seq=1, after=50))
    connector.checked(through=49)
    connector.pass_time(0.2)
    connector.checked(through=50)
    assert bob.seqs == [1], "the row there was for another device: no wake-up comes for this one"
    connector.pass_time(1.0)
    assert not connector.take(e.CheckQueues), "and no check without deferred copies"


def test_copies_that_are_deferred_for_too_long_are_returned() -> None:
    connector = Connector()
    transfer = connector.transfer()
    bob = connector.online(B1)
    transfer.give(live_copy(seq=1, after=50, body=bytes(1_000)))
    connector.pass_time(1.0)
    transfer.give(live_copy(seq=2, after=50, body=bytes(1_000)))
    connector.pass_time(DEFER_S - 1.1)
    connector.checked(through=0)
    assert not returned(transfer)
    connector.pass_time(0.2)
    assert returned(transfer) == [(1, False), (2, False)], "later copies of its stream are returned with it"
    assert not bob.deliveries
    transfer.give(*(live_copy(seq=seq, body=bytes(1_000)) for seq in (3, 4, 5)))
    assert bob.seqs == [3, 4, 5], "none is deferred any more"


# ---------------------------------------------------------------- bounds


def test_a_slow_reader_gets_the_remaining_copies_through_the_store() -> None:
    connector = Connector()
    transfer = connector.transfer()
    bob = connector.online(B1)
    transfer.give(*(live_copy(seq=seq) for seq in range(1, 10)))
    assert bob.seqs == [1, 2, 3, 4, 5, 6]
    assert returned(transfer) == [(7, False), (8, False), (9, False)]
    bob.acknowledge(1)
    transfer.take()
    transfer.give(live_copy(seq=10))
    assert bob.seqs[-1] == 10, "there is room again"
    bob.acknowledge()
    assert connector.count.overflowed == 1
    transfer.take()
    transfer.give(live_copy(seq=11))
    assert returned(transfer) == [(11, False)], "syncing again, so that stored rows come first"
    connector.checked(waiting=[B1])
    connector.claimed(fence=1)
    connector.page(row(7), row(8), row(9), row(11), through=11)
    transfer.give(live_copy(seq=12))
    assert bob.seqs[-5:] == [7, 8, 9, 11, 12]


def test_large_messages_are_bounded_by_their_bytes() -> None:
    connector = Connector()
    transfer = connector.transfer()
    bob = connector.online(B1)
    transfer.give(*(live_copy(seq=seq, body=bytes(1_000)) for seq in range(1, 6)))
    assert bob.seqs == [1, 2, 3]
    assert returned(transfer) == [(4, False), (5, False)]
    bob.acknowledge()
    connector.checked(through=9)
    transfer.take()
    transfer.give(*(live_copy(seq=seq, body=bytes(1_000), after=20) for seq in range(6, 10)))
    assert returned(transfer) == [(9, False)], "deferred copies count"
    connector.checked(through=20)
    assert bob.seqs[-3:] == [6, 7, 8]
    bob.acknowledge()
    connector.checked(through=20)
    transfer.take()
    transfer.give(*(live_copy(seq=seq, body=bytes(1_000)) for seq in range(10, 14)))
    assert returned(transfer) == [(13, False)], "returned copies do not count any more"


def test_deferred_copies_are_bounded() -> None:
    connector = Connector()
    transfer = connector.transfer()
    connector.online(B1)
    transfer.give(*(live_copy(seq=seq, after=50) for seq in range(1, 9)))
    assert returned(transfer) == [(7, False), (8, False)]


def test_a_frame_is_sent_once_and_the_device_must_acknowledge_it_in_time() -> None:
    connector = Connector()
    transfer = connector.transfer()
    bob = connector.online(B1)
    transfer.give(live_copy())
    connector.pass_time(2.4)
    assert [frame.number for frame in bob.came(Data)] == [1]
    bob.acknowledge()
    assert delivered(transfer.take()) == [(1, 1)]
    transfer.give(live_copy(seq=2))
    connector.pass_time(2.6)
    assert bob.closed[0][0] == Code.UNRESPONSIVE
    assert returned(transfer) == [(2, True)]


# ---------------------------------------------------------------- wake-ups


def test_a_wake_up_has_the_queue_checked() -> None:
    """R1: committed after the sync."""
    connector = Connector()
    bob = connector.online(B1)
    connector.receive(e.NotificationReceived(WakeUp(((BOB, B1), (ALICE, A1)))))
    assert connector.take_one(e.CheckQueues).devices == ((BOB, B1, bob.session),)
    assert connector.count.woken == 1


def test_a_wake_up_during_a_check_is_not_forgotten() -> None:
    connector = Connector()
    connector.online(B1)
    connector.receive(e.NotificationReceived(WakeUp(((BOB, B1),))))
    connector.receive(e.NotificationReceived(WakeUp(((BOB, B1),))))
    connector.checked()
    connector.pass_time(0.2)
    assert connector.take(e.CheckQueues), "the first check may have been too early"


def test_copies_for_a_device_that_acknowledges_slowly_are_stored() -> None:
    connector = Connector()
    transfer = connector.transfer()
    bob = connector.online(B1)
    for seq in (1, 2, 3):
        transfer.give(live_copy(seq=seq))
    for number in (1, 2):
        connector.pass_time(DEFER_S * 0.9)
        bob.acknowledge(number)
    assert not bob.closed, "it acknowledges, if slowly"
    transfer.take()
    transfer.give(live_copy(seq=4))
    assert returned(transfer) == [(4, False)]
    bob.acknowledge()
    assert connector.take(e.CheckQueues), "it has caught up: rows stored meanwhile are synced"
