"""Deferrable items leave together, soon; a lone item leaves at once."""

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshim.protocol.coalescing import BACKOFF_DELAYS, BATCH_MAX, Coalescer

DELAY_S = 0.004


def test_a_lone_item_leaves_at_once() -> None:
    coalescer = Coalescer(DELAY_S)
    for now in (0.0, 1.0, 1.0 + DELAY_S):
        assert not coalescer.defers(1, now)
        coalescer.flushed(1, now)


def test_items_that_follow_soon_leave_together() -> None:
    coalescer = Coalescer(DELAY_S)
    coalescer.flushed(1, 1.0)
    assert coalescer.defers(1, 1.001)
    assert coalescer.flush_at == pytest.approx(1.0 + DELAY_S)
    assert coalescer.defers(2, 1.003), "a second item does not delay the first further"
    assert not coalescer.defers(2, 1.0 + DELAY_S)
    coalescer.flushed(2, 1.0 + DELAY_S)
    assert coalescer.flush_at == inf


def test_a_full_batch_leaves_at_once() -> None:
    coalescer = Coalescer(DELAY_S)
    coalescer.flushed(1, 1.0)
    assert coalescer.defers(BATCH_MAX - 1, 1.001)
    assert not coalescer.defers(BATCH_MAX, 1.001)


def test_after_an_item_waited_in_vain_items_leave_at_once_for_a_while() -> None:
    """Request and response: only one of the items in the back-off waits."""
    coalescer = Coalescer(DELAY_S)
    coalescer.flushed(1, 1.0)
    assert coalescer.defers(1, 1.001)
    coalescer.flushed(1, 1.0 + DELAY_S)
    waited, now = 0, 1.0 + DELAY_S
    while now < 1.0 + BACKOFF_DELAYS * DELAY_S:
        now += DELAY_S / 4
        waited += coalescer.defers(1, now)
        coalescer.flushed(1, now)
    assert waited == 0
    now += 2 * DELAY_S
    coalescer.flushed(1, now)
    assert coalescer.defers(1, now + DELAY_S / 4), "after the back-off items wait again"


def test_without_a_delay_no_item_waits() -> None:
    coalescer = Coalescer(0.0)
    coalescer.flushed(1, 1.0)
    assert not coalescer.defers(1, 1.0)


@given(st.lists(st.tuples(st.floats(0, 3 * DELAY_S), st.integers(1, 4)), max_size=60))
def test_no_item_waits_longer_than_the_delay(arrivals: list[tuple[float, int]]) -> None:
    """As a link calls it: when an item arrives, and when `flush_at` passes."""
    coalescer = Coalescer(DELAY_S)
    waiting: list[float] = []
    now = 0.0

    def flush() -> None:
        if waiting and not coalescer.defers(len(waiting), now):
            assert all(now - since <= DELAY_S + 1e-9 for since in waiting)
            coalescer.flushed(len(waiting), now)
            waiting.clear()
        assert len(waiting) < BATCH_MAX
        assert (coalescer.flush_at < inf) == bool(waiting)

    for pause, count in arrivals:
        until = now + pause
        if coalescer.flush_at <= until:
            now = coalescer.flush_at
            flush()
            assert not waiting
        now = until
        waiting.extend([now] * count)
        flush()
