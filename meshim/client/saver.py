"""Writes what the core wants kept: one transaction at a time, while the next one gathers."""

import asyncio
from collections.abc import Callable

from meshim.client.events import Save
from meshim.client.state import StateFile
from meshim.errors import ClientClosed, MeshimError


class Saver:
    """Between a core and its state file."""

    def __init__(self, state: StateFile, lock: asyncio.Lock, on_saved: Callable[[int], None]) -> None:
        """`on_saved` is told the serial of the last Save that is on disk."""
        self._state = state
        self._lock = lock
        self._on_saved = on_saved
        self._gathered: list[Save] = []
        self._due = asyncio.Event()
        self._stopping = False
        self._added = self._saved = 0
        self._waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._ended: MeshimError | None = None
        """Why nothing is written any more."""

    def add(self, save: Save) -> None:
        self._gathered.append(save)
        self._added = save.serial
        self._due.set()

    def stop(self) -> None:
        """Let `run` return once everything is on disk.  Do not cancel it: nothing ends a thread in mid-transaction."""
        self._stopping = True
        self._due.set()

    async def run(self) -> None:
        """Write until `stop`.  Raises UsageError when the file cannot be written."""
        try:
            while not self._stopping or self._gathered:
                self._due.clear()
                if self._gathered:
                    await self._write()
                elif not self._stopping:
                    await self._due.wait()
        except MeshimError as error:
            self._ended = error
            raise
        finally:
            self._ended = self._ended or ClientClosed("the client was closed before this was in its state file")
            for _, future in self._waiting:
                if not future.done():
                    future.set_exception(self._ended)
            self._waiting.clear()

    async def _write(self) -> None:
        saves, self._gathered = self._gathered, []
        changes = [change for save in saves for change in save.changes]
        async with self._lock:
            await asyncio.to_thread(self._state.apply, changes)
        self._saved = saves[-1].serial
        self._on_saved(self._saved)
        for serial, future in self._waiting:
            if serial <= self._saved and not future.done():
                future.set_result(None)
        self._waiting = [(serial, future) for serial, future in self._waiting if not future.done()]

    async def saved(self) -> None:
        """Wait until everything that was added so far is on disk.  Raises why it will not be."""
        if self._saved < self._added:
            if self._ended is not None:
                raise self._ended
            future = asyncio.get_running_loop().create_future()
            self._waiting.append((self._added, future))
            await future
