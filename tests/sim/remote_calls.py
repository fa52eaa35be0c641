"""Calls from a simulated process to a server: they travel over a network that fails as a real one does.

What a server acknowledged it keeps.  A call that raised may have happened or not: its request was lost, or only the
answer, or the server was stopped and does the work later, when the caller has given up.
"""

import enum
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from meshim.errors import BackendUnavailable, MeshimError
from tests.sim.scheduler import WALL_S, Process, Scheduler, current

RECONNECT_S = 0.2
"""How long subscribers take to connect again to a server that was away."""


class ServerState(enum.Enum):
    UP = enum.auto()
    AWAY = enum.auto()
    """It refuses connections."""
    STALLED = enum.auto()
    """It is stopped: it does the work of all calls that arrive when it goes on."""


class Server:
    """One server.  `wall_s` is the error of its wall clock in seconds."""

    def __init__(self, scheduler: Scheduler, name: str, delay_s: tuple[float, float], timeout_s: float) -> None:
        """`delay_s` is the minimum and maximum of one way; callers give up after `timeout_s`."""
        self.scheduler = scheduler
        self.name = name
        self.state = ServerState.UP
        self.wall_s = 0.0
        self.loss = 0.0
        """Share of requests, and of answers, that are lost."""
        self.slow = 0.0
        """Share of requests whose work takes up to `timeout_s` / 4, as on a busy disk."""
        self.unreachable: set[str] = set()
        """Names of processes that cannot reach it."""
        self.caller: Process | None = None
        """The process whose call it is working on."""
        self.on_failure: Callable[[str], None] = lambda what: None
        """Called with the name of each call that failed because the server was away or did not answer."""
        self._delay_s = delay_s
        self._timeout_s = timeout_s
        self._waiting: list[Callable[[], None]] = []
        self._up_since = -RECONNECT_S

    def clock(self) -> float:
        """Seconds since 1970."""
        return WALL_S + self.scheduler.now + self.wall_s

    def resume(self) -> None:
        """Answer again, the calls that wait first."""
        if self.state is ServerState.AWAY:
            self._up_since = self.scheduler.now
        self.state = ServerState.UP
        waiting, self._waiting = self._waiting, []
        for work in waiting:
            work()

    async def call(self, what: str, work: Callable[[], Any]) -> Any:
        """Travel to the server, do `work` there, and travel back.

        Returns what `work` returns; raises what it raises, and BackendUnavailable.
        """
        process = current()
        loop = process.loop
        answer = loop.create_future()
        self.scheduler.after(self._travel(), lambda: self._arrived(process, what, work, answer))
        timeout = loop.call_later(self._timeout_s, self._give_up, what, answer)
        try:
            return await answer
        finally:
            timeout.cancel()

    def push(
        self, process: Process, receive: Callable[[], None], lost: Callable[[], None] = lambda: None
    ) -> None:  # fmt: skip
        """Push a message to a subscriber.

        It is lost if the subscriber cannot reach the server, or has had less than `RECONNECT_S` to connect again.
        """

        def arrive() -> None:
            connected = self.state is ServerState.UP and self.scheduler.now - self._up_since >= RECONNECT_S
            if process.alive:
                (receive if connected and process.name not in self.unreachable else lost)()

        self.scheduler.after(self._travel(), arrive)

    def _travel(self) -> float:
        return self.scheduler.random.uniform(*self._delay_s)

    def _lost(self) -> bool:
        return self.loss > 0 and self.scheduler.random.random() < self.loss

    def _give_up(self, what: str, answer: Any) -> None:
        if not answer.done():
            self.on_failure(what)
            answer.set_exception(BackendUnavailable(f"{self.name} does not answer"))

    def _arrived(self, process: Process, what: str, work: Callable[[], Any], answer: Any) -> None:
        if self.state is ServerState.STALLED:
            self._waiting.append(lambda: self._arrived(process, what, work, answer))
        elif self.state is ServerState.AWAY:
            self.scheduler.after(self._travel(), lambda: self._give_up(what, answer))
        elif process.name not in self.unreachable and not self._lost():
            slow = self.slow > 0 and self.scheduler.random.random() < self.slow
            wait_s = self.scheduler.random.uniform(0.0, self._timeout_s / 4) if slow else 0.0
            self.scheduler.after(wait_s, lambda: self._work(process, work, answer))

    def _work(self, process: Process, work: Callable[[], Any], answer: Any) -> None:
        if self.state is ServerState.STALLED:
            self._waiting.append(lambda: self._work(process, work, answer))
            return
        if self.state is ServerState.AWAY:
            return  # it was killed before it did the work
        self.caller = process
        result: Any = None
        failure: MeshimError | None = None
        try:
            result = work()
        except MeshimError as error:
            failure = error
        except Exception as error:  # noqa: BLE001  # not swallowed: the scheduler stops with it as a bug
            process.fail(error)
        finally:
            self.caller = None
        if not self._lost():
            self.scheduler.after(self._travel(), lambda: _answer(process, answer, result, failure))


def _answer(process: Process, answer: Any, result: Any, failure: MeshimError | None) -> None:
    if not process.alive or answer.done():
        return
    if failure is not None:
        answer.set_exception(failure)
    else:
        answer.set_result(result)


def result_of(work: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine that never suspends; return its result."""
    try:
        work.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("a store in memory suspended")


class Remote:
    """A port on a server: each call travels there, is done in one step, and travels back."""

    def __init__(self, server: Server, port: object, *, local: Sequence[str] = ()) -> None:
        """Calls in `local` do not travel: subscriptions."""
        self._server = server
        self._port = port
        self._local = local

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._port, name)
        if name in self._local:
            return method
        server = self._server

        async def call(*arguments: Any, **named: Any) -> Any:
            return await server.call(name, lambda: result_of(method(*arguments, **named)))

        return call
