"""Events go in, actions come out in order, and the one timer rings when the core wants it to."""

import asyncio
from collections.abc import Callable, Sequence

import pytest

from meshim.runtime.driver import Driver
from tests.virtual_time import VirtualLoop, run


class Recorder:
    """A core that answers each event with what it was told to, and notes everything."""

    def __init__(self, answers: dict[str, list[str]] | None = None) -> None:
        self.answers = answers or {}
        self.deadline: float | None = None
        self.seen: list[tuple[str, float]] = []
        self.on_tick: Callable[[float], None] = lambda now: setattr(self, "deadline", None)

    def receive(self, event: str, now: float) -> Sequence[str]:
        if event == "bug":
            raise ZeroDivisionError(event)
        self.seen.append((event, now))
        return self.answers.get(event, [])

    def tick(self, now: float) -> Sequence[str]:
        self.seen.append(("tick", now))
        self.on_tick(now)
        return ["ticked"]

    def next_deadline(self) -> float | None:
        return self.deadline


def test_actions_are_performed_in_the_order_of_the_events_also_from_within() -> None:
    async def main() -> None:
        core = Recorder({"a": ["a1", "a2"], "b": ["b1"]})
        done: list[str] = []

        def perform(action: str) -> None:
            if action == "a1":
                driver.receive("b")
            done.append(action)

        driver = Driver(core, perform)
        driver.receive("a")
        assert done == ["a1", "a2", "b1"]  # b waited until a was done with, and is not forgotten
        assert [event for event, _ in core.seen] == ["a", "b"]

    run(main)


def test_tick_comes_at_the_deadline_and_not_before() -> None:
    async def main() -> None:
        core, done = Recorder(), list[str]()
        driver = Driver(core, done.append)
        core.deadline = 5.0
        driver.receive("a")
        await asyncio.sleep(4.9)
        assert done == []
        await asyncio.sleep(0.2)
        assert done == ["ticked"]
        (_, _), (event, at) = core.seen
        assert event == "tick"
        assert at == pytest.approx(5.0)
        await asyncio.sleep(100)
        assert done == ["ticked"]  # no deadline, no tick

    run(main)


def test_a_deadline_may_come_nearer_move_away_or_vanish() -> None:
    async def main() -> None:
        core, done = Recorder(), list[str]()
        driver = Driver(core, done.append)
        for deadline in (50.0, 10.0, 20.0):  # nearer, then further away
            core.deadline = deadline
            driver.receive("a")
        await asyncio.sleep(19.9)
        assert done == []
        await asyncio.sleep(0.2)
        assert done == ["ticked"]
        core.deadline = 30.0
        driver.receive("a")
        core.deadline = None
        driver.receive("a")
        await asyncio.sleep(100)
        assert done == ["ticked"]

    run(main)


def test_a_deadline_from_the_start_is_kept() -> None:
    async def main() -> None:
        core, done = Recorder(), list[str]()
        core.deadline = 1.0
        Driver(core, done.append)
        await asyncio.sleep(1.1)
        assert done == ["ticked"]

    run(main)


def test_periodic_deadlines_go_on() -> None:
    async def main() -> None:
        core, done = Recorder(), list[str]()
        core.on_tick = lambda now: setattr(core, "deadline", now + 1.0)
        core.deadline = 1.0
        Driver(core, done.append)
        await asyncio.sleep(10.5)
        assert len(done) == 10

    run(main)


def test_another_clock_than_the_loops() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        core, done = Recorder(), list[str]()
        core.deadline = 1005.0
        Driver(core, done.append, lambda: 1000.0 + loop.time())
        await asyncio.sleep(4.9)
        assert done == []
        await asyncio.sleep(0.2)
        ((event, at),) = core.seen
        assert event == "tick"
        assert at == pytest.approx(1005.0)

    run(main)


def test_overdue_after_a_stop_ticks_once() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        core, done = Recorder(), list[str]()
        core.deadline = 1.0
        Driver(core, done.append)
        loop.skip(60)
        await asyncio.sleep(0.1)
        assert done == ["ticked"]

    run(main)


@pytest.mark.parametrize("where", ["core", "perform", "tick", "inside perform"])
def test_a_bug_is_told_once_and_ends_everything(where: str) -> None:
    async def main() -> None:
        core, done = Recorder({"a": ["raise", "later"], "nested": ["nest", "later"]}), list[str]()

        def perform(action: str) -> None:
            if action == "raise":
                raise ZeroDivisionError(action)
            if action == "nest":
                driver.receive("bug")
            done.append(action)

        driver = Driver(core, perform)
        if where == "tick":
            core.on_tick = lambda now: 1 // 0  # type: ignore[assignment]  # raises before it returns
            core.deadline = 1.0
            driver.receive("harmless")
            await asyncio.sleep(2)
        else:
            driver.receive({"core": "bug", "perform": "a", "inside perform": "nested"}[where])
        with pytest.raises(ZeroDivisionError):
            await driver.failed
        before = list(core.seen)
        driver.receive("b")
        core.deadline = 3.0
        await asyncio.sleep(100)
        assert core.seen == before  # a core in an unknown state is not asked again
        assert done == (["nest", "later"] if where == "inside perform" else [])

    run(main)


def test_an_endless_exchange_with_itself_is_a_bug() -> None:
    async def main() -> None:
        core = Recorder({"a": ["a"] * 3})
        driver = Driver(core, lambda action: driver.receive(action))
        driver.receive("a")
        with pytest.raises(AssertionError, match="without end"):
            await driver.failed

    run(main)


def test_stopped_does_nothing_any_more() -> None:
    async def main() -> None:
        core, done = Recorder({"a": ["stop", "x"]}), list[str]()
        core.deadline = 5.0

        def perform(action: str) -> None:
            if action == "stop":
                driver.receive("after")
                driver.stop()
            done.append(action)

        driver = Driver(core, perform)
        driver.receive("a")
        driver.receive("b")
        await asyncio.sleep(10)
        assert [event for event, _ in core.seen] == ["a"]
        assert driver.failed.cancelled()

    run(main)


def test_until_waits_for_what_a_turn_brings_about_and_no_longer() -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        core, done = Recorder(), list[str]()
        core.on_tick = lambda now: setattr(core, "deadline", now + 1.0)
        core.deadline = 1.0
        driver = Driver(core, done.append)
        both = driver.until(lambda: len(done) >= 2, 10.0), driver.until(lambda: len(done) >= 5, 10.0)
        assert all(await asyncio.gather(*both))
        assert loop.time() == pytest.approx(5.0)
        assert not await driver.until(lambda: False, 2.5)
        assert loop.time() == pytest.approx(7.5)

    run(main)
