"""A discrete-event scheduler: one virtual clock, one source of randomness, one order of all events.

A `Scheduler` is a heap of callbacks by virtual time.  A `Process` stands for a process of the operating system: it has
a clock and an event loop of its own, and can be stopped or killed between any two callbacks.  The program in it is the
real asyncio code; its loop takes from the scheduler only the time and when to run.

::

    RUNNING ──pause──▶ PAUSED      nothing runs; frames and timers wait (SIGSTOP)
       │    ◀──resume──   │
       └──────kill────────┴──▶ DEAD     nothing runs again, not even a `finally` (SIGKILL)
"""

import asyncio
import contextvars
import enum
import heapq
import random
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, TypeAlias, TypeVar

T = TypeVar("T")

WALL_S = 1_700_000_000.0
"""The wall-clock time at the start of a run, in seconds since 1970."""
Connect: TypeAlias = "Callable[[Process, Callable[[], asyncio.Protocol], str], Awaitable[None]]"
_HANDLES_MOST = 1_000_000
"""Callbacks of one process at one instant; more than that is an endless loop."""
_CANCEL_ROUNDS_MOST = 20
"""Rounds of cancellation at the end of a run: a cancelled task may await once more in its `finally`."""


class Scheduler:
    """The clock, the randomness and the callbacks of one run.  `bugs` are exceptions that no code of meshim handles."""

    def __init__(self, seed: object) -> None:
        self.now = 0.0
        self.random = random.Random(str(seed))
        self.bugs: list[str] = []
        self.processes: list[Process] = []
        """All processes of the run, dead ones too: their tasks stay suspended where they were killed, until `close`."""
        self.woken: deque[Process] = deque()
        """Processes that have callbacks to run at this instant, in order."""
        self._heap: list[tuple[float, int, Callable[[], object]]] = []
        self._count = 0

    def after(self, seconds: float, do: Callable[[], object]) -> None:
        """Call `do` that many virtual seconds from now."""
        self._count += 1
        heapq.heappush(self._heap, (self.now + seconds, self._count, do))

    def run(self, until: float) -> None:
        """Run all callbacks up to a time; return early after a bug."""
        heap, woken = self._heap, self.woken
        while heap and heap[0][0] <= until and not self.bugs:
            self.now, _, do = heapq.heappop(heap)
            do()
            while woken:
                woken.popleft().run_ready()
        self.now = max(self.now, until)

    def close(self) -> None:
        """Cancel the tasks of all processes, and forget the processes."""
        for process in self.processes:
            process.cancel_all()
        self.processes.clear()
        self._heap.clear()


class ProcessState(enum.Enum):
    RUNNING = enum.auto()
    PAUSED = enum.auto()
    DEAD = enum.auto()


class Process:
    """One process.  `rate` is the speed of its monotonic clock, `wall_s` the error of its wall clock in seconds."""

    def __init__(self, scheduler: Scheduler, name: str, *, rate: float = 1.0, wall_s: float = 0.0) -> None:
        self.scheduler = scheduler
        self.name = name
        self.state = ProcessState.RUNNING
        self.wall_s = wall_s
        self.paused_at = 0.0
        self.on_end: Callable[[], None] = lambda: None
        """Called after it ended, by itself or by `kill`."""
        self.loop = Loop(self)  # type: ignore[abstract]  # methods that meshim does not use are missing
        self._rate = rate
        self._ready: deque[asyncio.Handle] = deque()
        self._awake = False
        self.connect: Connect | None = None
        """Makes the connections of `Loop.create_connection`."""
        scheduler.processes.append(self)

    # ---- start, stop, end

    def run(self, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run a program in the process, which ends when the program returns."""
        self.loop.call_soon(lambda: self.loop.create_task(main()).add_done_callback(self._returned))

    def _returned(self, task: "asyncio.Future[None]") -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.fail(error)
        self.kill()

    def kill(self) -> None:
        """End the process, as kill -9 does."""
        if self.state is not ProcessState.DEAD:
            self.state = ProcessState.DEAD
            self._ready.clear()
            self.on_end()

    def pause(self) -> None:
        if self.state is ProcessState.RUNNING:
            self.state = ProcessState.PAUSED
            self.paused_at = self.scheduler.now

    def resume(self) -> None:
        if self.state is ProcessState.PAUSED:
            self.state = ProcessState.RUNNING
            self._wake()

    def cancel_all(self) -> None:
        """Cancel all its tasks, also of a killed process, so that the run leaves no pending task behind."""
        self.state = ProcessState.RUNNING
        self.on_end = lambda: None
        for _ in range(_CANCEL_ROUNDS_MOST):
            if not self.loop.cancel():
                return
            self.run_ready()

    def fail(self, error: BaseException) -> None:
        """Record an exception that nothing caught as a bug."""
        where = error.__traceback__
        while where is not None and where.tb_next is not None:
            where = where.tb_next
        line = "" if where is None else f" at {where.tb_frame.f_code.co_filename}:{where.tb_lineno}"
        self.scheduler.bugs.append(f"{self.name}: {error!r}{line}")

    @property
    def alive(self) -> bool:
        return self.state is not ProcessState.DEAD

    @property
    def running(self) -> bool:
        return self.state is ProcessState.RUNNING

    # ---- its clocks

    def time(self) -> float:
        """Its monotonic clock in seconds."""
        return self.scheduler.now * self._rate

    def wall(self) -> float:
        """Its wall clock: seconds since 1970."""
        return WALL_S + self.scheduler.now + self.wall_s

    # ---- its loop

    def add(self, handle: asyncio.Handle, in_s: float = 0.0) -> None:
        """Run a handle that many seconds of the clock of this process from now."""
        if in_s > 0.0:
            self.scheduler.after(in_s / self._rate, lambda: self.add(handle))
        elif self.state is not ProcessState.DEAD and not handle.cancelled():
            self._ready.append(handle)
            self._wake()

    def _wake(self) -> None:
        if not self._awake and self.state is ProcessState.RUNNING and self._ready:
            self._awake = True
            self.scheduler.woken.append(self)

    def run_ready(self) -> None:
        """Run all callbacks that are ready at this instant."""
        self._awake = False
        if self.state is not ProcessState.RUNNING:
            return
        ready = self._ready
        asyncio._set_running_loop(self.loop)
        try:
            for _ in range(_HANDLES_MOST):
                if not ready or self.state is not ProcessState.RUNNING:
                    return
                handle = ready.popleft()
                if not handle.cancelled():
                    handle._run()
            raise AssertionError(f"{self.name} is in an endless loop")
        finally:
            asyncio._set_running_loop(None)


class Loop(asyncio.AbstractEventLoop):
    """The part of an asyncio event loop that meshim uses."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self._tasks: list[asyncio.Task[Any]] = []

    def time(self) -> float:
        return self.process.time()

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return not self.process.alive

    def call_soon(  # type: ignore[override]  # any arguments
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self.process.add(handle)
        return handle

    call_soon_threadsafe = call_soon  # type: ignore[assignment]  # there is one thread

    def call_at(  # type: ignore[override]  # any arguments
        self, when: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        self.process.add(handle, max(when - self.time(), 1e-9))
        return handle

    def call_later(  # type: ignore[override]  # any arguments
        self, delay: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """`Process.add` drops a cancelled handle when it is due."""

    def create_future(self) -> "asyncio.Future[Any]":
        return asyncio.Future(loop=self)

    def create_task(  # type: ignore[override]  # no context, no factory
        self, coro: "Coroutine[Any, Any, T] | Generator[Any, None, T]", *, name: str | None = None
    ) -> "asyncio.Task[T]":
        task: asyncio.Task[T] = asyncio.Task(coro, loop=self, name=name)
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # a killed process leaves its tasks pending
        self._tasks.append(task)
        if len(self._tasks) > 512:
            self._tasks = [each for each in self._tasks if not each.done()]
        return task

    def run_in_executor(  # type: ignore[override]  # any arguments
        self, executor: object, function: Callable[..., T], *args: Any
    ) -> "asyncio.Future[T]":
        """Run a function as in a thread, after the delay of a disk; a process killed before that has not run it."""
        future: asyncio.Future[T] = self.create_future()
        random = self.process.scheduler.random

        def work() -> None:
            result = function(*args)
            self.call_later(random.uniform(0.0001, 0.002), settle, future, result)

        self.call_later(random.uniform(0.0005, 0.01), work)
        return future

    async def create_server(  # type: ignore[override]  # a socket that the caller has made, and no TLS
        self, protocol_factory: Callable[[], asyncio.Protocol], *, sock: Any, ssl: None, **_: object
    ) -> Any:
        sock.listen(protocol_factory)
        return sock

    async def create_connection(  # type: ignore[override]  # its caller needs no result
        self, protocol_factory: Callable[[], asyncio.Protocol], host: str, port: int, *, ssl: None
    ) -> None:
        assert self.process.connect is not None, "this process has no network"
        await self.process.connect(self.process, protocol_factory, host)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.process.fail(context.get("exception") or RuntimeError(context["message"]))

    def cancel(self) -> bool:
        """Cancel every task; return whether there was one."""
        self._tasks = [task for task in self._tasks if not task.done()]
        for task in self._tasks:
            task.cancel()
        return bool(self._tasks)


def settle(future: "asyncio.Future[T]", result: T) -> None:
    """Set the result, unless the future is done or cancelled."""
    if not future.done():
        future.set_result(result)


def current() -> Process:
    """The process whose callback runs now."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, Loop)
    return loop.process
