"""Hashes passwords beside the event loop.  A hash takes 27 ms of one core and 19 MiB, so their number is bounded."""

import asyncio
import os
from collections import OrderedDict
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TypeVar

from meshim.errors import ApiError
from meshim.rest.admission.password_queue import Lane, PasswordQueue, Place
from meshim.rest.core import refusal
from meshim.runtime import crypto
from meshim.runtime.exhaustion import is_exhausted

_THREADS_MAX = 4
_KNOWN_MAX = 10_000
_KNOWN_S = 86400.0
_IMPORT = Place(Lane.STRANGER, "import")
_T = TypeVar("_T")


class Passwords:
    """Hashes and verifies passwords in threads: Argon2 releases the interpreter lock while it works."""

    def __init__(self) -> None:
        self._threads = min(_THREADS_MAX, os.cpu_count() or 1)
        self._pool = ThreadPoolExecutor(self._threads, "passwords")
        self._bulk = asyncio.Semaphore(self._threads)
        self._busy = 0
        """Threads that work, or are about to."""
        self._queue: PasswordQueue[asyncio.Future[None]] = PasswordQueue()

    async def hash(self, password: str, place: Place) -> str:
        """Return a PHC string.  Raises ApiError (`busy`) when too many wait at this place, or memory is short."""
        async with self.turn(place):
            return await self._in_thread(lambda: crypto.hash_password(password))

    async def hash_all(self, passwords: Sequence[str]) -> list[str]:
        """Hash many passwords, one at a time per thread, so that a login waits behind a few of them only."""

        async def one(password: str) -> str:
            async with self._bulk:
                return await self.hash(password, _IMPORT)

        return await asyncio.gather(*map(one, passwords))

    @asynccontextmanager
    async def turn(self, place: Place) -> AsyncGenerator[None]:
        """A thread is free during the block.  Raises ApiError (`busy`) when too many wait at this place."""
        if self._busy < self._threads:
            self._busy += 1
        else:
            await self._wait(place)
        try:
            yield
        finally:
            self._free()

    async def verify(self, password: str, password_hash: str | None) -> bool:
        """As `crypto.verify_password`.  Call it in a `turn`.  Raises ApiError (`busy`) when memory is short."""
        return await self._in_thread(lambda: crypto.verify_password(password, password_hash))

    def close(self) -> None:
        """End the threads; drop the hashes that have not begun."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        except (MemoryError, RuntimeError) as error:
            if not is_exhausted(error):
                raise
            raise refusal(
                "busy", "The service has no memory to spare: try again in a moment.", retry_after_s=2
            ) from error

    async def _wait(self, place: Place) -> None:
        """Wait for a thread, which is this one's from then on."""
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        out = self._queue.push(place, mine)
        if out is not None and not out.done():
            out.set_exception(_busy())
        try:
            await mine
        except asyncio.CancelledError:
            self._queue.discard(place, mine)
            if not mine.cancelled() and mine.exception() is None:  # it had just been this one's turn
                self._free()
            raise

    def _free(self) -> None:
        """Give the thread to the next one."""
        following = self._queue.pop()
        while following is not None and following.done():
            following = self._queue.pop()
        if following is None:
            self._busy -= 1
        else:
            following.set_result(None)


class KnownAddresses:
    """The networks from which a login succeeded within a day, 10,000 at most; time is an argument, in seconds."""

    def __init__(self) -> None:
        self._seen: OrderedDict[str, float] = OrderedDict()

    def add(self, network: str, now: float) -> None:
        self._seen[network] = now
        self._seen.move_to_end(network)
        if len(self._seen) > _KNOWN_MAX:
            self._seen.popitem(last=False)

    def place(self, network: str, now: float) -> Place:
        """Return where a login from this network waits that has no proof of a device."""
        known = now - self._seen.get(network, -_KNOWN_S) < _KNOWN_S
        return Place(Lane.ADDRESS if known else Lane.STRANGER, network)


def _busy() -> ApiError:
    return refusal("busy", "Too many people are logging in at once: try again in a moment.", retry_after_s=2)
