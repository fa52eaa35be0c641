"""Being cancelled while a library waits that keeps the cancellation to itself."""

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")


async def cancellable(work: Awaitable[T]) -> T:
    """What `work` gives or raises; CancelledError when this task was cancelled meanwhile, even if `work` swallowed it.

    `asyncio.wait_for` does before Python 3.12, when what it waits for ends or fails in the same turn of the loop.
    redis-py sends every command with it: a loop around commands that takes failures would go on for ever, and whoever
    waits for its end too.
    """
    task = asyncio.current_task()
    assert task is not None
    before = task.cancelling()  # more than 0 in what is done behind a cancellation, such as giving a lease back
    try:
        result = await work
    except Exception as error:
        if task.cancelling() > before:
            raise asyncio.CancelledError from error
        raise
    if task.cancelling() > before:
        raise asyncio.CancelledError
    return result
