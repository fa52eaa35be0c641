"""A time limit for calls of a backend (R8): a database that hangs counts as away, long before its driver gives up."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from meshim.errors import BackendUnavailable

T = TypeVar("T")


async def with_timeout(work: Awaitable[T], within_s: float) -> T:
    """Return what `work` returns.

    Raises BackendUnavailable after `within_s` seconds; the work may have been done or not.
    """
    try:
        async with asyncio.timeout(within_s):
            return await work
    except TimeoutError:
        raise BackendUnavailable("The database takes too long.") from None
