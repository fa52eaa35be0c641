"""Hashes passwords beside the event loop.  A hash takes 27 ms of one core and 19 MiB, so their number is bounded."""

import asyncio
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from meshim.rest.core import refusal
from meshim.runtime import crypto
from meshim.runtime.exhaustion import is_exhausted

_THREADS_MAX = 4
_QUEUED_MAX = 512
"""Seven seconds of work on two cores: a client further back would have given up before its answer."""
_T = TypeVar("_T")


class Passwords:
    """Hashes and verifies passwords in threads: Argon2 releases the interpreter lock while it works."""

    def __init__(self) -> None:
        threads = min(_THREADS_MAX, os.cpu_count() or 1)
        self._pool = ThreadPoolExecutor(threads, "passwords")
        self._bulk = asyncio.Semaphore(threads)
        self._queued = 0

    async def hash(self, password: str) -> str:
        """Return a PHC string.  Raises ApiError (`busy`) when 512 requests are queued already, or memory is short."""
        return await self._run(lambda: crypto.hash_password(password))

    async def hash_all(self, passwords: Sequence[str]) -> list[str]:
        """Hash many passwords, one at a time per thread, so that a login waits behind a few of them only."""

        async def one(password: str) -> str:
            async with self._bulk:
                return await self.hash(password)

        return await asyncio.gather(*map(one, passwords))

    async def verify(self, password: str, password_hash: str | None) -> bool:
        """As `crypto.verify_password`.  Raises ApiError (`busy`) as `hash`."""
        return await self._run(lambda: crypto.verify_password(password, password_hash))

    def close(self) -> None:
        """End the threads; drop the hashes that have not begun."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _run(self, work: Callable[[], _T]) -> _T:
        if self._queued >= _QUEUED_MAX:
            raise refusal("busy", "Too many people are logging in at once: try again in a moment.", retry_after_s=2)
        self._queued += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        except (MemoryError, RuntimeError) as error:
            if not is_exhausted(error):
                raise
            raise refusal(
                "busy", "The service has no memory to spare: try again in a moment.", retry_after_s=2
            ) from error
        finally:
            self._queued -= 1
