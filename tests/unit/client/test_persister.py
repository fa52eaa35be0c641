"""The persister: one transaction at a time, everything before the end, and the error when a write fails."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from meshim.client.events import AddToInbox, Persist, Release
from meshim.client.persister import Persister
from meshim.client.state import StateFile
from meshim.errors import ClientClosed, UsageError
from meshim.wire.envelope import Destination, DestinationType, Stream

STREAM = Stream(2, 20, 5, Destination(DestinationType.USER, 1))


class Running:
    """A persister that runs; the test holds its lock to make it wait."""

    def __init__(self, state: StateFile) -> None:
        self.state = state
        self.serials: list[int] = []
        self.lock = asyncio.Lock()
        self.persister = Persister(state, self.lock, self.serials.append)
        self.task = asyncio.ensure_future(self.persister.run())

    def add(self, *serials: int) -> None:
        for serial in serials:
            self.persister.add(Persist(serial, (AddToInbox(STREAM, serial, b"x", False), Release(STREAM, serial, 0))))

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
        found.persister.stop()
        await asyncio.wait([found.task])
        state.close()


async def test_actions_added_during_a_write_share_the_next_transaction(tmp_path: Path) -> None:
    async with running(tmp_path) as at:
        async with at.lock:
            at.add(1)
            await asyncio.sleep(0)  # it waits for the lock, with the first action
            at.add(2, 3)
        await at.persister.wait_persisted()
        assert at.written == [1, 2, 3]
        assert at.serials in ([1, 3], [3])
        await at.persister.wait_persisted()


async def test_stop_writes_everything_that_was_added(tmp_path: Path) -> None:
    async with running(tmp_path) as at:
        async with at.lock:
            at.add(1)
            await asyncio.sleep(0)
            at.add(2)
            waiting = asyncio.ensure_future(at.persister.wait_persisted())
            await asyncio.sleep(0)
            at.persister.stop()
        await at.task
        await waiting
        assert at.written == [1, 2]


async def test_after_stop_nothing_new_counts_as_persisted(tmp_path: Path) -> None:
    async with running(tmp_path) as at:
        at.add(1)
        await at.persister.wait_persisted()
        at.persister.stop()
        await at.task
        await at.persister.wait_persisted()  # 1 is on disk
        at.add(2)
        with pytest.raises(ClientClosed):
            await at.persister.wait_persisted()


async def test_a_failed_write_is_raised_in_every_wait(tmp_path: Path) -> None:
    async with running(tmp_path) as at:
        at.state._db.execute("PRAGMA query_only=ON")
        at.add(1)
        for _ in range(2):
            with pytest.raises(UsageError, match="cannot be written"):
                await at.persister.wait_persisted()
        with pytest.raises(UsageError, match="cannot be written"):
            await at.task
        assert at.serials == []
