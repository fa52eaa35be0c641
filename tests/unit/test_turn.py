"""Only links that were touched speak, and those that wait are asked again in time."""

from math import inf

import pytest

from meshim.protocol.flush_queue import Turn
from meshim.protocol.link import Link, LinkOptions
from meshim.protocol.window import WindowOptions
from meshim.wire.link import Data, Frame

DELAY_S = 0.01
WINDOW = WindowOptions(credit=8, queue=100, frame_items=4, frame_bytes=1_000, resend_s=1.0, give_up_s=5.0)


def link(epoch: int) -> Link[str, str]:
    return Link(epoch, LinkOptions(WINDOW, 10.0, 25.0, company_s=DELAY_S), len, 0.0)


def said(frames: list[tuple[str, Frame]]) -> list[tuple[str, tuple[str, ...]]]:
    return [(peer, frame.items) for peer, frame in frames if isinstance(frame, Data)]


def test_only_who_was_touched_speaks() -> None:
    turn: Turn[str] = Turn()
    one, other = link(1), link(2)
    one.push("a")
    other.push("b")
    turn.touch("one", one)
    assert said(turn.speak(1.0)) == [("one", ("a",))]
    assert turn.speak(1.0) == []
    turn.touch("other", other)
    assert said(turn.speak(1.0)) == [("other", ("b",))]


def test_who_waits_for_others_is_asked_when_that_is_over() -> None:
    turn: Turn[str] = Turn()
    one, other = link(1), link(2)
    for peer, end in (("one", one), ("other", other)):
        end.push("first", patient=True)
        turn.touch(peer, end)
    assert len(turn.speak(1.0)) == 2
    one.push("second", patient=True)
    turn.touch("one", one)
    assert turn.speak(1.001) == []
    assert turn.leave_at == pytest.approx(1.0 + DELAY_S)
    assert said(turn.speak(1.0 + DELAY_S)) == [("one", ("second",))]
    assert turn.leave_at == inf


def test_who_left_early_is_asked_in_vain_and_nothing_more() -> None:
    turn: Turn[str] = Turn()
    end = link(1)
    end.push("first", patient=True)
    turn.touch("one", end)
    turn.speak(1.0)
    end.push("second", patient=True)
    turn.touch("one", end)
    turn.speak(1.001)
    end.push("urgent")
    turn.touch("one", end)
    assert said(turn.speak(1.002)) == [("one", ("second", "urgent"))]
    assert turn.speak(1.0 + DELAY_S) == []
    assert turn.leave_at == inf


def test_whose_link_is_over_says_nothing_more() -> None:
    turn: Turn[str] = Turn()
    end = link(1)
    end.push("first", patient=True)
    turn.touch("one", end)
    turn.speak(1.0)
    end.push("second", patient=True)
    turn.touch("one", end)
    turn.speak(1.001)
    turn.forget("one")
    assert turn.speak(2.0) == []
