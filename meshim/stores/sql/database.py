"""The client of one SQL database: transactions in a bounded number of threads.

The drivers block, so every transaction runs in one of a few threads.  Only a limited number of calls may wait for a
thread; further calls fail at once.  Reads and writes have separate threads, so that a write that waits for a lock
delays no read.

SQLite has one lock for the writers of all processes, and syncs the disk at each commit.  So on SQLite a process writes
in one thread, and the writes that arrive while it is busy share the next transaction (docs/adr/0011).
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
from meshim.runtime.exhaustion import is_exhausted
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
_SHARING_MAX = 64
"""Writes in one shared transaction: the first of them waits for the last."""


class DatabaseStatistics(msgspec.Struct):
    """Counters of one client since its start."""

    transactions: int = 0
    """Transactions begun, `retries` included."""
    retries: int = 0
    """Transactions begun again after a deadlock, a lock timeout or a duplicate key."""
    failures: int = 0
    """Transactions that ended because the database was not available."""
    refused: int = 0
    """Calls that failed because too many others waited for a thread, or none could be started."""


class _Threads:
    """A thread pool with a bounded queue."""

    def __init__(self, count: int, waiting: int, name: str) -> None:
        self.pool = ThreadPoolExecutor(count, name)
        self.room = threading.Semaphore(count + waiting)

    def close(self) -> None:
        self.pool.shutdown(cancel_futures=True)


class _Write(NamedTuple):
    """A write that waits for the next shared transaction."""

    work: Callable[[Connection], Any]
    future: "Future[Any]"


class Database:
    """Runs transactions, each given as a function of a connection and further arguments.

    A function may run more than once; what an earlier run did is rolled back before.  If the function raises, its own
    changes are rolled back: the transaction, or its savepoint in a shared transaction.
    """

    def __init__(self, url: str, threads: int) -> None:
        """Open nothing yet.  `threads` bounds reads and writes each.  Raises `UsageError` for an unsupported URL."""
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
        """Run `work`, which only reads, on one snapshot; return its result.  Raises `BackendUnavailable`."""
        return await self._submit(
            self._reading,
            lambda: self._reading.pool.submit(
                self._run, self._snapshots, lambda connection: work(connection, *arguments)
            ),
        )

    async def write(self, work: Callable[[Connection, *Arguments], T], *arguments: *Arguments) -> T:
        """Run `work` and commit; return its result.

        Raises `BackendUnavailable`: then `work` may or may not be committed.
        """
        return await self._submit(
            self._writing, lambda: self._submit_write(lambda connection: work(connection, *arguments))
        )

    async def close(self) -> None:
        """Wait for running transactions, which the timeouts of the driver bound, and disconnect."""
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
        try:
            future = start()
        except RuntimeError as error:
            threads.room.release()
            if not is_exhausted(error):
                raise
            self._count(refused=1)
            raise BackendUnavailable(
                f"No thread can be started for the database ({error}); try again later."
            ) from error
        # The caller may be cancelled; the thread is free only when its transaction ends.
        future.add_done_callback(lambda _: threads.room.release())
        return await asyncio.wrap_future(future)

    def _submit_write(self, work: Callable[[Connection], T]) -> "Future[T]":
        if not self._shares:
            return self._writing.pool.submit(self._run, self._engine, work)
        write = _Write(work, Future())
        self._sharing.append(write)
        self._writing.pool.submit(self._run_shared)  # does nothing if an earlier one included this write
        return write.future

    def _run(self, engine: Engine, work: Callable[[Connection], T]) -> T:
        attempt = 1
        while True:
            self._count(transactions=1)
            try:
                with engine.begin() as connection:
                    result = work(connection)
                    check_transaction(connection)  # the commit of an ended transaction would succeed too
                    return result
            except SQLAlchemyError as error:
                if attempt < _ATTEMPTS and isinstance(error, DBAPIError) and is_contention(error):
                    self._count(retries=1)
                elif is_unavailable(error):
                    self._count(failures=1)
                    raise BackendUnavailable(f"The database is not available: {driver_message(error)}.") from error
                else:
                    raise
            time.sleep(_RETRY_DELAY_S * attempt)  # lets the conflicting transaction finish
            attempt += 1

    # ---- writes that share a transaction

    def _run_shared(self) -> None:
        """Run the waiting writes in one transaction; their futures get no result before it is committed."""
        writes: list[_Write] = []
        while self._sharing and len(writes) < _SHARING_MAX:
            write = self._sharing.popleft()
            if write.future.set_running_or_notify_cancel():
                writes.append(write)
        if not writes:
            return
        try:
            results = self._run(self._engine, lambda connection: _each(connection, writes))
        except Exception as error:  # noqa: BLE001  # not swallowed: every future gets it
            results = [error] if len(writes) == 1 else _copies(error, len(writes))
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
    """Return the result or the exception of each write.  A write that raises is rolled back alone.

    Raises when the database is not available: then all of them fail.
    """
    if len(writes) == 1:
        return [writes[0].work(connection)]
    return [_nested(connection, write.work) for write in writes]


def _nested(connection: Connection, work: Callable[[Connection], Any]) -> Any:
    """Run `work` in a savepoint; return its result or its exception.

    Raises when the whole transaction is lost.  The savepoint is not rolled back then: it may be gone with the
    transaction, and that error would hide the cause.
    """
    savepoint = connection.begin_nested()
    try:
        result = work(connection)
    except Exception as error:  # not swallowed: the future of this write gets it
        if isinstance(error, SQLAlchemyError) and is_unavailable(error):
            raise
        check_transaction(connection)
        savepoint.rollback()
        return error
    check_transaction(connection)
    savepoint.commit()
    return result


def _copies(error: Exception, count: int) -> list[Exception]:
    """Return one exception per write of a shared transaction that failed: one raised twice would mix its traces."""
    sentence = error.sentence if isinstance(error, BackendUnavailable) else f"The database refused a commit: {error}."
    copies: list[Exception] = [BackendUnavailable(sentence) for _ in range(count)]
    for each in copies:
        each.__cause__ = error
    return copies
