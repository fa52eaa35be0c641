"""Only marked links are flushed, and links with waiting items again in time."""

from math import inf

import pytest

from meshim.protocol.flush_queue import FlushQueue
from meshim.protocol.link import Link, LinkOptions
from meshim.protocol.window import WindowOptions
from meshim.wire.link import Data, Frame

DELAY_S = 0.01
WINDOW = WindowOptions(credit=8, queue=100, frame_items=4, frame_bytes=1_000, give_up_s=5.0)


def link(epoch: int) -> Link[str, str]:
    return Link(epoch, LinkOptions(WINDOW, 10.0, 25.0, coalesce_s=DELAY_S), len, 0.0)


def sent(frames: list[tuple[str, Frame]]) -> list[tuple[str, tuple[str, ...]]]:
    return [(peer, frame.items) for peer, frame in frames if isinstance(frame, Data)]


def test_only_marked_links_are_flushed() -> None:
    queue: FlushQueue[str] = FlushQueue()
    one, other = link(1), link(2)
    one.push("a")
    other.push("b")
    queue.mark("one", one)
    assert sent(queue.flush(1.0)) == [("one", ("a",))]
    assert queue.flush(1.0) == []
    queue.mark("other", other)
    assert sent(queue.flush(1.0)) == [("other", ("b",))]


def test_a_link_with_waiting_items_is_flushed_when_they_are_due() -> None:
    queue: FlushQueue[str] = FlushQueue()
    one, other = link(1), link(2)
    for peer, end in (("one", one), ("other", other)):
        end.push("first", deferrable=True)
        queue.mark(peer, end)
    assert len(queue.flush(1.0)) == 2
    one.push("second", deferrable=True)
    queue.mark("one", one)
    assert queue.flush(1.001) == []
    assert queue.flush_at == pytest.approx(1.0 + DELAY_S)
    assert sent(queue.flush(1.0 + DELAY_S)) == [("one", ("second",))]
    assert queue.flush_at == inf


def test_a_link_that_flushed_early_has_nothing_to_send_at_its_deadline() -> None:
    queue: FlushQueue[str] = FlushQueue()
    end = link(1)
    end.push("first", deferrable=True)
    queue.mark("one", end)
    queue.flush(1.0)
    end.push("second", deferrable=True)
    queue.mark("one", end)
    queue.flush(1.001)
    end.push("urgent")
    queue.mark("one", end)
    assert sent(queue.flush(1.002)) == [("one", ("second", "urgent"))]
    assert queue.flush(1.0 + DELAY_S) == []
    assert queue.flush_at == inf


def test_a_discarded_link_is_not_flushed() -> None:
    queue: FlushQueue[str] = FlushQueue()
    end = link(1)
    end.push("first", deferrable=True)
    queue.mark("one", end)
    queue.flush(1.0)
    end.push("second", deferrable=True)
    queue.mark("one", end)
    queue.flush(1.001)
    queue.discard("one")
    assert queue.flush(2.0) == []
