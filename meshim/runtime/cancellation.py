"""Being cancelled while a library waits that keeps the cancellation to itself."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


async def cancellable(work: Awaitable[T]) -> T:
    """What `work` gives; raises CancelledError when this task was cancelled meanwhile, also if `work` swallowed that.

    `asyncio.wait_for` does before Python 3.12, when what it waits for ends in the same turn of the loop.  redis-py
    sends every command with it: a loop around commands would go on for ever, and whoever waits for its end too.
    """
    task = asyncio.current_task()
    assert task is not None
    before = task.cancelling()  # more than 0 in what is done behind a cancellation, such as giving a lease back
    result = await work
    if task.cancelling() > before:
        raise asyncio.CancelledError
    return result
