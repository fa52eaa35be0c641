"""Who stays below the rate notices nothing; who does not is held to it, whatever he sends."""

from math import inf

from hypothesis import given
from hypothesis import strategies as st

from meshim.protocol.token_bucket import Allowance


def test_below_the_rate_everything_is_paid_at_once() -> None:
    allowance = Allowance(100.0, 0.0)
    for number in range(1, 1000):
        allowance.charge(number, 1.0)
        assert allowance.paid(number / 100) == number
    assert allowance.due == inf


def test_a_burst_is_paid_from_what_was_not_used_and_then_by_and_by() -> None:
    allowance = Allowance(100.0, 0.0)
    for number in range(1, 6):
        allowance.charge(number, 50.0)
    assert allowance.paid(0.0) == 2
    assert allowance.paid(0.0) == 0
    assert allowance.due == 0.0
    assert allowance.paid(0.01) == 3, "on credit"
    assert allowance.due == 0.5
    assert allowance.paid(0.499) == 0
    assert allowance.paid(0.51) == 4


def test_a_clock_that_does_not_go_on_pays_nothing() -> None:
    allowance = Allowance(100.0, 10.0)
    allowance.charge(1, 150.0)
    assert allowance.paid(10.0) == 1
    allowance.charge(2, 1.0)
    assert allowance.paid(9.0) == 0
    assert allowance.paid(10.6) == 2


@given(st.lists(st.tuples(st.floats(0.1, 200.0), st.floats(0.0, 2.0)), min_size=1))
def test_over_any_time_no_more_is_paid_than_the_rate_allows(frames: list[tuple[float, float]]) -> None:
    allowance, now, paid = Allowance(100.0, 0.0), 0.0, 0
    for number, (cost, pause_s) in enumerate(frames, 1):
        allowance.charge(number, cost)
        now += pause_s
        paid = allowance.paid(now) or paid
        total = sum(each for each, _ in frames[:paid])
        assert total <= 100.0 + now * 100.0 + 200.0 + 1e-6, "a burst, the rate, and one frame on credit"
    while allowance.due != inf:
        now = max(now + 1e-6, allowance.due + 1e-6)
        paid = allowance.paid(now) or paid
    assert paid == len(frames)
