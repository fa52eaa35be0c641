"""Devices of the client library: their first login, and the outcomes in their state files."""

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import TypeVar

from meshim.client.identity import Identity
from meshim.client.rest import Api
from meshim.client.session import Credentials, Session
from meshim.client.state import StateFile
from scripts.harness.history.format import SETTLED

Item = TypeVar("Item")


async def log_in_device(api: Api, credentials: Credentials, state_file: Path) -> Identity:
    """Log a device in for the first time, so that the mesh knows it; return its identity."""
    state = await asyncio.to_thread(StateFile, state_file)
    try:
        return await Session(api, state, credentials).open()
    finally:
        await asyncio.to_thread(state.close)


def final_outcomes(state_file: Path, envelopes: Iterable[str]) -> dict[str, str]:
    """Return the final outcome in a state file, if there is one, of each envelope (ids in hexadecimal)."""
    with closing(sqlite3.connect(f"file:{state_file}?mode=ro", uri=True)) as outbox:
        states = dict(outbox.execute("SELECT lower(hex(id)), state FROM outbox WHERE state <> 'pending'"))
    return {each: states[each] for each in envelopes if states.get(each) in (*SETTLED, "rejected")}


async def for_each(items: Iterable[Item], do: Callable[[Item], Awaitable[None]], at_a_time: int) -> None:
    """Await `do` for every item, at most `at_a_time` at once.  Raises errors as an ExceptionGroup."""
    todo = iter(list(items))

    async def work() -> None:
        for item in todo:
            await do(item)

    async with asyncio.TaskGroup() as workers:
        for _ in range(at_a_time):
            workers.create_task(work())
