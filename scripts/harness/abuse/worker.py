"""Processes that make the load of a measurement, so that neither they nor what measures wait for the other."""

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

from meshim.errors import MeshimError

END_S = 30.0
"""A process has so long to answer, and to end."""


@asynccontextmanager
async def worker(body: Callable[..., None], *arguments: object) -> AsyncIterator[Connection]:
    """Run a function in a new process; yield the connection to it, which is its first argument there."""
    spawning = get_context("spawn")
    ours, theirs = spawning.Pipe()
    process = spawning.Process(target=body, args=(theirs, *arguments), daemon=True)
    await asyncio.to_thread(process.start)
    theirs.close()
    try:
        yield ours
    finally:
        process.terminate()
        await asyncio.to_thread(process.join)
        process.close()
        ours.close()


async def receive(process: Connection, within_s: float = END_S) -> Any:
    """Return the next object from a process.  Raises MeshimError when it ends, or sends none in time."""
    if not await asyncio.to_thread(process.poll, within_s):
        raise MeshimError("A process of this measurement did not answer: is the machine busy?")
    try:
        return process.recv()
    except EOFError:
        raise MeshimError("A process of this measurement ended by itself: its last words are above.") from None


@contextmanager
def progress(what: str) -> Iterator[None]:
    """Say on stderr what is done, and how long it took."""
    began = time.monotonic()
    print(f"bounds: {what} ...", file=sys.stderr, flush=True)
    yield
    print(f"bounds: {what}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
