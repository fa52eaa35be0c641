"""The links to connectors: greeting, heartbeat, replacement, leaving."""

import pytest

from meshim.errors import Code
from meshim.protocol.link import LinkOptions
from meshim.transfer import events as e
from meshim.wire import mesh
from meshim.wire.envelope import WIRE_VERSION
from meshim.wire.link import Ack, Close, Data, Ping, Pong, Reset
from meshim.wire.mesh import HelloOk
from tests.unit.transfer.world import (
    ALICE,
    B1,
    BOB,
    CAROL,
    HERE,
    SILENCE_S,
    Connector,
    Transfer,
    options,
    presence_of,
    route,
)


def linked(transfer: Transfer) -> int:
    count: int = transfer.count.connectors
    return count


def test_a_hello_is_answered() -> None:
    transfer = Transfer()
    alice = transfer.connector(ALICE)
    assert alice.frames == [HelloOk(WIRE_VERSION, alice.link, HERE, 8)]
    assert linked(transfer) == 1


def test_another_version_is_refused() -> None:
    transfer = Transfer()
    alice = Connector(transfer, ALICE)
    alice.greet(version=2)
    (close,) = alice.received(Close)
    assert (close.link, close.code) == (alice.link, Code.VERSION)
    assert linked(transfer) == 0


def test_a_frame_of_an_unknown_link_is_answered_with_reset() -> None:
    """R13: queued for an earlier incarnation."""
    transfer = Transfer()
    stranger = Connector(transfer, ALICE)
    stranger.send_items(route())
    stranger.send(Ping(1234))
    stranger.send(Close(1235, 0))
    stranger.send(Reset(1236))
    assert [frame.link for frame in stranger.received(Reset)] == [stranger.link, 1234]
    assert not transfer.pending
    assert transfer.count.unknown_links == 2


def test_a_connector_that_reconnects_has_one_link() -> None:
    transfer = Transfer()
    before = transfer.connector(ALICE)
    after = transfer.connector(ALICE)
    assert linked(transfer) == 1
    transfer.connector(BOB).send_items(route(to=ALICE, sender=B1))
    transfer.answer_lookups({ALICE: presence_of(ALICE, 11)})
    assert (before.delivered, after.delivered) == ([], [(1, (11,))])
    before.send(Ping(before.link))
    assert before.received(Reset)


def test_a_second_hello_on_a_connection_makes_a_new_link() -> None:
    transfer = Transfer()
    alice = transfer.connector(ALICE)
    before, alice.link = alice.link, alice.link + 100
    alice.greet()
    assert linked(transfer) == 1
    alice.number = 0
    alice.send_items(route())
    assert transfer.lookups() == [BOB]
    alice.send(Ping(before))
    assert [frame.link for frame in alice.received(Reset)] == [before]


@pytest.mark.parametrize("linked_before", [True, False])
def test_a_hello_that_names_the_incarnation_of_another_key_is_refused(linked_before: bool) -> None:
    """H8: what is for the users of the other connector does not go to the one that lies; no link ends."""
    transfer = Transfer()
    transfer.keys = {b"of-alice": str(ALICE), b"of-bob": str(BOB)}
    alice, bob = Connector(transfer, ALICE, b"of-alice"), Connector(transfer, BOB, b"of-bob")
    alice.greet()
    if linked_before:
        bob.greet()
    own_link, bob.link, bob.incarnation = bob.link, bob.link + 100, ALICE
    bob.greet()
    assert [(close.link, close.code) for close in bob.received(Close)] == [(bob.link, Code.IMPERSONATION)]
    assert transfer.take(e.ReportImpersonation) == [e.ReportImpersonation(named=ALICE, of_key=str(BOB))]
    assert (transfer.count.impersonations, transfer.count.malformed) == (1, 0)
    bob.send(Ping(bob.link))
    assert [frame.link for frame in bob.received(Reset)] == [bob.link]
    if linked_before:
        bob.send(Ping(own_link))
        assert bob.received(Pong)
    transfer.connector(CAROL)
    assert linked(transfer) == 1 + linked_before, "a connection of an unknown key is refused, too"
    alice.send_items(route(to=ALICE))
    transfer.answer_lookups({ALICE: presence_of(ALICE, 11)})
    assert (alice.delivered, bob.items) == ([(1, (11,))], [])


@pytest.mark.parametrize("frame", [b"garbage", b"\xc1", b"\x90"])
def test_garbage_ends_the_link_and_the_close_names_it(frame: bytes) -> None:
    transfer = Transfer()
    alice, stranger = transfer.connector(ALICE), Connector(transfer, BOB)
    alice.send_bytes(mesh.encode(Ping(alice.link)), frame, mesh.encode(Ping(alice.link)))
    stranger.send_bytes(frame)
    assert [(close.link, close.code) for close in alice.received(Close)] == [(alice.link, Code.MALFORMED)]
    assert [(close.link, close.code) for close in stranger.received(Close)] == [(0, Code.MALFORMED)]
    assert alice.received(Reset)
    assert (transfer.count.malformed, linked(transfer)) == (2, 0)


def test_bundles_beyond_the_window_end_the_link() -> None:
    transfer = Transfer()
    alice = transfer.connector(ALICE)
    bundles = [mesh.encode(Data(alice.link, number, 0, (route(seq=number),))) for number in range(1, 10)]
    alice.send_bytes(*bundles)
    assert alice.received(Close)[0].code == Code.WINDOW_EXCEEDED


def test_a_ping_is_answered_and_a_silent_connector_is_lost() -> None:
    transfer = Transfer()
    alice = transfer.connector(ALICE)
    alice.send(Ping(alice.link))
    assert alice.received(Pong)
    transfer.pass_time(10)
    assert alice.received(Ping)
    assert linked(transfer) == 1
    alice.mute = True
    transfer.pass_time(SILENCE_S + 0.1)
    assert linked(transfer) == 0


@pytest.mark.parametrize("number", [1, 3])
def test_a_bundle_that_is_not_the_next_one_ends_the_link(number: int) -> None:
    transfer = Transfer()
    alice = transfer.connector(ALICE)
    alice.send_items(route())
    alice.number = number - 1
    alice.send_items(route(seq=2, to=3))
    assert transfer.lookups() == [BOB]
    assert alice.received(Close)[0] == Close(alice.link, Code.MALFORMED, f"frame {number} came, 2 was expected")
    assert linked(transfer) == 0


def test_a_bundle_is_sent_once() -> None:
    transfer = Transfer()
    alice, bob = transfer.connector(ALICE), transfer.connector(BOB)
    alice.send_items(route())
    bob.mute = True
    transfer.answer_lookups({BOB: presence_of(BOB, B1)})
    transfer.pass_time(1.1)
    assert [frame.number for frame in bob.received(Data)] == [1]


def test_a_close_ends_the_link() -> None:
    transfer = Transfer()
    alice = transfer.connector(ALICE)
    alice.send(Close(alice.link, Code.SHUTTING_DOWN))
    assert linked(transfer) == 0


def test_a_transfer_that_stops_sends_all_that_waits_before_its_close() -> None:
    """Connectors reroute only what is not acknowledged, and senders need the outcomes."""
    links = LinkOptions(options().links.window, 0.5, SILENCE_S, ack_delay_s=0.05, coalesce_s=0.003)
    transfer = Transfer(links=links)
    alice = transfer.connector(ALICE)
    for seq in (1, 2):
        alice.send_items(route(seq))
        transfer.answer_lookups()
        transfer.publish_all()
    transfer.tell(e.StopRequested())
    *before, close = alice.frames
    assert isinstance(close, Close)
    assert [item.first for frame in before if isinstance(frame, Data) for item in frame.items] == [1, 2]
    assert max(frame.ack for frame in before if isinstance(frame, Ack | Data)) == 2


def test_a_transfer_that_stops_closes_its_links_and_finishes_its_messages() -> None:
    transfer = Transfer()
    alice = transfer.connector(ALICE)
    alice.send_items(route())
    transfer.tell(e.StopRequested())
    assert alice.received(Close)[0].code == Code.SHUTTING_DOWN
    late = transfer.connector(BOB)
    assert late.received(Close)[0].code == Code.SHUTTING_DOWN
    idle = [transfer.core.idle]
    transfer.answer_lookups()
    idle.append(transfer.core.idle)
    assert transfer.publish_all()
    idle.append(transfer.core.idle)
    assert idle == [False, False, True]
