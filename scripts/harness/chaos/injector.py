"""Injects the faults of a plan into a running mesh, and records which happened, and when."""

import asyncio
import os
import signal
import sqlite3
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from urllib.parse import urlsplit

import msgspec
import redis.asyncio
from sqlalchemy import make_url

from meshim import topology as topologies
from meshim.deploy.state import DataFolder, Phase, RoleState, read
from meshim.errors import MeshimError
from meshim.topology import Topology
from scripts.harness.chaos.client_pool import ClientPool
from scripts.harness.chaos.fault_plan import KINDS, SERVERS, Fault

_TIMEOUT_S = 30.0
"""A fault that finds no running target for this long is left out."""
_POLL_S = 0.05
_STOPPED_S = 1.5
"""Three of four client processes get a SIGSTOP first, of at most this long, so that much is in flight to them."""

_SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "term": signal.SIGTERM}


class Injection(msgspec.Struct):
    """A fault that happened."""

    kind: str
    name: str
    """Name of the process in the topology."""
    at: float
    """Seconds since the start of the history."""
    endpoint: str | None = None
    """Endpoint of a connector or transfer."""
    lasted_s: float = 0.0


def possible(topology: Topology) -> list[str]:
    """Return the kinds of fault that a topology allows: external backends are left alone."""
    backends = topology.backends
    external = {name for name in SERVERS if getattr(backends, name) != "embedded"}
    if urlsplit(backends.sql).scheme not in ("", "sqlite"):
        external.add("sql")
    return [kind for kind in KINDS if kind.partition("-")[2] not in external]


class FaultInjector:
    """Injects faults.  `happened` has those that happened."""

    def __init__(
        self, data: DataFolder, pool: ClientPool, clock: Callable[[], float], note: Callable[..., None]
    ) -> None:
        """`clock` returns seconds since the start of the history; `note` writes into it."""
        self.happened: list[Injection] = []
        self.left_out: list[Fault] = []
        self.away: set[int] = set()
        """Client processes that were killed and have not started again."""
        self._data = data
        self._pool = pool
        self._clock = clock
        self._note = note
        self._until = 0.0
        self._stopped: dict[int, int] = {}
        """Stopped processes: pid to pidfd."""
        self._ending: set[int] = set()
        """Processes with a SIGKILL or SIGTERM that may not have ended yet."""
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self, plan: Collection[Fault], start: float, until: float) -> None:
        """Inject each fault at its time after `start`; return when the last has begun.

        A fault that finds no target in time to be over by `until` is left out.
        """
        self._until = until
        for fault in plan:
            await asyncio.sleep(max(0.0, start + fault.at_s - self._clock()))
            task = asyncio.create_task(self._inject(fault))
            self._tasks.add(task)

    async def wait_over(self) -> None:
        """Wait until all faults are over.  Raises their errors."""
        await asyncio.gather(*self._tasks)

    def release(self) -> None:
        """Continue all stopped processes at once."""
        for descriptor in self._stopped.values():
            _continue(descriptor)

    async def wait_healed(self, within_s: float) -> None:
        """Wait until every process of the mesh runs.  Raises MeshimError when one does not within `within_s`."""
        deadline = time.monotonic() + within_s
        while down := [f"{each.name} is {each.state}" for each in self._children() if each.state is not Phase.RUNNING]:
            if time.monotonic() > deadline:
                raise MeshimError(f"The mesh does not heal: {', '.join(down)} (logs: {self._data.logs}).")
            await asyncio.sleep(_POLL_S)

    # ---------------------------------------------------------------- the actions

    async def _inject(self, fault: Fault) -> None:
        actions = {"wipe-redis": self._wipe, "lock-sql": self._lock, "kill-client": self._kill_client}
        done = await actions.get(fault.kind, self._signal)(fault)
        if not done:
            self.left_out.append(fault)

    def _record(self, fault: Fault, name: str, endpoint: str | None = None) -> Injection:
        injection = Injection(fault.kind, name, round(self._clock(), 6), endpoint)
        self.happened.append(injection)
        self._note(fault=fault.kind, name=name)
        return injection

    async def _signal(self, fault: Fault) -> bool:
        target = await self._choose_target(fault)
        if target is None or target.pid is None:
            return False
        descriptor = os.pidfd_open(target.pid)  # from here on the pid cannot mean another process
        try:
            if target not in self._children():
                return False
            try:
                signal.pidfd_send_signal(descriptor, _SIGNALS[fault.action])
            except ProcessLookupError:
                return False  # it has just ended by itself
            injection = self._record(fault, target.name, target.endpoint)
            if fault.action != "stop":
                self._ending.add(target.pid)
                return True
            self._stopped[target.pid] = descriptor
            await asyncio.sleep(fault.duration_s)
            _continue(descriptor)
            injection.lasted_s = fault.duration_s
            self._note(over=fault.kind, name=target.name)
        finally:
            self._stopped.pop(target.pid, None)
            os.close(descriptor)
        return True

    async def _choose_target(self, fault: Fault) -> RoleState | None:
        """Return a running process with the role or name of the target; None when there is none in time."""
        deadline = self._deadline(fault)
        while self._clock() < deadline:
            living = [
                child
                for child in self._children()
                if fault.target in (child.role, child.name) and child.state is Phase.RUNNING
                if child.pid is not None and child.pid not in self._stopped and child.pid not in self._ending
            ]
            if living:
                return living[fault.draw % len(living)]
            await asyncio.sleep(_POLL_S)
        return None

    def _deadline(self, fault: Fault) -> float:
        """Return the latest time at which a fault can begin."""
        return min(self._clock() + _TIMEOUT_S, self._until - fault.duration_s)

    def _children(self) -> list[RoleState]:
        """Return all processes of the mesh but the supervisor; the role of a backend is its name."""
        state = read(self._data)
        assert state is not None
        servers = [
            RoleState(
                name=each.name, role=each.name, pid=each.pid, state=each.state, endpoint=None, restarts=each.restarts
            )
            for each in state.backends
            if each.state is not Phase.EXTERNAL and each.name in SERVERS
        ]
        return [*state.roles, *servers]

    async def _wipe(self, fault: Fault) -> bool:
        deadline = self._deadline(fault)
        while not await self._flush():  # another fault has stopped it
            if self._clock() >= deadline:
                return False
            await asyncio.sleep(_POLL_S)
        self._record(fault, "redis")
        return True

    async def _flush(self) -> bool:
        """Flush Redis; return False when it does not answer."""
        try:
            async with redis.asyncio.from_url(self._urls().redis, socket_timeout=1.0) as client:
                await client.flushall()
        except (OSError, redis.exceptions.RedisError):
            return False
        return True

    async def _lock(self, fault: Fault) -> bool:
        file = make_url(self._urls().sql).database
        assert file is not None, "the mesh has a SQLite database"
        database = sqlite3.connect(file, timeout=0, isolation_level=None)
        try:
            deadline = self._deadline(fault)
            while not _take_lock(database):
                if self._clock() >= deadline:
                    return False
                await asyncio.sleep(0.005)
            injection = self._record(fault, "sql")
            await asyncio.sleep(fault.duration_s)
            injection.lasted_s = fault.duration_s
            database.execute("ROLLBACK")
            self._note(over=fault.kind, name="sql")
        finally:
            database.close()
        return True

    def _urls(self) -> topologies.Backends:
        return topologies.load(self._data.topology).backends

    async def _kill_client(self, fault: Fault) -> bool:
        """Kill a process of the client library, and a minimal client."""
        deadline = self._deadline(fault)
        while not (victims := self._victims(fault.draw)):
            if self._clock() >= deadline:
                return False
            await asyncio.sleep(_POLL_S)
        self.away.update(victims)
        stopped_s = _STOPPED_S * fault.draw / 65_536 if fault.draw % 4 else 0.0
        self._record(fault, " and ".join(f"process-{number}" for number in victims))
        await asyncio.gather(*(self._pool.kill(number, stopped_s) for number in victims))
        await asyncio.sleep(fault.duration_s)
        await asyncio.gather(*(self._pool.restart(number) for number in victims))
        self.away.difference_update(victims)
        return True

    def _victims(self, draw: int) -> list[int]:
        """Return the number of one process of each kind, where one runs."""
        groups = [[number for number in group if number not in self.away] for group in self._pool.living()]
        return [group[draw % len(group)] for group in groups if group]


def _take_lock(database: sqlite3.Connection) -> bool:
    """Take the write lock; return False while a writer holds it."""
    try:
        database.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError:
        return False
    return True


def _continue(descriptor: int) -> None:
    with suppress(ProcessLookupError):  # killed while it was stopped
        signal.pidfd_send_signal(descriptor, signal.SIGCONT)
