"""A whole mesh for tests: `meshim up` in a folder of its own, its processes by name, and people on it."""

import asyncio
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from meshim.client.rest import Api
from meshim.deploy.state import DataFolder, Phase, RoleState, read
from meshim.runtime import counters
from meshim.topology import Topology
from scripts.harness.mesh import local_mesh

PASSWORD = "correct horse battery staple"
DEADLINE_S = 30.0
"""Far more than anything here takes."""

_count = itertools.count(1)


class RealMesh:
    """A running mesh: `api` is the URL of its REST service, `data` its data folder, `folder` for the tests' files."""

    def __init__(self, api: str, folder: Path) -> None:
        self.api = api
        self.folder = folder
        self.data = DataFolder(folder / "data")

    # ---------------------------------------------------------------- people

    async def people(self, *names: str, friends: bool = True) -> tuple[str, ...]:
        """Register users, each as `NAME-number` so that no two tests share one; all are friends of each other."""
        number = next(_count)
        users = tuple(f"{name}-{number}" for name in names)
        async with Api(self.api) as api:
            imported = await api.import_users([(user, PASSWORD) for user in users])
            assert all(each.user is not None for each in imported), imported
        if friends:
            await self.befriend(*users)
        return users

    async def befriend(self, *users: str) -> None:
        """Make every two of them friends."""
        async with Api(self.api) as api:
            for index, user in enumerate(users):
                await api.login(user, PASSWORD)
                for peer in users[:index] + users[index + 1 :]:
                    relation = await api.request(peer)
                    assert relation.state in ("requested", "friends")

    # ---------------------------------------------------------------- processes

    def role(self, name: str) -> RoleState:
        """How one process is, by its name in the topology."""
        state = read(self.data)
        assert state is not None
        return next(role for role in state.roles if role.name == name)

    def pid(self, name: str) -> int:
        pid = self.role(name).pid
        assert pid is not None, f"{name} does not run"
        return pid

    def role_pids(self) -> dict[str, int]:
        """Of every role that runs, by name."""
        state = read(self.data)
        assert state is not None
        return {role.name: role.pid for role in state.roles if role.pid is not None}

    def backend_pid(self, name: str) -> int:
        """Of an embedded backend, `redis` or `nats`, by its name; 0 while it does not run."""
        state = read(self.data)
        assert state is not None
        backend = next(backend for backend in state.backends if backend.name == name)
        return backend.pid if backend.pid is not None and backend.state is Phase.RUNNING else 0

    def signal(self, name: str, number: signal.Signals) -> int:
        """Send a signal (SIGKILL, SIGSTOP, SIGCONT, SIGTERM) to one process; its pid."""
        pid = self.pid(name)
        os.kill(pid, number)
        return pid

    async def restarted(self, name: str, after: int) -> int:
        """Wait until a process runs again in place of the one with the pid `after`; the new pid."""

        def runs_anew() -> bool:
            role = self.role(name)
            return role.state is Phase.RUNNING and role.pid not in (None, after)

        await until(runs_anew, f"{name} does not come back")
        return self.pid(name)

    def meshim(self, *arguments: str, stdin: str = "") -> "subprocess.CompletedProcess[str]":
        """Run a command as people type it."""
        command = [sys.executable, "-m", "meshim", *arguments]
        return subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=DEADLINE_S, check=False)

    def status(self) -> dict[str, Any]:
        """What `meshim status --json` says."""
        done = self.meshim("status", "--json", "--data", str(self.data.root))
        assert done.returncode == 0, done.stderr
        status: dict[str, Any] = json.loads(done.stdout)
        return status

    def counted(self, name: str) -> int:
        """The sum of a counter over all processes; it is at most a second old."""
        state = read(self.data)
        assert state is not None
        return sum(counters.read(self.data.root, r.role, r.name, r.pid).get(name, 0) for r in state.roles)

    def log(self, role: str, name: str) -> str:
        """What a process has written so far."""
        return (self.data.logs / f"{role}-{name}.log").read_text()


@contextmanager
def running(folder: Path, topology: Topology | None = None) -> Iterator[RealMesh]:
    """Run a mesh of its own, by default two connectors, two transfers, a writer and a rest."""
    with local_mesh.running(folder, topology or local_mesh.topology()) as api:
        yield RealMesh(api, folder)


async def until(condition: Callable[[], bool], otherwise: str, within_s: float = DEADLINE_S) -> None:
    """Wait for a condition that other tasks or processes bring about."""
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, otherwise
        await asyncio.sleep(0.02)
