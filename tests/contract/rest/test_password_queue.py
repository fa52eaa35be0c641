"""A flood of wrong passwords: who waits for whom, and what is refused."""

import asyncio
import threading
from collections.abc import Iterator

import msgspec
import pytest

from meshim.rest.admission.password_queue import ROOM, Lane
from meshim.runtime import crypto
from tests.contract.rest.world import PASSWORD, World

DEADLINE_S = 20.0


class Gate:
    """Stops every check of a password until it is opened, and notes the order in which they are made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.checked: list[str] = []
        self._open = threading.Event()
        self._verify = crypto.verify_password
        monkeypatch.setattr(crypto, "verify_password", self._stopped)

    def _stopped(self, password: str, password_hash: str | None) -> bool:
        assert self._open.wait(6 * DEADLINE_S)
        self.checked.append(password)
        return self._verify(password, password_hash)

    def open(self) -> None:
        self._open.set()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(monkeypatch)
    yield gate
    gate.open()


def waiting(world: World) -> int:
    return len(world.passwords._queue)


async def until_waiting(world: World, count: int) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while waiting(world) < count:
            await asyncio.sleep(0.01)


async def guess(world: World, number: int, addresses: int, password: str = "guess") -> int:
    async with world.raw(f"10.0.{number % addresses}.1") as http:
        return (await http.post("/v1/login", json={"name": f"user{number}", "password": password})).status_code


async def test_a_flood_of_guesses_delays_no_known_device_and_no_known_address(world: World, gate: Gate) -> None:
    """A6: 600 wrong logins under way had a right one wait for 17 s."""
    limits = msgspec.structs.replace(world.topology.limits, login_failures_per_address=1000)
    world.topology = msgspec.structs.replace(world.topology, limits=limits)
    world.app = world.build()
    gate.open()
    api = world.api()
    await api.register("alice", PASSWORD)
    known = await api.login("alice", PASSWORD, "phone", 1)
    gate._open.clear()
    gate.checked.clear()
    flood = [asyncio.create_task(guess(world, number, 200)) for number in range(600)]
    checked = ROOM[Lane.STRANGER] + world.passwords._threads
    async with asyncio.timeout(DEADLINE_S):
        while sum(task.done() for task in flood) < len(flood) - checked:
            await asyncio.sleep(0.01)
    assert waiting(world) == ROOM[Lane.STRANGER]
    assert world.app.state.statistics.refused == {"busy": len(flood) - checked}, "none waits for the database"
    async with world.raw("10.9.9.9") as elsewhere:
        body = {"name": "alice", "password": PASSWORD}
        device = asyncio.create_task(
            elsewhere.post("/v1/login", json={**body, "device": "phone", "epoch": 1, "proof": known.proof})
        )
        await until_waiting(world, ROOM[Lane.STRANGER] + 1)
        address = asyncio.create_task(api.login("alice", PASSWORD))
        await until_waiting(world, ROOM[Lane.STRANGER] + 2)
        gate.open()
        assert (await device).status_code == 200
        assert (await address).name == "alice"
    at = [index for index, password in enumerate(gate.checked) if password == PASSWORD]
    assert len(at) == 2
    assert max(at) <= 4 + world.passwords._threads, "those that were being checked, and one turn of each lane"
    statuses = await asyncio.gather(*flood)
    assert (statuses.count(401), statuses.count(503)) == (checked, 600 - checked)


async def test_a_full_queue_is_answered_with_503_and_an_address_with_fewer_gets_in(world: World, gate: Gate) -> None:
    limits = msgspec.structs.replace(world.topology.limits, login_failures_per_address=1000)
    world.topology = msgspec.structs.replace(world.topology, limits=limits)
    world.app = world.build()
    room, threads = ROOM[Lane.STRANGER], world.passwords._threads
    flood = [asyncio.create_task(guess(world, number, 1)) for number in range(room + threads)]
    await until_waiting(world, room)
    async with world.raw("10.0.0.1") as http:
        answer = await http.post("/v1/login", json={"name": "one-more", "password": "guess"})
    assert (answer.status_code, answer.json()["code"], answer.headers["retry-after"]) == (503, "busy", "2")
    other = asyncio.create_task(guess(world, 1, 2, "other"))
    async with asyncio.timeout(DEADLINE_S):
        while not any(task.done() for task in flood):
            await asyncio.sleep(0.01)
    gate.open()
    assert await other == 401
    statuses = await asyncio.gather(*flood)
    assert (statuses.count(401), statuses.count(503)) == (room + threads - 1, 1)
    assert gate.checked.index("other") <= 2 * threads + 2, "addresses take turns"
    assert waiting(world) == world.passwords._busy == 0
    assert world.app.state.statistics.refused["busy"] == 2


async def test_a_login_that_is_cancelled_leaves_the_queue(world: World, gate: Gate) -> None:
    threads = world.passwords._threads
    tasks = [asyncio.create_task(guess(world, number, 100)) for number in range(threads + 3)]
    await until_waiting(world, 3)
    for task in tasks[threads:]:
        task.cancel()
    await asyncio.gather(*tasks[threads:], return_exceptions=True)
    assert waiting(world) == 0
    gate.open()
    await asyncio.gather(*tasks[:threads])
    assert world.passwords._busy == 0
    assert await guess(world, 1, 100) == 401
