"""One clock, one source of randomness, one order of everything that happens.

A `World` is a heap of what happens when.  A `Process` is what an operating system makes of a program: a clock of
its own, an event loop of its own, and a life that ends without a word.  The program in it is the real one, asyncio and
all: its loop only takes from the world what time it is and when to run.

::

    RUNNING ──pause──▶ PAUSED      nothing runs, whatever arrives and whatever is due waits (SIGSTOP)
       │    ◀──resume──   │
       └──────kill────────┴──▶ DEAD     nothing runs ever again, no `finally` either (SIGKILL)
"""

import asyncio
import contextvars
import enum
import heapq
import random
from collections import deque
from collections.abc import Callable, Coroutine, Generator
from typing import Any, TypeVar

T = TypeVar("T")

WALL_S = 1_700_000_000.0
"""What the clocks of walls show at the start."""
_HANDLES_MOST = 1_000_000
"""More than a process ever runs in one instant: beyond it is an endless loop."""
_FAREWELLS_MOST = 20
"""How often something that is called off may want to do something else first."""


class World:
    """Everything that is simulated.  `bugs` are exceptions that no code of meshim raises on purpose."""

    def __init__(self, seed: object) -> None:
        self.now = 0.0
        self.random = random.Random(str(seed))
        self.bugs: list[str] = []
        self.processes: list[Process] = []
        """All that ever were: what was killed in the middle of something stays there, in the middle of it."""
        self.woken: deque[Process] = deque()
        """Processes that have something to do at this instant, one after the other."""
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def after(self, seconds: float, do: Callable[[], None]) -> None:
        """Call `do` so many seconds from now."""
        self._count += 1
        heapq.heappush(self._heap, (self.now + seconds, self._count, do))

    def run(self, until: float) -> None:
        """Let everything happen up to a time; returns early when there is a bug."""
        heap, woken = self._heap, self.woken
        while heap and heap[0][0] <= until and not self.bugs:
            self.now, _, do = heapq.heappop(heap)
            do()
            while woken:
                woken.popleft().turn()
        self.now = max(self.now, until)

    def close(self) -> None:
        """Forget all processes, wherever they are."""
        for process in self.processes:
            process.dead_letter()
        self.processes.clear()
        self._heap.clear()


class Life(enum.Enum):
    RUNNING = enum.auto()
    PAUSED = enum.auto()
    DEAD = enum.auto()


class Process:
    """One process.  `rate` is how fast its clock runs, `wall_s` by how much its clock on the wall is wrong."""

    def __init__(self, world: World, name: str, *, rate: float = 1.0, wall_s: float = 0.0) -> None:
        self.world = world
        self.name = name
        self.life = Life.RUNNING
        self.wall_s = wall_s
        self.paused_at = 0.0
        self.on_end: Callable[[], None] = lambda: None
        """Called when it has ended, however."""
        self.loop = Loop(self)  # type: ignore[abstract]  # what meshim does not use is not there
        self._rate = rate
        self._ready: deque[asyncio.Handle] = deque()
        self._awake = False
        world.processes.append(self)

    # ---- what happens to it

    def run(self, main: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Run a program in it; the process ends when that returns."""
        self.loop.call_soon(lambda: self.loop.create_task(main()).add_done_callback(self._returned))

    def _returned(self, task: "asyncio.Future[None]") -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            self.fail(error)
        self.kill()

    def kill(self) -> None:
        """kill -9, or the end."""
        if self.life is not Life.DEAD:
            self.life = Life.DEAD
            self._ready.clear()
            self.on_end()

    def pause(self) -> None:
        if self.life is Life.RUNNING:
            self.life = Life.PAUSED
            self.paused_at = self.world.now

    def resume(self) -> None:
        if self.life is Life.PAUSED:
            self.life = Life.RUNNING
            self._wake()

    def dead_letter(self) -> None:
        """Call off all that it was doing, also when it was killed in the middle: nobody looks any more."""
        self.life = Life.RUNNING
        self.on_end = lambda: None
        for _ in range(_FAREWELLS_MOST):
            if not self.loop.cancel():
                return
            self.turn()

    def fail(self, error: BaseException) -> None:
        """Something was raised that nobody caught: a bug of ours."""
        where = error.__traceback__
        while where is not None and where.tb_next is not None:
            where = where.tb_next
        line = "" if where is None else f" at {where.tb_frame.f_code.co_filename}:{where.tb_lineno}"
        self.world.bugs.append(f"{self.name}: {error!r}{line}")

    @property
    def alive(self) -> bool:
        return self.life is not Life.DEAD

    @property
    def running(self) -> bool:
        return self.life is Life.RUNNING

    # ---- its clocks

    def time(self) -> float:
        """Of its monotonic clock."""
        return self.world.now * self._rate

    def wall(self) -> float:
        """Seconds since 1970, as this process believes."""
        return WALL_S + self.world.now + self.wall_s

    # ---- its loop

    def add(self, handle: asyncio.Handle, in_s: float = 0.0) -> None:
        """Run a handle so many seconds of its clock from now."""
        if in_s > 0.0:
            self.world.after(in_s / self._rate, lambda: self.add(handle))
        elif self.life is not Life.DEAD and not handle.cancelled():
            self._ready.append(handle)
            self._wake()

    def _wake(self) -> None:
        if not self._awake and self.life is Life.RUNNING and self._ready:
            self._awake = True
            self.world.woken.append(self)

    def turn(self) -> None:
        """Do everything that is to do at this instant."""
        self._awake = False
        if self.life is not Life.RUNNING:
            return
        ready = self._ready
        asyncio._set_running_loop(self.loop)
        try:
            for _ in range(_HANDLES_MOST):
                if not ready or self.life is not Life.RUNNING:
                    return
                handle = ready.popleft()
                if not handle.cancelled():
                    handle._run()
            raise AssertionError(f"{self.name} is in an endless loop")
        finally:
            asyncio._set_running_loop(None)


class Loop(asyncio.AbstractEventLoop):
    """As much of an event loop as meshim uses."""

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
        """It is passed over when it is due."""

    def create_future(self) -> "asyncio.Future[Any]":
        return asyncio.Future(loop=self)

    def create_task(  # type: ignore[override]  # no context, no factory
        self, coro: "Coroutine[Any, Any, T] | Generator[Any, None, T]", *, name: str | None = None
    ) -> "asyncio.Task[T]":
        task: asyncio.Task[T] = asyncio.Task(coro, loop=self, name=name)
        task._log_destroy_pending = False  # type: ignore[attr-defined]  # a process that is killed leaves them behind
        self._tasks.append(task)
        if len(self._tasks) > 512:
            self._tasks = [each for each in self._tasks if not each.done()]
        return task

    def run_in_executor(  # type: ignore[override]  # any arguments
        self, executor: object, function: Callable[..., T], *args: Any
    ) -> "asyncio.Future[T]":
        """A thread, which takes as long as a disk: killed before that, it has done nothing."""
        future: asyncio.Future[T] = self.create_future()
        random = self.process.world.random

        def work() -> None:
            result = function(*args)
            self.call_later(random.uniform(0.0001, 0.002), settle, future, result)

        self.call_later(random.uniform(0.0005, 0.01), work)
        return future

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.process.fail(context.get("exception") or RuntimeError(context["message"]))

    def cancel(self) -> bool:
        """Call off every task; whether there was any."""
        self._tasks = [task for task in self._tasks if not task.done()]
        for task in self._tasks:
            task.cancel()
        return bool(self._tasks)


def settle(future: "asyncio.Future[T]", result: T) -> None:
    """Set the result, unless somebody has called it off."""
    if not future.done():
        future.set_result(result)


def current() -> Process:
    """The process that runs now."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, Loop)
    return loop.process
