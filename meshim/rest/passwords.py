"""Hashing passwords beside the event loop: each takes 27 ms of one core and 19 MiB, so how many at once is bounded."""

import asyncio
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from meshim.rest.core import refusal
from meshim.runtime import crypto

_THREADS_MAX = 4
_WAITING_MAX = 512
"""Seven seconds of work on two cores: whoever is behind that would not wait for the answer."""
_T = TypeVar("_T")


class Passwords:
    """Hashes and checks passwords in threads; Argon2 lets go of the interpreter while it works."""

    def __init__(self) -> None:
        threads = min(_THREADS_MAX, os.cpu_count() or 1)
        self._pool = ThreadPoolExecutor(threads, "passwords")
        self._bulk = asyncio.Semaphore(threads)
        self._waiting = 0

    async def hash(self, password: str) -> str:
        """Return a PHC string; raise ApiError (`busy`) when too many wait already."""
        return await self._run(lambda: crypto.hash_password(password))

    async def hash_all(self, passwords: Sequence[str]) -> list[str]:
        """Hash many, on all cores, yet so that a login never waits behind more than a few of them."""

        async def one(password: str) -> str:
            async with self._bulk:
                return await self.hash(password)

        return await asyncio.gather(*map(one, passwords))

    async def verify(self, password: str, password_hash: str | None) -> bool:
        """As `crypto.verify_password`; raise ApiError (`busy`) when too many wait already."""
        return await self._run(lambda: crypto.verify_password(password, password_hash))

    def close(self) -> None:
        """End the threads; what has not begun is dropped."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _run(self, work: Callable[[], _T]) -> _T:
        if self._waiting >= _WAITING_MAX:
            raise refusal("busy", "Too many people are logging in at once: try again in a moment.", retry_after_s=2)
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._pool, work)
        finally:
            self._waiting -= 1
