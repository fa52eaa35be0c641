"""The way of each copy: placed, stored, given back, rescued; and what the sender is told."""

import pytest

from meshim.stores.ports import Binding, UserPresence
from meshim.transfer import events as e
from meshim.wire.envelope import Destination, DestinationType, Kind
from meshim.wire.mesh import Deliver
from meshim.wire.offline_log import Entry
from meshim.wire.outcome import Outcome, OutcomeStatus
from tests.unit.transfer_world import (
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
    SILENCE_S,
    Transfer,
    here,
    returned,
    route,
)

# The connector of each user has the number of the user.


def test_a_copy_goes_where_presence_says() -> None:
    transfer = Transfer()
    alice, bob = transfer.connector(ALICE), transfer.connector(BOB)
    alice.give(route(seq=3))
    assert transfer.looked_up() == [BOB]
    transfer.present({BOB: here(BOB, B1)})
    (place,) = bob.items
    assert isinstance(place, Deliver)
    assert (place.user, place.bindings, place.envelope) == (BOB, ((B1, 7),), b"0003")
    assert place.stamp.copies == ((BOB, B1),), "it names all copies, for whoever reports one"
    assert not alice.items
    assert not transfer.asked
    assert (transfer.count.routed, transfer.count.forwarded, transfer.count.looked_up) == (1, 1, 1)


def test_what_connectors_say_of_a_copy_is_told_to_the_origin() -> None:
    transfer = Transfer()
    alice, bob = transfer.connector(ALICE), transfer.connector(BOB)
    told = Outcome(
        ALICE,
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
    bob.give(told)
    assert alice.items == [told]
    assert transfer.count.outcomes == 1


def test_an_outcome_for_a_connector_that_is_not_linked_is_counted() -> None:
    transfer = Transfer()
    bob = transfer.connector(BOB)
    bob.give(Outcome(ALICE, ALICE, A1, 1, Destination(DestinationType.USER, BOB), 1, 1, OutcomeStatus.DELIVERED))
    assert transfer.count.outcomes_lost == 1


def test_who_is_nowhere_gets_one_entry_for_all_devices() -> None:
    transfer = Transfer()
    alice = transfer.connector(ALICE)
    alice.give(route(seq=1), route(seq=2))
    transfer.absent()
    assert transfer.stored(position=9) == [(BOB % 4, [Entry(BOB, (), b"0001"), Entry(BOB, (), b"0002")])]
    (outcome,) = alice.outcomes
    assert (outcome.first, outcome.last, outcome.status, outcome.position) == (1, 2, OutcomeStatus.STORED, 9)
    assert outcome.done == outcome.copies == ((BOB, 0),)
    assert transfer.count.stored == 2


def test_devices_that_are_away_get_an_entry_beside_those_that_are_here() -> None:
    transfer = Transfer()
    alice, bob = transfer.connector(ALICE), transfer.connector(BOB)
    alice.give(route())
    transfer.present({BOB: here(BOB, B1, known=(B2,))})
    assert bob.places == [(1, (B1,))]
    assert transfer.stored() == [(2, [Entry(BOB, (B2,), b"0001")])]
    ((_, _, status, done),) = alice.told()
    assert (status, done) == (OutcomeStatus.STORED, ((BOB, B2),))
    assert alice.outcomes[0].copies == ((BOB, B1), (BOB, B2))


def test_a_binding_on_a_connector_that_is_not_linked_counts_as_none() -> None:
    """R4: presence points at the dead."""
    transfer = Transfer()
    transfer.connector(ALICE).give(route())
    transfer.present({BOB: here(4711, B1)})
    assert transfer.stored() == [(2, [Entry(BOB, (B1,), b"0001")])]


def test_devices_on_two_connectors_get_a_copy_each() -> None:
    transfer = Transfer()
    alice, bob, other = (transfer.connector(n) for n in (ALICE, BOB, 9))
    alice.give(route())
    transfer.present({BOB: UserPresence((B1, B2), (Binding(BOB, B1, BOB, 7), Binding(BOB, B2, 9, 8)))})
    assert (bob.places, other.places) == ([(1, (B1,))], [(1, (B2,))])


def test_devices_on_one_connector_share_a_copy() -> None:
    transfer = Transfer()
    alice, bob = transfer.connector(ALICE), transfer.connector(BOB)
    alice.give(route())
    transfer.present({BOB: here(BOB, B1, B2)})
    assert bob.places == [(1, (B1, B2))]
    assert bob.items[0].stamp.copies == ((BOB, B1), (BOB, B2))  # type: ignore[union-attr]


def test_a_bound_device_that_the_list_lacks_is_not_left_out() -> None:
    """It has only just been registered, and who wrote the list had an older one."""
    transfer = Transfer()
    alice, bob = transfer.connector(ALICE), transfer.connector(BOB)
    alice.give(route(seq=1), route(seq=2, to=CAROL))
    transfer.present(
        {BOB: UserPresence((B1,), (Binding(BOB, B2, BOB, 7),)), CAROL: UserPresence((), (Binding(CAROL, C1, BOB, 7),))}
    )
    assert bob.places == [(1, (B2,)), (2, (C1,))]
    assert transfer.stored() == [(2, [Entry(BOB, (B1,), b"0001")])]


def test_the_other_devices_of_the_sender_get_a_copy_too() -> None:
    transfer = Transfer()
    alice, bob = transfer.connector(ALICE), transfer.connector(BOB)
    alice.give(route(copies=((ALICE, A2), (ALICE, 13))))
    assert transfer.looked_up() == [BOB, ALICE]
    transfer.present({BOB: here(BOB, B1), ALICE: here(ALICE, A1, A2, known=(13,))})
    assert bob.places == [(1, (B1,))]
    assert alice.places == [(1, (A2,))], "not the sending device itself"
    assert transfer.stored() == [(1, [Entry(ALICE, (13,), b"0001")])]
    everybody = ((BOB, B1), (ALICE, A2), (ALICE, 13))
    assert all(i.stamp.copies == everybody for i in (*bob.items, *alice.items) if isinstance(i, Deliver))
    assert [o.copies for o in alice.outcomes] == [everybody]


@pytest.mark.parametrize("there", [True, False])
def test_a_device_can_be_addressed_alone(there: bool) -> None:
    transfer = Transfer()
    alice, bob = transfer.connector(ALICE), transfer.connector(BOB)
    alice.give(route(to=Destination(DestinationType.DEVICE, BOB, B2), kind=Kind.RECEIPT))
    transfer.present({BOB: here(BOB, B1, *([B2] if there else []), known=() if there else (B2,))})
    assert bob.places == ([(1, (B2,))] if there else [])
    assert transfer.stored() == ([] if there else [(2, [Entry(BOB, (B2,), b"0001")])])


def test_an_ephemeral_copy_is_placed_or_dropped() -> None:
    transfer = Transfer()
    alice, bob = transfer.connector(ALICE), transfer.connector(BOB)
    alice.give(route(kind=Kind.TYPING), route(kind=Kind.TYPING, to=CAROL))
    transfer.present({BOB: here(BOB, B1, known=(B2,))})
    assert bob.places == [(1, (B1,))]
    assert not transfer.asked
    assert not alice.items
    assert transfer.count.ephemeral_dropped == 2


# ---------------------------------------------------------------- presence


def test_presence_is_remembered_for_its_time() -> None:
    transfer = Transfer()
    alice, bob = transfer.connector(ALICE), transfer.connector(BOB)
    alice.give(route(seq=1))
    transfer.present({BOB: here(BOB, B1)})
    transfer.pass_time(CACHE_S - 0.1)
    alice.give(route(seq=2))
    assert bob.places == [(1, (B1,)), (2, (B1,))]
    transfer.pass_time(0.2)
    alice.give(route(seq=3))
    assert transfer.looked_up() == [BOB]


def test_while_presence_is_silent_nothing_is_remembered_for_long() -> None:
    """A device that has just been registered would miss what is sent to the others of its user."""
    transfer = Transfer()
    alice, bob = transfer.connector(ALICE), transfer.connector(BOB)
    alice.give(route(seq=1))
    transfer.present({BOB: here(BOB, B1)})
    transfer.presence_speaks = False
    transfer.pass_time(PRESENCE_SILENCE_S - 0.1)
    alice.give(route(seq=2))
    assert bob.places == [(1, (B1,)), (2, (B1,))]
    transfer.pass_time(0.1)
    alice.give(route(seq=3))
    assert transfer.looked_up() == [BOB]
    transfer.present({BOB: here(BOB, B1)})
    transfer.tell(e.PresenceChanged((CAROL,)))  # perhaps from long ago: more may be on their way
    alice.give(route(seq=4))
    assert transfer.looked_up() == [BOB]
    transfer.present({BOB: here(BOB, B1)})
    transfer.presence_speaks = True
    transfer.nothing_changed()
    alice.give(route(seq=5))
    assert transfer.looked_up() == [BOB], "what was kept before the silence may have changed in it"
    transfer.present({BOB: here(BOB, B1)})
    alice.give(route(seq=6))
    assert not transfer.looked_up()


@pytest.mark.parametrize("change", [(BOB,), None])
def test_a_change_is_looked_up_again(change: tuple[int, ...] | None) -> None:
    transfer = Transfer()
    alice = transfer.connector(ALICE)
    alice.give(route(seq=1))
    transfer.absent()
    transfer.tell(e.PresenceChanged((CAROL,)))
    alice.give(route(seq=2))
    assert not transfer.looked_up()
    transfer.tell(e.PresenceChanged(change))
    alice.give(route(seq=3))
    assert transfer.looked_up() == [BOB]


@pytest.mark.parametrize("change", [(BOB,), None])
def test_an_answer_from_before_a_change_is_used_once_and_not_kept(change: tuple[int, ...] | None) -> None:
    transfer = Transfer()
    alice = transfer.connector(ALICE)
    alice.give(route(seq=1))
    transfer.tell(e.PresenceChanged(change))
    transfer.absent()
    assert transfer.stored()
    alice.give(route(seq=2))
    assert transfer.looked_up() == [BOB]


def test_who_is_looked_up_is_looked_up_once_and_everything_waits_in_order() -> None:
    transfer = Transfer()
    alice, bob = transfer.connector(ALICE), transfer.connector(BOB)
    alice.give(route(seq=1), route(seq=2, to=CAROL))
    alice.give(route(seq=3))
    assert transfer.looked_up() == [BOB, CAROL]
    first, *_ = transfer.take(e.ReadPresence)
    transfer.tell(e.PresenceRead(first.users, {BOB: here(BOB, B1), CAROL: here(BOB, C1)}))
    assert bob.places == [(1, (B1,)), (3, (B1,)), (2, (C1,))]


def test_what_comes_during_a_look_up_of_one_known_before_does_not_overtake() -> None:
    transfer = Transfer()
    alice, bob = transfer.connector(ALICE), transfer.connector(BOB)
    alice.give(route(seq=1))
    transfer.present({BOB: here(BOB, B1)})
    transfer.pass_time(CACHE_S + 0.1)
    alice.give(route(seq=2, copies=((ALICE, A2),)))
    read = transfer.take(e.ReadPresence)
    transfer.tell(e.PresenceRead((BOB,), {BOB: here(BOB, B1)}))
    alice.give(route(seq=3, copies=((ALICE, A2),)))
    assert bob.places == [(1, (B1,))]
    transfer.tell(e.PresenceRead((ALICE,), {}))
    assert bob.places == [(1, (B1,)), (2, (B1,)), (3, (B1,))]
    assert read


def test_who_cannot_be_looked_up_is_stored_for() -> None:
    """R9: unknown is never guessed."""
    transfer = Transfer()
    alice = transfer.connector(ALICE)
    alice.give(route(seq=1))
    (read,) = transfer.take(e.ReadPresence)
    transfer.tell(e.PresenceUnreadable(read.users))
    assert transfer.stored() == [(2, [Entry(BOB, (), b"0001")])]
    assert transfer.count.unreadable == 1
    alice.give(route(seq=2))
    assert transfer.looked_up() == [BOB], "and asked for the next one again"


def test_the_memory_of_presence_is_bounded() -> None:
    transfer = Transfer(waiting=99, presence_cache=3)
    alice = transfer.connector(ALICE)
    for user in range(20, 25):
        alice.give(route(to=user))
        transfer.absent()
    for user, known in ((20, False), (21, False), (22, True), (23, True), (24, True)):
        alice.give(route(to=user))
        assert (user not in transfer.looked_up()) == known


# ---------------------------------------------------------------- given back


def test_what_a_connector_gives_back_is_stored() -> None:
    transfer = Transfer()
    alice, bob = transfer.connector(ALICE), transfer.connector(BOB)
    bob.give(returned(4, B1, copies=((BOB, B1), (BOB, B2))))
    assert transfer.stored(position=8) == [(2, [Entry(BOB, (B1,), b"0004")])]
    (outcome,) = alice.outcomes
    assert (outcome.status, outcome.done, outcome.copies) == (
        OutcomeStatus.STORED,
        ((BOB, B1),),
        ((BOB, B1), (BOB, B2)),
    )
    assert outcome.position == 8
    assert transfer.count.returned == 1


@pytest.mark.parametrize("absent", [True, False])
def test_not_here_corrects_what_is_known_of_presence(absent: bool) -> None:
    transfer = Transfer()
    alice, bob = transfer.connector(ALICE), transfer.connector(BOB)
    alice.give(route(seq=1))
    transfer.present({BOB: here(BOB, B1)})
    bob.give(returned(1, B1, absent=absent))
    alice.give(route(seq=2))
    assert transfer.looked_up() == ([BOB] if absent else [])


def test_an_ephemeral_copy_that_comes_back_is_dropped() -> None:
    transfer = Transfer()
    transfer.connector(BOB).give(returned(4, B1, kind=Kind.TYPING))
    assert not transfer.asked
    assert transfer.count.ephemeral_dropped == 1


@pytest.mark.parametrize("status", ["gone", "silent", "garbage", "greets again"])
def test_what_was_under_way_to_a_lost_connector_is_stored(status: str) -> None:
    """R4."""
    transfer = Transfer()
    alice, bob = transfer.connector(ALICE), transfer.connector(BOB)
    alice.give(route(seq=1))
    transfer.present({BOB: here(BOB, B1, B2)})
    bob.mute = True
    alice.give(route(seq=2), route(seq=3, kind=Kind.TYPING), route(seq=4))
    bob.give(route(seq=1, sender=B1, to=ALICE))
    transfer.present({ALICE: here(BOB, A1)})
    if status == "gone":
        transfer.tell(e.ConnectorGone(bob.peer))
    elif status == "silent":
        transfer.pass_time(SILENCE_S + 0.1)
    elif status == "garbage":
        bob.send_bytes(b"garbage")
    else:
        bob.link += 1
        bob.greet()
    entries = [entry for _, record in transfer.stored() for entry in record]
    assert entries == [Entry(ALICE, (A1,), b"0001"), Entry(BOB, (B1, B2), b"0002"), Entry(BOB, (B1, B2), b"0004")]
    assert transfer.count.stored_after_loss == 5
    assert [told for told in alice.told() if told[0] == 4] == [(4, 4, OutcomeStatus.STORED, ((BOB, B1), (BOB, B2)))]
    alice.give(route(seq=5))
    if status != "greets again":
        assert transfer.stored(), "nothing goes there any more"
