"""Writes the changes of a core into the state file: one transaction at a time, with all changes since the last one."""

import asyncio
from collections.abc import Callable

from meshim.client.events import Persist
from meshim.client.state import StateFile
from meshim.errors import ClientClosed, MeshimError


class Persister:
    """Group commit for one state file.  SQLite runs in a thread, so the event loop never waits for the disk."""

    def __init__(self, state: StateFile, lock: asyncio.Lock, on_persisted: Callable[[int], None]) -> None:
        """`on_persisted` gets the serial of the last Persist on disk; `lock` is held while the file is written."""
        self._state = state
        self._lock = lock
        self._on_persisted = on_persisted
        self._queue: list[Persist] = []
        self._wake_up = asyncio.Event()
        self._stopping = False
        self._added = self._written = 0
        """The serials of the last Persist that was added, and of the last that is on disk."""
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._error: MeshimError | None = None
        """Why nothing is written any more."""

    def add(self, action: Persist) -> None:
        """Put the changes of this action into the next transaction."""
        self._queue.append(action)
        self._added = action.serial
        self._wake_up.set()

    def stop(self) -> None:
        """Let `run` return once everything is on disk.

        Do not cancel `run` instead: a thread cannot be cancelled in the middle of a transaction.
        """
        self._stopping = True
        self._wake_up.set()

    async def run(self) -> None:
        """Write until `stop`.  Raises UsageError when the file cannot be written."""
        try:
            while not self._stopping or self._queue:
                self._wake_up.clear()
                if self._queue:
                    await self._write()
                elif not self._stopping:
                    await self._wake_up.wait()
        except MeshimError as error:
            self._error = error
            raise
        finally:
            self._error = self._error or ClientClosed("The client was closed before this was in its state file.")
            for _, future in self._waiting:
                if not future.done():
                    future.set_exception(self._error)
            self._waiting.clear()

    async def _write(self) -> None:
        actions, self._queue = self._queue, []
        changes = [change for action in actions for change in action.changes]
        async with self._lock:
            await asyncio.to_thread(self._state.apply, changes)
        self._written = actions[-1].serial
        self._on_persisted(self._written)
        for serial, future in self._waiting:
            if serial <= self._written and not future.done():
                future.set_result(None)
        self._waiting = [(serial, future) for serial, future in self._waiting if not future.done()]

    async def wait_persisted(self) -> None:
        """Wait until everything added so far is on disk.  Raises the error that prevents it."""
        if self._written < self._added:
            if self._error is not None:
                raise self._error
            future = asyncio.get_running_loop().create_future()
            self._waiting.append((self._added, future))
            await future
