"""The one shape of every shell: events go into a core, what it decides is performed, one timer is kept.

::

    def on_batch(batch):                      # called by a socket, a task, anything on the loop
        driver.receive(FramesArrived(batch))

A core is pure, so that everything here is the same for all of them and for the simulator.
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
"""More than ever wait while an action is performed: beyond it is an endless exchange with itself."""
_LEAST_DELAY_S = 0.001
"""uvloop counts milliseconds, and rounds: never ask it for less."""


class Core(Protocol[Event_contra, Action_co]):
    """What decides.  Times are seconds of a monotonic clock."""

    def receive(self, event: Event_contra, now: float) -> Sequence[Action_co]:
        """What to do about `event`, in this order."""

    def tick(self, now: float) -> Sequence[Action_co]:
        """What to do because time has passed; nothing when nothing is due."""

    def next_deadline(self) -> float | None:
        """When to call `tick` at the latest."""


class Driver(Generic[Event, Action]):
    """Turns a core.  `failed` gets the exception of a core or of `perform`, after which nothing is done any more:

    that is a bug of ours, the state cannot be trusted, and the process has to end (`Service.watch` does that).
    """

    def __init__(
        self,
        core: Core[Event, Action],
        perform: Callable[[Action], None],
        clock: Callable[[], float] | None = None,
    ) -> None:
        """`perform` must not wait; it may call `receive`.  `clock` is the running loop's by default."""
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
        """Hand over an event; from within `perform` it waits until the actions before it are done."""
        if self.failed.done():
            return
        self._waiting.append(event)
        if not self._running:
            self._run()

    def stop(self) -> None:
        """Do nothing any more, at no time."""
        self.failed.cancel()
        self._waiting.clear()
        self._cancel_timer()

    async def until(self, condition: Callable[[], bool], within_s: float) -> bool:
        """Wait until what a turn left behind meets `condition`; False when that takes longer than `within_s`."""
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
        except Exception as error:  # noqa: BLE001  # not swallowed: whoever awaits `failed` ends the process
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
        # An alarm that rings too early looks again: cheaper than setting a new one with every batch.
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
