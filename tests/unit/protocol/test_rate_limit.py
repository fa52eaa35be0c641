"""A rate for each of many."""

from hypothesis import given
from hypothesis import strategies as st

from meshim.protocol.rate_limit import RateLimit


def test_a_user_may_overdraw_the_bucket_and_waits_until_it_is_paid() -> None:
    limit = RateLimit[int](rate=10, keys_max=9)
    limit.charge(1, 9, now=0.0)
    assert limit.wait_s(1, 0.0) == 0.0, "one token is left"
    limit.charge(1, 21, now=0.0)
    assert limit.wait_s(1, 0.0) == 2.0
    assert limit.wait_s(2, 0.0) == 0.0, "another user"
    assert limit.wait_s(1, 1.5) == 0.5
    assert limit.wait_s(1, 2.0) == 0.1, "no token yet"
    assert limit.wait_s(1, 2.1) == 0.0


def test_a_bucket_holds_the_tokens_of_one_second() -> None:
    limit = RateLimit[int](rate=10, keys_max=9)
    limit.charge(1, 10, now=0.0)
    limit.charge(1, 10, now=500.0)
    assert limit.wait_s(1, 500.0) > 0
    limit.charge(1, 1, now=400.0)
    assert limit.wait_s(1, 400.2) == 0.0, "a clock that was set back takes no tokens"


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 30), st.floats(0, 3)), max_size=50))
def test_nobody_gets_more_than_the_rate_and_one_overdraft(calls: list[tuple[int, int, float]]) -> None:
    limit = RateLimit[int](rate=10, keys_max=9)
    now, got = 0.0, dict.fromkeys(range(1, 6), 0.0)
    for user, cost, later in calls:
        now += later
        if limit.wait_s(user, now) == 0:
            limit.charge(user, cost, now)
            got[user] += cost
    assert all(cost <= 10 * (now + 1) + 30 for cost in got.values())


def test_the_number_of_remembered_users_is_bounded() -> None:
    limit = RateLimit[int](rate=10, keys_max=3)
    for user in (1, 2, 3, 1, 4):
        limit.charge(user, 11, now=0.0)
    assert len(limit) == 3
    assert [limit.wait_s(user, 0.0) > 0 for user in (1, 2, 3, 4)] == [True, False, True, True]


def test_a_burst_is_as_long_as_is_said() -> None:
    limit: RateLimit[bytes] = RateLimit(10, 9, burst_s=3.0)
    limit.charge(b"token", 29, now=0.0)
    assert limit.wait_s(b"token", 0.0) == 0.0
    limit.charge(b"token", 1, now=0.0)
    assert limit.wait_s(b"token", 0.0) == 0.1
