"""An event loop on virtual time: its clock jumps to the next timer, so that an hour passes in a millisecond."""

import asyncio
import selectors
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


class _VirtualSelector(selectors.DefaultSelector):
    """Never sleeps: adds the timeout of `select` to the clock instead."""

    now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            assert timeout is not None, "every task waits, and there is no timer"
            self.now += max(0.0, timeout)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """Its clock starts at 0 s."""

    def __init__(self) -> None:
        self._virtual_selector = _VirtualSelector()
        super().__init__(self._virtual_selector)

    def time(self) -> float:
        return self._virtual_selector.now

    def skip(self, seconds: float) -> None:
        """Let time pass in which nothing runs, as in a stopped process."""
        self._virtual_selector.now += seconds


def run(main: Callable[[], Coroutine[Any, Any, Result]]) -> Result:
    """Run `main` on a `VirtualLoop`; return its result."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main())
