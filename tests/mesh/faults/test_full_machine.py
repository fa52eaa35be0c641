"""H10, a full machine: the mesh says what it cannot do, and does it again by itself when there is room."""

import asyncio
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from meshim import topology
from meshim.deploy.state import read
from meshim.errors import StorageFailed
from meshim.stores.nats import storing
from scripts.harness.mesh import local_mesh
from tests.mesh.harness.library_client import client, receive_texts, send_and_wait
from tests.mesh.harness.real_mesh import DEADLINE_S, RealMesh, in_thread, running, until
from tests.small_disk import SmallDisk, small_disk


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """The disk under the data folder of a mesh."""
    with small_disk(tmp_path / "data", 60) as disk:
        yield disk


def storage_restarts(mesh: RealMesh) -> int:
    state = read(mesh.data)
    assert state is not None
    return next(backend.storage_restarts for backend in state.backends if backend.name == "nats")


async def until_a_stream_is_given_up(mesh: RealMesh) -> None:
    running_mesh = topology.load(mesh.data.topology)
    async with asyncio.timeout(DEADLINE_S):
        while True:
            try:
                await storing.check_at(running_mesh.backends.nats, running_mesh.namespace, 4)
            except StorageFailed:
                return
            await asyncio.sleep(0.1)


async def expect_that_the_operator_is_told(mesh: RealMesh) -> None:
    status = await in_thread(mesh.status)
    told = {each["name"]: (each["reachable"], each["stores"], each["reason"]) for each in status["backends"]}
    assert told["redis"] == (True, None, None)
    assert told["nats"][:2] == (True, False)
    assert "(no space left on device): make room on its disk" in told["nats"][2]
    async with httpx.AsyncClient(base_url=mesh.api) as http:
        ready = await http.get("/readyz")
    assert ready.status_code == 503
    assert ready.json()["backends"]["nats"] == {"ok": False, "reason": told["nats"][2]}


async def test_h10_storing_goes_on_when_a_full_disk_has_room_again(disk: SmallDisk, tmp_path: Path) -> None:
    with running(tmp_path, local_mesh.topology(connectors=1, transfers=1)) as mesh:
        alice_name, bob_name = await mesh.register_users("alice", "bob")
        async with client(mesh, bob_name) as bob:
            await asyncio.wait_for(bob.online(), DEADLINE_S)
        async with client(mesh, alice_name) as alice:
            await send_and_wait(alice, bob_name, "before")
            disk.fill()
            waiting = [await alice.send(bob_name, f"{number} {'x' * 2_000}") for number in range(30)]
            await until_a_stream_is_given_up(mesh)
            await expect_that_the_operator_is_told(mesh)
            assert storage_restarts(mesh) == 0, "a restart on a full disk helps nothing"
            disk.free()
            async with asyncio.timeout(DEADLINE_S):
                await asyncio.gather(*(each.wait_sent() for each in waiting))
        assert storage_restarts(mesh) == 1
        assert {each["name"]: each["stores"] for each in mesh.status()["backends"]} == {
            "redis": None, "nats": True, "sql": True,
        }  # fmt: skip
        async with client(mesh, bob_name) as bob:
            texts = await receive_texts(bob, 31)
        assert [text.split()[0] for text in texts] == ["before", *map(str, range(30))]


@contextmanager
def without_descriptors(mesh: RealMesh) -> Iterator[None]:
    """No role can open a file or a socket during the block, nor when it has closed one: its limit is lower by ten."""
    limits: dict[int, tuple[int, int]] = {}
    for pid in mesh.role_pids().values():
        limits[pid] = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        open_files = len(os.listdir(f"/proc/{pid}/fd"))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (open_files - 10, limits[pid][1]))
    try:
        yield
    finally:
        for pid in set(limits) & set(mesh.role_pids().values()):
            resource.prlimit(pid, resource.RLIMIT_NOFILE, limits[pid])


async def test_h10_roles_without_descriptors_go_on_and_recover(tmp_path: Path) -> None:
    with running(tmp_path, local_mesh.topology(connectors=1, transfers=1)) as mesh:
        alice_name, bob_name = await mesh.register_users("alice", "bob")
        async with client(mesh, alice_name) as alice, client(mesh, bob_name) as bob:
            for device in (alice, bob):
                await asyncio.wait_for(device.online(), DEADLINE_S)
            await send_and_wait(alice, bob_name, "before")
            before = mesh.role_pids()
            with without_descriptors(mesh):
                # Every role has to connect again: to both backends, and the connector to the transfer.
                for backend in ("redis", "nats"):
                    os.kill(mesh.backend_pid(backend), signal.SIGKILL)
                mesh.signal("t1", signal.SIGKILL)
                await until(lambda: "transfer-not-reached" in mesh.log("connector", "c1"), "c1 does not connect again")
                async with httpx.AsyncClient(base_url=mesh.api) as http:
                    with pytest.raises(httpx.TransportError):  # it is closed at once, and does not wait for ever
                        await http.get("/healthz")
                meanwhile = await alice.send(bob_name, "meanwhile")
            async with asyncio.timeout(DEADLINE_S):
                await meanwhile.wait_sent()
            assert await receive_texts(bob, 2) == ["before", "meanwhile"]
            await until(lambda: mesh.linked(), "the connector has no link")
        after = mesh.role_pids()
        assert after.pop("t1") != before.pop("t1")
        assert after == before


async def test_h10_a_start_on_a_full_disk_is_one_sentence(disk: SmallDisk, tmp_path: Path) -> None:
    topology_file = tmp_path / "topology.yaml"
    topology_file.write_text(topology.dump(local_mesh.topology(connectors=1, transfers=1)))
    disk.fill()
    command = [sys.executable, "-m", "meshim", "up", "-t", str(topology_file), "--data", str(disk.folder)]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, timeout=DEADLINE_S)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(f"meshim: The mesh cannot start on {disk.folder} (No space left on device): make room there")
