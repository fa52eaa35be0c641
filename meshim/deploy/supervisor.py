"""Runs a whole mesh as one process tree: `meshim up`.

Start: the backends in parallel, then the tables of the database, then the roles in parallel.  Stop: the roles in
parallel, because draining needs the backends, and the backends afterwards.
"""

import asyncio
import contextlib
import errno
import os
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Iterable, Iterator
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import msgspec

from meshim.deploy import state
from meshim.deploy.child import BackendChild, RoleChild
from meshim.deploy.embedded import Nats, Valkey, embedded_log_bytes
from meshim.deploy.probe import probe, public
from meshim.deploy.state import BackendState, DataFolder, MeshState, Phase, RoleState
from meshim.deploy.storage_watchdog import StorageWatchdog
from meshim.errors import UsageError
from meshim.runtime.log import get as get_log
from meshim.stores.nats import storing
from meshim.topology import Listener, RestListener, Topology, Worker, dump

RoleCommand: TypeAlias = Callable[[str, str, DataFolder], list[str]]
"""Maps role, name and data folder to the command line of the process."""

_BACKEND_GRACE_S = 5.0
_EXTRA_GRACE_S = 2.0
"""A role may drain for `shutdown_s`.  It is killed this much later."""
_STATE_RETRY_S = 1.0
"""Pause after the state file could not be written."""


def role_command(role: str, name: str, data: DataFolder) -> list[str]:
    """Return the command line that runs one role of the mesh on a data folder."""
    return [sys.executable, "-P", "-m", "meshim", role, name, "-t", str(data.topology), "--data", str(data.root)]


def upgrade_database(url: str, topology: Topology) -> None:
    """Upgrade the tables of the database to this version, and compare the topology with what the mesh never changes.

    Call it in a thread without an event loop.  Raises `UsageError` and `BackendUnavailable`.
    """
    from meshim.stores.sql import mesh_record, migrate  # here: SQLAlchemy and Alembic are slow to import

    migrate.upgrade(url)
    asyncio.run(mesh_record.agree_at(url, topology.namespace, topology.limits.partitions))


async def run(
    topology: Topology,
    data: DataFolder,
    announce: Callable[[str], None],
    *,
    command: RoleCommand = role_command,
    upgrade: Callable[[str, Topology], None] = upgrade_database,
) -> None:
    """Run the mesh until SIGTERM, SIGINT or SIGHUP; call `announce` with the URL of REST once all roles are ready.

    Raises `MeshimError` when the mesh cannot start; every process that was started is stopped again.
    """
    with state.explained(data):
        data.create()
    with state.locked(data) as lock:
        loop = asyncio.get_running_loop()
        asked_to_stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.add_signal_handler(number, asked_to_stop.set)
        mesh = _Mesh(topology, data, lock, command, upgrade)
        try:
            with state.explained(data):
                await _run_until(asked_to_stop, mesh.start())
            if not asked_to_stop.is_set():
                announce(mesh.api)
                await _run_until(asked_to_stop, mesh.supervise())
        finally:
            await mesh.stop()


class _Mesh:
    """The child processes, and the state file that describes them."""

    def __init__(
        self,
        topology: Topology,
        data: DataFolder,
        lock: int,
        command: RoleCommand,
        upgrade: Callable[[str, Topology], None],
    ) -> None:
        self.api = ""
        self._topology = topology
        self._data = data
        self._lock = lock
        self._command = command
        self._upgrade = upgrade
        self._phase = Phase.STARTING
        self._urls = msgspec.structs.asdict(topology.backends)
        self._nats: Nats | None = None
        self._watchdog: StorageWatchdog | None = None
        """Of the embedded NATS."""
        self._backends: dict[str, BackendChild] = {}
        self._roles: list[RoleChild] = []
        self._log = get_log("mesh", "up")
        self._state_retry: asyncio.TimerHandle | None = None
        """Set while the state file is older than the state."""
        self._write_state()

    async def start(self) -> None:
        _check_addresses(self._topology)
        await self._start_backends()
        await asyncio.to_thread(self._upgrade, self._urls["sql"], self._topology)
        self._write_topology()
        self._roles = [self._role(role, member.name) for role, member in _members(self._topology)]
        await _gather(role.start() for role in self._roles)
        self.api = next(role.endpoint for role in self._roles if role.kind == "rest" and role.endpoint)
        self._phase = Phase.RUNNING
        self._write_state()

    async def supervise(self) -> None:
        """Restart children that end, and a NATS that has stopped storing, until cancelled."""
        work = [child.supervise() for child in (*self._backends.values(), *self._roles)]
        if self._watchdog is not None:
            work.append(self._watchdog.run())
        await _gather(work)

    async def stop(self) -> None:
        self._phase = Phase.STOPPING
        self._write_state()
        grace_s = self._topology.timers.shutdown_s + _EXTRA_GRACE_S
        try:
            await _gather(role.stop(grace_s) for role in self._roles)
        finally:
            await _gather(backend.stop(_BACKEND_GRACE_S) for backend in self._backends.values())
        self._phase = Phase.STOPPED
        self._write_state()

    async def _start_backends(self) -> None:
        wanted = self._topology.backends
        limits = self._topology.limits
        if wanted.redis == "embedded":
            self._backends["redis"] = self._backend(Valkey(self._data.root / "valkey"))
        if wanted.nats == "embedded":
            store_bytes = embedded_log_bytes(limits.partitions, limits.log_bytes)
            self._nats = Nats(self._data.root / "nats", store_bytes=store_bytes)
            child = self._backends["nats"] = self._backend(self._nats)
            self._watchdog = self._storage_watchdog(child)
        if wanted.sql == "embedded":
            self._urls["sql"] = self._data.sqlite_url
        external = [url for name, url in self._urls.items() if name not in self._backends]
        await _gather([*(child.start() for child in self._backends.values()), *(probe(url) for url in external)])
        for name, child in self._backends.items():
            self._urls[name] = child.endpoint

    def _backend(self, recipe: Valkey | Nats) -> BackendChild:
        log = self._data.logs / f"{recipe.name}.log"
        return BackendChild(recipe, log, self._lock, self._write_state)

    def _storage_watchdog(self, nats: BackendChild) -> StorageWatchdog:
        async def check() -> None:
            await storing.check_at(self._urls["nats"], self._topology.namespace, self._topology.limits.partitions)

        return StorageWatchdog(
            check, lambda: nats.restart(_BACKEND_GRACE_S), self._data.root / "nats", get_log("backend", "nats")
        )

    def _role(self, role: str, name: str) -> RoleChild:
        log = self._data.logs / f"{role}-{name}.log"
        return RoleChild(role, name, self._command(role, name, self._data), log, self._lock, self._write_state)

    def _write_topology(self) -> None:
        """Write the topology for the roles, with the real URLs of the backends.  It holds their passwords."""
        durability = self._topology.durability
        if self._nats is not None:
            durability = msgspec.structs.replace(durability, nats_monitor=self._nats.monitor)
        resolved = msgspec.structs.replace(
            self._topology,
            backends=msgspec.convert(self._urls, type(self._topology.backends)),
            durability=durability,
        )
        self._data.topology.unlink(missing_ok=True)
        with open(self._data.topology, "x", encoding="utf-8", opener=_private) as file:
            file.write(dump(resolved))

    def _write_state(self) -> None:
        """Write the state file; when the disk is full, again every `_STATE_RETRY_S`: the mesh goes on without it."""
        was_failing = self._state_retry is not None
        if self._state_retry is not None:
            self._state_retry.cancel()
            self._state_retry = None
        try:
            state.write(self._data, self._state())
        except OSError as error:
            self._state_retry = asyncio.get_running_loop().call_later(_STATE_RETRY_S, self._write_state)
            if not was_failing:
                self._log.warning("state not written", file=self._data.state, reason=error.strerror)
        else:
            if was_failing:
                self._log.info("state written again", file=self._data.state)

    def _state(self) -> MeshState:
        backends = []
        for name, url in self._urls.items():
            child = self._backends.get(name)
            shown = "embedded" if url == "embedded" else public(url)
            if child is None:
                # Embedded SQL is a file without a process.
                is_ours = getattr(self._topology.backends, name) == "embedded"
                backends.append(BackendState(name, shown, None, Phase.RUNNING if is_ours else Phase.EXTERNAL, 0))
            else:
                watchdog = self._watchdog if name == "nats" else None
                storage_restarts = watchdog.restarts if watchdog is not None else 0
                backends.append(
                    BackendState(name, shown, child.pid, child.state, child.restarts, storage_restarts=storage_restarts)
                )
        roles = [
            # A role that accepts no connections prints `-`.
            RoleState(r.name, r.kind, r.pid, r.state, None if r.endpoint == "-" else r.endpoint, r.restarts)
            for r in self._roles
        ]
        return MeshState(os.getpid(), self._phase, self.api or None, roles, backends)


def _members(topology: Topology) -> Iterator[tuple[str, Listener | Worker | RestListener]]:
    """Yield (role, member) for every process of a mesh, in the order in which they are listed."""
    yield from (("transfer", member) for member in topology.transfers)
    yield from (("writer", member) for member in topology.writers)
    yield from (("connector", member) for member in topology.connectors)
    yield from (("rest", member) for member in topology.rest)


def _check_addresses(topology: Topology) -> None:
    """Raise `UsageError` for an address that cannot be bound, before any role is started."""
    for _, member in _members(topology):
        if isinstance(member, Worker):
            continue
        address = urlsplit(member.bind)
        if not address.port:
            continue
        host = "0.0.0.0" if address.hostname == "*" else address.hostname  # noqa: S104  (as the topology says)
        try:
            family, kind, protocol, _, place = socket.getaddrinfo(host, address.port, type=socket.SOCK_STREAM)[0]
            with socket.socket(family, kind, protocol) as probed:
                probed.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probed.bind(place)
        except OSError as error:
            what = "is in use" if error.errno == errno.EADDRINUSE else f"cannot be bound ({error.strerror})"
            raise UsageError(
                f"The address {member.bind} of {member.name} {what}: end what listens there, or choose another one."
            ) from error


async def _gather(work: Iterable[Coroutine[Any, Any, None]]) -> None:
    """Run coroutines in parallel until all are done; the first error cancels the others and is raised as it is."""
    try:
        async with asyncio.TaskGroup() as group:
            for each in work:
                group.create_task(each)
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None


async def _run_until(event: asyncio.Event, work: Coroutine[Any, Any, None]) -> None:
    """Run `work` to its end, or cancel it when `event` is set first; raises what `work` raises."""
    task = asyncio.create_task(work)
    waiter = asyncio.create_task(event.wait())
    try:
        await asyncio.wait({task, waiter}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiter.cancel()
        task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
