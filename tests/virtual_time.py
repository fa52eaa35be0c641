"""An event loop whose clock jumps to the next timer: an hour passes in a millisecond, the same way each time."""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


class _Jump(selectors.DefaultSelector):
    """Never sleeps: what it is asked to wait, it adds to the clock."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "everybody waits for something that no timer will bring about"
            self.now += max(0.0, timeout)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """Its clock starts at 0."""

    def __init__(self) -> None:
        self._jump = _Jump()
        super().__init__(self._jump)

    def time(self) -> float:
        return self._jump.now

    def skip(self, seconds: float) -> None:
        """Let time pass in which nothing runs, as in a process that is stopped."""
        self._jump.now += seconds


def run(main: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
    """Run `main` on a VirtualLoop."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main())
