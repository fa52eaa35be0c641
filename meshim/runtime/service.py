"""The life of a process: it comes up, says so, runs until it is told to stop, and leaves within a deadline.

::

    async with AsyncExitStack() as stack, Service("transfer", name, shutdown_s=...) as service:
        ...                                  # bind, connect; raise a MeshimError to give up
        service.watch(driver.failed)
        service.start(keeper.run())
        service.ready(router.endpoint)
        await service.stopping()             # SIGTERM or SIGINT
        ...                                  # drain

In this order: what runs in the background ends before what it uses is closed.

Crash-only: a bug anywhere (a core, a callback of the loop, a background task) ends the process
with exit code 70, without draining; the promises hold for `kill -9`, so they hold for this.
"""

import asyncio
import gc
import os
import resource
import signal
import sys
import threading
import traceback
from collections.abc import Coroutine
from types import TracebackType
from typing import Any, Self

from meshim import compiled
from meshim.errors import MeshimError
from meshim.runtime.log import Log, get

EXIT_BUG = 70
"""EX_SOFTWARE of sysexits.h."""

_GARBAGE = 20_000
"""Young objects before a search for cycles.  We make none with a message, and of 700 many are still in use: the usual
threshold costs 3 % of the work of a core."""
_DESCRIPTORS = 1 << 20
"""As many as we ask for.  A ROUTER at the limit spins, and the usual limit is 1,024."""
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Service:
    """Supervises one role in one process.  Enter it in the main task; `log` is the role's log.

    Leaving cancels what was started.  A `MeshimError` from anywhere leaves as itself (the command
    says its sentence), every other exception as `SystemExit(70)`, after its traceback was written.
    """

    def __init__(self, role: str, name: str, *, shutdown_s: float) -> None:
        self.log: Log = get(role, name)
        self._role = role
        self._name = name
        self._shutdown_s = shutdown_s
        self._stopping = asyncio.Event()
        self._background: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._main = asyncio.current_task()
        self._loop.set_exception_handler(self._on_loop_exception)
        for number in _SIGNALS:
            self._loop.add_signal_handler(number, self._stop, number)
        raise_descriptor_limit()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._main = None  # what fails from here on ends nothing else
        for task in self._background:
            task.cancel()
        if self._background:
            await asyncio.wait(self._background)
        self._loop.set_exception_handler(None)
        for number in _SIGNALS:
            self._loop.remove_signal_handler(number)
        cause = self._failure or error
        if cause is None or isinstance(cause, asyncio.CancelledError | SystemExit):
            self.log.info("stopped")
            return
        if isinstance(cause, MeshimError):
            raise cause
        traceback.print_exception(cause)
        self.log.error("crashed", error=repr(cause))
        raise SystemExit(EXIT_BUG) from cause

    def start(self, work: Coroutine[Any, Any, None], name: str | None = None) -> None:
        """Run `work` in the background; when it raises, the process ends."""
        task = asyncio.create_task(work, name=name)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        self.watch(task)

    def watch(self, future: asyncio.Future[None]) -> None:
        """End the process when `future` gets an exception."""
        future.add_done_callback(self._on_done)

    def ready(self, endpoint: str) -> None:
        """Announce on stdout that others can come: `ready <role> <name> <endpoint>`."""
        # What was loaded until now stays: a full collection need not look at it.
        gc.collect()
        gc.freeze()
        gc.set_threshold(_GARBAGE)
        sys.stdout.write(f"ready {self._role} {self._name} {endpoint}\n")
        sys.stdout.flush()
        self.log.info("ready", endpoint=endpoint, compiled=compiled.used())

    async def stopping(self) -> None:
        """Wait for SIGTERM or SIGINT."""
        await self._stopping.wait()

    def _stop(self, number: signal.Signals) -> None:
        if self._stopping.is_set():
            return
        self.log.info("stopping", signal=number.name)
        self._stopping.set()
        self._set_deadline()

    def _set_deadline(self) -> None:
        # A thread, so that it ends also what blocks the loop, and what waits for threads after the loop.
        deadline = threading.Timer(self._shutdown_s, self._overdue)
        deadline.daemon = True
        deadline.start()

    def _overdue(self) -> None:
        self.log.error("shutdown took too long", limit_s=self._shutdown_s)
        os._exit(EXIT_BUG)

    def _on_done(self, future: asyncio.Future[None]) -> None:
        if not future.cancelled() and (error := future.exception()) is not None:
            self._fail(error)

    def _on_loop_exception(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self._fail(context.get("exception") or RuntimeError(context["message"]))

    def _fail(self, error: BaseException) -> None:
        if self._failure is None:  # the first one is the cause, the others its consequences
            self._failure = error
            if self._main is not None:
                self._main.cancel()
                self._set_deadline()


def raise_descriptor_limit() -> None:
    """Allow this process as many descriptors as it may have; a connection takes one, a Dealer four."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
