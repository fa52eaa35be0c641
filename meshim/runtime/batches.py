"""Work for a backend, gathered: what comes while one batch is under way travels together in the next.

A lone item does not wait for company, and a storm of items costs one round trip for many: at the latest when the
backend is the slower one, and with a pause between batches before that.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")


class Batches(Generic[T]):
    """Calls `work` with what was added, in order, at most `most` items at once and one call at a time."""

    def __init__(self, work: Callable[[Sequence[T]], Awaitable[None]], most: int, pause_s: float = 0.0) -> None:
        """`pause_s` is how long the work is left alone after each batch, so that in a storm batches are worth it.

        When a full batch waits already there is no pause.
        """
        self._work = work
        self._most = most
        self._pause_s = pause_s
        self._waiting: list[T] = []
        self._arrived = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def add(self, item: T) -> None:
        self._waiting.append(item)
        self._arrived.set()
        self._idle.clear()

    async def join(self, within_s: float) -> bool:
        """Wait until nothing waits and nothing is under way; False when that takes longer."""
        try:
            async with asyncio.timeout(within_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def run(self) -> None:
        """Work until cancelled; raises what `work` raises."""
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
