"""A whole mesh for tests: `meshim up` in a folder of its own, with its processes by name and its users."""

import asyncio
import copy
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import msgspec

from meshim.client.connection import Transport
from meshim.client.rest import Api
from meshim.deploy.embedded import free_port
from meshim.deploy.state import DataFolder, Phase, RoleState, read
from meshim.runtime import counters
from meshim.topology import Backends, RestListener, Topology
from scripts.harness.mesh import local_mesh

PASSWORD = "correct horse battery staple"
DEADLINE_S = 30.0
"""Several times what the slowest of these waits takes."""

_count = itertools.count(1)


class RealMesh:
    """A running mesh: `api` is the URL of its REST service, `data` its data folder, `folder` for the tests' files."""

    def __init__(self, api: str, folder: Path) -> None:
        self.api = api
        self.transport: Transport = "auto"
        """How `library_client.client` connects."""
        self.folder = folder
        self.data = DataFolder(folder / "data")

    def over(self, transport: Transport) -> "RealMesh":
        """The same mesh, for clients with this transport."""
        mesh = copy.copy(self)
        mesh.transport = transport
        return mesh

    # ---------------------------------------------------------------- users

    async def register_users(self, *names: str, friends: bool = True) -> tuple[str, ...]:
        """Register users as `NAME-number`, so that no two tests share one; return their names.

        All are friends of each other, unless `friends` is False.
        """
        number = next(_count)
        users = tuple(f"{name}-{number}" for name in names)
        async with Api(self.api) as api:
            imported = await api.import_users([(user, PASSWORD) for user in users])
            assert all(each.user is not None for each in imported), imported
        if friends:
            await self.make_friends(*users)
        return users

    async def make_friends(self, *users: str) -> None:
        """Make every two of these users friends."""
        async with Api(self.api) as api:
            for index, user in enumerate(users):
                await api.login(user, PASSWORD)
                for peer in users[:index] + users[index + 1 :]:
                    relation = await api.request(peer)
                    assert relation.state in ("requested", "friends")

    # ---------------------------------------------------------------- processes

    def role(self, name: str) -> RoleState:
        """The state of one process, by its name in the topology."""
        state = read(self.data)
        assert state is not None
        return next(role for role in state.roles if role.name == name)

    def pid(self, name: str) -> int:
        pid = self.role(name).pid
        assert pid is not None, f"{name} does not run"
        return pid

    def role_pids(self) -> dict[str, int]:
        """The pid of every role that runs, by name."""
        state = read(self.data)
        assert state is not None
        return {role.name: role.pid for role in state.roles if role.pid is not None}

    def backend_pid(self, name: str) -> int:
        """The pid of an embedded backend, `redis` or `nats`; 0 while it does not run."""
        state = read(self.data)
        assert state is not None
        backend = next(backend for backend in state.backends if backend.name == name)
        return backend.pid if backend.pid is not None and backend.state is Phase.RUNNING else 0

    def signal(self, name: str, number: signal.Signals) -> int:
        """Send a signal (SIGKILL, SIGSTOP, SIGCONT, SIGTERM) to one process; return its pid."""
        pid = self.pid(name)
        os.kill(pid, number)
        return pid

    async def restarted(self, name: str, after: int) -> int:
        """Wait until a process runs in place of the one with the pid `after`; return the new pid."""

        def runs_anew() -> bool:
            role = self.role(name)
            return role.state is Phase.RUNNING and role.pid not in (None, after)

        await until(runs_anew, f"{name} does not come back")
        return self.pid(name)

    def cli(self, *arguments: str, stdin: str = "") -> "subprocess.CompletedProcess[str]":
        """Run `meshim ARGUMENTS` to its end."""
        command = [sys.executable, "-m", "meshim", *arguments]
        return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=DEADLINE_S, check=False)

    def status(self) -> dict[str, Any]:
        """The output of `meshim status --json`."""
        done = self.cli("status", "--json", "--data", str(self.data.root))
        assert done.returncode == 0, done.stderr
        status: dict[str, Any] = json.loads(done.stdout)
        return status

    def counter_sum(self, name: str) -> int:
        """The sum of a counter over all processes, at most a second old."""
        state = read(self.data)
        assert state is not None
        return sum(counters.read(self.data.root, r.role, r.name, r.pid).get(name, 0) for r in state.roles)

    def linked(self) -> bool:
        """Whether every transfer has a link from as many connectors as there are, at most a second ago."""
        state = read(self.data)
        assert state is not None
        connectors = sum(role.role == "connector" for role in state.roles)
        links = [counters.read(self.data.root, r.role, r.name, r.pid) for r in state.roles if r.role == "transfer"]
        return all(each.get("connectors", 0) >= connectors for each in links)

    def log(self, role: str, name: str) -> str:
        """The log of a process so far."""
        return (self.data.logs / f"{role}-{name}.log").read_text()


@contextmanager
def running(folder: Path, topology: Topology | None = None) -> Iterator[RealMesh]:
    """Run a mesh during the block, by default two connectors, two transfers, a writer and a REST service.

    It begins with all links: connectors find a transfer at different times, and what a transfer cannot reach is stored.
    """
    with local_mesh.running(folder, topology or local_mesh.topology()) as api:
        mesh, deadline = RealMesh(api, folder), time.monotonic() + DEADLINE_S
        while not mesh.linked():
            assert time.monotonic() < deadline, "not every connector has a link to every transfer"
            time.sleep(0.02)
        yield mesh


class RestartableMesh:
    """A mesh that goes down and comes up again: REST on the same port, every other role on a new one."""

    def __init__(self, folder: Path, backends: Backends | None = None, namespace: str = "meshim") -> None:
        rest = (RestListener("r1", f"http://127.0.0.1:{free_port()}"),)
        self._folder = folder
        self._topology: Topology = msgspec.structs.replace(
            local_mesh.topology(), rest=rest, backends=backends or Backends(), namespace=namespace
        )
        self._running: AbstractContextManager[RealMesh] | None = None

    async def up(self) -> RealMesh:
        """Start it; return the running mesh."""
        assert self._running is None
        mesh = running(self._folder, self._topology)
        started = await asyncio.to_thread(mesh.__enter__)
        self._running = mesh
        return started

    async def down(self) -> None:
        """End it, if it runs."""
        if self._running is not None:
            await asyncio.to_thread(self._running.__exit__, None, None, None)
            self._running = None


@asynccontextmanager
async def restartable_mesh(
    folder: Path, backends: Backends | None = None, namespace: str = "meshim"
) -> AsyncIterator[RestartableMesh]:
    """A mesh that is down at first, and down again after the block."""
    mesh = RestartableMesh(folder, backends, namespace)
    try:
        yield mesh
    finally:
        await mesh.down()


async def until(condition: Callable[[], bool], otherwise: str, within_s: float = DEADLINE_S) -> None:
    """Wait until other tasks or processes make a condition true; raise AssertionError(otherwise) after `within_s`."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, otherwise
        await asyncio.sleep(0.02)


async def in_thread(work: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Call `work` in a thread and return its result: for calls that block (`IndependentClient`, raw sockets)."""
    return await asyncio.to_thread(work, *arguments, **named)
