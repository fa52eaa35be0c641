"""A role that gets SIGTERM gives up its lease at once, while it still finishes its work."""

import asyncio
import signal
from contextlib import closing

from tests.mesh.harness.independent_client import TEXT, USER, IndependentClient
from tests.mesh.harness.raw_sockets import leases
from tests.mesh.harness.real_mesh import DEADLINE_S, PASSWORD, RealMesh, in_thread


async def test_a_stopping_connector_does_not_take_its_lease_again(mesh: RealMesh) -> None:
    """REST would send clients to it, and its successor would have to wait for the lease."""
    (alice, bob) = await mesh.register_users("alice", "bob")
    client = await in_thread(IndependentClient, mesh.api, alice, PASSWORD)
    client.connectors = [connector for connector in client.connectors if connector["name"] == "c1"]
    await in_thread(client.connect)
    before = await incarnation(mesh)
    stopped = mesh.pid("c1")
    with closing(client.socket):
        try:
            for transfer in ("t1", "t2"):
                mesh.signal(transfer, signal.SIGSTOP)
            client.send_envelope(
                (USER, client.users[bob], 0), TEXT, b"?"
            )  # no transfer takes it, so the connector has to wait
            mesh.signal("c1", signal.SIGTERM)
            async with asyncio.timeout(DEADLINE_S):
                while await incarnation(mesh) == before:
                    await asyncio.sleep(0.01)
                while mesh.role("c1").pid == stopped:
                    assert await incarnation(mesh) != before
                    await asyncio.sleep(0.01)
        finally:
            for transfer in ("t1", "t2"):
                mesh.signal(transfer, signal.SIGCONT)
    assert await mesh.restarted("c1", stopped) != stopped
    assert await incarnation(mesh) not in (None, before)


async def incarnation(mesh: RealMesh) -> int | None:
    """The incarnation in the lease of c1; None without a lease."""
    return next((lease.incarnation for lease in await leases(mesh, "connector") if lease.name == "c1"), None)
