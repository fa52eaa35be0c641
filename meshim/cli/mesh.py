"""The commands for operators: up, down, status, topology check, db upgrade."""

import asyncio
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import rich_click as click

from meshim import topology as topologies
from meshim.cli.next_step import next_step
from meshim.cli.options import data_option, load, log_warnings, topology_option
from meshim.deploy import state, supervisor
from meshim.deploy.probe import check_storing, probe
from meshim.deploy.state import DataFolder, MeshState, Phase, RoleState
from meshim.errors import BackendUnavailable, MeshimError, UsageError
from meshim.runtime import counters
from meshim.runtime.log import get as get_log
from meshim.stores.durability import Setting, Verdict

_ENDED = "The mesh has ended."
_DOWN_S = 60.0
"""Longer than the supervisor waits for its children."""


@click.command()
@topology_option
@data_option
@click.option("--detach", is_flag=True, help="Return when the mesh is ready, and leave it running.")
def up(file: Path | None, data: DataFolder, detach: bool) -> None:
    """Run a whole mesh: embedded backends, the database's tables, every role."""
    topology = load(file)
    log_warnings(file, get_log("mesh", "up"))
    if detach:
        api = _up_detached(file, data)
        print(f"{_ready(api)}\n{next_step(api, data)}")
        return

    def announce(api: str) -> None:
        print(f"{_ready(api)}\n{next_step(api, data, ' or Ctrl-C')}", flush=True)

    asyncio.run(supervisor.run(topology, data, announce))
    print(_ENDED)


def _ready(api: str) -> str:
    return f"meshim is ready: {api}"


def _up_detached(file: Path | None, data: DataFolder) -> str:
    """Start `meshim up` in the background; return the URL of its API.  Raises the error that it printed, if it ends."""
    data.create()
    log = data.logs / "mesh.log"
    arguments = ["--data", str(data.root), *(["-t", str(file)] if file else [])]
    command = [sys.executable, "-P", "-m", "meshim", "up", *arguments]
    with log.open("ab") as output:  # a mesh that runs already also writes there; this one prints that and ends
        log_offset = output.tell()
        process = subprocess.Popen(  # noqa: S603  (this program)
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    try:
        while process.poll() is None:
            mesh = state.read(data)
            if mesh is not None and mesh.pid == process.pid and mesh.state is Phase.RUNNING and mesh.api is not None:
                return mesh.api
            time.sleep(0.02)
    except KeyboardInterrupt:
        process.terminate()
        process.wait()
        raise
    lines = log.read_bytes()[log_offset:].decode(errors="replace").strip().splitlines()
    lines = lines or [f"It ended with code {process.returncode}."]
    sentence = lines[-1].removeprefix("meshim: ")
    raise UsageError(sentence) if process.returncode == 2 else MeshimError(sentence)


@click.command()
@data_option
def down(data: DataFolder) -> None:
    """End the mesh that runs on a data folder, and wait until it is gone."""
    pid = state.supervisor(data)
    process = os.pidfd_open(pid)  # from here on the descriptor names this process, even if its pid is reused
    try:
        if state.supervisor(data) == pid:
            signal.pidfd_send_signal(process, signal.SIGTERM)
        gone, _, _ = select.select([process], [], [], _DOWN_S)  # readable when it has ended
    finally:
        os.close(process)
    if not gone:
        raise MeshimError(f"The mesh did not end within {_DOWN_S:g} s: see {data.logs}, or kill process {pid}.")
    print(_ENDED)


class RoleStatus(RoleState, frozen=True):
    """A role as `meshim status --json` shows it."""

    counters: dict[str, int] = {}
    """The counters of the running process: see `statistics.py` of the role, and `BackendConnections.counters`."""


class BackendStatus(msgspec.Struct, frozen=True):
    """A backend as `meshim status` shows it."""

    name: str
    url: str
    state: Phase
    pid: int | None
    restarts: int
    storage_restarts: int
    """How many of them because it had stopped storing."""
    reachable: bool
    stores: bool | None
    """Whether it takes what has to be stored; None where it is not asked: Redis, and a backend that is not reachable.
    The database is asked by a write that changes nothing."""
    reason: str | None
    """Why it is not reachable, or does not store."""
    settings: list[Setting]
    """The settings that decide whether the backend keeps what it has acknowledged."""


class Status(msgspec.Struct, frozen=True):
    """The output of `meshim status --json`."""

    state: Phase
    pid: int | None
    api: str | None
    data: str
    roles: list[RoleStatus]
    backends: list[BackendStatus]


@click.command()
@data_option
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def status(data: DataFolder, as_json: bool) -> None:
    """Show the roles and backends of the mesh that runs on a data folder."""
    try:
        pid = state.supervisor(data)
    except UsageError:
        if as_json:  # programs get a status too; the sentence goes to standard error
            _print_json(Status(state=Phase.STOPPED, pid=None, api=None, data=str(data.root), roles=[], backends=[]))
        raise
    mesh = state.read(data)
    if mesh is None or mesh.pid != pid:
        raise MeshimError(f"The mesh on {data.root} has only just been started: ask again.")
    backends = asyncio.run(_probe_backends(mesh, data))
    roles = [
        RoleStatus(**msgspec.structs.asdict(role), counters=counters.read(data.root, role.role, role.name, role.pid))
        for role in mesh.roles
    ]
    shown = Status(state=mesh.state, pid=pid, api=mesh.api, data=str(data.root), roles=roles, backends=backends)
    if as_json:
        _print_json(shown)
    else:
        print(_table(shown))


def _print_json(shown: Status) -> None:
    print(msgspec.json.format(msgspec.json.encode(shown)).decode())


class _Found(NamedTuple):
    """What a backend answered."""

    reachable: bool
    stores: bool | None
    reason: str | None


async def _probe_backends(mesh: MeshState, data: DataFolder) -> list[BackendStatus]:
    """Probe each backend now, with the credentials that the roles use."""
    from meshim.stores.backends import read_settings  # here: the other commands do not need httpx

    running = topologies.load(data.topology) if mesh.state is Phase.RUNNING else None

    async def ask(name: str) -> _Found:
        if running is None:
            return _Found(reachable=False, stores=None, reason=f"The mesh is {mesh.state}.")
        try:
            await probe(getattr(running.backends, name))
        except BackendUnavailable as error:
            return _Found(reachable=False, stores=None, reason=error.sentence)
        if name == "redis":  # it holds nothing that has to survive
            return _Found(reachable=True, stores=None, reason=None)
        try:
            await check_storing(running, name)
        except BackendUnavailable as error:
            return _Found(reachable=True, stores=False, reason=error.sentence)
        return _Found(reachable=True, stores=True, reason=None)

    found = await asyncio.gather(*(ask(backend.name) for backend in mesh.backends))
    settings = await read_settings(running.backends, running.durability.nats_monitor) if running else []
    return [
        BackendStatus(
            name=each.name,
            url=each.url,
            state=each.state,
            pid=each.pid,
            restarts=each.restarts,
            storage_restarts=each.storage_restarts,
            reachable=answer.reachable,
            stores=answer.stores,
            reason=answer.reason,
            settings=[setting for setting in settings if setting.backend == each.name],
        )
        for each, answer in zip(mesh.backends, found, strict=True)
    ]


def _table(shown: Status) -> str:
    rows = [("NAME", "ROLE", "STATE", "PID", "RESTARTS", "ENDPOINT")]
    rows.extend(
        (role.name, role.role, role.state, _or_dash(role.pid), str(role.restarts), role.endpoint or "-")
        for role in shown.roles
    )
    for backend in shown.backends:
        where = backend.url
        if not backend.reachable:
            where = f"not reachable: {backend.reason}"
        elif backend.stores is False:
            where = f"does not store: {backend.reason}"
        rows.append((backend.name, "backend", backend.state, _or_dash(backend.pid), str(backend.restarts), where))
    settings = [("BACKEND", "SETTING", "VALUE", "SAFE")]
    settings.extend(
        (setting.backend, setting.name, setting.value or "-", _safe(setting))
        for backend in shown.backends
        for setting in backend.settings
    )
    heading = f"The mesh is {shown.state}: {shown.api or 'no address yet'}"
    return "\n".join([heading, "", *_columns(rows), *(["", *_columns(settings)] if len(settings) > 1 else [])])


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """The rows as lines, with aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _safe(setting: Setting) -> str:
    word = {Verdict.SAFE: "yes", Verdict.WEAK: "no", Verdict.UNKNOWN: "unknown"}[setting.verdict]
    return f"{word}: {setting.reason}" if setting.reason else word


def _or_dash(pid: int | None) -> str:
    return "-" if pid is None else str(pid)


@click.group()
def topology() -> None:
    """Work with topology files."""


@topology.command()
@click.argument("file", type=click.Path(path_type=Path))
def check(file: Path) -> None:
    """Say whether FILE is a topology, and otherwise everything that is wrong with it, and where.

    A fault keeps a mesh from starting: the exit status is 2. A warning is about a file that works and is probably not
    meant so: with warnings alone the exit status is 0.
    """
    mesh, faults, warnings = topologies.inspect(file)
    for kind, findings in (("fault", faults), ("warning", warnings)):
        for finding in findings:
            print(f"{kind}: {finding.sentence}")
    if faults or mesh is None:
        raise UsageError(f"{file} is not a topology: {len(faults)} fault{'s' * (len(faults) > 1)}, see above.")
    counts = (
        f"{len(mesh.connectors)} connectors, {len(mesh.transfers)} transfers, "
        f"{len(mesh.writers)} writers, {len(mesh.rest)} rest"
    )
    print(f"{file} is a topology: {counts}.")


@click.group()
def db() -> None:
    """Work with the database."""


@db.command()
@topology_option
@data_option
def upgrade(file: Path | None, data: DataFolder) -> None:
    """Bring the database's tables to this version; `meshim up` does it too."""
    topology = load(file)
    url = topology.backends.sql
    if url == "embedded":
        data.create()
        url = data.sqlite_url
    asyncio.run(probe(url))
    supervisor.upgrade_database(url, topology)
    print("The database is up to date.")


commands: list[click.Command] = [up, down, status, topology, db]
