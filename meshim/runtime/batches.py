"""Batches requests to a backend: items that arrive during one request travel together in the next.

A lone item leaves at once.  Under load many items share one round trip, because the backend is slower than the
items arrive, or because of the pause between two batches.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


class Batches(Generic[T]):
    """Calls `work` with the added items in order: at most `most` items in a call, one call at a time."""

    def __init__(self, work: Callable[[Sequence[T]], Awaitable[None]], most: int, pause_s: float = 0.0) -> None:
        """`pause_s` is the pause after each batch, which lets the next grow; a full batch does not wait for it."""
        self._work = work
        self._most = most
        self._pause_s = pause_s
        self._waiting: list[T] = []
        self._arrived = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def add(self, item: T) -> None:
        """Queue an item for the next batch."""
        self._waiting.append(item)
        self._arrived.set()
        self._idle.clear()

    @property
    def idle(self) -> bool:
        """Whether no item waits or is being worked on."""
        return self._idle.is_set()

    async def join(self, within_s: float) -> bool:
        """Wait until no item waits or is being worked on; return False when `within_s` seconds pass first."""
        try:
            async with asyncio.timeout(within_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def run(self) -> None:
        """Call `work` until cancelled; raises what `work` raises."""
        while True:
            await self._arrived.wait()
            batch, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
            if not self._waiting:
                self._arrived.clear()
            await self._work(batch)
            if not self._waiting:
                self._idle.set()
            if self._pause_s and len(self._waiting) < self._most:
                await asyncio.sleep(self._pause_s)
