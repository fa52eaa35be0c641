"""Each copy is delivered or stored, also when it is returned or its connector is lost; and the outcomes."""

import pytest

from meshim.stores.ports import Binding, UserPresence
from meshim.transfer import events as e
from meshim.wire.envelope import Destination, DestinationType, Kind
from meshim.wire.mesh import Deliver
from meshim.wire.offline_log import Entry
from meshim.wire.outcome import CopyOutcome, OutcomeStatus
from tests.unit.transfer.world import (
    A1,
    A2,
    ALICE,
    B1,
    B2,
    BOB,
    C1,
    CACHE_S,
    CAROL,
    PRESENCE_SILENCE_S,
    SESSION,
    SILENCE_S,
    Transfer,
    presence_of,
    returned,
    route,
)

# The connector of each user has the number of the user.


def test_a_copy_goes_to_the_connector_in_presence() -> None:
    transfer = Transfer()
    alice, bob = transfer.connector(ALICE), transfer.connector(BOB)
    alice.send_items(route(seq=3))
    assert transfer.lookups() == [BOB]
    transfer.answer_lookups({BOB: presence_of(BOB, B1)})
    (deliver,) = bob.items
    assert isinstance(deliver, Deliver)
    assert (deliver.user, deliver.bindings, deliver.envelope) == (BOB, ((B1, 7),), b"0003")
    assert deliver.stamp.copies == ((BOB, B1),), "the stamp names all copies, for the outcomes"
    assert not alice.items
    assert not transfer.pending
    assert (transfer.count.routed, transfer.count.forwarded, transfer.count.looked_up) == (1, 1, 1)


def test_an_outcome_from_a_connector_goes_to_the_origin() -> None:
    transfer = Transfer()
    alice, bob = transfer.connector(ALICE), transfer.connector(BOB)
    outcome = CopyOutcome(
        ALICE,
        SESSION,
        ALICE,
        A1,
        1,
        Destination(DestinationType.USER, BOB),
        1,
        1,
        OutcomeStatus.DELIVERED,
        ((BOB, B1),),
        ((BOB, B1),),
    )
    bob.send_items(outcome)
    assert alice.items == [outcome]
    assert transfer.count.outcomes == 1


def test_an_outcome_for_a_connector_that_is_not_linked_is_counted() -> None:
    transfer = Transfer()
    bob = transfer.connector(BOB)
    to = Destination(DestinationType.USER, BOB)
    bob.send_items(CopyOutcome(ALICE, SESSION, ALICE, A1, 1, to, 1, 1, OutcomeStatus.DELIVERED))
    assert transfer.count.outcomes_lost == 1


def test_a_user_without_presence_gets_one_entry_for_all_devices() -> None:
    transfer = Transfer()
    alice = transfer.connector(ALICE)
    alice.send_items(route(seq=1), route(seq=2))
    transfer.answer_lookups()
    assert transfer.publish_all(position=9) == [(BOB % 4, [Entry(BOB, (), b"0001"), Entry(BOB, (), b"0002")])]
    (outcome,) = alice.outcomes
    assert (outcome.first, outcome.last, outcome.status, outcome.position) == (1, 2, OutcomeStatus.STORED, 9)
    assert outcome.done == outcome.copies == ((BOB, 0),)
    assert transfer.count.stored == 2


def test_an_outcome_has_the_session_and_the_positions_of_its_submit() -> None:
    transfer = Transfer()
    alice, bob = transfer.connector(ALICE), transfer.connector(BOB)
    after = ((BOB, B2, 5), (ALICE, A2, 9))
    alice.send_items(route(1, after=after), route(2, after=after), route(3))
    transfer.answer_lookups({BOB: presence_of(BOB, B1, unbound=(B2,))})
    assert [(item.stamp.session, item.stamp.after) for item in bob.items if isinstance(item, Deliver)] == [
        (SESSION, after), (SESSION, after), (SESSION, ()),
    ]  # fmt: skip
    transfer.publish_all()
    assert [(o.first, o.last, o.session, o.after) for o in alice.outcomes] == [
        (1, 2, SESSION, after),
        (3, 3, SESSION, ()),
    ]


def test_bound_devices_get_a_copy_and_the_others_an_entry() -> None:
    transfer = Transfer()
    alice, bob = transfer.connector(ALICE), transfer.connector(BOB)
    alice.send_items(route())
    transfer.answer_lookups({BOB: presence_of(BOB, B1, unbound=(B2,))})
    assert bob.delivered == [(1, (B1,))]
    assert transfer.publish_all() == [(2, [Entry(BOB, (B2,), b"0001")])]
    ((_, _, status, done),) = alice.brief_outcomes()
    assert (status, done) == (OutcomeStatus.STORED, ((BOB, B2),))
    assert alice.outcomes[0].copies == ((BOB, B1), (BOB, B2))


def test_a_binding_to_a_connector_that_is_not_linked_is_ignored() -> None:
    """R4: presence names a dead connector."""
    transfer = Transfer()
    transfer.connector(ALICE).send_items(route())
    transfer.answer_lookups({BOB: presence_of(4711, B1)})
    assert transfer.publish_all() == [(2, [Entry(BOB, (B1,), b"0001")])]


def test_devices_on_two_connectors_get_a_deliver_each() -> None:
    transfer = Transfer()
    alice, bob, other = (transfer.connector(n) for n in (ALICE, BOB, 9))
    alice.send_items(route())
    transfer.answer_lookups({BOB: UserPresence((B1, B2), (Binding(BOB, B1, BOB, 7), Binding(BOB, B2, 9, 8)))})
    assert (bob.delivered, other.delivered) == ([(1, (B1,))], [(1, (B2,))])


def test_devices_on_one_connector_share_a_deliver() -> None:
    transfer = Transfer()
    alice, bob = transfer.connector(ALICE), transfer.connector(BOB)
    alice.send_items(route())
    transfer.answer_lookups({BOB: presence_of(BOB, B1, B2)})
    assert bob.delivered == [(1, (B1, B2))]
    assert bob.items[0].stamp.copies == ((BOB, B1), (BOB, B2))  # type: ignore[union-attr]


def test_a_bound_device_that_the_device_list_lacks_gets_a_copy() -> None:
    """The device was registered a moment ago, and the list in presence is older."""
    transfer = Transfer()
    alice, bob = transfer.connector(ALICE), transfer.connector(BOB)
    alice.send_items(route(seq=1), route(seq=2, to=CAROL))
    transfer.answer_lookups(
        {BOB: UserPresence((B1,), (Binding(BOB, B2, BOB, 7),)), CAROL: UserPresence((), (Binding(CAROL, C1, BOB, 7),))}
    )
    assert bob.delivered == [(1, (B2,)), (2, (C1,))]
    assert transfer.publish_all() == [(2, [Entry(BOB, (B1,), b"0001")])]


def test_the_other_devices_of_the_sender_get_a_copy() -> None:
    transfer = Transfer()
    alice, bob = transfer.connector(ALICE), transfer.connector(BOB)
    alice.send_items(route(copies=((ALICE, A2), (ALICE, 13))))
    assert transfer.lookups() == [BOB, ALICE]
    transfer.answer_lookups({BOB: presence_of(BOB, B1), ALICE: presence_of(ALICE, A1, A2, unbound=(13,))})
    assert bob.delivered == [(1, (B1,))]
    assert alice.delivered == [(1, (A2,))], "not the sending device itself"
    assert transfer.publish_all() == [(1, [Entry(ALICE, (13,), b"0001")])]
    all_copies = ((BOB, B1), (ALICE, A2), (ALICE, 13))
    assert all(i.stamp.copies == all_copies for i in (*bob.items, *alice.items) if isinstance(i, Deliver))
    assert [o.copies for o in alice.outcomes] == [all_copies]


def test_a_receipt_goes_to_every_device_like_a_message() -> None:
    transfer = Transfer()
    alice, bob = transfer.connector(ALICE), transfer.connector(BOB)
    alice.send_items(route(kind=Kind.RECEIPT, copies=((ALICE, A2),)))
    transfer.answer_lookups({BOB: presence_of(BOB, B1, unbound=(B2,)), ALICE: presence_of(ALICE, A1, A2)})
    assert bob.delivered == [(1, (B1,))]
    assert alice.delivered == [(1, (A2,))]
    assert transfer.publish_all() == [(2, [Entry(BOB, (B2,), b"0001")])]


def test_an_ephemeral_copy_is_delivered_or_dropped() -> None:
    transfer = Transfer()
    alice, bob = transfer.connector(ALICE), transfer.connector(BOB)
    alice.send_items(route(kind=Kind.TYPING), route(kind=Kind.TYPING, to=CAROL))
    transfer.answer_lookups({BOB: presence_of(BOB, B1, unbound=(B2,))})
    assert bob.delivered == [(1, (B1,))]
    assert not transfer.pending
    assert not alice.items
    assert transfer.count.ephemeral_dropped == 2


# ---------------------------------------------------------------- presence


def test_presence_is_cached_until_the_entry_expires() -> None:
    transfer = Transfer()
    alice, bob = transfer.connector(ALICE), transfer.connector(BOB)
    alice.send_items(route(seq=1))
    transfer.answer_lookups({BOB: presence_of(BOB, B1)})
    transfer.pass_time(CACHE_S - 0.1)
    alice.send_items(route(seq=2))
    assert bob.delivered == [(1, (B1,)), (2, (B1,))]
    transfer.pass_time(0.2)
    alice.send_items(route(seq=3))
    assert transfer.lookups() == [BOB]


def test_without_heartbeats_of_presence_the_cache_is_not_used() -> None:
    """Otherwise a device registered meanwhile would miss messages to its user."""
    transfer = Transfer()
    alice, bob = transfer.connector(ALICE), transfer.connector(BOB)
    alice.send_items(route(seq=1))
    transfer.answer_lookups({BOB: presence_of(BOB, B1)})
    transfer.presence_beats = False
    transfer.pass_time(PRESENCE_SILENCE_S - 0.1)
    alice.send_items(route(seq=2))
    assert bob.delivered == [(1, (B1,)), (2, (B1,))]
    transfer.pass_time(0.1)
    alice.send_items(route(seq=3))
    assert transfer.lookups() == [BOB]
    transfer.answer_lookups({BOB: presence_of(BOB, B1)})
    transfer.tell(e.PresenceChanged((CAROL,)))  # may be old: more changes may be on their way
    alice.send_items(route(seq=4))
    assert transfer.lookups() == [BOB]
    transfer.answer_lookups({BOB: presence_of(BOB, B1)})
    transfer.presence_beats = True
    transfer.heartbeat()
    alice.send_items(route(seq=5))
    assert transfer.lookups() == [BOB], "entries from before the silence may have changed"
    transfer.answer_lookups({BOB: presence_of(BOB, B1)})
    alice.send_items(route(seq=6))
    assert not transfer.lookups()


@pytest.mark.parametrize("change", [(BOB,), None])
def test_a_changed_user_is_looked_up_again(change: tuple[int, ...] | None) -> None:
    transfer = Transfer()
    alice = transfer.connector(ALICE)
    alice.send_items(route(seq=1))
    transfer.answer_lookups()
    transfer.tell(e.PresenceChanged((CAROL,)))
    alice.send_items(route(seq=2))
    assert not transfer.lookups()
    transfer.tell(e.PresenceChanged(change))
    alice.send_items(route(seq=3))
    assert transfer.lookups() == [BOB]


@pytest.mark.parametrize("change", [(BOB,), None])
def test_an_answer_that_a_change_overtook_is_used_once_and_not_kept(change: tuple[int, ...] | None) -> None:
    transfer = Transfer()
    alice = transfer.connector(ALICE)
    alice.send_items(route(seq=1))
    transfer.tell(e.PresenceChanged(change))
    transfer.answer_lookups()
    assert transfer.publish_all()
    alice.send_items(route(seq=2))
    assert transfer.lookups() == [BOB]


def test_a_user_is_looked_up_once_and_messages_wait_in_order() -> None:
    transfer = Transfer()
    alice, bob = transfer.connector(ALICE), transfer.connector(BOB)
    alice.send_items(route(seq=1), route(seq=2, to=CAROL))
    alice.send_items(route(seq=3))
    assert transfer.lookups() == [BOB, CAROL]
    first, *_ = transfer.take(e.ReadPresence)
    transfer.tell(e.PresenceRead(first.users, {BOB: presence_of(BOB, B1), CAROL: presence_of(BOB, C1)}))
    assert bob.delivered == [(1, (B1,)), (3, (B1,)), (2, (C1,))]


def test_a_message_does_not_overtake_those_that_wait_for_a_look_up() -> None:
    transfer = Transfer()
    alice, bob = transfer.connector(ALICE), transfer.connector(BOB)
    alice.send_items(route(seq=1))
    transfer.answer_lookups({BOB: presence_of(BOB, B1)})
    transfer.pass_time(CACHE_S + 0.1)
    alice.send_items(route(seq=2, copies=((ALICE, A2),)))
    read = transfer.take(e.ReadPresence)
    transfer.tell(e.PresenceRead((BOB,), {BOB: presence_of(BOB, B1)}))
    alice.send_items(route(seq=3, copies=((ALICE, A2),)))
    assert bob.delivered == [(1, (B1,))]
    transfer.tell(e.PresenceRead((ALICE,), {}))
    assert bob.delivered == [(1, (B1,)), (2, (B1,)), (3, (B1,))]
    assert read


def test_messages_are_stored_while_presence_is_away() -> None:
    """R9."""
    transfer = Transfer()
    alice = transfer.connector(ALICE)
    alice.send_items(route(seq=1))
    (read,) = transfer.take(e.ReadPresence)
    transfer.tell(e.PresenceReadFailed(read.users))
    assert transfer.publish_all() == [(2, [Entry(BOB, (), b"0001")])]
    assert transfer.count.unreadable == 1
    alice.send_items(route(seq=2))
    assert transfer.lookups() == [BOB], "the failure is not cached"


def test_the_presence_cache_is_bounded() -> None:
    transfer = Transfer(pending=99, presence_cache=3)
    alice = transfer.connector(ALICE)
    for user in range(20, 25):
        alice.send_items(route(to=user))
        transfer.answer_lookups()
    for user, cached in ((20, False), (21, False), (22, True), (23, True), (24, True)):
        alice.send_items(route(to=user))
        assert (user not in transfer.lookups()) == cached


# ---------------------------------------------------------------- returned


def test_a_returned_copy_is_stored() -> None:
    transfer = Transfer()
    alice, bob = transfer.connector(ALICE), transfer.connector(BOB)
    bob.send_items(returned(4, B1, copies=((BOB, B1), (BOB, B2))))
    assert transfer.publish_all(position=8) == [(2, [Entry(BOB, (B1,), b"0004")])]
    (outcome,) = alice.outcomes
    assert (outcome.status, outcome.done, outcome.copies) == (
        OutcomeStatus.STORED,
        ((BOB, B1),),
        ((BOB, B1), (BOB, B2)),
    )
    assert outcome.position == 8
    assert transfer.count.returned == 1


@pytest.mark.parametrize("absent", [True, False])
def test_a_return_of_an_absent_device_invalidates_the_cache(absent: bool) -> None:
    transfer = Transfer()
    alice, bob = transfer.connector(ALICE), transfer.connector(BOB)
    alice.send_items(route(seq=1))
    transfer.answer_lookups({BOB: presence_of(BOB, B1)})
    bob.send_items(returned(1, B1, absent=absent))
    alice.send_items(route(seq=2))
    assert transfer.lookups() == ([BOB] if absent else [])


def test_a_returned_ephemeral_copy_is_dropped() -> None:
    transfer = Transfer()
    transfer.connector(BOB).send_items(returned(4, B1, kind=Kind.TYPING))
    assert not transfer.pending
    assert transfer.count.ephemeral_dropped == 1


@pytest.mark.parametrize("loss", ["gone", "silent", "garbage", "greets again"])
def test_copies_that_a_lost_connector_had_not_acknowledged_are_stored(loss: str) -> None:
    """R4."""
    transfer = Transfer()
    alice, bob = transfer.connector(ALICE), transfer.connector(BOB)
    alice.send_items(route(seq=1))
    transfer.answer_lookups({BOB: presence_of(BOB, B1, B2)})
    bob.mute = True
    alice.send_items(route(seq=2), route(seq=3, kind=Kind.TYPING), route(seq=4))
    bob.send_items(route(seq=1, sender=B1, to=ALICE))
    transfer.answer_lookups({ALICE: presence_of(BOB, A1)})
    if loss == "gone":
        transfer.tell(e.ConnectorGone(bob.peer))
    elif loss == "silent":
        transfer.pass_time(SILENCE_S + 0.1)
    elif loss == "garbage":
        bob.send_bytes(b"garbage")
    else:
        bob.link += 1
        bob.greet()
    entries = [entry for _, record in transfer.publish_all() for entry in record]
    assert entries == [Entry(ALICE, (A1,), b"0001"), Entry(BOB, (B1, B2), b"0002"), Entry(BOB, (B1, B2), b"0004")]
    assert transfer.count.stored_after_loss == 5
    last = [outcome for outcome in alice.brief_outcomes() if outcome[0] == 4]
    assert last == [(4, 4, OutcomeStatus.STORED, ((BOB, B1), (BOB, B2)))]
    alice.send_items(route(seq=5))
    if loss != "greets again":
        assert transfer.publish_all(), "no copy goes to the lost connector"
