"""When a link acknowledges, with data or alone, and when it coalesces items."""

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshim.protocol.link import Link, LinkOptions
from meshim.protocol.window import WindowOptions
from meshim.wire.link import Ack, Data, Frame, Ping, Pong

CREDIT = 8
DELAY_S = 0.05
EPOCH = 7


def link(delay_s: float = DELAY_S) -> Link[str, str]:
    window = WindowOptions(credit=CREDIT, queue=100, frame_items=4, frame_bytes=1_000, give_up_s=5.0)
    return Link(EPOCH, LinkOptions(window, inf, 25.0, ack_delay_s=delay_s), len, 0.0)


def data(number: int, ack: int = 0) -> Data[str]:
    return Data(EPOCH, number, ack, (f"m{number}",))


def test_an_acknowledgement_travels_with_the_next_data_frame() -> None:
    end = link()
    end.receive(data(1), 1.0)
    assert end.flush(1.0) == []
    end.push("answer")
    assert end.flush(1.01) == [Data(EPOCH, 1, 1, ("answer",))]
    assert end.tick(1.5) == [], "already acknowledged"


def test_an_acknowledgement_without_data_waits_for_ack_delay_s() -> None:
    end = link()
    end.receive(data(1), 1.0)
    assert end.flush(1.0) == []
    end.receive(data(2), 1.04)
    assert end.flush(1.04) == [], "a second frame does not delay it further"
    assert end.next_deadline() == pytest.approx(1.0 + DELAY_S)
    assert end.tick(1.049) == []
    assert end.tick(1.051) == [Ack(EPOCH, 2)]
    assert end.tick(2.0) == []
    end.receive(data(3), 3.0)
    assert end.flush(3.0) == []
    assert end.flush(3.06) == [Ack(EPOCH, 3)], "`flush` sends it as well as `tick`"


def test_a_peer_that_used_half_its_credit_gets_an_acknowledgement_at_once() -> None:
    end = link()
    for number in range(1, CREDIT // 2):
        end.receive(data(number), 1.0)
        assert end.flush(1.0) == []
    end.receive(data(CREDIT // 2), 1.0)
    assert end.flush(1.0) == [Ack(EPOCH, CREDIT // 2)]


def test_without_a_delay_an_acknowledgement_leaves_at_once() -> None:
    end = link(0.0)
    end.receive(data(1), 1.0)
    assert end.flush(1.0) == [Ack(EPOCH, 1)]


@given(st.lists(st.tuples(st.sampled_from(["receive", "push", "flush"]), st.floats(0.0, 0.04)), max_size=40))
def test_no_frame_is_unacknowledged_for_longer_than_ack_delay_s(steps: list[tuple[str, float]]) -> None:
    """In any sequence of calls, with `tick` at the deadlines of the link."""
    end, now, number, received_at, acked = link(), 0.0, 0, {}, 0

    def sent(frames: list[Frame]) -> None:
        nonlocal acked
        for frame in frames:
            assert isinstance(frame, Data | Ack)
            acked = max(acked, frame.ack)

    for step, pause_s in steps:
        until = now + pause_s
        while end.next_deadline() <= until and end.window.owes_ack:
            now = max(now, end.next_deadline())
            sent(end.tick(now))
        now = until
        if step == "receive":
            number += 1
            end.receive(data(number), now)
            received_at[number] = now
        elif step == "push" and end.window.unacknowledged < CREDIT:
            end.push("x")
        sent(end.flush(now))
        for each in range(acked + 1, number + 1):
            assert now - received_at[each] < DELAY_S + 1e-9


def test_ack_at_once_sends_the_acknowledgement_at_once() -> None:
    end = link()
    end.receive(data(1), 1.0)
    end.window.ack_at_once()
    assert end.flush(1.0) == [Ack(EPOCH, 1)]
    end.receive(data(2), 1.1)
    assert end.flush(1.1) == [], "the request held for the frames before it"


def test_a_frame_that_leaves_before_processing_does_not_acknowledge() -> None:
    options = WindowOptions(credit=CREDIT, queue=100, frame_items=4, frame_bytes=1_000, give_up_s=5.0)
    end: Link[str, str] = Link(EPOCH, LinkOptions(options, inf, 25.0, ack_delay_s=DELAY_S), len, 0.0, manual_ack=True)
    end.receive(data(1), 1.0)
    end.window.ack_at_once()
    end.push("sent before processing")
    (frame,) = end.flush(1.0)
    assert isinstance(frame, Data)
    assert frame.ack == 0
    end.window.processed(1)
    assert end.flush(1.001) == [Ack(EPOCH, 1)]


def deferrable() -> Link[str, str]:
    options = WindowOptions(credit=CREDIT, queue=100, frame_items=4, frame_bytes=1_000, give_up_s=5.0)
    return Link(EPOCH, LinkOptions(options, inf, 25.0, coalesce_s=DELAY_S), len, 0.0)


def test_deferrable_items_leave_together_within_coalesce_s() -> None:
    end = deferrable()
    end.push("first", deferrable=True)
    assert end.flush(1.0) == [Data(EPOCH, 1, 0, ("first",))], "no frame left just before"
    end.push("second", deferrable=True)
    assert end.flush(1.01) == []
    assert end.next_deadline() == pytest.approx(1.0 + DELAY_S)
    end.push("third", deferrable=True)
    assert end.tick(1.0 + DELAY_S) == [Data(EPOCH, 2, 0, ("second", "third"))]
    assert end.flush(1.0 + DELAY_S) == []


def test_an_urgent_item_takes_the_deferrable_ones_along_in_order() -> None:
    end = deferrable()
    end.push("first", deferrable=True)
    end.flush(1.0)
    end.push("second", deferrable=True)
    assert end.flush(1.01) == []
    end.push("now")
    assert end.flush(1.011) == [Data(EPOCH, 2, 0, ("second", "now"))]


def test_items_beyond_the_window_leave_as_soon_as_it_has_room() -> None:
    end = deferrable()
    for number in range(4 * CREDIT + 1):
        end.push(f"m{number}", deferrable=True)
    assert len(end.flush(1.0)) == CREDIT, "the window is full"
    assert end.flush(1.01) == []
    end.receive(Ack(EPOCH, 1), 1.02)
    assert end.flush(1.02) == [Data(EPOCH, CREDIT + 1, 0, (f"m{4 * CREDIT}",))]


def pinging() -> Link[str, str]:
    window = WindowOptions(credit=CREDIT, queue=100, frame_items=4, frame_bytes=1_000, give_up_s=5.0)
    return Link(EPOCH, LinkOptions(window, heartbeat_s=10.0, silence_s=25.0), len, 0.0)


def test_an_end_with_a_heartbeat_pings_when_it_has_sent_nothing_for_so_long() -> None:
    end = pinging()
    assert end.next_deadline() == 10.0
    assert end.tick(9.9) == []
    assert end.tick(10.0) == [Ping(EPOCH)]
    assert end.tick(15.0) == []
    end.push("something")
    assert end.flush(19.0)
    end.receive(Ack(EPOCH, 1), 19.1)
    assert end.tick(28.9) == [], "what it sent will have been answered"
    assert end.tick(29.0) == [Ping(EPOCH)]


def test_an_end_without_a_heartbeat_only_answers() -> None:
    """The timers of a hidden browser tab run once a minute."""
    end = link()
    assert end.tick(20.0) == []
    end.receive(Ping(EPOCH), 20.0)
    assert end.flush(20.0) == [Pong(EPOCH)]
    assert end.next_deadline() == 45.0, "its silence alone"


def test_a_ping_is_answered_by_an_end_with_a_heartbeat_too() -> None:
    end = pinging()
    end.receive(Ping(EPOCH), 3.0)
    assert end.flush(3.0) == [Pong(EPOCH)]
    assert end.next_deadline() == 13.0


def test_a_silent_peer_is_dead() -> None:
    for end in (pinging(), link()):
        end.receive(Pong(EPOCH), 3.0)
        assert not end.failed(27.9)
        assert end.failed(28.0)


def test_of_two_ends_with_a_heartbeat_one_pings() -> None:
    """A Pong counts as sent: the end that answers need not ping."""
    ends, frames = (pinging(), pinging()), 0
    for second in range(100):
        for at, end in enumerate(ends):
            for ping in end.tick(float(second)):
                ends[1 - at].receive(ping, float(second))
                (pong,) = ends[1 - at].flush(float(second))
                end.receive(pong, float(second))
                frames += 2
    assert frames == 18
    assert not any(end.failed(99.0) for end in ends)
