"""Cancellation that survives libraries which swallow it."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


async def cancellable(work: Awaitable[T]) -> T:
    """Return or raise what `work` does; raises CancelledError if this task was cancelled, even if `work` swallowed it.

    Before Python 3.12, `asyncio.wait_for` swallows a cancellation when the awaited future ends or fails in the same
    iteration of the loop.  redis-py sends every command with it, so a loop that retries failed commands would never
    end, and neither would a task that waits for that loop.
    """
    task = asyncio.current_task()
    assert task is not None
    before = task.cancelling()  # above 0 in clean-up after a cancellation, such as the release of a lease
    try:
        result = await work
    except Exception as error:
        if task.cancelling() > before:
            raise asyncio.CancelledError from error
        raise
    if task.cancelling() > before:
        raise asyncio.CancelledError
    return result
