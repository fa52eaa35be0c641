"""The links to connectors: greeted, watched, replaced, and left."""

import pytest

from meshim.errors import Code
from meshim.protocol.link import LinkOptions
from meshim.wire import mesh
from meshim.wire.envelope import WIRE_VERSION
from meshim.wire.link import Ack, Close, Data, Ping, Pong, Reset
from meshim.wire.mesh import HelloOk
from tests.unit.transfer_world import ALICE, B1, BOB, HERE, SILENCE_S, Connector, Transfer, here, options, route


def linked(transfer: Transfer) -> int:
    count: int = transfer.count.connectors
    return count


def test_a_greeting_is_answered() -> None:
    transfer = Transfer()
    alice = transfer.connector(ALICE)
    assert alice.frames == [HelloOk(WIRE_VERSION, alice.link, HERE, 8)]
    assert linked(transfer) == 1


def test_another_version_is_refused() -> None:
    transfer = Transfer()
    alice = Connector(transfer, ALICE)
    alice.greet(version=2)
    (close,) = alice.came(Close)
    assert (close.link, close.code) == (alice.link, Code.VERSION)
    assert linked(transfer) == 0


def test_a_frame_of_a_link_that_is_not_known_here_is_reset() -> None:
    """R13: queued for an earlier incarnation."""
    transfer = Transfer()
    stranger = Connector(transfer, ALICE)
    stranger.give(route())
    stranger.send(Ping(1234))
    stranger.send(Close(1235, 0))
    stranger.send(Reset(1236))
    assert [frame.link for frame in stranger.came(Reset)] == [stranger.link, 1234]
    assert not transfer.asked
    assert transfer.count.unknown_links == 2


def test_a_connector_that_reconnects_leaves_one_link() -> None:
    transfer = Transfer()
    before = transfer.connector(ALICE)
    after = transfer.connector(ALICE)
    assert linked(transfer) == 1
    transfer.connector(BOB).give(route(to=ALICE, sender=B1))
    transfer.present({ALICE: here(ALICE, 11)})
    assert (before.places, after.places) == ([], [(1, (11,))])
    before.send(Ping(before.link))
    assert before.came(Reset)


def test_a_connector_that_greets_again_on_its_connection_gets_a_new_link() -> None:
    transfer = Transfer()
    alice = transfer.connector(ALICE)
    before, alice.link = alice.link, alice.link + 100
    alice.greet()
    assert linked(transfer) == 1
    alice.number = 0
    alice.give(route())
    assert transfer.looked_up() == [BOB]
    alice.send(Ping(before))
    assert [frame.link for frame in alice.came(Reset)] == [before]


@pytest.mark.parametrize("frame", [b"garbage", b"\xc1", b"\x90"])
def test_garbage_ends_the_link_and_says_which(frame: bytes) -> None:
    transfer = Transfer()
    alice, stranger = transfer.connector(ALICE), Connector(transfer, BOB)
    alice.send_bytes(mesh.encode(Ping(alice.link)), frame, mesh.encode(Ping(alice.link)))
    stranger.send_bytes(frame)
    assert [(close.link, close.code) for close in alice.came(Close)] == [(alice.link, Code.MALFORMED)]
    assert [(close.link, close.code) for close in stranger.came(Close)] == [(0, Code.MALFORMED)]
    assert alice.came(Reset)
    assert (transfer.count.malformed, linked(transfer)) == (2, 0)


def test_bundles_beyond_the_window_end_the_link() -> None:
    transfer = Transfer()
    alice = transfer.connector(ALICE)
    alice.number = 17
    alice.give(route())
    assert alice.came(Close)[0].code == Code.WINDOW_EXCEEDED
    assert not transfer.asked


def test_a_ping_is_answered_and_a_quiet_connector_asked() -> None:
    transfer = Transfer()
    alice = transfer.connector(ALICE)
    alice.send(Ping(alice.link))
    assert alice.came(Pong)
    transfer.pass_time(10)
    assert alice.came(Ping)
    assert linked(transfer) == 1
    alice.mute = True
    transfer.pass_time(SILENCE_S + 0.1)
    assert linked(transfer) == 0


def test_an_early_bundle_waits_for_the_one_before() -> None:
    transfer = Transfer()
    alice = transfer.connector(ALICE)
    alice.number = 1
    alice.give(route(seq=2, to=3))
    assert not transfer.asked
    assert alice.came(Ack)[-1].stash == (2,)
    alice.number = 0
    alice.give(route(seq=1))
    assert transfer.looked_up() == [BOB, 3]


def test_a_bundle_that_comes_twice_is_taken_once() -> None:
    transfer = Transfer()
    alice = transfer.connector(ALICE)
    alice.give(route())
    alice.number = 0
    alice.give(route())
    assert transfer.looked_up() == [BOB]
    assert transfer.count.routed == transfer.count.deduplicated == 1


def test_bundles_are_sent_again() -> None:
    transfer = Transfer()
    alice, bob = transfer.connector(ALICE), transfer.connector(BOB)
    alice.give(route())
    bob.mute = True
    transfer.present({BOB: here(BOB, B1)})
    transfer.pass_time(1.1)
    assert [frame.number for frame in bob.came(Data)] == [1, 1]
    assert transfer.count.resent == 1


def test_a_farewell_ends_the_link() -> None:
    transfer = Transfer()
    alice = transfer.connector(ALICE)
    alice.send(Close(alice.link, Code.SHUTTING_DOWN))
    assert linked(transfer) == 0


def test_before_its_farewell_a_transfer_says_what_has_waited() -> None:
    """What was acknowledged nobody takes elsewhere; what became of a message its sender hears."""
    links = LinkOptions(options().links.window, 0.5, SILENCE_S, ack_delay_s=0.05, coalesce_s=0.003)
    transfer = Transfer(links=links)
    alice = transfer.connector(ALICE)
    for seq in (1, 2):
        alice.give(route(seq))
        transfer.absent()
        transfer.stored()
    transfer.perform(transfer.core.stop(transfer.now))
    *before, goodbye = alice.frames
    assert isinstance(goodbye, Close)
    assert [item.first for frame in before if isinstance(frame, Data) for item in frame.items] == [1, 2]
    assert max(frame.ack for frame in before if isinstance(frame, Ack | Data)) == 2


def test_a_transfer_that_stops_says_farewell_and_sees_through_what_it_has() -> None:
    transfer = Transfer()
    alice = transfer.connector(ALICE)
    alice.give(route())
    transfer.perform(transfer.core.stop(transfer.now))
    assert alice.came(Close)[0].code == Code.SHUTTING_DOWN
    late = transfer.connector(BOB)
    assert late.came(Close)[0].code == Code.SHUTTING_DOWN
    idle = [transfer.core.idle]
    transfer.absent()
    idle.append(transfer.core.idle)
    assert transfer.stored()
    idle.append(transfer.core.idle)
    assert idle == [False, False, True]
