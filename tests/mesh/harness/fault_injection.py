"""Faults that force a race on a real mesh: processes stopped and killed, the database locked, a binding erased."""

import os
import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext, suppress

import msgspec

from meshim import topology as topologies
from meshim.topology import Timers, Topology
from scripts.harness.mesh import local_mesh
from tests.mesh.harness.inspection import open_database, redis_client
from tests.mesh.harness.real_mesh import RealMesh, until
from tests.threads import wait_stopped


def short_timers(*, writers: int = 1, **timers: float) -> Topology:
    """A topology whose leases and links notice a dead process in half the usual time, so that tests wait less."""
    quick = Timers(
        lease_renew_s=0.5, lease_ttl_s=2.0, partition_lease_s=3.0, queue_lease_s=4.0, mesh_heartbeat_s=0.3,
        mesh_silence_s=1.0,
    )  # fmt: skip
    topology = msgspec.structs.replace(
        local_mesh.topology(writers=writers), timers=msgspec.structs.replace(quick, **timers)
    )
    topologies.check(topology)
    return topology


# ---------------------------------------------------------------- processes


@contextmanager
def stopped(mesh: RealMesh, *names: str, at_once: bool = False) -> Iterator[None]:
    """SIGSTOP roles or backends during the block, then SIGCONT those that were not killed.

    Unless `at_once`, none of them is stopped within a transaction: SQLite has one write lock, and a process that is
    stopped while it holds it would block every other writer.
    """
    pids = [pid_of(mesh, name) for name in names]
    with nullcontext() if at_once else locked_database(mesh):
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        for pid in pids:
            wait_stopped(pid)
    try:
        yield
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def kill(mesh: RealMesh, name: str) -> int:
    """kill -9 for a role or backend; return the pid that was killed."""
    pid = pid_of(mesh, name)
    os.kill(pid, signal.SIGKILL)
    return pid


def pid_of(mesh: RealMesh, name: str) -> int:
    """The pid of a role or backend."""
    return mesh.backend_pid(name) if name in ("redis", "nats") else mesh.pid(name)


async def wait_restarted(mesh: RealMesh, name: str, after: int) -> None:
    """Wait until a role or backend runs again that was killed as the pid `after`."""
    if name in ("redis", "nats"):
        await until(lambda: mesh.backend_pid(name) not in (0, after), f"{name} does not come back")
    else:
        await mesh.restarted(name, after)
        await until(mesh.linked, f"{name} does not get all its links back")


# ---------------------------------------------------------------- stores


def erase_binding(mesh: RealMesh, user: int, device: int) -> None:
    """Erase a binding in Redis, so that writers send no wake-up for the device."""
    with closing(redis_client(mesh)) as client:
        assert client.hdel(f"meshim:presence:{user}", str(device)) == 1


@contextmanager
def locked_database(mesh: RealMesh) -> Iterator[None]:
    """Hold the write lock of the SQLite database during the block: no process of the mesh can write."""
    with closing(open_database(mesh)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        try:
            yield
        finally:
            connection.execute("ROLLBACK")
