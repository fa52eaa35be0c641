"""`RedisClient`: its calls can be cancelled at any moment."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from meshim.stores.redis.client import RedisClient
from tests.contract.redis.backends import LOG

_TURNS = 60
"""Iterations of the event loop: more than two commands take."""


@pytest.mark.parametrize("by", ["command", "script"])
async def test_a_loop_of_commands_ends_when_it_is_cancelled(valkey_url: str, by: str) -> None:
    """In any iteration of the event loop: `asyncio.wait_for` in redis-py swallows some cancellations."""
    client = RedisClient(valkey_url, LOG)
    script = client.script("return 1")
    commands: dict[str, Callable[[], Awaitable[object]]] = {
        "command": lambda: client.execute("PING"),
        "script": lambda: script([]),
    }

    enough = False

    async def loop() -> None:
        while not enough:
            await commands[by]()

    await commands[by]()
    for turns in range(_TURNS):
        task = asyncio.create_task(loop())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        _, goes_on = await asyncio.wait([task], timeout=2.0)
        enough = bool(goes_on)
        assert not goes_on, f"although it was cancelled in turn {turns}"
    await client.close()


async def test_a_command_after_a_cancellation_gets_its_own_answer(valkey_url: str) -> None:
    client = RedisClient(valkey_url, LOG)
    answers: list[object] = []

    async def work() -> None:
        try:
            await asyncio.sleep(60.0)
        finally:
            answers.append(await client.execute("PING"))

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task], timeout=2.0)
    assert task.cancelled()
    assert answers == [True]
    await client.close()
