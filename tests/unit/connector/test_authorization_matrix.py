"""The authorisation matrix of a connector: what a frame may do in each state of its connection, and a kind of envelope
for each recipient.

A frame or kind without a row fails here.  The routes of REST have theirs in tests/contract/rest/.
"""

from itertools import product
from typing import get_args

import pytest

from meshim.connector import events as e
from meshim.errors import Code
from meshim.wire import client as wire
from meshim.wire.client import Greet, Submit
from meshim.wire.codec import encode
from meshim.wire.envelope import EPHEMERAL_FROM, Destination, DestinationType, Kind
from meshim.wire.link import Ack, Close, Data, Ping, Pong, Reset
from meshim.wire.mesh import Route
from meshim.wire.outcome import OutcomeStatus
from tests.unit.connector.world import A1, ALICE, B1, BOB, CAROL, EPOCH, Client, Connector, account, envelope

# ---------------------------------------------------------------- frames

NOTHING, VERIFIED, ROUTED, LEAVES = "nothing", "token is verified", "envelope is routed", "session ends"
RESET, ACK, PONG = "Reset", "Ack", "Pong"
STATES = ("no greeting", "token being verified", "presence being written", "live", "live, another link", "left")

FRAMES: dict[str, tuple[str, ...]] = {
    #            no greeting  verified     written      live         other link   left
    "Greet": (VERIFIED, "NOT_GREETED", "NOT_GREETED", "NOT_GREETED", "NOT_GREETED", VERIFIED),
    "Data": (RESET, NOTHING, NOTHING, ROUTED, RESET, RESET),
    "Ack": (RESET, NOTHING, NOTHING, NOTHING, RESET, RESET),
    "Ping": (RESET, NOTHING, NOTHING, PONG, RESET, RESET),
    "Pong": (RESET, NOTHING, NOTHING, NOTHING, RESET, RESET),
    "Close": (NOTHING, LEAVES, LEAVES, LEAVES, NOTHING, NOTHING),
    "Reset": (NOTHING, LEAVES, LEAVES, LEAVES, NOTHING, NOTHING),
    # What only a connector sends, and what is no frame.
    "Welcome": ("MALFORMED",) * 6,
    "Stored": ("MALFORMED",) * 6,
    "Changed": ("MALFORMED",) * 6,
    "type 9": ("MALFORMED",) * 6,
    "type 12": ("MALFORMED",) * 6,
}


def frame(name: str, link: int) -> bytes:
    match name:
        case "Greet":
            return encode(Greet(1, bytes(32), EPOCH, link, 8))
        case "Data":
            return encode(Data(link, 1, 0, (Submit(envelope()),)))
        case "Ack":
            return encode(Ack(link, 0))
        case "Ping":
            return encode(Ping(link))
        case "Pong":
            return encode(Pong(link))
        case "Close":
            return encode(Close(link, Code.QUIT))
        case "Reset":
            return encode(Reset(link))
        case "Welcome":
            return encode([2, 1, link, 1, 7, 12, 8, 1000, 1000, 1000, 1000, 1000, 0])
        case "Stored":
            return encode([10, link, False])
        case "Changed":
            return encode([11, link, 1])
    return encode([int(name.removeprefix("type ")), link])


def client_in(state: str, connector: Connector) -> Client:
    match state:
        case "no greeting":
            client = Client(connector, b"peer", A1)
            connector.clients[client.peer] = client
        case "token being verified":
            client = connector.connect(A1)
        case "presence being written":
            client = connector.connect(A1)
            client.accepted()
        case _:
            client = connector.online(A1)
    if state == "left":
        client.send(Close(client.link, Code.QUIT))
    client.frames.clear()
    connector.asked.clear()
    connector.closed_peers.clear()
    return client


@pytest.mark.parametrize(("name", "state"), list(product(FRAMES, STATES)))
def test_frame(name: str, state: str) -> None:
    expected = FRAMES[name][STATES.index(state)]
    connector = Connector()
    transfer = connector.transfer()
    client = client_in(state, connector)
    client.send_bytes(frame(name, client.link + (state == "live, another link")))
    answers = [type(each).__name__ for each in client.frames]
    expected_answers = {
        NOTHING: [], VERIFIED: [], LEAVES: [], ROUTED: [ACK], RESET: [RESET], PONG: [PONG]
    }.get(expected, ["Close"])  # fmt: skip
    assert answers == expected_answers
    assert [Code(code).name for code, _ in client.closed] == [expected] * len(client.closed)
    assert len(transfer.take()) == (expected == ROUTED)
    assert len(connector.take(e.CheckGreet)) == (expected == VERIFIED)
    assert bool(connector.closed_peers) == (expected == LEAVES or "Close" in answers)
    ended = {each.session for erase in connector.take(e.EraseBindings) for each in erase.bindings}
    may_be_bound = state not in ("no greeting", "token being verified", "left")
    assert ended == ({client.session} if connector.closed_peers and may_be_bound else set())
    assert not [each for each in connector.asked if not isinstance(each, e.RecordLastSeen)]


def test_every_frame_has_a_row() -> None:
    sides = (*get_args(wire.ClientFrame), *get_args(wire.ConnectorFrame))
    assert {getattr(each, "__origin__", each).__name__ for each in sides} <= set(FRAMES)
    assert all(len(row) == len(STATES) for row in FRAMES.values())


# ---------------------------------------------------------------- envelopes

KINDS = (*Kind, 99, 255)
"""All kinds, one that does not exist yet, and an ephemeral one."""
USER = DestinationType.USER

RECIPIENTS: dict[str, tuple[Destination, Code | None]] = {
    "a friend": (Destination(USER, BOB), None),
    "a stranger": (Destination(USER, CAROL), Code.NOT_FRIENDS),
    "nobody": (Destination(USER, 2**53 - 1), Code.NOT_FRIENDS),
    "oneself": (Destination(USER, ALICE), Code.NO_SUCH_RECIPIENT),
    "one device of a friend": (Destination(USER, BOB, B1), Code.NO_SUCH_RECIPIENT),
    "a device": (Destination(2, BOB, B1), Code.NO_SUCH_RECIPIENT),
    "a group": (Destination(DestinationType.GROUP, BOB), Code.NO_SUCH_RECIPIENT),
    "a type that does not exist": (Destination(200, BOB), Code.NO_SUCH_RECIPIENT),
}
"""Who an envelope is for, and with which code it is rejected.  A stranger and a user who does not exist look the same;
so do a former friend, and one who blocks the sender: both are no friends in what the connector reads."""


@pytest.mark.parametrize(("kind", "recipient"), list(product(KINDS, RECIPIENTS)))
def test_envelope(kind: int, recipient: str) -> None:
    to, code = RECIPIENTS[recipient]
    connector = Connector()
    transfer = connector.transfer()
    alice = connector.online(A1)
    alice.submit(envelope(to=to, kind=kind))
    for _ in connector.take(e.ReadAccounts):
        connector.receive(e.AccountsRead([account(ALICE)]))
    assert [type(item) for item in transfer.take()] == ([Route] if code is None else [])
    rejected = [(OutcomeStatus.REJECTED, code)] if code is not None and kind < EPHEMERAL_FROM else []
    assert [(told.status, told.code) for told in alice.outcomes] == rejected
    assert not alice.closed
    assert connector.count.rejected == (code is not None)
