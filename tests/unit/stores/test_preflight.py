"""The checks of a start, with backends that are away at first."""

import asyncio
import io
import time
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, cast

import msgspec
import pytest

from meshim import topology
from meshim.errors import BackendUnavailable, UsageError
from meshim.runtime.log import Log
from meshim.stores.preflight import Preflight
from meshim.stores.sql.mesh_record import MeshRecord
from meshim.topology import Durability
from tests.virtual_time import run

MESH = topology.default()
WRONG = UsageError("The database is another one.")


class Redis:
    """`policy` and `role` are its settings, `ahead_s` is its clock; it holds the namespace for `holder`."""

    def __init__(self) -> None:
        self.away = False
        self.policy = "noeviction"
        self.role = "master"
        self.ahead_s = 0.0
        self.holder = b"id"

    async def execute(self, command: str, *arguments: str) -> Any:
        if self.away:
            raise BackendUnavailable("Redis is away.")
        if command == "TIME":
            return int(time.time() + self.ahead_s), 0
        return {"maxmemory_policy": self.policy, "maxmemory": 1 << 20, "role": self.role}

    def script(self, lua: str) -> Callable[[Sequence[str], Sequence[str]], Coroutine[None, None, bytes]]:
        async def claim(keys: Sequence[str], arguments: Sequence[str]) -> bytes:
            assert keys == ["meshim:mesh"]
            return self.holder

        return claim


class Record:
    """Answers with each of `answers` in turn; None hangs."""

    def __init__(self, *answers: Exception | MeshRecord | None) -> None:
        self.answers = list(answers)

    async def agree(self, namespace: str, partitions: int) -> MeshRecord:
        assert (namespace, partitions) == ("meshim", 4)
        answer = self.answers.pop(0)
        if answer is None:
            await asyncio.get_running_loop().create_future()
        if isinstance(answer, Exception):
            raise answer
        return cast("MeshRecord", answer)


FOUND = MeshRecord("id", "meshim", 4, None)


class Service:
    """Its log, and what was started in the background."""

    def __init__(self) -> None:
        self.output = io.StringIO()
        self.log = Log("test", "preflight", self.output)
        self.started: list[Coroutine[Any, Any, None]] = []

    def start(self, work: Coroutine[Any, Any, None], name: str | None = None) -> None:
        self.started.append(work)

    def events(self) -> list[str]:
        return [line.split()[4] for line in self.output.getvalue().splitlines()]


def preflight(redis: Redis, service: Service, mesh: topology.Topology = MESH) -> Preflight:
    return Preflight(mesh, cast("Any", redis), cast("Any", service))


def test_what_does_not_fit_is_refused_at_once() -> None:
    async def start() -> None:
        service = Service()
        with pytest.raises(UsageError, match="another one"):
            await preflight(Redis(), service).check_when_possible(cast("Any", Record(WRONG)))
        redis = Redis()
        redis.holder = b"other"
        with pytest.raises(UsageError, match=r"delete the key meshim:mesh in Redis - at `\$\.namespace`"):
            await preflight(redis, service).check_when_possible(cast("Any", Record(FOUND)))
        assert (service.started, service.events()) == ([], [])

    run(start)


@pytest.mark.parametrize("away", [BackendUnavailable("The database is away."), None], ids=["away", "hangs"])
def test_a_database_that_is_away_is_checked_when_it_answers(away: Exception | None) -> None:
    async def start() -> None:
        service = Service()
        record = Record(away, BackendUnavailable("It is still away."), WRONG)
        await preflight(Redis(), service).check_when_possible(cast("Any", record))
        assert service.events() == ["mesh-not-checked"]
        [later] = service.started
        with pytest.raises(UsageError, match="another one"):
            await later

    run(start)


def test_a_redis_that_is_away_is_checked_when_it_answers() -> None:
    async def start() -> None:
        service, redis = Service(), Redis()
        redis.away = True
        await preflight(redis, service).check_when_possible(None)
        redis.away = False
        [later] = service.started
        await later
        assert service.events() == ["mesh-not-checked", "mesh-checked"]

    run(start)


@pytest.mark.parametrize(
    ("policy", "role", "sentence"), [("allkeys-lru", "master", "`noeviction`"), ("noeviction", "slave", "its primary")]
)
def test_a_redis_that_keeps_nothing_is_refused_or_warned_about(policy: str, role: str, sentence: str) -> None:
    async def start() -> None:
        redis, service = Redis(), Service()
        redis.policy, redis.role = policy, role
        with pytest.raises(UsageError, match=sentence):
            await preflight(redis, service).check_when_possible(None)
        warned = Service()
        await preflight(redis, warned, _warning()).check_when_possible(None)
        assert warned.events() == ["setting-not-safe"]

    run(start)


def _warning() -> topology.Topology:
    return msgspec.structs.replace(MESH, durability=Durability(weak="warn"))


@pytest.mark.parametrize(("ahead_s", "warned"), [(-86_400.0, True), (86_400.0, True), (30.0, False), (-30.0, False)])
def test_a_clock_that_is_off_is_warned_about(ahead_s: float, warned: bool) -> None:
    async def start() -> None:
        redis, service = Redis(), Service()
        redis.ahead_s = ahead_s
        await preflight(redis, service).check_when_possible(None)
        assert service.events() == ["clocks-differ"] * warned

    run(start)
