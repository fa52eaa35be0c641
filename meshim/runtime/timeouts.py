"""R8: a database that hangs is away, long before the driver gives it up."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

from meshim.errors import BackendUnavailable

T = TypeVar("T")


async def with_timeout(work: Awaitable[T], within_s: float) -> T:
    """What `work` gives; raises BackendUnavailable when that takes longer, and then it may happen or not."""
    try:
        async with asyncio.timeout(within_s):
            return await work
    except TimeoutError:
        raise BackendUnavailable("The database takes too long.") from None
