"""Outcomes of copies become outcomes of messages: when a message is final, and the cookies that clients keep."""

from collections.abc import Callable

import msgspec
import pytest

from meshim.connector import events as e
from meshim.connector.accounting import MESSAGES_MAX, audience
from meshim.connector.outcomes import STREAMS_MAX
from meshim.errors import Code
from meshim.wire.bounds import Copies
from meshim.wire.envelope import Destination, DestinationType
from meshim.wire.mesh import Route
from meshim.wire.outcome import CopyOutcome, OutcomeStatus
from tests.unit.connector.world import (
    A1,
    A2,
    ALICE,
    B1,
    B2,
    BOB,
    CAROL,
    EPOCH,
    HERE,
    SECRET,
    Client,
    Connector,
    Transfer,
    cookie_of,
    envelope,
)

DELIVERED, STORED, BUSY = OutcomeStatus.DELIVERED, OutcomeStatus.STORED, OutcomeStatus.BUSY
PHONE, LAPTOP, OWN, ALL_OF_BOB = (BOB, B1), (BOB, B2), (ALICE, A2), (BOB, 0)
ONE = (PHONE,)


def outcome(
    sender: Client,
    status: OutcomeStatus,
    done: Copies = ONE,
    copies: Copies = ONE,
    *,
    seq: int = 1,
    last: int = 0,
    position: int = 0,
    after: tuple[tuple[int, int, int], ...] = (),
    to: int = BOB,
) -> CopyOutcome:
    return CopyOutcome(
        origin=HERE,
        session=sender.session,
        user=ALICE,
        device=sender.device,
        epoch=EPOCH,
        to=Destination(DestinationType.USER, to),
        first=seq,
        last=last or seq,
        status=status,
        done=done,
        copies=copies,
        position=position,
        after=after,
        code=Code.BUSY if status == BUSY else 0,
        sentence="later" if status == BUSY else "",
    )


def world(**changes: object) -> tuple[Connector, Transfer, Client]:
    connector = Connector(**changes)
    transfer = connector.transfer()
    return connector, transfer, connector.online(A1)


def told(sender: Client) -> list[tuple[int, int, int, bool]]:
    return [(each.first, each.last, each.status, each.final) for each in sender.outcomes]


# ---------------------------------------------------------------- final


def test_delivered_to_the_only_copy_is_final_at_once() -> None:
    _, transfer, alice = world()
    transfer.give(outcome(alice, DELIVERED, seq=3, last=5))
    (only,) = alice.outcomes
    assert (only.first, only.last, only.status, only.final) == (3, 5, DELIVERED, True)
    assert (only.audience, only.cookie) == (audience(ONE), b"")


def test_a_message_is_final_when_its_last_copy_is_accounted_for() -> None:
    _, transfer, alice = world()
    copies = (PHONE, LAPTOP, OWN)
    transfer.give(outcome(alice, DELIVERED, (OWN,), copies))
    transfer.give(outcome(alice, STORED, (LAPTOP,), copies, position=7))
    transfer.give(outcome(alice, DELIVERED, (PHONE,), copies))
    assert told(alice) == [(1, 1, STORED, False), (1, 1, STORED, False), (1, 1, DELIVERED, True)]
    assert [each.audience for each in alice.outcomes] == [0, 0, audience(copies)]


def test_a_copy_of_the_senders_other_device_is_not_delivered() -> None:
    _, transfer, alice = world()
    transfer.give(outcome(alice, DELIVERED, (OWN,), (PHONE, OWN)))
    transfer.give(outcome(alice, STORED, (PHONE,), (PHONE, OWN), position=7))
    assert told(alice) == [(1, 1, STORED, False), (1, 1, STORED, True)]


def test_stored_for_all_devices_accounts_for_each_of_them() -> None:
    _, transfer, alice = world()
    transfer.give(outcome(alice, STORED, (ALL_OF_BOB,), (ALL_OF_BOB, OWN), position=7))
    transfer.give(outcome(alice, DELIVERED, (OWN,), (PHONE, LAPTOP, OWN)))
    assert told(alice)[-1] == (1, 1, STORED, True)


def test_some_devices_do_not_account_for_all() -> None:
    _, transfer, alice = world()
    transfer.give(outcome(alice, DELIVERED, (PHONE, LAPTOP), (ALL_OF_BOB,)))
    assert told(alice) == [(1, 1, DELIVERED, False)]


def test_the_copies_of_the_latest_attempt_count_and_what_was_accounted_for_stays_so() -> None:
    _, transfer, alice = world()
    transfer.give(outcome(alice, DELIVERED, (PHONE,), (PHONE, LAPTOP)))
    transfer.give(outcome(alice, STORED, (OWN,), (PHONE, OWN, LAPTOP), position=3))
    transfer.give(outcome(alice, STORED, (OWN,), (PHONE, OWN), position=4))
    assert [final for *_, final in told(alice)] == [False, False, True]


def test_an_outcome_without_copies_is_never_final() -> None:
    _, transfer, alice = world()
    transfer.give(outcome(alice, STORED, (PHONE,), (), position=1), outcome(alice, DELIVERED, (), (), seq=2))
    assert not any(each.final for each in alice.outcomes)


def test_what_says_nothing_new_is_not_sent() -> None:
    _, transfer, alice = world()
    copies = (PHONE, LAPTOP, OWN)
    transfer.give(outcome(alice, DELIVERED, (PHONE,), copies), outcome(alice, DELIVERED, (LAPTOP,), copies))
    assert told(alice) == [(1, 1, DELIVERED, False)]
    transfer.give(outcome(alice, DELIVERED, (OWN,), copies))
    assert told(alice)[1:] == [(1, 1, DELIVERED, True)]


def test_neighbours_of_one_outcome_whose_progress_differs_are_told_apart() -> None:
    _, transfer, alice = world()
    copies = (PHONE, LAPTOP)
    transfer.give(outcome(alice, DELIVERED, (PHONE,), copies, seq=2))
    transfer.give(outcome(alice, STORED, (LAPTOP,), copies, seq=1, last=4, position=9))
    assert told(alice)[1:] == [(1, 1, STORED, False), (2, 2, DELIVERED, True), (3, 4, STORED, False)]


def test_of_too_many_incomplete_messages_the_oldest_is_forgotten() -> None:
    connector, transfer, alice = world(session_queue=MESSAGES_MAX)
    copies = (PHONE, LAPTOP)
    transfer.give(outcome(alice, DELIVERED, (PHONE,), copies, last=MESSAGES_MAX + 1))
    transfer.give(outcome(alice, DELIVERED, (LAPTOP,), copies, seq=2, last=MESSAGES_MAX + 1))
    transfer.give(outcome(alice, DELIVERED, (LAPTOP,), copies))
    final = [(each.first, each.last) for each in alice.outcomes if each.final]
    assert final == [(2, MESSAGES_MAX + 1)], "the client submits the first one again"
    assert not connector.count.outcomes_lost


def test_audiences_differ_by_copies_and_not_by_their_order() -> None:
    assert audience((PHONE, OWN)) == audience((OWN, PHONE))
    assert len({audience(copies) for copies in ((PHONE,), (LAPTOP,), (PHONE, LAPTOP), (ALL_OF_BOB,))}) == 4
    assert all(0 < audience(((BOB, device),)) < 1 << 31 for device in range(1, 1_000))


# ---------------------------------------------------------------- whose outcome it is


def test_outcomes_reach_their_session() -> None:
    connector, transfer, alice = world()
    other = connector.online(A2)
    transfer.give(outcome(alice, STORED, position=1), outcome(alice, BUSY, (), seq=2), outcome(other, STORED, seq=9))
    assert [each.first for each in alice.outcomes] == [1, 2]
    assert (alice.outcomes[1].code, alice.outcomes[1].sentence) == (Code.BUSY, "later")
    assert [each.first for each in other.outcomes] == [9]


def test_outcomes_of_sessions_that_are_not_here_are_counted_as_lost() -> None:
    connector, transfer, alice = world()
    binding = connector.connect(B1)
    binding.accepted()
    earlier = msgspec.structs.replace(outcome(alice, STORED), session=alice.session - 1)
    transfer.give(
        msgspec.structs.replace(earlier, device=A2), earlier, msgspec.structs.replace(outcome(binding, STORED))
    )
    assert not alice.outcomes
    assert not binding.frames
    assert connector.count.outcomes_lost == 3


def test_the_outcomes_of_a_sender_that_does_not_read_are_bounded() -> None:
    connector, transfer, alice = world()
    for seq in range(1, 101):
        transfer.give(outcome(alice, STORED, seq=seq, position=seq))
    assert connector.count.outcomes_lost == 100 - 8 - 2 * 6, "a window of one each, and twice the session's queue"
    alice.acknowledge()
    assert [each.first for each in alice.outcomes] == list(range(1, 21))


# ---------------------------------------------------------------- cookies


def test_a_stored_copy_makes_a_cookie_and_the_next_submit_carries_its_position() -> None:
    _, transfer, alice = world()
    transfer.give(outcome(alice, STORED, position=7))
    (stored,) = alice.outcomes
    assert stored.cookie == cookie_of(alice, (BOB, B1, 7))
    alice.submit(envelope(seq=2), cookie=stored.cookie)
    (route,) = transfer.take()
    assert isinstance(route, Route)
    assert route.stamp.after == ((BOB, B1, 7),)


def test_a_cookie_has_what_the_submit_carried_and_what_was_stored_since() -> None:
    _, transfer, alice = world()
    after = ((ALICE, A2, 3), (BOB, B1, 9))
    transfer.give(outcome(alice, STORED, (LAPTOP,), (LAPTOP,), position=7, after=after))
    transfer.give(outcome(alice, STORED, position=5, seq=2))
    assert [each.cookie for each in alice.outcomes] == [
        cookie_of(alice, (ALICE, A2, 3), (BOB, B1, 9), (BOB, B2, 7)),
        cookie_of(alice, (BOB, B1, 5), (BOB, B2, 7)),
    ]


def test_a_delivered_copy_removes_the_position_that_its_device_has_synced() -> None:
    _, transfer, alice = world()
    transfer.give(outcome(alice, STORED, position=7))
    transfer.give(outcome(alice, DELIVERED, seq=2, after=((BOB, B1, 6),)))
    transfer.give(outcome(alice, DELIVERED, seq=3, after=((BOB, B1, 7),)))
    assert [each.cookie for each in alice.outcomes[1:]] == [cookie_of(alice, (BOB, B1, 7)), b""]


def test_the_table_of_positions_goes_with_the_session() -> None:
    connector, transfer, alice = world()
    transfer.give(outcome(alice, STORED, position=7))
    again = connector.online(A1)
    transfer.give(outcome(again, STORED, (LAPTOP,), (LAPTOP,), position=9))
    assert [each.cookie for each in again.outcomes] == [cookie_of(again, (BOB, B2, 9))]


def test_at_too_many_streams_with_stored_copies_the_session_is_closed() -> None:
    connector, transfer, alice = world(session_queue=STREAMS_MAX)
    for user in range(100, 100 + STREAMS_MAX):
        transfer.give(outcome(alice, STORED, ((user, 1),), ((user, 1),), to=user, position=user))
    assert not alice.closed
    transfer.give(outcome(alice, STORED, ((99, 1),), ((99, 1),), to=99, position=1))
    assert [code for code, _ in alice.closed] == [Code.BUSY]
    assert connector.count.cut == 1


# ---------------------------------------------------------------- cookies that the mesh did not make


def submitted_after(connector: Connector, transfer: Transfer, sender: Client, cookie: bytes) -> object:
    sender.submit(envelope(sender.device, BOB if sender.device != B1 else ALICE), cookie=cookie)
    (route,) = transfer.take()
    assert isinstance(route, Route)
    assert not sender.closed
    return route.stamp.after


@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(lambda cookie: b"invented", id="invented"),
        pytest.param(lambda cookie: bytes(1_024), id="zeros"),
        pytest.param(lambda cookie: cookie[:-1], id="truncated"),
        pytest.param(lambda cookie: cookie[:1], id="one byte"),
        pytest.param(lambda cookie: cookie + b"\x00", id="longer"),
        pytest.param(lambda cookie: b"\x02" + cookie[1:], id="another version"),
        pytest.param(lambda cookie: cookie[:-1] + bytes([cookie[-1] ^ 1]), id="another position"),
    ],
)
def test_a_cookie_that_is_not_authentic_counts_as_empty(spoil: Callable[[bytes], bytes]) -> None:
    connector, transfer, alice = world()
    assert submitted_after(connector, transfer, alice, spoil(cookie_of(alice, (BOB, B1, 12)))) == ()
    assert connector.count.cookies_invalid == 1


def test_a_cookie_is_worth_nothing_in_another_stream_device_or_user() -> None:
    connector, transfer, alice = world()
    other, bob = connector.online(A2), connector.online(B1)
    position = (BOB, B1, 1 << 60)
    assert submitted_after(connector, transfer, alice, cookie_of(alice, position, to=CAROL)) == ()
    assert submitted_after(connector, transfer, other, cookie_of(alice, position)) == ()
    assert submitted_after(connector, transfer, bob, cookie_of(alice, position)) == ()
    assert connector.count.cookies_invalid == 3
    assert submitted_after(connector, transfer, alice, cookie_of(alice, position)) == (position,)


def test_a_cookie_made_under_another_secret_counts_as_empty() -> None:
    connector, transfer, alice = world()
    cookie = cookie_of(alice, (BOB, B1, 12))
    connector.receive(e.SecretRead(bytes(32)))
    assert submitted_after(connector, transfer, alice, cookie) == ()


# ---------------------------------------------------------------- before the secret is known


def test_while_the_secret_is_unknown_a_submit_with_a_cookie_is_busy_and_one_without_passes() -> None:
    connector, transfer, alice = world()
    connector.receive(e.SecretRead(b""))
    assert not connector.core.ready
    alice.submit(envelope(seq=1), cookie=b"any")
    alice.submit(envelope(seq=2))
    assert [(each.first, each.status) for each in alice.outcomes] == [(1, BUSY)]
    assert len(transfer.take()) == 1
    assert (connector.count.busy, connector.count.secret_unknown) == (1, 1)
    connector.receive(e.SecretRead(SECRET))
    assert connector.core.ready


def test_while_the_secret_is_unknown_no_stored_copy_is_told() -> None:
    connector, transfer, alice = world()
    connector.receive(e.SecretRead(b""))
    transfer.give(outcome(alice, STORED, position=7), outcome(alice, DELIVERED, seq=2, to=CAROL))
    assert told(alice) == [(2, 2, DELIVERED, True)], "the client submits the first one again"
    connector.receive(e.SecretRead(SECRET))
    transfer.give(outcome(alice, STORED, position=9))
    assert alice.outcomes[-1].cookie == cookie_of(alice, (BOB, B1, 9))
    assert connector.count.secret_unknown == 1
