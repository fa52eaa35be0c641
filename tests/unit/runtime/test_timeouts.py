"""A database that hangs counts as away."""

import asyncio

import pytest

from meshim.errors import BackendUnavailable, Fenced
from meshim.runtime.timeouts import with_timeout
from tests.virtual_time import run


async def answer(after_s: float) -> str:
    await asyncio.sleep(after_s)
    return "answer"


def test_an_answer_in_time_is_returned() -> None:
    async def main() -> None:
        assert await with_timeout(answer(1.0), 2.0) == "answer"

    run(main)


def test_work_that_takes_longer_is_unavailable_and_cancelled() -> None:
    async def main() -> None:
        with pytest.raises(BackendUnavailable, match="too long"):
            await with_timeout(answer(10.0), 2.0)
        assert asyncio.get_running_loop().time() == pytest.approx(2.0)

    run(main)


def test_an_exception_of_the_work_is_raised() -> None:
    async def fenced() -> None:
        raise Fenced("somebody else")

    async def main() -> None:
        with pytest.raises(Fenced):
            await with_timeout(fenced(), 2.0)

    run(main)
