"""The port `Throttle`: attempts count from their beginning, and together, whichever process makes them."""

import asyncio
import itertools
from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshim.stores.memory.throttle import MemoryThrottle, Windows
from meshim.stores.ports import Bucket, Outcome, Throttle
from meshim.stores.ports.throttle import UNDER_WAY_S
from tests.contract.redis.backends import Backend, open_backend

FAILED, SUCCEEDED, GIVEN_UP = Outcome.FAILED, Outcome.SUCCEEDED, Outcome.GIVEN_UP
ONE, OTHER, BOTH = Bucket("one", 3, 60.0), Bucket("other", 5, 600.0), Bucket("both", 4, 60.0)


@pytest.fixture(params=["memory", "redis"])
async def backend(request: pytest.FixtureRequest, namespace: str) -> AsyncIterator[Backend]:
    async with open_backend(request.param, lambda: str(request.getfixturevalue("valkey_url")), namespace) as backend:
        yield backend


async def attempt(throttle: Throttle, *buckets: Bucket, outcome: Outcome = FAILED) -> float:
    """Make an attempt; return how long it has to wait, or 0."""
    wait_s = await throttle.begin(buckets)
    if not wait_s:
        await throttle.end(buckets, outcome)
    return wait_s


async def test_failures_are_counted_by_all_processes_together(backend: Backend) -> None:
    processes = [backend.throttle() for _ in range(2)]
    waits = [await attempt(throttle, ONE) for throttle, _ in zip(itertools.cycle(processes), range(3), strict=False)]
    assert waits == [0.0] * 3
    assert all([59.0 < await attempt(throttle, ONE) <= 60.0 for throttle in processes])
    assert await attempt(processes[0], OTHER) == 0.0


async def test_an_attempt_begins_in_all_buckets_or_in_none(backend: Backend) -> None:
    throttle = backend.throttle()
    for _ in range(3):
        await attempt(throttle, ONE, OTHER)
    for _ in range(9):
        assert await attempt(throttle, ONE, OTHER) > 1.0
    assert [await attempt(throttle, OTHER) for _ in range(2)] == [0.0] * 2
    assert await attempt(throttle, OTHER) > 500.0
    assert await attempt(throttle, ONE, OTHER) > 500.0, "the longest wait"


async def test_of_many_attempts_at_once_no_more_begin_than_may_fail(backend: Backend) -> None:
    processes = [backend.throttle() for _ in range(4)]
    begun = await asyncio.gather(*(throttle.begin([ONE]) for throttle in processes * 5))
    assert sorted(begun) == [0.0] * 3 + [UNDER_WAY_S] * 17
    for _ in range(2):
        await processes[0].end([ONE], GIVEN_UP)
    assert [await processes[1].begin([ONE]) for _ in range(3)] == [0.0, 0.0, UNDER_WAY_S]


async def test_a_success_forgives_only_where_the_bucket_does(backend: Backend) -> None:
    throttle, forgiving = backend.throttle(), Bucket("forgiving", 3, 60.0, forgives=True)
    for _ in range(2):
        await attempt(throttle, forgiving, BOTH)
    await attempt(throttle, forgiving, BOTH, outcome=SUCCEEDED)
    for _ in range(2):
        assert await attempt(throttle, forgiving, BOTH) == 0.0
    assert await attempt(throttle, forgiving) == 0.0
    assert await attempt(throttle, BOTH) > 1.0
    assert await attempt(throttle, forgiving) > 1.0


async def test_those_that_succeed_or_are_given_up_do_not_count(backend: Backend) -> None:
    throttle = backend.throttle()
    for outcome in [SUCCEEDED, GIVEN_UP] * 10:
        assert await attempt(throttle, ONE, outcome=outcome) == 0.0


async def test_a_window_ends(backend: Backend) -> None:
    throttle, short = backend.throttle(), Bucket("short", 1, 0.5)
    await attempt(throttle, short)
    assert 0.0 < await throttle.begin([short]) <= 0.5

    async def begins() -> bool:
        return await throttle.begin([short]) == 0.0

    await backend.until(begins)
    assert await throttle.begin([short]) > 0


async def test_an_attempt_that_ends_after_its_window_counts_in_the_next_one(backend: Backend) -> None:
    throttle, short = backend.throttle(), Bucket("short", 2, 0.3)
    assert await throttle.begin([short]) == 0.0
    other = Bucket("clock", 1, 0.5)
    await attempt(throttle, other)

    async def over() -> bool:
        return await throttle.begin([other]) == 0.0

    await backend.until(over)
    await throttle.end([short], FAILED)
    assert await attempt(throttle, short) == 0.0
    assert 0.0 < await attempt(throttle, short) <= 0.3


async def test_no_window_lasts_longer_because_the_clock_stepped_back(backend: Backend) -> None:
    throttle = backend.throttle()
    for _ in range(3):
        await attempt(throttle, ONE)
    await backend.step_clock_back(86400.0)
    assert await attempt(throttle, ONE) <= 60.0
    assert await attempt(throttle, ONE) <= 60.0


async def test_in_memory_the_number_of_windows_is_bounded() -> None:
    windows = Windows(lambda: 0.0, keys_max=3)
    throttle = MemoryThrottle(windows)
    for number in range(4):
        await attempt(throttle, Bucket(f"user{number}", 1, 60.0))
    assert [await throttle.begin([Bucket(f"user{n}", 1, 60.0)]) > 0 for n in (3, 2, 1)] == [True] * 3
    assert await throttle.begin([Bucket("user0", 1, 60.0)]) == 0.0
    assert len(windows) == 3


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), max_size=60))
def test_no_more_are_decided_than_may_fail(steps: list[tuple[int, int]]) -> None:
    """However many begin at once: within one window, all of them wrong."""

    async def run() -> None:
        throttle, under_way, decided = MemoryThrottle(Windows(lambda: 0.0)), 0, 0
        for begins, ends in steps:
            for _ in range(begins):
                begun = not await throttle.begin([BOTH])
                under_way, decided = under_way + begun, decided + begun
            for _ in range(min(ends, under_way)):
                await throttle.end([BOTH], FAILED)
                under_way -= 1
            assert decided <= BOTH.most

    asyncio.run(run())
