"""Breaks a mesh that runs, as a plan of faults says, and knows afterwards what was broken and when."""

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

from meshim import topology as topologies
from meshim.deploy.state import DataFolder, Phase, RoleState, read
from meshim.errors import MeshimError
from meshim.topology import Topology
from scripts.harness.chaos.client_pool import Troupe
from scripts.harness.chaos.fault_plan import KINDS, SERVERS, Fault

_TIMEOUT_S = 30.0
"""How long somebody is looked for who can be broken; after that the fault is left out."""
_LOOK_EVERY_S = 0.05
_HANGS_S = 1.5
"""Three of four clients hang, for so long at most, before they are killed: then much is under way to them."""

_SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "term": signal.SIGTERM}


class Strike(msgspec.Struct):
    """A fault that happened."""

    kind: str
    name: str
    """Of the process, as the topology has it."""
    at: float
    """Seconds since the history began."""
    endpoint: str | None = None
    """Where clients, or connectors, had it."""
    lasted_s: float = 0.0


def possible(topology: Topology) -> list[str]:
    """The kinds of fault that can be done to a mesh of this topology: what somebody else runs is left alone."""
    backends = topology.backends
    theirs = {name for name in SERVERS if getattr(backends, name) != "embedded"}
    if urlsplit(backends.sql).scheme not in ("", "sqlite"):
        theirs.add("sql")
    return [kind for kind in KINDS if kind.partition("-")[2] not in theirs]


class Strikes:
    """Does one fault after the other.  `happened` has those that did."""

    def __init__(self, data: DataFolder, troupe: Troupe, clock: Callable[[], float], note: Callable[..., None]) -> None:
        """`clock` counts from the begin of the history, `note` writes into it."""
        self.happened: list[Strike] = []
        self.left_out: list[Fault] = []
        self.away: set[int] = set()
        """Processes of players that were killed and are not back."""
        self._data = data
        self._troupe = troupe
        self._clock = clock
        self._note = note
        self._until = 0.0
        self._still: dict[int, int] = {}
        """Processes that stand still: pid -> pidfd."""
        self._ending: set[int] = set()
        """Processes that were told to end, and may not have ended yet."""
        self._tasks: set[asyncio.Task[None]] = set()

    async def perform(self, plan: Collection[Fault], start: float, until: float) -> None:
        """Do each fault at its time, counted from `start` by the clock; return when the last has begun.

        What could not be over by `until`, because nobody was there to break, is left out.
        """
        self._until = until
        for fault in plan:
            await asyncio.sleep(max(0.0, start + fault.at_s - self._clock()))
            task = asyncio.create_task(self._do(fault))
            self._tasks.add(task)

    async def over(self) -> None:
        """Wait until nothing stands still or is away because of us.  Raises what went wrong."""
        await asyncio.gather(*self._tasks)

    def release(self) -> None:
        """Let go of whatever stands still, at once."""
        for descriptor in self._still.values():
            _wake(descriptor)

    async def healed(self, within_s: float) -> None:
        """Wait until every process of the mesh runs.  Raises MeshimError when one does not come back."""
        deadline = time.monotonic() + within_s
        while down := [f"{each.name} is {each.state}" for each in self._children() if each.state is not Phase.RUNNING]:
            if time.monotonic() > deadline:
                raise MeshimError(f"The mesh does not heal: {', '.join(down)} (logs: {self._data.logs}).")
            await asyncio.sleep(_LOOK_EVERY_S)

    # ---------------------------------------------------------------- each deed

    async def _do(self, fault: Fault) -> None:
        deeds = {"wipe-redis": self._wipe, "lock-sql": self._lock, "kill-client": self._kill_client}
        done = await deeds.get(fault.kind, self._signal)(fault)
        if not done:
            self.left_out.append(fault)

    def _struck(self, fault: Fault, name: str, endpoint: str | None = None) -> Strike:
        strike = Strike(fault.kind, name, round(self._clock(), 6), endpoint)
        self.happened.append(strike)
        self._note(fault=fault.kind, name=name)
        return strike

    async def _signal(self, fault: Fault) -> bool:
        victim = await self._victim(fault)
        if victim is None or victim.pid is None:
            return False
        descriptor = os.pidfd_open(victim.pid)  # no other process can take its place from here on
        try:
            if victim not in self._children():
                return False
            try:
                signal.pidfd_send_signal(descriptor, _SIGNALS[fault.deed])
            except ProcessLookupError:
                return False  # it has just ended by itself
            strike = self._struck(fault, victim.name, victim.endpoint)
            if fault.deed != "stop":
                self._ending.add(victim.pid)
                return True
            self._still[victim.pid] = descriptor
            await asyncio.sleep(fault.lasts_s)
            _wake(descriptor)
            strike.lasted_s = fault.lasts_s
            self._note(over=fault.kind, name=victim.name)
        finally:
            self._still.pop(victim.pid, None)
            os.close(descriptor)
        return True

    async def _victim(self, fault: Fault) -> RoleState | None:
        """One of those that run, if there is one soon."""
        deadline = self._last_moment(fault)
        while self._clock() < deadline:
            living = [
                child
                for child in self._children()
                if fault.what in (child.role, child.name) and child.state is Phase.RUNNING
                if child.pid is not None and child.pid not in self._still and child.pid not in self._ending
            ]
            if living:
                return living[fault.dice % len(living)]
            await asyncio.sleep(_LOOK_EVERY_S)
        return None

    def _last_moment(self, fault: Fault) -> float:
        """When it has to have begun, by the clock."""
        return min(self._clock() + _TIMEOUT_S, self._until - fault.lasts_s)

    def _children(self) -> list[RoleState]:
        """All processes of the mesh but its supervisor; a backend has its name for a role."""
        state = read(self._data)
        assert state is not None
        servers = [
            RoleState(each.name, each.name, each.pid, each.state, None, each.restarts)
            for each in state.backends
            if each.state is not Phase.EXTERNAL and each.name in SERVERS
        ]
        return [*state.roles, *servers]

    async def _wipe(self, fault: Fault) -> bool:
        deadline = self._last_moment(fault)
        while not await self._flushed():  # it is broken already
            if self._clock() >= deadline:
                return False
            await asyncio.sleep(_LOOK_EVERY_S)
        self._struck(fault, "redis")
        return True

    async def _flushed(self) -> bool:
        """Wipe it; False when it does not answer."""
        try:
            async with redis.asyncio.from_url(self._urls().redis, socket_timeout=1.0) as client:
                await client.flushall()
        except (OSError, redis.exceptions.RedisError):
            return False
        return True

    async def _lock(self, fault: Fault) -> bool:
        database = sqlite3.connect(self._urls().sql.removeprefix("sqlite:///"), timeout=0, isolation_level=None)
        try:
            deadline = self._last_moment(fault)
            while not _locked(database):
                if self._clock() >= deadline:
                    return False
                await asyncio.sleep(0.005)
            strike = self._struck(fault, "sql")
            await asyncio.sleep(fault.lasts_s)
            strike.lasted_s = fault.lasts_s
            database.execute("ROLLBACK")
            self._note(over=fault.kind, name="sql")
        finally:
            database.close()
        return True

    def _urls(self) -> topologies.Backends:
        return topologies.load(self._data.topology).backends

    async def _kill_client(self, fault: Fault) -> bool:
        deadline = self._last_moment(fault)
        while not (living := [number for number in self._troupe.living() if number not in self.away]):
            if self._clock() >= deadline:
                return False
            await asyncio.sleep(_LOOK_EVERY_S)
        number = living[fault.dice % len(living)]
        self.away.add(number)
        hangs_s = _HANGS_S * fault.dice / 65_536 if fault.dice % 4 else 0.0
        self._struck(fault, f"process-{number}")
        await self._troupe.kill(number, hangs_s)
        await asyncio.sleep(fault.lasts_s)
        await self._troupe.start_again(number)
        self.away.discard(number)
        return True


def _locked(database: sqlite3.Connection) -> bool:
    """Take the lock; False while a writer is at it."""
    try:
        database.execute("BEGIN IMMEDIATE")
    except sqlite3.OperationalError:
        return False
    return True


def _wake(descriptor: int) -> None:
    with suppress(ProcessLookupError):  # ended while it stood still
        signal.pidfd_send_signal(descriptor, signal.SIGCONT)
