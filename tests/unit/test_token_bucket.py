"""Who stays below the rate notices nothing; who does not is held to it, whatever he sends."""

from math import inf

from hypothesis import given
from hypothesis import strategies as st

from meshim.protocol.token_bucket import TokenBucket


def test_below_the_rate_everything_is_paid_at_once() -> None:
    token_bucket = TokenBucket(100.0, 0.0)
    for number in range(1, 1000):
        token_bucket.charge(number, 1.0)
        assert token_bucket.acknowledgeable(number / 100) == number
    assert token_bucket.due == inf


def test_a_burst_is_paid_from_what_was_not_used_and_then_by_and_by() -> None:
    token_bucket = TokenBucket(100.0, 0.0)
    for number in range(1, 6):
        token_bucket.charge(number, 50.0)
    assert token_bucket.acknowledgeable(0.0) == 2
    assert token_bucket.acknowledgeable(0.0) == 0
    assert token_bucket.due == 0.0
    assert token_bucket.acknowledgeable(0.01) == 3, "on credit"
    assert token_bucket.due == 0.5
    assert token_bucket.acknowledgeable(0.499) == 0
    assert token_bucket.acknowledgeable(0.51) == 4


def test_a_clock_that_does_not_go_on_pays_nothing() -> None:
    token_bucket = TokenBucket(100.0, 10.0)
    token_bucket.charge(1, 150.0)
    assert token_bucket.acknowledgeable(10.0) == 1
    token_bucket.charge(2, 1.0)
    assert token_bucket.acknowledgeable(9.0) == 0
    assert token_bucket.acknowledgeable(10.6) == 2


@given(st.lists(st.tuples(st.floats(0.1, 200.0), st.floats(0.0, 2.0)), min_size=1))
def test_over_any_time_no_more_is_paid_than_the_rate_allows(frames: list[tuple[float, float]]) -> None:
    token_bucket, now, acknowledgeable = TokenBucket(100.0, 0.0), 0.0, 0
    for number, (cost, pause_s) in enumerate(frames, 1):
        token_bucket.charge(number, cost)
        now += pause_s
        acknowledgeable = token_bucket.acknowledgeable(now) or acknowledgeable
        total = sum(each for each, _ in frames[:acknowledgeable])
        assert total <= 100.0 + now * 100.0 + 200.0 + 1e-6, "a burst, the rate, and one frame on credit"
    while token_bucket.due != inf:
        now = max(now + 1e-6, token_bucket.due + 1e-6)
        acknowledgeable = token_bucket.acknowledgeable(now) or acknowledgeable
    assert acknowledgeable == len(frames)
