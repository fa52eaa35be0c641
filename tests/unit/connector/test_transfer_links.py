"""The connector's links to transfers: made, watched, lost, and their items rerouted."""

from meshim.connector import events as e
from meshim.errors import Code
from meshim.wire import mesh
from meshim.wire.envelope import WIRE_VERSION, Kind
from meshim.wire.link import Close, Data, Ping, Pong, Reset
from meshim.wire.mesh import FromConnector, Hello, HelloOk, Return, Route
from meshim.wire.outcome import CopyOutcome
from tests.unit.connector.world import A1, B1, HERE, Connector, Transfer, envelope, live_copy

RECONNECT_S = 0.5


def seqs(items: list[FromConnector]) -> list[int]:
    return [item.first if isinstance(item, CopyOutcome) else item.stamp.seq for item in items]


def idle(connector: Connector) -> bool:
    return connector.core.idle


def test_what_goes_back_takes_a_transfer_that_knows_the_origin() -> None:
    """The other connector has found one of two transfers so far; whatever the conversation, it gets its outcomes."""
    for knowing in (901, 902):
        connector = Connector()
        transfers = {incarnation: connector.transfer(incarnation) for incarnation in (901, 902)}
        bob = connector.online(B1)
        transfers[knowing].give(live_copy(seq=1))
        bob.acknowledge()
        transfers[knowing].give(live_copy(12, seq=21))
        assert {type(item) for item in transfers.pop(knowing).take()} == {CopyOutcome, Return}
        assert not transfers.popitem()[1].take()


def test_what_the_only_transfer_delivered_goes_back_by_it_when_another_has_just_opened() -> None:
    for new in range(902, 912):  # the conversation belongs to some of them
        connector = Connector()
        only = connector.transfer(901)
        bob = connector.online(B1)
        only.give(live_copy(seq=1))
        opened = connector.transfer(new)
        bob.acknowledge()
        assert [type(item) for item in only.take()] == [CopyOutcome]
        assert not opened.take()


def test_once_both_transfers_know_the_origin_the_one_of_the_conversation_is_taken() -> None:
    connector = Connector()
    one, other = connector.transfer(901), connector.transfer(902)
    bob = connector.online(B1)
    for seq, transfer in enumerate((one, other, one, other), 1):
        transfer.give(live_copy(seq=seq))
        if seq == 2:
            bob.acknowledge()
            one.take(), other.take()
    bob.acknowledge()
    taken = [
        sum(item.last - item.first + 1 for item in each.take() if isinstance(item, CopyOutcome))
        for each in (one, other)
    ]
    assert sorted(taken) == [0, 2]


def test_a_transfer_that_is_gone_is_no_way_back() -> None:
    connector = Connector()
    gone, stays, third = (connector.transfer(incarnation) for incarnation in (901, 902, 903))
    bob = connector.online(B1)
    gone.give(live_copy(seq=1))
    gone.send(Close(gone.link, Code.SHUTTING_DOWN))
    bob.acknowledge()
    assert len([*stays.take(), *third.take()]) == 1


def test_a_link_is_greeted_with_an_epoch_of_its_own() -> None:
    connector = Connector()
    assert not connector.core.ready
    one, other = connector.transfer(901), connector.transfer(902)
    hellos = [transfer.frames[0] for transfer in (one, other)]
    assert all(
        isinstance(h, Hello) and (h.version, h.incarnation, h.name, h.window) == (1, HERE, "c1", 8) for h in hellos
    )
    assert one.link != other.link
    assert connector.core.ready


def test_nothing_is_sent_before_the_link_is_open() -> None:
    connector = Connector()
    connector.receive(e.TransfersDiscovered((901,)))
    alice = connector.online(A1)
    alice.submit(envelope())
    assert connector.count.busy == 1
    connector.receive(e.TransferConnected(901))
    alice.submit(envelope())
    assert connector.count.busy == 2


def test_a_lost_link_is_made_again_with_another_epoch() -> None:
    connector = Connector()
    transfer = connector.transfer()
    first = transfer.link
    connector.receive(e.TransferLost(901))
    assert not connector.core.ready
    connector.pass_time(0.9 * RECONNECT_S)
    assert not transfer.connecting
    connector.pass_time(0.2 * RECONNECT_S)
    transfer.accept()
    assert transfer.link != first
    assert connector.core.ready


def test_items_of_a_lost_link_go_to_another_transfer() -> None:
    """R6."""
    connector = Connector()
    first = connector.transfer(901)
    first.mute = True
    alice, bob = connector.online(A1), connector.online(B1)
    alice.submit(*(envelope(seq=seq) for seq in (1, 2, 3)), envelope(seq=4, kind=Kind.TYPING))
    first.give(live_copy(seq=11), live_copy(12, seq=21))
    bob.acknowledge()
    other = connector.transfer(902)
    connector.receive(e.TransferLost(901))
    items = other.take()
    assert [type(item) for item in items] == [Route, Route, Route, Return, CopyOutcome]
    assert seqs(items) == [1, 2, 3, 21, 11]
    assert (connector.count.rerouted, connector.count.ephemeral_dropped) == (5, 1)


def test_items_lost_with_the_last_transfer_are_counted() -> None:
    connector = Connector()
    only = connector.transfer()
    only.mute = True
    alice, bob = connector.online(A1), connector.online(B1)
    alice.submit(envelope())
    only.give(live_copy(seq=11), live_copy(12, seq=21))
    bob.acknowledge()
    connector.receive(e.TransferLost(901))
    count = connector.count
    assert (count.route_failures, count.return_failures, count.outcomes_lost, count.rerouted) == (1, 1, 1, 0)


def test_a_transfer_that_sends_close_is_left_at_once() -> None:
    connector = Connector()
    leaving, other = connector.transfer(901), connector.transfer(902)
    leaving.send(Close(leaving.link, Code.SHUTTING_DOWN))
    assert not leaving.open
    alice = connector.online(A1)
    alice.submit(envelope())
    assert seqs(other.take()) == [1]


def test_a_transfer_that_does_not_know_the_link_is_greeted_again() -> None:
    """R13: it restarted behind the same address."""
    connector = Connector()
    transfer = connector.transfer()
    transfer.send(Reset(transfer.link))
    connector.pass_time(RECONNECT_S + 0.1)
    transfer.accept()
    assert connector.core.ready


def test_a_silent_transfer_is_left() -> None:
    connector = Connector()
    transfer = connector.transfer()
    connector.pass_time(5)
    assert connector.core.ready, "it answers pings"
    transfer.mute = True
    connector.pass_time(1.6)
    assert not connector.core.ready


def test_a_transfer_that_does_not_answer_the_greeting_is_tried_again() -> None:
    connector = Connector()
    connector.receive(e.TransfersDiscovered((901,)))
    connector.receive(e.TransferConnected(901))
    transfer = connector.transfers[901]
    connector.pass_time(1.6)
    assert not transfer.connecting
    connector.pass_time(RECONNECT_S)
    transfer.accept()
    assert connector.core.ready


def test_a_transfer_without_a_lease_is_not_tried_again() -> None:
    connector = Connector()
    transfer = connector.transfer()
    connector.receive(e.TransfersDiscovered(()))
    assert connector.core.ready, "a lease may be late (R9); a link that works is kept"
    connector.receive(e.TransferLost(901))
    connector.pass_time(10)
    assert not transfer.connecting


def test_a_transfer_whose_lease_ends_before_it_answers_is_given_up() -> None:
    connector = Connector()
    connector.receive(e.TransfersDiscovered((901,)))
    connector.receive(e.TransfersDiscovered(()))
    assert not connector.transfers[901].connecting
    connector.receive(e.TransferConnected(901))
    assert not connector.transfers[901].frames


def test_a_transfer_with_another_incarnation_is_not_opened() -> None:
    connector = Connector()
    connector.receive(e.TransfersDiscovered((901,)))
    connector.receive(e.TransferConnected(901))
    transfer = connector.transfers[901]
    hello = transfer.frames[0]
    assert isinstance(hello, Hello)
    transfer.send(HelloOk(WIRE_VERSION, hello.link, 4711, 8))
    assert not connector.core.ready
    connector.pass_time(1.6)
    assert not transfer.connecting


def test_frames_of_an_earlier_epoch_are_ignored() -> None:
    connector = Connector()
    transfer = connector.transfer()
    bob = connector.online(B1)
    transfer.send(Data(transfer.link + 1, 1, 0, (live_copy(),)))
    assert not bob.deliveries
    transfer.give(live_copy())
    assert bob.seqs == [1]


def test_garbage_ends_the_link_and_items_before_it_count() -> None:
    connector = Connector()
    transfer = connector.transfer()
    bob = connector.online(B1)
    transfer.number = 1
    good = e.TransferSent(901, [wire_place(transfer, 1), b"\xc1", wire_place(transfer, 2)])
    connector.receive(good)
    assert bob.seqs == [1]
    assert not transfer.open
    assert connector.count.malformed == 1


def wire_place(transfer: Transfer, number: int) -> bytes:
    return mesh.encode(Data(transfer.link, number, 0, (live_copy(seq=number),)))


def test_a_bundle_that_comes_twice_is_processed_once_and_ends_the_link() -> None:
    connector = Connector()
    transfer = connector.transfer()
    bob = connector.online(B1)
    transfer.give(live_copy())
    transfer.number = 0
    transfer.give(live_copy())
    assert bob.seqs == [1]
    assert not transfer.open
    assert connector.count.malformed == 1


def test_a_transfer_that_acknowledges_no_bundle_is_left() -> None:
    connector = Connector()
    transfer = connector.transfer()
    transfer.mute = True
    connector.online(A1).submit(envelope())
    for _ in range(2):
        connector.pass_time(1.2)
        transfer.send(Ping(transfer.link))
    assert [frame.number for frame in transfer.frames if isinstance(frame, Data)] == [1]
    assert any(isinstance(frame, Pong) for frame in transfer.frames)
    connector.pass_time(0.2)
    assert not transfer.open, "2.5 s without an acknowledgement, although it lives"


def test_a_connector_that_stops_closes_its_links() -> None:
    connector = Connector()
    transfer = connector.transfer()
    bob = connector.online(B1)
    transfer.give(live_copy())
    transfer.mute = True
    connector.receive(e.StopRequested())
    assert bob.closed[0][0] == Code.SHUTTING_DOWN
    assert not idle(connector), "unacknowledged copies are being returned"
    returning = transfer.frames[-1]
    assert isinstance(returning, Data)
    transfer.mute = False
    transfer.hear(returning)
    assert seqs(transfer.take()) == [1]
    assert idle(connector)
    connector.close()
    assert isinstance(transfer.frames[-1], Close)
