"""Drives a core: passes events in, performs the actions that come out, keeps one timer.

::

    def on_batch(batch):                      # called by a socket, a task, anything on the loop
        driver.receive(FramesArrived(batch))

Cores have no I/O and no clock, so one driver serves all of them, in processes and in the simulation.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

Event_contra = TypeVar("Event_contra", contravariant=True)
Action_co = TypeVar("Action_co", covariant=True)
Event = TypeVar("Event")
Action = TypeVar("Action")

_EVENTS_WAITING = 100_000
"""Events that may wait while an action is performed.  More means that actions cause events without end: a bug."""
_LEAST_DELAY_S = 0.001
"""uvloop rounds timers to milliseconds: never ask it for less than one."""


class Core(Protocol[Event_contra, Action_co]):
    """The part of a role that decides, without I/O.  Times are seconds of a monotonic clock."""

    def receive(self, event: Event_contra, now: float) -> Sequence[Action_co]:
        """Return the actions that `event` causes, in the order in which to perform them."""

    def tick(self, now: float) -> Sequence[Action_co]:
        """Return the actions that are due at `now`; none when nothing is due."""

    def next_deadline(self) -> float | None:
        """Return when to call `tick` at the latest; None while no timer is needed."""


class Driver(Generic[Event, Action]):
    """Runs one core.

    An exception of the core or of `perform` is a bug of ours.  The state cannot be trusted afterwards, so the driver
    stops, and `failed` gets the exception; `Service.watch` then ends the process.
    """

    def __init__(
        self,
        core: Core[Event, Action],
        perform: Callable[[Action], None],
        clock: Callable[[], float] | None = None,
    ) -> None:
        """`perform` must not block; it may call `receive`.  `clock` returns seconds, by default those of the loop."""
        self._loop = asyncio.get_running_loop()
        self._core = core
        self._perform = perform
        self._clock = clock or self._loop.time
        self._waiting: deque[Event] = deque()
        self._running = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._caught_up: asyncio.Future[None] | None = None
        self.failed: asyncio.Future[None] = self._loop.create_future()
        self._run()  # a core may have deadlines from the start

    def receive(self, event: Event) -> None:
        """Pass an event to the core.  From within `perform` it waits until the actions before it are done."""
        if self.failed.done():
            return
        self._waiting.append(event)
        if not self._running:
            self._run()

    def stop(self) -> None:
        """Stop for good: ignore later events and cancel the timer."""
        self.failed.cancel()
        self._waiting.clear()
        self._cancel_timer()

    async def until(self, condition: Callable[[], bool], within_s: float) -> bool:
        """Wait until `condition` holds after a batch of events; return False when `within_s` seconds pass first."""
        deadline = self._loop.time() + within_s
        while not condition():
            if self._caught_up is None or self._caught_up.done():
                self._caught_up = self._loop.create_future()
            done, _ = await asyncio.wait([self._caught_up], timeout=deadline - self._loop.time())
            if not done:
                return condition()
        return True

    def _run(self) -> None:
        self._running = True
        try:
            while self._waiting and not self.failed.done():
                assert len(self._waiting) < _EVENTS_WAITING, "actions cause events without end"
                event = self._waiting.popleft()
                self._perform_all(self._core.receive(event, self._clock()))
            if not self.failed.done():
                self._set_timer(self._core.next_deadline())
        except Exception as error:  # noqa: BLE001  # not swallowed: `failed` ends the process
            self._fail(error)
        finally:
            self._running = False
        if self._caught_up is not None and not self._caught_up.done():
            self._caught_up.set_result(None)

    def _perform_all(self, actions: Sequence[Action]) -> None:
        perform = self._perform
        for action in actions:
            perform(action)

    def _on_timer(self) -> None:
        self._timer = None
        self._running = True
        try:
            now = self._clock()
            deadline = self._core.next_deadline()
            if deadline is not None and deadline <= now:
                self._perform_all(self._core.tick(now))
        except Exception as error:  # noqa: BLE001  # as above
            self._fail(error)
        self._run()

    def _set_timer(self, deadline: float | None) -> None:
        # A timer that fires too early is set again: cheaper than a new timer with every batch.
        if deadline is None or (self._timer is not None and self._timer_at <= deadline):
            return
        self._cancel_timer()
        self._timer_at = deadline
        self._timer = self._loop.call_later(max(deadline - self._clock(), _LEAST_DELAY_S), self._on_timer)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _fail(self, error: Exception) -> None:
        self._waiting.clear()
        self._cancel_timer()
        if not self.failed.done():
            self.failed.set_exception(error)
