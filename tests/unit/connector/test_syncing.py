"""The offline queue of a device: checked, claimed, read page by page, pushed, and marked when acknowledged."""

import pytest

from meshim.connector import events as e
from meshim.stores.ports import Page
from meshim.wire.client import Delivery, Stored
from meshim.wire.link import Close
from meshim.wire.mesh import Return
from meshim.wire.notification import WakeUp
from tests.unit.connector.world import (
    A1,
    B1,
    BOB,
    LONGEST,
    RETRY_S,
    SWEEP_S,
    Client,
    Connector,
    live_copy,
    row,
)


def wake_up(connector: Connector) -> None:
    connector.receive(e.NotificationReceived(WakeUp(((BOB, B1),))))


def syncing(connector: Connector) -> Client:
    """Rows wait for bob's device, and its session has claimed the queue."""
    bob = connector.bound(B1)
    connector.checked(waiting=[B1])
    connector.claimed(fence=1)
    return bob


def unreachable(connector: Connector, bob: Client) -> None:
    connector.receive(e.QueuesUnreachable(((B1, bob.session),)))


def test_stored_rows_come_first_and_are_marked_when_acknowledged() -> None:
    """R10: not marked before."""
    connector = Connector()
    bob = connector.bound(B1)
    connector.checked(waiting=[B1])
    claim = connector.take_one(e.ClaimQueue)
    assert (claim.device, claim.session) == (B1, bob.session)
    connector.receive(e.QueueClaimed(B1, bob.session, 7))
    read = connector.page(row(3), row(5), through=9)
    assert (read.user, read.device, read.fence, read.after) == (BOB, B1, 7, (0, -1))
    assert bob.items == [Delivery(row(3).envelope, stored=True), Delivery(row(5).envelope, stored=True)]
    assert bob.came(Stored) == [Stored(bob.link, delayed=False)]
    assert not connector.take(e.MarkRead)
    bob.acknowledge()
    mark = connector.take_one(e.MarkRead)
    assert (mark.device, mark.fence, mark.row_ids) == (B1, 7, (3, 5))
    assert connector.count.synced == 2


def test_rows_acknowledged_before_the_session_ended_are_marked() -> None:
    """Also the rows that waited for an earlier mark: the next session would get them again."""
    connector = Connector()
    bob = syncing(connector)
    connector.page(row(1), row(2), more=True)
    bob.acknowledge()
    assert connector.take_one(e.MarkRead).row_ids == (1, 2)
    connector.page(row(3), through=3)
    bob.acknowledge()
    assert not connector.take(e.MarkRead), "one at a time"
    bob.send(Close(bob.link, 0))
    assert connector.take_one(e.MarkRead).row_ids == (1, 2, 3)
    assert connector.take_one(e.ReleaseQueue) == e.ReleaseQueue(B1, 1)


def test_the_next_page_is_read_when_the_last_is_acknowledged() -> None:
    connector = Connector()
    bob = syncing(connector)
    connector.page(*(row(n) for n in range(1, 7)), through=20, more=True)
    assert not connector.take(e.ReadPage)
    bob.acknowledge(1)
    assert not connector.take(e.ReadPage), "two rows are not acknowledged"
    assert not bob.came(Stored), "not all rows were pushed"
    bob.acknowledge()
    assert connector.page(row(7), through=20).after == (6, 0)
    assert bob.seqs == list(range(1, 8))
    assert bob.came(Stored)


def test_the_next_page_does_not_wait_for_live_messages() -> None:
    connector = Connector()
    transfer = connector.transfer()
    bob = connector.online(B1)
    wake_up(connector)
    connector.checked(waiting=[B1])
    connector.claimed(fence=1)
    connector.page(row(1), row(2), through=20, more=True)
    transfer.give(live_copy(seq=9))
    bob.acknowledge(1)
    assert connector.page(row(3), through=20).after == (2, 0)


def test_a_page_is_pushed_as_far_as_the_window_has_room() -> None:
    """Rows without room are read again later."""
    connector = Connector()
    bob = syncing(connector)
    rows = [row(n) for n in range(1, 81)]
    connector.page(*rows, through=99)
    assert len(bob.seqs) == 32, "a window of 8 frames of 4"
    assert not bob.came(Stored)
    bob.acknowledge()
    assert len(bob.seqs) == 64, "and a queue of 64"
    bob.acknowledge()
    assert connector.page(*rows[64:], through=99).after == (64, 0)
    assert bob.seqs == list(range(1, 81))
    assert bob.came(Stored)


def test_rows_that_were_pushed_are_not_pushed_again() -> None:
    connector = Connector()
    bob = syncing(connector)
    connector.page(row(1), row(2), through=2)
    bob.acknowledge()
    wake_up(connector)
    connector.checked(waiting=[B1])
    connector.page(row(1), row(2), row(3), through=3)
    assert bob.seqs == [1, 2, 3]
    assert connector.marked() == (1, 2)
    bob.acknowledge()
    assert connector.marked() == (3,)
    assert not connector.take(e.MarkRead)


def test_a_row_that_is_marked_while_a_page_is_read_is_not_pushed_again() -> None:
    """The database may have read the page before the mark."""
    connector = Connector()
    bob = syncing(connector)
    connector.page(row(1), through=1)
    wake_up(connector)
    connector.pass_time(0.2)
    connector.checked(waiting=[B1])
    bob.acknowledge()
    connector.marked()
    connector.page(row(1), row(2), through=2)
    assert bob.seqs == [1, 2]


def test_marks_are_gathered_while_one_is_under_way() -> None:
    connector = Connector()
    bob = syncing(connector)
    connector.page(*(row(n) for n in range(1, 13)), through=12)
    for number in (1, 2, 3):
        bob.acknowledge(number)
    assert connector.marked() == (1, 2, 3, 4)
    assert connector.marked() == tuple(range(5, 13))


def test_a_mark_that_is_answered_late_has_no_effect_on_others() -> None:
    """It was committed, and a check that found no unread row came back before its answer."""
    connector = Connector()
    bob = syncing(connector)
    connector.page(row(1), row(2), through=2)
    bob.acknowledge()
    late = connector.take_one(e.MarkRead)
    wake_up(connector)
    connector.checked(through=2)
    wake_up(connector)
    connector.checked(waiting=[B1])
    connector.page(row(3), through=3)
    bob.acknowledge()
    connector.receive(e.RowsMarked(B1, bob.session, late.row_ids))
    assert connector.marked() == (3,)


def test_an_empty_queue_costs_no_claim() -> None:
    connector = Connector()
    connector.bound(B1)
    connector.checked(through=5)
    assert not connector.take(e.ClaimQueue)


def test_a_claim_is_kept_for_the_session_and_released_with_it() -> None:
    connector = Connector()
    bob = syncing(connector)
    connector.page(row(1), through=1)
    wake_up(connector)
    connector.checked(waiting=[B1])
    assert not connector.take(e.ClaimQueue)
    connector.page(row(1), through=1)
    bob.send(Close(bob.link, 0))
    assert connector.take_one(e.ReleaseQueue) == e.ReleaseQueue(B1, 1)
    assert not [item for item in connector.asked if isinstance(item, e.MarkRead)], (
        "rows that are not acknowledged stay unread"
    )


def test_a_claim_that_comes_too_late_is_released() -> None:
    connector = Connector()
    bob = connector.bound(B1)
    connector.checked(waiting=[B1])
    bob.send(Close(bob.link, 0))
    assert not connector.take(e.ReleaseQueue)
    connector.claimed(fence=4)
    assert connector.take_one(e.ReleaseQueue) == e.ReleaseQueue(B1, 4)


def test_while_another_connector_syncs_the_claim_is_tried_again() -> None:
    """R3: another connection of the device has claimed the queue."""
    connector = Connector()
    transfer = connector.transfer()
    bob = connector.bound(B1)
    for _ in range(3):
        connector.checked(waiting=[B1])
        connector.claimed(fence=None)
        transfer.give(live_copy())
        assert isinstance(transfer.take()[0], Return), "live messages are stored behind the rows"
        bob.ping()
        connector.pass_time(0.7 * RETRY_S)
        assert not connector.take(e.CheckQueues)
        connector.pass_time((LONGEST - 0.7 + 0.2) * RETRY_S)
    connector.checked(through=3)
    transfer.give(live_copy())
    assert bob.seqs == [1]


# ---------------------------------------------------------------- fenced off


def test_a_session_that_is_fenced_off_claims_again_and_pushes_nothing_twice() -> None:
    """R3, R11."""
    connector = Connector()
    bob = syncing(connector)
    connector.page(row(1), row(2), through=2, more=True)
    bob.acknowledge()
    read = connector.take_one(e.ReadPage)
    connector.receive(e.QueueFenced(B1, read.session))
    connector.receive(e.RowMarkingFailed(B1, bob.session, 1, fenced=True))
    connector.take(e.MarkRead)
    assert connector.count.fenced == 2
    connector.pass_time(LONGEST * RETRY_S + 0.2)
    connector.checked(waiting=[B1])
    connector.claimed(fence=3)
    mark = connector.take_one(e.MarkRead)
    assert (mark.fence, mark.row_ids) == (3, (1, 2)), "the device has them, under any claim"
    assert connector.page(row(1), row(2), row(3), through=3).fence == 3
    assert bob.seqs == [1, 2, 3]


def test_a_mark_that_is_fenced_ends_the_reading_too() -> None:
    connector = Connector()
    bob = syncing(connector)
    connector.page(*(row(n) for n in range(1, 9)), through=9, more=True)
    bob.acknowledge(1)
    mark = connector.take_one(e.MarkRead)
    connector.receive(e.RowMarkingFailed(B1, bob.session, mark.fence, fenced=True))
    bob.acknowledge()
    assert not connector.take(e.ReadPage), "the claim is lost"
    connector.pass_time(LONGEST * RETRY_S + 0.2)
    connector.checked(waiting=[B1])
    connector.claimed(fence=3)
    assert connector.take_one(e.MarkRead).row_ids == tuple(range(1, 9))


def test_a_mark_fenced_under_an_earlier_claim_does_not_cost_the_later_one() -> None:
    connector = Connector()
    bob = syncing(connector)
    connector.page(row(1), through=1, more=True)
    bob.acknowledge()
    connector.take(e.MarkRead)
    read = connector.take_one(e.ReadPage)
    connector.receive(e.QueueFenced(B1, read.session))
    connector.pass_time(LONGEST * RETRY_S + 0.2)
    connector.checked(waiting=[B1])
    connector.claimed(fence=3)
    connector.page(row(1), row(2), through=2)
    connector.receive(e.RowMarkingFailed(B1, bob.session, 1, fenced=True))
    assert bob.seqs == [1, 2]
    bob.acknowledge()
    mark = connector.take_one(e.MarkRead)
    assert (mark.fence, mark.row_ids) == (3, (1, 2))


# ---------------------------------------------------------------- the database is away


@pytest.mark.parametrize("at", ["check", "claim", "page"])
def test_without_the_database_live_messages_pass_and_clients_are_told(at: str) -> None:
    """R8."""
    connector = Connector()
    transfer = connector.transfer()
    bob = connector.bound(B1)
    if at != "check":
        connector.checked(waiting=[B1])
    if at == "page":
        connector.claimed(fence=1)
    connector.asked.clear()
    unreachable(connector, bob)
    assert bob.came(Stored) == [Stored(bob.link, delayed=True)]
    transfer.give(live_copy(seq=2), live_copy(seq=4, sender=12, after=50))
    assert bob.seqs == [2], "a message that must wait for the queue waits"
    for _ in range(2):
        connector.pass_time(0.7 * RETRY_S)
        assert not connector.take(e.CheckQueues)
        connector.pass_time((LONGEST - 0.7 + 0.1) * RETRY_S)
        connector.take_one(e.CheckQueues)
        bob.acknowledge()
        unreachable(connector, bob)
    assert len(bob.came(Stored)) == 1, "once is enough"
    connector.pass_time(LONGEST * RETRY_S + 0.1)
    connector.checked(waiting=[B1])
    if at != "page":
        connector.claimed(fence=1)
    connector.page(row(1), through=50)
    assert bob.came(Stored)[1:] == [Stored(bob.link, delayed=False)]


def test_a_mark_that_fails_is_tried_again_and_disturbs_no_page() -> None:
    connector = Connector()
    bob = syncing(connector)
    connector.page(row(1), row(2), through=2)
    bob.acknowledge()
    wake_up(connector)
    connector.checked(waiting=[B1])
    connector.receive(e.RowMarkingFailed(B1, bob.session, 1, fenced=False))
    connector.take(e.MarkRead)
    connector.page(row(1), row(2), row(3), through=3)
    assert bob.seqs == [1, 2, 3], "the page counts, although a mark failed meanwhile"
    connector.pass_time(LONGEST * RETRY_S + 0.1)
    connector.checked(waiting=[B1])
    assert connector.marked() == (1, 2), "with the next check, which comes soon"


def test_after_a_failed_mark_the_queue_is_checked_soon() -> None:
    connector = Connector()
    bob = syncing(connector)
    connector.page(row(1), through=2)
    bob.acknowledge()
    connector.take(e.MarkRead)
    connector.receive(e.RowMarkingFailed(B1, bob.session, 1, fenced=False))
    connector.pass_time(LONGEST * RETRY_S + 0.1)
    connector.checked(waiting=[B1])
    assert connector.marked() == (1,)


def test_answers_to_an_earlier_session_have_no_effect() -> None:
    """It was asked before these rows were there."""
    connector = Connector()
    before = connector.bound(B1)
    (early,) = connector.take(e.CheckQueues)
    before.send(Close(before.link, 0))
    bob = connector.bound(B1)
    connector.receive(e.QueuesChecked(early.devices, {}, set()))
    connector.receive(e.QueuesUnreachable(((B1, before.session),)))
    connector.receive(e.QueueClaimed(B1, before.session, None))
    connector.receive(e.PageRead(B1, before.session, Page((row(1),), 1, more=False)))
    connector.receive(e.RowsMarked(B1, before.session, (1,)))
    connector.receive(e.RowMarkingFailed(B1, before.session, 1, fenced=True))
    connector.receive(e.QueueFenced(B1, before.session))
    assert not bob.came(Stored)
    assert not bob.deliveries
    connector.checked(waiting=[B1])
    connector.claimed(fence=1)
    connector.page(row(1), through=1)
    assert bob.seqs == [1]


def test_an_answer_for_a_device_that_is_binding_again_has_no_effect() -> None:
    connector = Connector()
    before = connector.bound(B1)
    before.send(Close(before.link, 0))
    bob = connector.connect(B1)
    bob.accepted()
    connector.receive(e.QueuesUnreachable(((B1, before.session),)))
    assert not bob.frames


def test_one_check_at_a_time() -> None:
    connector = Connector()
    connector.online(B1)
    connector.online(A1)
    for _ in range(5):
        wake_up(connector)
    assert len(connector.take(e.CheckQueues)) == 1


def test_queues_are_polled_while_no_wake_up_can_come() -> None:
    """R9: rows stored meanwhile for connected devices must not wait for the sweep."""
    connector = Connector(queue_poll_s=3.0)
    connector.online(A1)
    connector.online(B1)
    connector.receive(e.LeaseLost())
    for _ in range(3):
        connector.pass_time(0.2)
        assert checked_devices(connector) == [A1, B1]
        connector.pass_time(2.7)
        assert checked_devices(connector) == []
        connector.pass_time(0.1)
    connector.receive(e.PresenceRecovered())
    connector.take(e.CheckQueues)
    connector.pass_time(SWEEP_S / 2)
    assert checked_devices(connector) == [], "presence is there again"


def checked_devices(connector: Connector) -> list[int]:
    """The devices whose queues were checked since; none had unread rows."""
    ticked = [device for check in connector.take(e.CheckQueues) for device in check.devices]
    connector.receive(e.QueuesChecked(ticked, dict.fromkeys(range(4), 0), set()))
    return [device for _, device, _ in ticked]
