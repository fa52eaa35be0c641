"""The archive: one SQL database, and the bounded threads that talk to it.

The drivers block, so every transaction runs in one of a few threads, and only so many may
wait for one: beyond that callers are told at once that the database is busy.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar, TypeVarTuple

from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from meshim.errors import BackendUnavailable
from meshim.stores.engine import SNAPSHOT, create, is_contention, is_unavailable, reason

Arguments = TypeVarTuple("Arguments")
T = TypeVar("T")

_WAITING_PER_THREAD = 64
_ATTEMPTS = 4
_RETRY_DELAY_S = 0.01


class ArchiveStatistics(NamedTuple):
    """Counts since the start.

    `transactions` were begun, `retries` of them after a deadlock or the like; `failures` ended
    because the database was not available; `refused` found too many waiting for a thread.
    """

    transactions: int
    retries: int
    failures: int
    refused: int


class Archive:
    """Runs transactions, each given as a function of a connection and further arguments.

    A function may run more than once, each time in a transaction of its own; it may raise to roll back.
    """

    def __init__(self, url: str, threads: int) -> None:
        """Opens nothing yet.  Raises `UsageError` for a URL of another kind of database."""
        self._engine = create(url, threads)
        self._snapshots = self._engine.execution_options(**{SNAPSHOT: True})
        self._threads = ThreadPoolExecutor(threads, "archive")
        self._room = threading.Semaphore(threads * (1 + _WAITING_PER_THREAD))
        self._counting = threading.Lock()
        self._statistics = ArchiveStatistics(0, 0, 0, 0)
        self._closed = False

    async def read(self, work: Callable[[Connection, *Arguments], T], *arguments: *Arguments) -> T:
        """Run `work`, which only reads: all it reads belongs to one state.  Raises `BackendUnavailable`."""
        return await self._submit(self._snapshots, lambda connection: work(connection, *arguments))

    async def write(self, work: Callable[[Connection, *Arguments], T], *arguments: *Arguments) -> T:
        """Run `work` and commit.  Raises `BackendUnavailable`: then it may or may not have happened."""
        return await self._submit(self._engine, lambda connection: work(connection, *arguments))

    def statistics(self) -> ArchiveStatistics:
        return self._statistics

    async def close(self) -> None:
        """Wait for what is running, which takes no longer than the timeouts of the driver, and disconnect."""
        self._closed = True
        await asyncio.to_thread(self._threads.shutdown, cancel_futures=True)
        self._engine.dispose()

    async def _submit(self, engine: Engine, work: Callable[[Connection], T]) -> T:
        if self._closed:
            raise BackendUnavailable("The connection to the database was closed.")
        if not self._room.acquire(blocking=False):
            self._count(refused=1)
            raise BackendUnavailable("Too much is waiting for the database; try again later.")
        future = self._threads.submit(self._run, engine, work)
        # Whoever waits may be cancelled; the thread is free only when it returns.
        future.add_done_callback(lambda _: self._room.release())
        return await asyncio.wrap_future(future)

    def _run(self, engine: Engine, work: Callable[[Connection], T]) -> T:
        attempt = 1
        while True:
            self._count(transactions=1)
            try:
                with engine.begin() as connection:
                    return work(connection)
            except SQLAlchemyError as error:
                if attempt < _ATTEMPTS and isinstance(error, DBAPIError) and is_contention(error):
                    self._count(retries=1)
                elif is_unavailable(error):
                    self._count(failures=1)
                    raise BackendUnavailable(f"The database is not available: {reason(error)}.") from error
                else:
                    raise
            time.sleep(_RETRY_DELAY_S * attempt)  # lets whom we ran into finish
            attempt += 1

    def _count(self, transactions: int = 0, retries: int = 0, failures: int = 0, refused: int = 0) -> None:
        with self._counting:
            had = self._statistics
            self._statistics = ArchiveStatistics(
                had.transactions + transactions, had.retries + retries, had.failures + failures, had.refused + refused
            )
