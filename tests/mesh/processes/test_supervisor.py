"""The supervisor starts all processes or says why not, restarts those that crash, and leaves no process behind."""

import asyncio
import os
import re
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from meshim import topology
from meshim.deploy import child, state, supervisor
from meshim.deploy.probe import probe
from meshim.deploy.state import BackendState, DataFolder, MeshState, Phase, RoleState
from meshim.errors import BackendUnavailable, MeshimError, UsageError
from meshim.topology import Backends, ConnectorListener, Listener, RestListener, Timers, Topology, Worker
from tests.mesh.harness import stub_mesh

ROOT = Path(__file__).parents[3]
TIMEOUT_S = 20.0


def topology_of(connector: str = "c1", rest: str = "http://127.0.0.1:0", backends: Backends | None = None) -> Topology:
    return Topology(
        connectors=(ConnectorListener(connector),),
        transfers=(Listener("t1"),),
        writers=(Worker("w1"),),
        rest=(RestListener("r1", rest),),
        backends=backends or Backends(),
        timers=Timers(shutdown_s=0.2),
    )


@pytest.fixture
def data(tmp_path: Path) -> DataFolder:
    return DataFolder(tmp_path / "data")


@contextmanager
def spawned(mesh: Topology, data: DataFolder) -> Iterator[subprocess.Popen[str]]:
    """The supervisor as a process, which is killed after the block."""
    file = data.root.with_name("written.yaml")
    file.write_text(topology.dump(mesh), encoding="utf-8")
    command = [sys.executable, "-m", "tests.mesh.harness.stub_mesh", str(file), str(data.root)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def running(mesh: Topology, data: DataFolder) -> Iterator[subprocess.Popen[str]]:
    """The supervisor as a process, once it has printed that its mesh is ready."""
    with spawned(mesh, data) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready stub://r1\n", process.stderr and process.stderr.read()
        yield process


def until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {TIMEOUT_S:g} s: {what}"
        time.sleep(0.01)


def shown(data: DataFolder) -> MeshState:
    mesh = state.read(data)
    assert mesh is not None
    return mesh


def processes(data: DataFolder) -> dict[str, RoleState | BackendState]:
    mesh = shown(data)
    return {role.name: role for role in mesh.roles} | {backend.name: backend for backend in mesh.backends}


def children(data: DataFolder) -> dict[str, int]:
    """The pids of all running roles and backends, by name."""
    return {name: each.pid for name, each in processes(data).items() if each.pid is not None}


def crash(data: DataFolder, name: str) -> None:
    """Kill a child, and wait until it runs again."""
    restarts = processes(data)[name].restarts
    os.kill(children(data)[name], signal.SIGKILL)
    until_restarted(data, name, restarts + 1)


def until_restarted(data: DataFolder, name: str, restarts: int) -> None:
    until(lambda: processes(data)[name].restarts == restarts, f"{name} is counted as restarted")
    until(lambda: processes(data)[name].state is Phase.RUNNING, f"{name} runs again")


def is_gone(pid: int) -> bool:
    try:
        # A zombie has ended; its parent may be an init that reaps late or never.
        return Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.parametrize(
    ("url", "announced"),
    [
        ("http://0.0.0.0:8100", "http://127.0.0.1:8100"),
        ("http://[::]:8100", "http://[::1]:8100"),
        ("http://198.51.100.7:8100", "http://198.51.100.7:8100"),
        ("http://127.0.0.1:8100", "http://127.0.0.1:8100"),
    ],
)
def test_the_url_that_is_announced_can_be_used_on_this_host(url: str, announced: str) -> None:
    assert supervisor.reachable(url) == announced


async def test_a_mesh_starts_all_processes_and_leaves_none_behind(data: DataFolder) -> None:
    with running(topology_of(), data) as process:
        mesh = shown(data)
        assert (mesh.pid, mesh.state, mesh.api) == (process.pid, Phase.RUNNING, "stub://r1")
        assert {(role.role, role.name, role.state, role.endpoint) for role in mesh.roles} == {
            ("connector", "c1", Phase.RUNNING, "stub://c1"),
            ("transfer", "t1", Phase.RUNNING, "stub://t1"),
            ("writer", "w1", Phase.RUNNING, "stub://w1"),
            ("rest", "r1", Phase.RUNNING, "stub://r1"),
        }
        assert set(children(data)) == {"c1", "t1", "w1", "r1", "redis", "nats"}
        assert state.supervisor(data) == process.pid
        resolved = topology.load(data.topology)
        for url in (resolved.backends.redis, resolved.backends.nats, resolved.backends.sql):
            await probe(url)
        pids = children(data).values()
        process.send_signal(signal.SIGTERM)
        assert process.wait(TIMEOUT_S) == 0
        assert all(is_gone(pid) for pid in pids)
    assert shown(data).state is Phase.STOPPED
    assert children(data) == {}
    for name in ("c1", "t1", "w1", "r1"):
        assert data.run.joinpath(f"{name}.ended").read_text() == "True", f"{name} ended after the backends"
    with pytest.raises(UsageError, match="No mesh runs on"):
        state.supervisor(data)


def test_passwords_are_private_and_not_shown(data: DataFolder) -> None:
    with running(topology_of(), data):
        assert stat.S_IMODE(data.topology.stat().st_mode) == 0o600
        assert stat.S_IMODE(data.root.stat().st_mode) == 0o700
        resolved = topology.load(data.topology).backends
        password = resolved.redis.split(":")[2].partition("@")[0]
        assert password
        assert password not in data.state.read_text()
        arguments = [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children(data).values()]
        assert not any(password.encode() in each for each in arguments)


def test_ctrl_c_ends_the_mesh(data: DataFolder) -> None:
    with running(topology_of(), data) as process:
        process.send_signal(signal.SIGINT)
        assert process.wait(TIMEOUT_S) == 0


def test_a_role_that_does_not_end_is_killed(data: DataFolder) -> None:
    with running(topology_of(connector="stubborn"), data) as process:
        pid = children(data)["stubborn"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(TIMEOUT_S) == 0
        assert is_gone(pid)


def test_a_crashed_role_is_started_again_and_counted(data: DataFolder) -> None:
    with running(topology_of(), data):
        before = children(data)
        crash(data, "c1")
        crash(data, "c1")
        after = children(data)
        assert after.pop("c1") != before.pop("c1")
        assert after == before


async def test_a_backend_that_crashes_comes_back_under_its_url(data: DataFolder) -> None:
    with running(topology_of(), data):
        urls = topology.load(data.topology).backends
        for name, url in (("redis", urls.redis), ("nats", urls.nats)):
            crash(data, name)
            await probe(url)


@contextmanager
def unwritable_state(data: DataFolder) -> Iterator[None]:
    """The state file cannot be written, as on a full disk; permissions would not stop the superuser."""
    in_the_way = data.state.with_suffix(".new")
    in_the_way.mkdir()
    yield
    in_the_way.rmdir()


def test_a_mesh_whose_state_cannot_be_written_goes_on_and_writes_it_later(data: DataFolder) -> None:
    with running(topology_of(), data) as process:
        before = children(data)
        with unwritable_state(data):
            os.kill(before["c1"], signal.SIGKILL)
            os.kill(before["redis"], signal.SIGKILL)
            until(lambda: is_gone(before["c1"]) and is_gone(before["redis"]), "both were killed")
            assert process.poll() is None
            assert shown(data).state is Phase.RUNNING
        for name in ("c1", "redis"):
            until_restarted(data, name, 1)
        assert process.poll() is None


def test_a_mesh_whose_state_cannot_be_written_stops_all_its_processes(data: DataFolder) -> None:
    with running(topology_of(), data) as process:
        pids = children(data).values()
        with unwritable_state(data):
            process.send_signal(signal.SIGTERM)
            assert process.wait(TIMEOUT_S) == 0
            assert all(is_gone(pid) for pid in pids)
    for name in ("c1", "t1", "w1", "r1"):
        assert data.run.joinpath(f"{name}.ended").read_text() == "True", f"{name} ended after the backends"


async def test_the_state_is_written_again_until_that_succeeds(
    data: DataFolder, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    data.create()
    monkeypatch.setattr(supervisor, "_STATE_RETRY_S", 0.01)
    with unwritable_state(data):
        mesh = supervisor._Mesh(topology_of(), data, -1, supervisor.role_command, supervisor.upgrade_database)
        mesh._write_state()
        assert state.read(data) is None
    async with asyncio.timeout(TIMEOUT_S):
        while state.read(data) is None:
            await asyncio.sleep(0.001)
    assert re.findall("state-[a-z-]+", capfd.readouterr().err) == ["state-not-written", "state-written-again"]


def test_a_role_that_cannot_be_started_now_is_started_later(data: DataFolder) -> None:
    with running(topology_of(), data) as process:
        log = data.logs / "connector-c1.log"
        log.unlink()
        log.mkdir()  # as a full disk does, it fails the open
        os.kill(children(data)["c1"], signal.SIGKILL)
        until(lambda: processes(data)["c1"].restarts >= 2, "a start failed")
        assert process.poll() is None
        log.rmdir()
        until(lambda: processes(data)["c1"].state is Phase.RUNNING, "c1 runs again")


async def test_a_first_start_that_the_system_refuses_is_one_sentence(data: DataFolder) -> None:
    data.create()
    log = data.logs / "connector-c1.log"
    log.mkdir()
    error = await refusal(topology_of(), data)
    assert error.sentence == f"The connector c1 did not start: [Errno 21] Is a directory: '{log}' (log: {log})."


def test_all_children_end_when_the_supervisor_is_killed(data: DataFolder) -> None:
    with running(topology_of(connector="stubborn"), data) as process:
        pids = children(data).values()
        process.kill()
        until(lambda: all(is_gone(pid) for pid in pids), "all children are gone")
    with running(topology_of(), data):  # the data folder can be used again at once
        pass


def test_a_second_mesh_on_the_same_folder_is_refused(data: DataFolder) -> None:
    with running(topology_of(), data) as first:
        with spawned(topology_of(), data) as second:
            _, errors = second.communicate(timeout=TIMEOUT_S)
        assert second.returncode == 1
        assert errors == (f"A mesh runs on {data.root} already: end it with `meshim down`, or choose other --data.\n")
        assert state.supervisor(data) == first.pid
        assert shown(data).state is Phase.RUNNING


async def refusal(mesh: Topology, data: DataFolder) -> MeshimError:
    with pytest.raises(MeshimError) as refused:
        await stub_mesh.run(mesh, data)
    assert shown(data).state is Phase.STOPPED
    assert children(data) == {}
    return refused.value


async def test_a_role_that_cannot_start_says_why(data: DataFolder) -> None:
    error = await refusal(topology_of(connector="fails"), data)
    log = data.logs / "connector-fails.log"
    assert error.sentence == f"The connector fails did not start: The answer is not 42 (log: {log})."


async def test_a_role_that_is_not_ready_in_time_fails_the_start(
    data: DataFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "_READY_S", 3.0)
    error = await refusal(topology_of(connector="never-ready"), data)
    assert error.sentence.startswith("The connector never-ready did not start: it was not ready within 3 s")


async def test_a_port_in_use_is_one_sentence(data: DataFolder) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        error = await refusal(topology_of(rest=f"http://127.0.0.1:{port}"), data)
    assert isinstance(error, UsageError)
    assert error.sentence == (
        f"The address http://127.0.0.1:{port} of r1 is in use: end what listens there, or choose another one."
    )


async def test_an_unreachable_backend_is_one_sentence(data: DataFolder) -> None:
    error = await refusal(topology_of(backends=Backends(redis="redis://:secret@127.0.0.1:1/0")), data)
    assert isinstance(error, BackendUnavailable)
    assert error.sentence == "redis://127.0.0.1:1/0 is not reachable: connection refused."


async def test_external_backends_are_used_as_they_are(data: DataFolder, valkey_url: str) -> None:
    with running(topology_of(backends=Backends(redis=valkey_url)), data):
        assert topology.load(data.topology).backends.redis == valkey_url
        assert "redis" not in children(data)
        assert processes(data)["redis"].state is Phase.EXTERNAL
