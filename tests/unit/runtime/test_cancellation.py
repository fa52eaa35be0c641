"""A task that is cancelled in the loop iteration in which its future ends is cancelled, however the future ends."""

import asyncio
from collections.abc import Callable

import pytest

from meshim.runtime.cancellation import cancellable

Ending = Callable[["asyncio.Future[str]"], None]


class Swallowing:
    """A loop around work that swallows a cancellation, as `asyncio.wait_for` does before Python 3.12."""

    def __init__(self) -> None:
        self.answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self.rounds = 0

    async def run(self) -> None:
        while self.rounds < 3:
            self.rounds += 1
            try:
                await cancellable(self._work())
            except ConnectionError:
                continue

    async def _work(self) -> str:
        try:
            return await asyncio.shield(self.answer)
        except asyncio.CancelledError:
            return self.answer.result()


def answered(answer: "asyncio.Future[str]") -> None:
    answer.set_result("yes")


def lost(answer: "asyncio.Future[str]") -> None:
    answer.set_exception(ConnectionError("reset"))


@pytest.mark.parametrize("end", [answered, lost])
async def test_a_swallowed_cancellation_is_raised(end: Ending) -> None:
    loop = Swallowing()
    task = asyncio.create_task(loop.run())
    await asyncio.sleep(0)
    task.cancel()
    end(loop.answer)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert loop.rounds == 1


async def test_a_failure_without_a_cancellation_is_raised() -> None:
    async def fail() -> None:
        raise ConnectionError("reset")

    with pytest.raises(ConnectionError, match="reset"):
        await cancellable(fail())


async def test_a_failure_after_a_cancellation_is_raised() -> None:
    caught: list[Exception] = []

    async def fail() -> None:
        raise ConnectionError("reset")

    async def work() -> None:
        try:
            await asyncio.sleep(60.0)
        finally:
            try:
                await cancellable(fail())
            except ConnectionError as error:
                caught.append(error)

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [str(error) for error in caught] == ["reset"]
