"""A device that submits above its rate runs out of window, and costs no other device anything."""

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshim.errors import Code, PeerError
from meshim.protocol.link import LinkOptions
from meshim.protocol.token_bucket import UNNUMBERED_BURST, UNNUMBERED_RATE, UnnumberedBudget
from meshim.wire.link import Ack, Data, Frame, Ping, Pong
from tests.unit.connector.world import A1, B1, Client, Connector, envelope, live_copy, options


def acknowledged(client: Client) -> int:
    acks = [frame.ack for frame in client.came(Ack)]
    return max(acks + [frame.ack for frame in client.came(Data)])


def flooding() -> tuple[Connector, Client]:
    """100 messages a second are allowed; two frames of 100 were sent."""
    connector = Connector(frame_bytes=20_000)
    connector.transfer()
    alice = connector.online(A1)
    for first in (1, 101):
        alice.submit(*(envelope(A1, seq=seq) for seq in range(first, first + 100)))
    return connector, alice


def test_frames_above_the_rate_are_acknowledged_later() -> None:
    connector, alice = flooding()
    assert acknowledged(alice) == 1
    assert (connector.count.submitted, connector.count.rate_limited) == (200, 1), (
        "the items are routed at once, only the acknowledgement waits"
    )
    connector.pass_time(0.3)
    assert acknowledged(alice) == 2
    alice.submit(envelope(A1, seq=201))
    assert acknowledged(alice) == 2
    connector.pass_time(0.5)
    assert acknowledged(alice) == 2
    connector.pass_time(0.5)
    assert acknowledged(alice) == 3


def test_frames_are_acknowledged_at_the_rate_although_the_device_is_silent() -> None:
    """With the delays of a topology: no data frame carries the acknowledgement, and no frame of the client asks for
    it."""
    window = options().clients.window
    connector = Connector(frame_bytes=20_000, clients=LinkOptions(window, 10.0, 25.0, ack_delay_s=0.05))
    connector.transfer()
    alice = connector.online(A1)
    for first in (1, 101):
        alice.submit(*(envelope(A1, seq=seq) for seq in range(first, first + 100)))
    connector.pass_time(0.5)
    assert acknowledged(alice) == 2


def test_large_messages_cost_more() -> None:
    connector = Connector(body_bytes=100_000, frame_bytes=1_000_000)
    connector.transfer()
    alice = connector.online(A1)
    for seq in (1, 2, 3):
        alice.submit(envelope(A1, seq=seq, body=bytes(100_000)))
    alice.submit(envelope(A1, seq=4))
    assert acknowledged(alice) == 3, "the third on credit"
    connector.pass_time(1.0)
    assert acknowledged(alice) == 4


def test_a_device_that_does_not_wait_for_acknowledgements_exceeds_its_window() -> None:
    _, alice = flooding()
    assert acknowledged(alice) == 1
    for seq in range(201, 208):
        alice.submit(envelope(A1, seq=seq))
    assert not alice.closed
    alice.submit(envelope(A1, seq=208))
    assert [code for code, _ in alice.closed] == [Code.WINDOW_EXCEEDED]


def test_a_frame_of_too_many_items_ends_the_link() -> None:
    connector = Connector(frame_bytes=20_000)
    alice = connector.online(A1)
    alice.submit(*(envelope(A1, seq=seq) for seq in range(1, 130)))
    assert [code for code, _ in alice.closed] == [Code.TOO_LARGE]


FREE: dict[str, Callable[[Client], Frame]] = {
    "ping": lambda client: Ping(client.link),
    "pong": lambda client: Pong(client.link),
    "an acknowledgement of nothing new": lambda client: Ack(client.link, 0),
    "another link": lambda client: Ping(client.link + 1),
}


@pytest.mark.parametrize("frame", FREE.values(), ids=FREE)
def test_frames_outside_of_the_window_are_charged(frame: Callable[[Client], Frame]) -> None:
    connector = Connector()
    alice = connector.online(A1)
    for _ in range(int(UNNUMBERED_BURST)):
        alice.send(frame(alice))
    assert not alice.closed
    connector.pass_time(1.0)
    for _ in range(int(UNNUMBERED_RATE)):
        alice.send(frame(alice))
    assert not alice.closed, "at this rate it may go on"
    alice.send(frame(alice))
    assert [code for code, _ in alice.closed] == [Code.WINDOW_EXCEEDED]


def test_frames_before_the_welcome_are_charged() -> None:
    connector = Connector()
    alice = connector.connect(A1)
    alice.accepted()
    for _ in range(int(UNNUMBERED_BURST) + 1):
        alice.ping()
    assert [code for code, _ in alice.closed] == [Code.WINDOW_EXCEEDED]


def test_frames_are_charged_while_the_token_is_verified() -> None:
    """Presence may hang for a second, in which a transport takes the connection for one with a session."""
    connector = Connector()
    alice = connector.connect(A1)
    for _ in range(int(UNNUMBERED_BURST)):
        alice.ping()
    assert not alice.closed
    alice.ping()
    assert [code for code, _ in alice.closed] == [Code.WINDOW_EXCEEDED]
    alice.accepted()
    assert connector.count.sessions == 0


def test_what_was_sent_while_the_token_was_verified_counts_in_the_session() -> None:
    connector = Connector()
    alice = connector.connect(A1)
    for _ in range(int(UNNUMBERED_BURST)):
        alice.ping()
    alice.accepted()
    alice.ping()
    assert [code for code, _ in alice.closed] == [Code.WINDOW_EXCEEDED]


def test_an_acknowledgement_of_something_new_costs_nothing() -> None:
    connector = Connector()
    transfer = connector.transfer()
    bob = connector.online(B1)
    for seq in range(1, 2 * int(UNNUMBERED_BURST)):
        transfer.give(live_copy(B1, seq))
        connector.pass_time(0.001)
        bob.acknowledge()
    assert bob.acknowledged > UNNUMBERED_BURST
    assert not bob.closed


@given(st.lists(st.floats(0, 3), max_size=300), st.integers(1, 40))
def test_it_lets_through_the_burst_and_the_rate(pauses: list[float], each: int) -> None:
    budget, now, taken = UnnumberedBudget(0.0), 0.0, 0
    try:
        for pause in pauses:
            now += pause
            for _ in range(each):
                budget.charge(now)
                taken += 1
    except PeerError:
        assert taken >= UNNUMBERED_BURST - 1
    assert taken <= UNNUMBERED_BURST + now * UNNUMBERED_RATE + 1e-6
