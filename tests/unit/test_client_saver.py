"""The saver: one transaction at a time, everything that was added before the end, and the reason when it cannot."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from meshim.client.events import PutIn, Release, Save
from meshim.client.saver import Saver
from meshim.client.state import StateFile
from meshim.errors import ClientClosed, UsageError
from meshim.wire.envelope import Destination, DestinationType, Stream

STREAM = Stream(2, 20, 5, Destination(DestinationType.USER, 1))


class Running:
    """A saver at work on a file whose `apply` waits for the test."""

    def __init__(self, state: StateFile) -> None:
        self.state = state
        self.told: list[int] = []
        self.lock = asyncio.Lock()
        self.saver = Saver(state, self.lock, self.told.append)
        self.task = asyncio.ensure_future(self.saver.run())

    def add(self, *serials: int) -> None:
        for serial in serials:
            self.saver.add(Save(serial, (PutIn(STREAM, serial, b"x", False), Release(STREAM, serial, 0))))

    @property
    def written(self) -> list[int]:
        return [row.seq for row in self.state.received(0, 99)]


@asynccontextmanager
async def running(path: Path) -> AsyncIterator[Running]:
    state = StateFile(path / "me.db")
    found = Running(state)
    await asyncio.sleep(0)
    try:
        yield found
    finally:
        found.saver.stop()
        await asyncio.wait([found.task])
        state.close()


async def test_what_gathers_while_one_is_written_goes_into_the_next(tmp_path: Path) -> None:
    async with running(tmp_path) as at:
        async with at.lock:
            at.add(1)
            await asyncio.sleep(0)  # it waits for the lock, with the first one in its hands
            at.add(2, 3)
        await at.saver.saved()
        assert at.written == [1, 2, 3]
        assert at.told in ([1, 3], [3])
        await at.saver.saved()


async def test_everything_that_was_added_is_written_before_the_end(tmp_path: Path) -> None:
    async with running(tmp_path) as at:
        async with at.lock:
            at.add(1)
            await asyncio.sleep(0)
            at.add(2)
            waiting = asyncio.ensure_future(at.saver.saved())
            await asyncio.sleep(0)
            at.saver.stop()
        await at.task
        await waiting
        assert at.written == [1, 2]


async def test_after_the_end_nothing_is_claimed_to_be_safe(tmp_path: Path) -> None:
    async with running(tmp_path) as at:
        at.add(1)
        await at.saver.saved()
        at.saver.stop()
        await at.task
        await at.saver.saved()  # of what was added before
        at.add(2)
        with pytest.raises(ClientClosed):
            await at.saver.saved()


async def test_whoever_waits_is_told_why_it_cannot_be_written(tmp_path: Path) -> None:
    async with running(tmp_path) as at:
        at.state._db.execute("PRAGMA query_only=ON")
        at.add(1)
        for _ in range(2):
            with pytest.raises(UsageError, match="cannot be written"):
                await at.saver.saved()
        with pytest.raises(UsageError, match="cannot be written"):
            await at.task
        assert at.told == []
