"""Whether the service is ready: each backend answers, and those that store take writes.

Whether they answer is asked with each request, whether they store every `STORING_S` at most: a write of its own for
each request would let a monitor, or a stranger, keep the disk busy.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable

from meshim.errors import BackendUnavailable
from meshim.rest.backends import Backends
from meshim.wire import rest

STORING_S = 10.0
"""So old may the answer be whether a backend stores."""


class Readiness:
    """Asks the backends of one process."""

    def __init__(self, backends: Backends, clock: Callable[[], float] = time.monotonic) -> None:
        self._probes = backends.probes
        self._storing = {name: _Remembered(ask, clock) for name, ask in backends.storing.items()}

    async def ask(self) -> rest.Readiness:
        """Return what each backend answered; a backend is ready when it answers, and stores if that is its part."""
        found = {name: await self._ask(name, probe) for name, probe in self._probes.items()}
        return rest.Readiness(all(probe.ok for probe in found.values()), found)

    async def _ask(self, name: str, probe: Callable[[], Awaitable[object]]) -> rest.Probe:
        try:
            await probe()
        except BackendUnavailable as error:
            return rest.Probe(ok=False, reason=error.sentence)
        storing = self._storing.get(name)
        reason = await storing.reason() if storing is not None else ""
        return rest.Probe(ok=not reason, reason=reason)


class _Remembered:
    """The last answer to a question; many requests at once ask it once."""

    def __init__(self, ask: Callable[[], Awaitable[object]], clock: Callable[[], float]) -> None:
        self._ask = ask
        self._clock = clock
        self._asking = asyncio.Lock()
        self._asked_at: float | None = None
        self._reason = ""

    async def reason(self) -> str:
        """Return why the answer is no; empty when it is yes."""
        async with self._asking:
            now = self._clock()
            if self._asked_at is None or now - self._asked_at >= STORING_S:
                try:
                    await self._ask()
                except BackendUnavailable as error:
                    self._reason = error.sentence
                else:
                    self._reason = ""
                self._asked_at = now
        return self._reason
