"""The driver passes events to the core, performs its actions in order, and calls `tick` at its deadline."""

import asyncio
from collections.abc import Callable, Sequence

import pytest

from meshim.runtime.driver import Driver
from tests.virtual_time import VirtualLoop, run


class Recorder:
    """A core that answers each event with given actions, and records all calls."""

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


def test_actions_are_performed_in_the_order_of_events_also_of_nested_ones() -> None:
    async def main() -> None:
        core = Recorder({"a": ["a1", "a2"], "b": ["b1"]})
        done: list[str] = []

        def perform(action: str) -> None:
            if action == "a1":
                driver.receive("b")
            done.append(action)

        driver = Driver(core, perform)
        driver.receive("a")
        assert done == ["a1", "a2", "b1"]  # b waits until all actions of a are performed
        assert [event for event, _ in core.seen] == ["a", "b"]

    run(main)


def test_tick_is_called_at_the_deadline_and_not_before() -> None:
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


def test_a_deadline_may_become_earlier_later_or_none() -> None:
    async def main() -> None:
        core, done = Recorder(), list[str]()
        driver = Driver(core, done.append)
        for deadline in (50.0, 10.0, 20.0):  # earlier, then later
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


def test_a_deadline_before_the_first_event_is_kept() -> None:
    async def main() -> None:
        core, done = Recorder(), list[str]()
        core.deadline = 1.0
        Driver(core, done.append)
        await asyncio.sleep(1.1)
        assert done == ["ticked"]

    run(main)


def test_a_core_that_renews_its_deadline_ticks_periodically() -> None:
    async def main() -> None:
        core, done = Recorder(), list[str]()
        core.on_tick = lambda now: setattr(core, "deadline", now + 1.0)
        core.deadline = 1.0
        Driver(core, done.append)
        await asyncio.sleep(10.5)
        assert len(done) == 10

    run(main)


def test_deadlines_may_be_on_another_clock_than_that_of_the_loop() -> None:
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


def test_an_overdue_deadline_after_a_stop_ticks_once() -> None:
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
def test_an_exception_is_reported_once_and_ends_the_driver(where: str) -> None:
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
        assert core.seen == before  # a core in an unknown state is not called again
        assert done == (["nest", "later"] if where == "inside perform" else [])

    run(main)


def test_an_endless_chain_of_nested_events_is_a_bug() -> None:
    async def main() -> None:
        core = Recorder({"a": ["a"] * 3})
        driver = Driver(core, lambda action: driver.receive(action))
        driver.receive("a")
        with pytest.raises(AssertionError, match="without end"):
            await driver.failed

    run(main)


def test_a_stopped_driver_calls_the_core_no_more() -> None:
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


def test_until_returns_when_the_condition_holds_or_the_timeout_ends() -> None:
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
