"""The life cycle of a process: start, announce that it is ready, run until a signal, drain within a deadline.

::

    async with AsyncExitStack() as stack, Service("transfer", name, shutdown_s=...) as service:
        ...                                  # bind, connect; raise a MeshimError to give up
        service.watch(driver.failed)
        service.start(keeper.run())
        service.ready(router.endpoint)
        await service.stopping()             # SIGTERM or SIGINT
        ...                                  # drain

The order matters: background tasks end before the connections they use are closed.

Crash-only: a bug of ours anywhere (a core, a callback of the loop, a background task) ends the process with exit code
70 and without draining.  The promises hold under `kill -9`, so they hold here too.  What libraries leave to the loop (a
future of theirs that failed and was not awaited, a connection that broke in their callback, a task that was garbage) is
logged: a peer or a backend can cause it.
"""

import asyncio
import contextlib
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
from meshim.runtime.library_log import LibraryLog
from meshim.runtime.log import Log, get

EXIT_BUG = 70
"""EX_SOFTWARE of sysexits.h."""

_GARBAGE = 20_000
"""Threshold of the youngest generation of the garbage collector.  No message makes a cycle, and the default threshold
(700) costs 3 % of the CPU of a core."""
_DESCRIPTORS = 1 << 20
"""File descriptors to ask for.  A ROUTER at the limit spins, and the usual limit is 1,024."""
_CONNECTIONS_SHARE = 0.8
"""Of the descriptors, for connections from outside: without one left a process cannot even reach its backends."""
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Service:
    """Supervises one role in one process.  Enter it in the main task; `log` is the log of the role.

    Leaving the block cancels the background tasks.  It raises the first `MeshimError` of any task (the command prints
    its sentence), and `SystemExit(70)` for any other exception, after the traceback is printed.
    """

    def __init__(self, role: str, name: str, *, shutdown_s: float) -> None:
        self.log: Log = get(role, name)
        self._role = role
        self._name = name
        self._shutdown_s = shutdown_s
        self._stopping = asyncio.Event()
        self._background: set[asyncio.Task[None]] = set()
        self._failure: BaseException | None = None
        self._library_log = LibraryLog(self.log)

    async def __aenter__(self) -> Self:
        self._loop = asyncio.get_running_loop()
        self._main = asyncio.current_task()
        self._loop.set_exception_handler(self._on_loop_exception)
        self._library_log.__enter__()
        for number in _SIGNALS:
            self._loop.add_signal_handler(number, self._stop, number)
        raise_descriptor_limit()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._main = None  # later failures must not cancel the main task
        for task in self._background:
            task.cancel()
        if self._background:
            await asyncio.wait(self._background)
        self._loop.set_exception_handler(None)
        self._library_log.__exit__()
        for number in _SIGNALS:
            self._loop.remove_signal_handler(number)
        cause = self._failure or error
        if cause is None or isinstance(cause, asyncio.CancelledError | SystemExit):
            self.log.info("stopped")
            return
        if isinstance(cause, MeshimError):
            raise cause
        with contextlib.suppress(OSError):  # the disk under the log may be full: the exit code says it too
            traceback.print_exception(cause)
        self.log.error("crashed", error=repr(cause))
        raise SystemExit(EXIT_BUG) from cause

    def start(self, work: Coroutine[Any, Any, None], name: str | None = None) -> None:
        """Run `work` as a background task; an exception in it ends the process."""
        task = asyncio.create_task(work, name=name)
        self._background.add(task)
        task.add_done_callback(self._background.discard)
        self.watch(task)

    def watch(self, future: asyncio.Future[None]) -> None:
        """End the process when `future` gets an exception."""
        future.add_done_callback(self._on_done)

    def ready(self, endpoint: str) -> None:
        """Print `ready <role> <name> <endpoint>` on stdout: the process accepts connections from now on."""
        # Objects that exist by now live as long as the process: exclude them from full collections.
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
        # A thread also ends a process whose loop is blocked, or that waits for other threads after the loop.
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
        error = context.get("exception")
        if error is not None and _passed_through_meshim(error):
            self._fail(error)
            return
        place = traceback.extract_tb(error.__traceback__)[-1:] if error is not None else []
        self.log.error(
            "exception of a library in the event loop",
            message=context["message"],
            error=repr(error),
            at=f"{place[0].filename}:{place[0].lineno}" if place else "unknown",
        )

    def _fail(self, error: BaseException) -> None:
        if self._failure is None:  # the first failure is the cause, the others are its consequences
            self._failure = error
            if self._main is not None:
                self._main.cancel()
                self._set_deadline()


def _passed_through_meshim(error: BaseException) -> bool:
    """Whether code of meshim raised the exception, or called what raised it."""
    return any(
        str(frame.f_globals.get("__name__")).partition(".")[0] == "meshim"
        for frame, _ in traceback.walk_tb(error.__traceback__)
    )


def descriptors_for_connections() -> int | None:
    """Return how many descriptors the connections of this process may take; None when there is no limit.

    Files, backends and new sockets need the others.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else int(_CONNECTIONS_SHARE * soft)


def raise_descriptor_limit() -> None:
    """Raise the soft limit of descriptors to the hard limit; a connection takes one, a Dealer four."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
