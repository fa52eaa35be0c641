"""The keeper renews its lease while Redis answers, knows a loss in time, and reports what happened."""

import asyncio
import io
from collections.abc import Awaitable, Callable

import pytest

from meshim.errors import BackendUnavailable, Fenced, UsageError
from meshim.runtime.log import Log
from meshim.stores.lease_keeper import LeaseKeeper
from meshim.stores.memory.redis import MemoryLeases, MemoryRedis
from meshim.stores.ports import Lease
from meshim.topology import Timers
from tests.virtual_time import VirtualLoop, run

TIMERS = Timers(lease_renew_s=1.0, lease_ttl_s=3.0)
C1 = Lease("connector", "c1", 1)
T1 = Lease("transfer", "t1", 11)
T2 = Lease("transfer", "t2", 12)


class Stage:
    """A Redis in memory, one keeper, and its callbacks with their times."""

    def __init__(self, mine: Lease = C1) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        self.loop = loop
        self.redis = MemoryRedis(loop.time)
        self.leases = MemoryLeases(self.redis, "test")
        self.events: list[tuple[float, str]] = []
        self.living: list[tuple[str, list[Lease]]] = []
        self.keeper = LeaseKeeper(
            self.leases,
            mine,
            TIMERS,
            Log("connector", "c1", io.StringIO()),
            watch=["transfer"],
            on_living=lambda role, leases: self.living.append((role, leases)),
            on_lost=lambda: self.tell("lost"),
            on_recovered=lambda: self.tell("disturbed"),
        )

    def tell(self, what: str) -> None:
        self.events.append((round(self.loop.time(), 1), what))

    @property
    def event_names(self) -> list[str]:
        return [what for _, what in self.events]


def play(scene: Callable[[Stage], Awaitable[None]]) -> None:
    """Run a scene with the lease acquired and the keeper running in the background."""

    async def main() -> None:
        stage = Stage()
        await stage.keeper.acquire()
        running = asyncio.create_task(stage.keeper.run())
        try:
            await scene(stage)
        finally:
            running.cancel()
            await asyncio.wait([running])
        if not running.cancelled():
            await running

    run(main)


def test_a_healthy_lease_lasts_without_callbacks() -> None:
    async def scene(stage: Stage) -> None:
        for _ in range(100):
            await asyncio.sleep(1)
            assert stage.keeper.held
            assert await stage.leases.living("connector") == [C1]
        assert stage.events == []

    play(scene)


def test_the_keeper_loses_the_lease_no_later_than_redis() -> None:
    async def scene(stage: Stage) -> None:
        await asyncio.sleep(10.5)
        assert stage.keeper.valid_until == pytest.approx(13.0)  # last renewed at 10
        stage.redis.stop()
        await asyncio.sleep(2.4)
        assert stage.events == []
        await asyncio.sleep(0.2)
        assert not stage.keeper.held
        assert stage.events == [(13.0, "lost")]
        assert stage.keeper.statistics.lease_failed_renewals == 3

    play(scene)


def test_validity_counts_from_before_the_command() -> None:
    async def main() -> None:
        stage = Stage()

        class Slow(MemoryLeases):
            async def acquire(self, lease: Lease, ttl_s: float) -> bool:
                taken = await super().acquire(lease, ttl_s)
                await asyncio.sleep(0.7)  # the answer is under way
                return taken

            async def extend(self, lease: Lease, ttl_s: float) -> bool:
                extended = await super().extend(lease, ttl_s)
                await asyncio.sleep(0.7)
                return extended

        keeper = LeaseKeeper(Slow(stage.redis, "test"), C1, TIMERS, Log("connector", "c1", io.StringIO()))
        await keeper.acquire()
        assert keeper.valid_until == pytest.approx(3.0)
        running = asyncio.create_task(keeper.run())
        await asyncio.sleep(0.8)
        assert keeper.valid_until == pytest.approx(3.7)
        running.cancel()

    run(main)


def test_a_short_outage_disturbs_without_loss() -> None:
    async def scene(stage: Stage) -> None:
        await asyncio.sleep(0.5)
        stage.redis.stop()
        await asyncio.sleep(1)
        stage.redis.start()
        await asyncio.sleep(5)
        assert stage.events == [(2.0, "disturbed")]

    play(scene)


def test_a_long_outage_is_a_loss_and_then_a_disturbance() -> None:
    async def scene(stage: Stage) -> None:
        await asyncio.sleep(0.5)
        stage.redis.stop()
        await asyncio.sleep(10)
        stage.redis.start()
        await asyncio.sleep(1)
        assert stage.events == [(3.0, "lost"), (11.0, "disturbed")]
        assert stage.keeper.held
        assert stage.keeper.statistics.lease_losses == 1

    play(scene)


def test_a_hanging_redis_counts_as_down() -> None:
    async def main() -> None:
        stage = Stage()
        await stage.keeper.acquire()
        hangs = asyncio.Event()
        stage.leases.living = lambda role: hangs.wait()  # type: ignore[method-assign, assignment, return-value]
        running = asyncio.create_task(stage.keeper.run())
        await asyncio.sleep(4)
        assert stage.events == [(3.0, "lost")]
        assert stage.keeper.statistics.lease_failed_renewals >= 3
        running.cancel()

    run(main)


def test_a_restarted_redis_that_kept_the_lease_disturbs() -> None:
    async def scene(stage: Stage) -> None:
        await asyncio.sleep(0.5)
        held = stage.redis.leases.items()
        stage.redis.stop()
        stage.redis.start(wiped=True)
        for key, lease in held:  # R9: as after a restart with old data
            stage.redis.leases.put(key, lease, stage.loop.time() + 2)
        await asyncio.sleep(1)
        assert stage.event_names == ["disturbed"]
        await asyncio.sleep(10)
        assert stage.event_names == ["disturbed"]  # once

    play(scene)


def test_after_a_wipe_the_lease_is_taken_again_at_once() -> None:
    async def scene(stage: Stage) -> None:
        await asyncio.sleep(0.5)
        stage.redis.start(wiped=True)
        await asyncio.sleep(0.6)
        assert stage.event_names == ["lost", "disturbed"]
        assert await stage.leases.living("connector") == [C1]

    play(scene)


def test_a_process_stopped_for_longer_than_its_lease_loses_it() -> None:
    async def scene(stage: Stage) -> None:
        await asyncio.sleep(0.5)
        stage.loop.skip(60)  # R11: SIGSTOP, SIGCONT
        assert not stage.keeper.held  # known before any callback has run
        await asyncio.sleep(0)
        await asyncio.sleep(0.1)
        assert stage.event_names == ["lost", "disturbed"]
        assert stage.keeper.held

    play(scene)


def test_living_leases_are_reported_at_first_and_on_change() -> None:
    async def scene(stage: Stage) -> None:
        await asyncio.sleep(0.5)
        assert stage.living == [("transfer", [])]
        await stage.leases.acquire(T2, 5.0)
        await stage.leases.acquire(T1, 5.0)
        await asyncio.sleep(3)
        again = Lease("transfer", "t1", 99, "tcp://elsewhere")
        await stage.leases.release(T1)
        await stage.leases.acquire(again, 60.0)
        await asyncio.sleep(1)
        await asyncio.sleep(10)
        assert stage.living[1:] == [
            ("transfer", [T1, T2]),
            ("transfer", [again, T2]),
            ("transfer", [again]),
        ]

    play(scene)


def test_no_lease_is_reported_dead_while_redis_is_down() -> None:
    async def scene(stage: Stage) -> None:
        await stage.leases.acquire(T1, 60.0)
        await asyncio.sleep(1.5)
        stage.redis.stop()
        await asyncio.sleep(30)
        assert stage.living[-1] == ("transfer", [T1])

    play(scene)


def test_after_a_wipe_other_leases_have_one_ttl_to_come_back() -> None:
    async def scene(stage: Stage) -> None:
        await stage.leases.acquire(T1, 60.0)
        await stage.leases.acquire(T2, 60.0)
        await asyncio.sleep(1.5)
        stage.redis.start(wiped=True)
        await asyncio.sleep(2)
        await stage.leases.acquire(T1, 60.0)
        before = len(stage.living)
        await asyncio.sleep(1)
        assert stage.living[-1] == ("transfer", [T1, T2])
        assert len(stage.living) == before  # no lease was reported missing in between
        await asyncio.sleep(3)
        assert stage.living[-1] == ("transfer", [T1])  # t2 did not come back

    play(scene)


async def lives(stage: Stage, lease: Lease) -> None:
    """Another incarnation, which renews."""
    while await stage.leases.acquire(lease, TIMERS.lease_ttl_s):
        await asyncio.sleep(TIMERS.lease_renew_s)


def test_acquire_waits_for_the_lease_of_a_crashed_incarnation() -> None:
    async def main() -> None:
        stage = Stage()
        await stage.leases.acquire(Lease("connector", "c1", 7), 3.0)
        await stage.keeper.acquire()
        assert stage.loop.time() == pytest.approx(3.0, abs=0.3)
        assert stage.keeper.valid_until == pytest.approx(stage.loop.time() + 3.0)

    run(main)


def test_a_name_in_use_is_a_usage_error() -> None:
    async def main() -> None:
        stage = Stage()
        other = asyncio.create_task(lives(stage, Lease("connector", "c1", 7)))
        await asyncio.sleep(0)
        with pytest.raises(UsageError, match="Another connector called c1 is running"):
            await stage.keeper.acquire()
        assert stage.loop.time() < 10
        other.cancel()

    run(main)


def test_acquire_fails_without_redis() -> None:
    async def main() -> None:
        stage = Stage()
        stage.redis.stop()
        with pytest.raises(BackendUnavailable):
            await stage.keeper.acquire()

    run(main)


def test_another_incarnation_that_keeps_the_lease_fences_us() -> None:
    async def main() -> None:
        stage = Stage()
        await stage.keeper.acquire()
        running = asyncio.create_task(stage.keeper.run())
        await asyncio.sleep(0.5)
        stage.loop.skip(60)
        other = asyncio.create_task(lives(stage, Lease("connector", "c1", 8)))
        with pytest.raises(Fenced):
            await running
        other.cancel()
        assert stage.event_names == ["lost"]
        assert not stage.keeper.held

    run(main)


def test_another_incarnation_that_dies_does_not_fence_us() -> None:
    async def scene(stage: Stage) -> None:
        await asyncio.sleep(0.5)
        stage.loop.skip(60)
        await stage.leases.acquire(Lease("connector", "c1", 8), 3.0)
        await asyncio.sleep(10)
        assert stage.event_names == ["lost", "disturbed"]
        assert stage.keeper.held

    play(scene)


def test_release_is_immediate_and_survives_an_outage() -> None:
    async def main() -> None:
        stage = Stage()
        await stage.keeper.acquire()
        await stage.keeper.release()
        assert await stage.leases.living("connector") == []
        assert not stage.keeper.held
        stage.redis.stop()
        await stage.keeper.release()
        await asyncio.sleep(10)
        assert stage.events == []  # leaving is no loss

    run(main)


def test_release_during_a_renewal_is_final() -> None:
    async def scene(stage: Stage) -> None:
        await asyncio.sleep(0.5)
        await stage.keeper.release()
        await asyncio.sleep(10)
        assert await stage.leases.living("connector") == []
        assert stage.events == []

    play(scene)
