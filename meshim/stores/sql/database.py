"""The database: one SQL database, and the bounded threads that talk to it.

The drivers block, so every transaction runs in one of a few threads, and only so many may
wait for one: beyond that callers are told at once that the database is busy.  Reads and writes have threads of
their own, so that a write that waits for a lock keeps no read waiting.

SQLite has one lock for all writers of all processes, and syncs the disk at each commit: there a process writes in one
thread, and what came while that was busy shares the next transaction (docs/adr/0011).
"""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar, TypeVarTuple

import msgspec
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from meshim.errors import BackendUnavailable
from meshim.stores.sql.engine import (
    SNAPSHOT,
    check_transaction,
    create,
    driver_message,
    is_contention,
    is_sqlite,
    is_unavailable,
)

Arguments = TypeVarTuple("Arguments")
T = TypeVar("T")

_WAITING_PER_THREAD = 64
_ATTEMPTS = 4
_RETRY_DELAY_S = 0.01
_SHARING = 64
"""Writes that share a transaction at most: the first of them waits for the last."""


class DatabaseStatistics(msgspec.Struct):
    """Counters of one client since its start."""

    transactions: int = 0
    """Transactions begun, `retries` included."""
    retries: int = 0
    """Transactions begun again after a deadlock, a lock timeout or a duplicate key."""
    failures: int = 0
    """Transactions that ended because the database was not available."""
    refused: int = 0
    """Calls that found too many others waiting for a thread."""


class _Threads:
    """Some threads, and how many may wait for one."""

    def __init__(self, count: int, waiting: int, name: str) -> None:
        self.pool = ThreadPoolExecutor(count, name)
        self.room = threading.Semaphore(count + waiting)

    def close(self) -> None:
        self.pool.shutdown(cancel_futures=True)


class _Write(NamedTuple):
    """A write that waits for a transaction to share."""

    work: Callable[[Connection], Any]
    future: "Future[Any]"


class Database:
    """Runs transactions, each given as a function of a connection and further arguments.

    A function may run more than once, and each time nothing is left of the time before.  It may raise to roll back what
    it did itself, which is a transaction or, where several share one, a savepoint.
    """

    def __init__(self, url: str, threads: int) -> None:
        """Opens nothing yet.  Raises `UsageError` for a URL of another kind of database."""
        self.statistics = DatabaseStatistics()
        self._shares = is_sqlite(url)
        writers = 1 if self._shares else threads
        self._engine = create(url, threads + writers)
        self._snapshots = self._engine.execution_options(**{SNAPSHOT: True})
        waiting = threads * _WAITING_PER_THREAD
        self._reading = _Threads(threads, waiting, "sql-read")
        self._writing = _Threads(writers, waiting, "sql-write")
        self._sharing: deque[_Write] = deque()
        self._counting = threading.Lock()
        self._closed = False

    async def read(self, work: Callable[[Connection, *Arguments], T], *arguments: *Arguments) -> T:
        """Run `work`, which only reads: all it reads belongs to one state.  Raises `BackendUnavailable`."""
        return await self._submit(
            self._reading,
            lambda: self._reading.pool.submit(
                self._run, self._snapshots, lambda connection: work(connection, *arguments)
            ),
        )

    async def write(self, work: Callable[[Connection, *Arguments], T], *arguments: *Arguments) -> T:
        """Run `work` and commit.  Raises `BackendUnavailable`: then it may or may not have happened."""
        return await self._submit(
            self._writing, lambda: self._submit_write(lambda connection: work(connection, *arguments))
        )

    async def close(self) -> None:
        """Wait for what is running, which takes no longer than the timeouts of the driver, and disconnect."""
        self._closed = True
        for write in list(self._sharing):
            write.future.cancel()
        await asyncio.gather(*(asyncio.to_thread(threads.close) for threads in (self._reading, self._writing)))
        self._engine.dispose()

    async def _submit(self, threads: _Threads, start: "Callable[[], Future[T]]") -> T:
        if self._closed:
            raise BackendUnavailable("The connection to the database was closed.")
        if not threads.room.acquire(blocking=False):
            self._count(refused=1)
            raise BackendUnavailable("Too much is waiting for the database; try again later.")
        future = start()
        # Whoever waits may be cancelled; the thread is free only when it returns.
        future.add_done_callback(lambda _: threads.room.release())
        return await asyncio.wrap_future(future)

    def _submit_write(self, work: Callable[[Connection], T]) -> "Future[T]":
        if not self._shares:
            return self._writing.pool.submit(self._run, self._engine, work)
        write = _Write(work, Future())
        self._sharing.append(write)
        self._writing.pool.submit(self._run_shared)  # finds nothing to do if an earlier one took this write along
        return write.future

    def _run(self, engine: Engine, work: Callable[[Connection], T]) -> T:
        attempt = 1
        while True:
            self._count(transactions=1)
            try:
                with engine.begin() as connection:
                    result = work(connection)
                    check_transaction(connection)  # a commit of nothing succeeds too
                    return result
            except SQLAlchemyError as error:
                if attempt < _ATTEMPTS and isinstance(error, DBAPIError) and is_contention(error):
                    self._count(retries=1)
                elif is_unavailable(error):
                    self._count(failures=1)
                    raise BackendUnavailable(f"The database is not available: {driver_message(error)}.") from error
                else:
                    raise
            time.sleep(_RETRY_DELAY_S * attempt)  # lets whom we ran into finish
            attempt += 1

    # ---- writes that share a transaction

    def _run_shared(self) -> None:
        """Write what waits, in one transaction; nobody is told anything before it is committed."""
        writes: list[_Write] = []
        while self._sharing and len(writes) < _SHARING:
            write = self._sharing.popleft()
            if write.future.set_running_or_notify_cancel():
                writes.append(write)
        if not writes:
            return
        try:
            results = self._run(self._engine, lambda connection: _each(connection, writes))
        except Exception as error:  # noqa: BLE001  # not swallowed: everybody who waits is told
            results = [error] if len(writes) == 1 else _together(error, len(writes))
        for write, result in zip(writes, results, strict=True):
            if isinstance(result, Exception):
                write.future.set_exception(result)
            else:
                write.future.set_result(result)

    def _count(self, transactions: int = 0, retries: int = 0, failures: int = 0, refused: int = 0) -> None:
        with self._counting:
            self.statistics.transactions += transactions
            self.statistics.retries += retries
            self.statistics.failures += failures
            self.statistics.refused += refused


def _each(connection: Connection, writes: list[_Write]) -> list[Any]:
    """What each of them returns or raises.  What raises leaves nothing; without the database all of them fail."""
    if len(writes) == 1:
        return [writes[0].work(connection)]
    return [_nested(connection, write.work) for write in writes]


def _nested(connection: Connection, work: Callable[[Connection], Any]) -> Any:
    """What `work` returns or raises, in a savepoint.  Raises itself when nothing in the transaction will be stored.

    The savepoint is left alone then: it may be gone with the transaction, and the error that says so would hide why.
    """
    savepoint = connection.begin_nested()
    try:
        result = work(connection)
    except Exception as error:  # not swallowed: who asked for this write is told
        if isinstance(error, SQLAlchemyError) and is_unavailable(error):
            raise
        check_transaction(connection)
        savepoint.rollback()
        return error
    check_transaction(connection)
    savepoint.commit()
    return result


def _together(error: Exception, count: int) -> list[Exception]:
    """What ended a transaction that was shared, as an exception for each: raised twice, one would mix its traces."""
    sentence = error.sentence if isinstance(error, BackendUnavailable) else f"The database refused a commit: {error}."
    told: list[Exception] = [BackendUnavailable(sentence) for _ in range(count)]
    for each in told:
        each.__cause__ = error
    return told
