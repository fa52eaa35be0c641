"""H4: what would be stored in a full queue is refused with QUEUE_FULL; live copies and other senders go on."""

import pytest

from meshim.errors import Code
from meshim.stores.ports import FullQueue, UserPresence
from meshim.transfer import events as e
from meshim.wire.envelope import Kind
from meshim.wire.outcome import OutcomeStatus
from tests.unit.transfer.world import (
    A1,
    A2,
    ALICE,
    B1,
    B2,
    BOB,
    C1,
    CAROL,
    Connector,
    Transfer,
    presence_of,
    returned,
    route,
)

BUSY, STORED, DELIVERED = OutcomeStatus.BUSY, OutcomeStatus.STORED, OutcomeStatus.DELIVERED


def full(*queues: FullQueue, of: UserPresence | None = None) -> UserPresence:
    found = of or UserPresence((), ())
    return UserPresence(found.devices, found.bindings, queues)


def told(connector: Connector) -> list[tuple[int, int, int]]:
    return [(outcome.first, outcome.status, outcome.code) for outcome in connector.outcomes]


@pytest.mark.parametrize("queue", [(B1, ALICE), (B1, 0), (0, ALICE), (0, 0)])
def test_a_message_for_an_absent_user_is_refused(queue: FullQueue) -> None:
    transfer = Transfer()
    alice = transfer.connector(ALICE)
    alice.send_items(route(seq=1))
    transfer.answer_lookups({BOB: full(queue)})
    assert transfer.publish_all() == []
    assert told(alice) == [(1, BUSY, Code.QUEUE_FULL)]
    assert (transfer.count.queue_full, transfer.count.busy) == (1, 0)
    assert transfer.core.idle


def test_other_senders_get_through() -> None:
    transfer = Transfer()
    carol = transfer.connector(CAROL)
    carol.send_items(route(seq=1, sender=C1))
    transfer.answer_lookups({BOB: full((B1, ALICE))})
    assert len(transfer.publish_all()) == 1
    assert told(carol) == [(1, STORED, 0)]


def test_live_copies_are_delivered_and_nothing_is_stored_beside_them() -> None:
    transfer = Transfer()
    alice, bob = transfer.connector(ALICE), transfer.connector(BOB)
    alice.send_items(route(seq=1, copies=((ALICE, A2),)))
    presence = {
        BOB: full((B2, ALICE), of=presence_of(BOB, B1, unbound=[B2])),
        ALICE: presence_of(ALICE, A1, unbound=[A2]),
    }
    transfer.answer_lookups(presence)
    assert bob.delivered == [(1, (B1,))]
    assert transfer.publish_all() == [], "each attempt would store the copy for the other device of alice again"
    assert told(alice) == [(1, BUSY, Code.QUEUE_FULL)]


def test_a_full_queue_of_a_connected_device_refuses_no_live_copy_and_nothing_for_another_device() -> None:
    transfer = Transfer()
    alice, bob = transfer.connector(ALICE), transfer.connector(BOB)
    alice.send_items(route(seq=1))
    transfer.answer_lookups({BOB: full((B1, ALICE), of=presence_of(BOB, B1, unbound=[B2]))})
    assert bob.delivered == [(1, (B1,))]
    assert len(transfer.publish_all()) == 1


def test_a_returned_copy_is_refused() -> None:
    """The connector of the recipient had no room for it."""
    transfer = Transfer()
    alice, bob = transfer.connector(ALICE), transfer.connector(BOB)
    alice.send_items(route(seq=1))
    transfer.answer_lookups({BOB: full((B1, ALICE), of=presence_of(BOB, B1))})
    bob.send_items(returned(1, B1, absent=True))
    assert transfer.publish_all() == []
    assert told(alice) == [(1, BUSY, Code.QUEUE_FULL)]


def test_the_copies_of_a_lost_connector_are_refused() -> None:
    transfer = Transfer()
    alice, bob = transfer.connector(ALICE), transfer.connector(BOB)
    bob.mute = True
    alice.send_items(route(seq=1))
    transfer.answer_lookups({BOB: full((B1, ALICE), of=presence_of(BOB, B1))})
    transfer.tell(e.ConnectorGone(bob.peer))
    assert told(alice) == [(1, BUSY, Code.QUEUE_FULL)]


def test_a_full_queue_of_the_sender_refuses_too() -> None:
    transfer = Transfer()
    alice = transfer.connector(ALICE)
    alice.send_items(route(seq=1, copies=((ALICE, A2),)))
    transfer.answer_lookups({ALICE: full((A2, ALICE), of=presence_of(ALICE, A1, unbound=[A2]))})
    assert transfer.publish_all() == []
    assert told(alice) == [(1, BUSY, Code.QUEUE_FULL)]
    assert "yours" in alice.outcomes[0].sentence


def test_receipts_count_and_typing_is_dropped_as_ever() -> None:
    transfer = Transfer()
    alice = transfer.connector(ALICE)
    alice.send_items(route(seq=1, kind=Kind.TYPING), route(seq=1, kind=Kind.RECEIPT))
    transfer.answer_lookups({BOB: full((B1, ALICE))})
    assert told(alice) == [(1, BUSY, Code.QUEUE_FULL)]
    assert transfer.count.ephemeral_dropped == 1


def test_a_change_of_presence_has_it_read_again() -> None:
    transfer = Transfer()
    alice = transfer.connector(ALICE)
    alice.send_items(route(seq=1))
    transfer.answer_lookups()
    assert len(transfer.publish_all()) == 1
    for seq, presence, status in ((2, full((B1, ALICE)), BUSY), (3, None, STORED)):
        transfer.tell(e.PresenceChanged((BOB,)))
        alice.send_items(route(seq=seq))
        transfer.answer_lookups({BOB: presence} if presence else {})
        transfer.publish_all()
        assert told(alice)[-1][:2] == (seq, status)


def test_while_redis_is_away_nothing_is_refused() -> None:
    """R9."""
    transfer = Transfer()
    alice = transfer.connector(ALICE)
    alice.send_items(route(seq=1))
    transfer.answer_lookups({BOB: full((B1, ALICE))})
    transfer.tell(e.PresenceChanged(None))
    alice.send_items(route(seq=2))
    for read in transfer.take(e.ReadPresence):
        transfer.tell(e.PresenceReadFailed(read.users))
    assert len(transfer.publish_all()) == 1
    assert told(alice) == [(1, BUSY, Code.QUEUE_FULL), (2, STORED, 0)]


def test_what_is_remembered_is_bounded() -> None:
    transfer = Transfer(presence_cache=3)
    alice = transfer.connector(ALICE)
    for user in range(100, 110):
        alice.send_items(route(seq=user, to=user))
        transfer.answer_lookups({user: full((1, ALICE))})
    assert transfer.count.queue_full == 10
    assert len(transfer.core._presence.full) == 3
