"""A sender below the rate is acknowledged at once; any other sender is held to the rate."""

from math import inf

from hypothesis import given
from hypothesis import strategies as st

from meshim.protocol.token_bucket import TokenBucket


def test_below_the_rate_every_frame_is_paid_at_once() -> None:
    bucket = TokenBucket(100.0, 0.0)
    for number in range(1, 1000):
        bucket.charge(number, 1.0)
        assert bucket.acknowledgeable(number / 100) == number
    assert bucket.due == inf


def test_a_burst_is_paid_from_the_full_bucket_and_then_at_the_rate() -> None:
    bucket = TokenBucket(100.0, 0.0)
    for number in range(1, 6):
        bucket.charge(number, 50.0)
    assert bucket.acknowledgeable(0.0) == 2
    assert bucket.acknowledgeable(0.0) == 0
    assert bucket.due == 0.0
    assert bucket.acknowledgeable(0.01) == 3, "overdrawn"
    assert bucket.due == 0.5
    assert bucket.acknowledgeable(0.499) == 0
    assert bucket.acknowledgeable(0.51) == 4


def test_a_clock_that_steps_back_adds_no_tokens() -> None:
    bucket = TokenBucket(100.0, 10.0)
    bucket.charge(1, 150.0)
    assert bucket.acknowledgeable(10.0) == 1
    bucket.charge(2, 1.0)
    assert bucket.acknowledgeable(9.0) == 0
    assert bucket.acknowledgeable(10.6) == 2


@given(st.lists(st.tuples(st.floats(0.1, 200.0), st.floats(0.0, 2.0)), min_size=1))
def test_over_any_time_no_more_is_paid_than_burst_and_rate(frames: list[tuple[float, float]]) -> None:
    bucket, now, acknowledgeable = TokenBucket(100.0, 0.0), 0.0, 0
    for number, (cost, pause_s) in enumerate(frames, 1):
        bucket.charge(number, cost)
        now += pause_s
        acknowledgeable = bucket.acknowledgeable(now) or acknowledgeable
        total = sum(each for each, _ in frames[:acknowledgeable])
        assert total <= 100.0 + now * 100.0 + 200.0 + 1e-6, "a burst, the rate, and one frame that overdraws the bucket"
    while bucket.due != inf:
        now = max(now + 1e-6, bucket.due + 1e-6)
        acknowledgeable = bucket.acknowledgeable(now) or acknowledgeable
    assert acknowledgeable == len(frames)
