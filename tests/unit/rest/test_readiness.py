"""Readiness: what was stored is asked rarely, and again when the answer is old."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, cast

from meshim.errors import BackendUnavailable, StorageFailed
from meshim.rest.backends import Backends
from meshim.rest.readiness import STORING_S, Readiness


class Backend:
    """A backend that answers or not, and stores or not."""

    def __init__(self) -> None:
        self.away = self.full = False
        self.asked = 0
        self.now = 0.0

    async def answers(self) -> None:
        if self.away:
            raise BackendUnavailable("NATS is away.")

    async def stores(self) -> None:
        self.asked += 1
        if self.full:
            raise StorageFailed("NATS is full.")

    def readiness(self) -> Readiness:
        none = cast("Any", None)
        probes: Mapping[str, Callable[[], Awaitable[object]]] = {"nats": self.answers}
        storing: Mapping[str, Callable[[], Awaitable[object]]] = {"nats": self.stores}
        backends = Backends(none, none, none, none, none, probes=probes, storing=storing)
        return Readiness(backends, lambda: self.now)


async def test_an_old_answer_is_asked_for_again() -> None:
    backend = Backend()
    readiness = backend.readiness()
    assert (await readiness.ask()).ready
    backend.full = True
    backend.now = STORING_S - 0.1
    assert (await readiness.ask()).ready
    assert backend.asked == 1
    backend.now = STORING_S
    found = await readiness.ask()
    assert (found.ready, found.backends["nats"].reason) == (False, "NATS is full.")
    backend.full = False
    backend.now = 2 * STORING_S
    assert (await readiness.ask()).ready


async def test_a_backend_that_does_not_answer_is_not_asked_whether_it_stores() -> None:
    backend = Backend()
    backend.away = True
    found = await backend.readiness().ask()
    assert (found.ready, found.backends["nats"].reason, backend.asked) == (False, "NATS is away.", 0)
