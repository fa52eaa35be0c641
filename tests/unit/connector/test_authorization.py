"""The authorization of submitted envelopes, and their outcomes."""

import msgspec
import pytest

from meshim.connector import events as e
from meshim.errors import Code
from meshim.protocol.routing import conversation_of, pick
from meshim.wire.codec import encode
from meshim.wire.envelope import Destination, DestinationType, Kind, decode_envelope
from meshim.wire.mesh import Route
from meshim.wire.outcome import OutcomeStatus
from meshim.wire.sizes import ENVELOPE_FIELDS_BYTES
from tests.unit.connector.world import (
    A1,
    A2,
    ALICE,
    B1,
    BOB,
    CAROL,
    EPOCH,
    HERE,
    Connector,
    account,
    cookie_of,
    envelope,
)


def test_an_envelope_is_stamped_from_the_session_and_routed_unchanged() -> None:
    connector = Connector()
    transfer = connector.transfer()
    alice = connector.online(A1, devices=(A1, A2))
    made = envelope(seq=7, base=3)
    alice.submit(made, cookie=cookie_of(alice, (ALICE, A2, 5), (BOB, B1, 12)))
    (route,) = transfer.take()
    assert isinstance(route, Route)
    assert route.envelope == made
    stamp = route.stamp
    assert (stamp.origin, stamp.session) == (HERE, alice.session)
    assert (stamp.user, stamp.device, stamp.epoch) == (ALICE, A1, EPOCH)
    assert (stamp.to, stamp.seq, stamp.kind) == (Destination(DestinationType.USER, BOB), 7, Kind.TEXT)
    assert stamp.after == ((ALICE, A2, 5), (BOB, B1, 12))
    assert stamp.copies == ((ALICE, A2),), "the other devices of the sender get a copy too"
    assert connector.count.submitted == 1


def test_a_conversation_keeps_its_transfer() -> None:
    connector = Connector()
    transfers = {number: connector.transfer(number) for number in (901, 902)}
    alice, bob = connector.online(A1), connector.online(B1)
    chosen = transfers[pick(conversation_of(ALICE, BOB), transfers) or 0]
    alice.submit(envelope(seq=1), envelope(seq=2))
    bob.submit(envelope(B1, ALICE))
    assert len(chosen.take()) == 3
    assert not any(transfer.take() for transfer in transfers.values())


@pytest.mark.parametrize("kind", [Kind.TEXT, Kind.BASE, 99, Kind.TYPING, 255])
def test_unknown_kinds_pass(kind: int) -> None:
    connector = Connector()
    transfer = connector.transfer()
    connector.online(A1).submit(envelope(kind=kind))
    (route,) = transfer.take()
    assert isinstance(route, Route)
    assert route.stamp.kind == kind


# ---------------------------------------------------------------- what ends the session


def stuffed(size: int) -> bytes:
    """An envelope with a field that no version has."""
    return encode([*msgspec.msgpack.decode(envelope()), bytes(size)])


@pytest.mark.parametrize(
    ("made", "code"),
    [
        pytest.param(b"garbage", Code.MALFORMED, id="garbage"),
        pytest.param(envelope()[:-3], Code.MALFORMED, id="truncated"),
        pytest.param(envelope(version=2), Code.VERSION, id="another version"),
        pytest.param(envelope(user=BOB), Code.IMPERSONATION, id="another user"),
        pytest.param(envelope(device=A2, user=ALICE), Code.IMPERSONATION, id="another device of hers"),
        pytest.param(envelope(epoch=EPOCH + 1), Code.IMPERSONATION, id="another epoch"),
        pytest.param(envelope(seq=3, base=4), Code.MALFORMED, id="base beyond seq"),
        pytest.param(stuffed(ENVELOPE_FIELDS_BYTES), Code.MALFORMED, id="stuffed"),
    ],
)
def test_a_broken_or_false_envelope_ends_the_session(made: bytes, code: Code) -> None:
    connector = Connector(body_bytes=4_000)
    transfer = connector.transfer()
    alice = connector.online(A1)
    alice.submit(envelope(seq=1), made, envelope(seq=2))
    assert [code for code, _ in alice.closed] == [code]
    assert [item.stamp.seq for item in transfer.take() if isinstance(item, Route)] == [1], (
        "the envelope before it passed"
    )
    assert connector.count.malformed == connector.count.cut == 1
    assert connector.take_one(e.EraseBindings).bindings == (alice.binding,)


def test_an_envelope_of_a_later_version_of_ours_passes_with_the_fields_it_has() -> None:
    connector = Connector()
    transfer = connector.transfer()
    made = stuffed(100)
    connector.online(A1).submit(made)
    (route,) = transfer.take()
    assert isinstance(route, Route)
    assert route.envelope == made


# ---------------------------------------------------------------- what is rejected


@pytest.mark.parametrize(
    ("made", "code", "sentence"),
    [
        (envelope(body=bytes(1_001)), Code.TOO_LARGE, "the body has 1001 bytes, 1000 are allowed"),
        (envelope(to=ALICE), Code.NO_SUCH_RECIPIENT, "there is no such destination"),
        (envelope(to=Destination(DestinationType.GROUP, BOB)), Code.NO_SUCH_RECIPIENT, "there is no such destination"),
        (
            envelope(to=Destination(2, BOB, B1)),
            Code.NO_SUCH_RECIPIENT,
            "there is no such destination",
        ),
        (
            envelope(to=Destination(DestinationType.USER, BOB, B1)),
            Code.NO_SUCH_RECIPIENT,
            "there is no such destination",
        ),
        (envelope(to=Destination(200, BOB)), Code.NO_SUCH_RECIPIENT, "there is no such destination"),
    ],
    ids=["body", "oneself", "group", "one device", "user with a device", "of the future"],
)
def test_an_unauthorized_envelope_is_rejected_and_the_others_of_its_frame_pass(
    made: bytes, code: Code, sentence: str
) -> None:
    connector = Connector(frame_bytes=20_000)
    transfer = connector.transfer()
    alice = connector.online(A1)
    alice.submit(envelope(seq=1), made, envelope(seq=2))
    (outcome,) = alice.outcomes
    assert (outcome.status, outcome.code, outcome.sentence) == (OutcomeStatus.REJECTED, code, sentence)
    sent = decode_envelope(made)
    assert (outcome.to, outcome.first, outcome.last, outcome.final) == (sent.to, sent.seq, sent.seq, False)
    assert len(transfer.take()) == 2
    assert connector.count.rejected == 1
    assert not alice.closed


def test_the_largest_body_passes() -> None:
    connector = Connector()
    transfer = connector.transfer()
    connector.online(A1).submit(envelope(body=bytes(1_000)))
    assert len(transfer.take()) == 1


def test_a_receipt_goes_to_the_other_devices_of_its_sender_too() -> None:
    connector = Connector()
    transfer = connector.transfer()
    connector.online(A1, devices=(A1, A2)).submit(envelope(kind=Kind.RECEIPT))
    (route,) = transfer.take()
    assert isinstance(route, Route)
    assert route.stamp.copies == ((ALICE, A2),)


def test_a_receipt_needs_friendship() -> None:
    connector = Connector()
    transfer = connector.transfer()
    connector.online(A1, friends=()).submit(envelope(kind=Kind.RECEIPT))
    assert not transfer.take()
    assert connector.take(e.ReadAccounts)


def test_an_ephemeral_envelope_that_is_unauthorized_is_dropped_without_an_outcome() -> None:
    connector = Connector()
    alice = connector.online(A1)
    alice.submit(envelope(kind=Kind.TYPING))  # no transfer
    connector.transfer()
    alice.submit(envelope(kind=Kind.TYPING, body=bytes(1_001)), envelope(kind=Kind.TYPING, to=CAROL))
    connector.receive(e.AccountsRead([account(ALICE)]))
    assert not alice.outcomes
    assert (connector.count.busy, connector.count.rejected) == (1, 2)


# ---------------------------------------------------------------- friends


def test_relations_are_read_again_before_a_stranger_is_rejected() -> None:
    connector = Connector()
    transfer = connector.transfer()
    alice = connector.online(A1)
    alice.submit(envelope(to=CAROL, seq=1), envelope(seq=1), envelope(to=CAROL, seq=2))
    assert [item.stamp.to.id for item in transfer.take() if isinstance(item, Route)] == [BOB]
    assert not alice.outcomes, "a rejection is final: relations are read first"
    assert connector.take_one(e.ReadAccounts).users == (ALICE,)
    connector.receive(e.AccountsRead([account(ALICE, (BOB, CAROL))]))
    routes = [item for item in transfer.take() if isinstance(item, Route)]
    assert [(route.stamp.to.id, route.stamp.seq) for route in routes] == [(CAROL, 1), (CAROL, 2)]
    assert connector.count.submitted == 3


def test_a_message_to_a_stranger_is_rejected() -> None:
    connector = Connector()
    transfer = connector.transfer()
    alice = connector.online(A1)
    alice.submit(envelope(to=CAROL))
    connector.receive(e.AccountsRead([account(ALICE)]))
    (outcome,) = alice.outcomes
    assert (outcome.status, outcome.code) == (OutcomeStatus.REJECTED, Code.NOT_FRIENDS)
    assert not transfer.take()
    assert (connector.count.rejected, connector.count.busy) == (1, 0)


def test_while_relations_cannot_be_read_a_message_to_a_stranger_is_busy() -> None:
    connector = Connector()
    alice = connector.online(A1)
    alice.submit(envelope(to=CAROL))
    connector.take(e.ReadAccounts)
    connector.receive(e.AccountsReadFailed((ALICE,)))
    assert [(outcome.status, outcome.code) for outcome in alice.outcomes] == [(OutcomeStatus.BUSY, Code.BUSY)]
    alice.submit(envelope(to=CAROL))
    assert connector.take_one(e.ReadAccounts).users == (ALICE,), "relations are read again for the next one"
    assert (connector.count.rejected, connector.count.busy) == (0, 1)


def test_messages_that_wait_for_relations_are_bounded() -> None:
    connector = Connector()
    alice = connector.online(A1)
    alice.submit(*(envelope(to=CAROL, seq=seq) for seq in range(1, 7)))
    assert [(outcome.status, outcome.first) for outcome in alice.outcomes] == [
        (OutcomeStatus.BUSY, 5),
        (OutcomeStatus.BUSY, 6),
    ]
    assert len(connector.take(e.ReadAccounts)) == 1


def test_a_message_to_a_former_friend_is_rejected() -> None:
    connector = Connector()
    connector.transfer()
    alice = connector.online(A1)
    connector.receive(e.AccountsRead([account(ALICE, ())]))
    alice.submit(envelope())
    connector.receive(e.AccountsRead([account(ALICE, ())]))
    assert [outcome.code for outcome in alice.outcomes] == [Code.NOT_FRIENDS]


# ---------------------------------------------------------------- the mesh cannot take it


def test_without_a_transfer_the_outcome_is_busy() -> None:
    connector = Connector()
    alice = connector.online(A1)
    alice.submit(envelope())
    assert [(outcome.status, outcome.code, outcome.first) for outcome in alice.outcomes] == [
        (OutcomeStatus.BUSY, Code.BUSY, 1)
    ]
    assert connector.count.busy == 1
    connector.transfer()
    alice.submit(envelope())
    assert connector.transfers[901].take()


def test_when_the_link_of_a_transfer_is_full_the_outcome_is_busy() -> None:
    connector = Connector()
    transfer = connector.transfer()
    transfer.mute = True
    alice = connector.online(A1)
    for seq in range(1, 200, 4):
        alice.submit(*(envelope(seq=number) for number in range(seq, seq + 4)))
    busy = [outcome.first for outcome in alice.outcomes]
    assert busy, "window and queue of the link are full"
    assert busy == sorted(busy)
    assert connector.count.busy == len(busy)


# ---------------------------------------------------------------- twice


def test_a_frame_that_comes_twice_is_processed_once_and_ends_the_link() -> None:
    connector = Connector()
    transfer = connector.transfer()
    alice = connector.online(A1)
    alice.submit(envelope())
    alice.number = 0
    alice.submit(envelope())
    assert len(transfer.take()) == 1
    assert alice.closed == [(Code.MALFORMED, "frame 1 came, 2 was expected")]
