"""What can wait leaves with others, soon; a lone one leaves at once."""

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshim.protocol.coalescing import BACKOFF_DELAYS, BATCH_MAX, Coalescer

DELAY_S = 0.004


def test_a_lone_one_waits_for_nobody() -> None:
    coalescer = Coalescer(DELAY_S)
    for now in (0.0, 1.0, 1.0 + DELAY_S):
        assert not coalescer.defers(1, now)
        coalescer.flushed(1, now)


def test_what_follows_soon_leaves_together() -> None:
    coalescer = Coalescer(DELAY_S)
    coalescer.flushed(1, 1.0)
    assert coalescer.defers(1, 1.001)
    assert coalescer.flush_at == pytest.approx(1.0 + DELAY_S)
    assert coalescer.defers(2, 1.003), "the second does not put it off"
    assert not coalescer.defers(2, 1.0 + DELAY_S)
    coalescer.flushed(2, 1.0 + DELAY_S)
    assert coalescer.flush_at == inf


def test_enough_of_them_leave_at_once() -> None:
    coalescer = Coalescer(DELAY_S)
    coalescer.flushed(1, 1.0)
    assert coalescer.defers(BATCH_MAX - 1, 1.001)
    assert not coalescer.defers(BATCH_MAX, 1.001)


def test_who_waited_for_nobody_waits_no_more_for_a_while() -> None:
    """Two who say one thing at a time: neither waits for the other more than once in that while."""
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
    assert coalescer.defers(1, now + DELAY_S / 4), "it is tried again"


def test_nothing_waits_without_a_delay() -> None:
    coalescer = Coalescer(0.0)
    coalescer.flushed(1, 1.0)
    assert not coalescer.defers(1, 1.0)


@given(st.lists(st.tuples(st.floats(0, 3 * DELAY_S), st.integers(1, 4)), max_size=60))
def test_nothing_waits_longer_than_that(comings: list[tuple[float, int]]) -> None:
    """As a link uses it: looked at when something comes, and when it has to leave."""
    coalescer = Coalescer(DELAY_S)
    waiting: list[float] = []
    now = 0.0

    def look() -> None:
        if waiting and not coalescer.defers(len(waiting), now):
            assert all(now - since <= DELAY_S + 1e-9 for since in waiting)
            coalescer.flushed(len(waiting), now)
            waiting.clear()
        assert len(waiting) < BATCH_MAX
        assert (coalescer.flush_at < inf) == bool(waiting)

    for pause, count in comings:
        until = now + pause
        if coalescer.flush_at <= until:
            now = coalescer.flush_at
            look()
            assert not waiting
        now = until
        waiting.extend([now] * count)
        look()
