"""Only links that were touched speak, and those that wait are asked again in time."""

from math import inf

import pytest

from meshim.protocol.flush_queue import FlushQueue
from meshim.protocol.link import Link, LinkOptions
from meshim.protocol.window import WindowOptions
from meshim.wire.link import Data, Frame

DELAY_S = 0.01
WINDOW = WindowOptions(credit=8, queue=100, frame_items=4, frame_bytes=1_000, resend_s=1.0, give_up_s=5.0)


def link(epoch: int) -> Link[str, str]:
    return Link(epoch, LinkOptions(WINDOW, 10.0, 25.0, coalesce_s=DELAY_S), len, 0.0)


def said(frames: list[tuple[str, Frame]]) -> list[tuple[str, tuple[str, ...]]]:
    return [(peer, frame.items) for peer, frame in frames if isinstance(frame, Data)]


def test_only_who_was_touched_speaks() -> None:
    turn: FlushQueue[str] = FlushQueue()
    one, other = link(1), link(2)
    one.push("a")
    other.push("b")
    turn.mark("one", one)
    assert said(turn.flush(1.0)) == [("one", ("a",))]
    assert turn.flush(1.0) == []
    turn.mark("other", other)
    assert said(turn.flush(1.0)) == [("other", ("b",))]


def test_who_waits_for_others_is_asked_when_that_is_over() -> None:
    turn: FlushQueue[str] = FlushQueue()
    one, other = link(1), link(2)
    for peer, end in (("one", one), ("other", other)):
        end.push("first", deferrable=True)
        turn.mark(peer, end)
    assert len(turn.flush(1.0)) == 2
    one.push("second", deferrable=True)
    turn.mark("one", one)
    assert turn.flush(1.001) == []
    assert turn.flush_at == pytest.approx(1.0 + DELAY_S)
    assert said(turn.flush(1.0 + DELAY_S)) == [("one", ("second",))]
    assert turn.flush_at == inf


def test_who_left_early_is_asked_in_vain_and_nothing_more() -> None:
    turn: FlushQueue[str] = FlushQueue()
    end = link(1)
    end.push("first", deferrable=True)
    turn.mark("one", end)
    turn.flush(1.0)
    end.push("second", deferrable=True)
    turn.mark("one", end)
    turn.flush(1.001)
    end.push("urgent")
    turn.mark("one", end)
    assert said(turn.flush(1.002)) == [("one", ("second", "urgent"))]
    assert turn.flush(1.0 + DELAY_S) == []
    assert turn.flush_at == inf


def test_whose_link_is_over_says_nothing_more() -> None:
    turn: FlushQueue[str] = FlushQueue()
    end = link(1)
    end.push("first", deferrable=True)
    turn.mark("one", end)
    turn.flush(1.0)
    end.push("second", deferrable=True)
    turn.mark("one", end)
    turn.flush(1.001)
    turn.discard("one")
    assert turn.flush(2.0) == []
