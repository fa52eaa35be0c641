"""The watchdog restarts a server that has stopped storing: with room on its disk, and not again and again."""

import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshim.deploy.storage_watchdog import ROOM_BYTES, RestartPolicy, StorageWatchdog, free_bytes_of
from meshim.errors import BackendUnavailable, StorageFailed
from meshim.runtime.log import Log

FULL = StorageFailed("NATS refuses to store.")


class Server:
    """A server that fails, or not, and a disk with some room."""

    def __init__(self) -> None:
        self.error: BackendUnavailable | None = None
        self.free_bytes = 0
        self.restarted: list[float] = []
        self.now = 0.0
        self.log = io.StringIO()
        self.watchdog = StorageWatchdog(
            self._check, self._restart, Path(), Log("backend", "nats", self.log), lambda _: self.free_bytes
        )

    async def _check(self) -> None:
        if self.error is not None:
            raise self.error

    async def _restart(self) -> None:
        self.restarted.append(self.now)

    async def watch(self, until: float) -> None:
        while self.now < until:
            self.now += 5.0
            await self.watchdog.check(self.now)

    @property
    def events(self) -> list[str]:
        return [line.split()[4] for line in self.log.getvalue().splitlines()]


async def test_it_waits_for_room_and_restarts_once() -> None:
    server = Server()
    server.error = FULL
    await server.watch(until=100.0)
    assert (server.restarted, server.events) == ([], ["does-not-store"])
    server.free_bytes = ROOM_BYTES
    await server.watch(until=105.0)
    server.error = None
    await server.watch(until=200.0)
    assert server.restarted == [105.0]
    assert server.watchdog.restarts == 1
    assert server.events == ["does-not-store", "restarts-because-it-does-not-store", "stores-again"]


async def test_a_server_that_does_not_answer_is_left_alone() -> None:
    server = Server()
    server.error, server.free_bytes = BackendUnavailable("It starts."), ROOM_BYTES
    await server.watch(until=100.0)
    assert (server.restarted, server.events) == ([], [])


async def test_restarts_that_do_not_help_become_rare() -> None:
    server = Server()
    server.error, server.free_bytes = FULL, ROOM_BYTES
    await server.watch(until=3_600.0)
    pauses = [after - before for before, after in zip(server.restarted, server.restarted[1:], strict=False)]
    assert pauses[:6] == [10.0, 20.0, 40.0, 80.0, 160.0, 300.0]
    assert set(pauses[6:]) == {300.0}
    assert server.events.count("does-not-store") == 1


@given(st.lists(st.tuples(st.floats(0.1, 60.0), st.sampled_from(["works", "fails", "full"])), max_size=60))
def test_restarts_need_room_and_are_never_close(steps: list[tuple[float, str]]) -> None:
    policy, now, last = RestartPolicy(), 0.0, None
    for pause_s, what in steps:
        now += pause_s
        if what == "works":
            policy.works(now)
        elif policy.restarts(now, room=what == "fails"):
            assert what == "fails"
            assert last is None or now - last >= 10.0
            last = now


def test_room_is_what_this_user_may_take(tmp_path: Path) -> None:
    assert free_bytes_of(tmp_path) > 0
    assert free_bytes_of(tmp_path / "missing") == 0


@pytest.mark.parametrize(("free_bytes", "restarts"), [(ROOM_BYTES - 1, 0), (ROOM_BYTES, 1)])
async def test_how_much_room_is_enough(free_bytes: int, restarts: int) -> None:
    server = Server()
    server.error, server.free_bytes = FULL, free_bytes
    await server.watch(until=5.0)
    assert len(server.restarted) == restarts
