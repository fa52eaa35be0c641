"""A role that is told to stop leaves the mesh at once, although it has things to finish."""

import asyncio
import signal
from contextlib import closing

from tests.mesh.hostile import doing, leases
from tests.mesh.real_mesh import DEADLINE_S, PASSWORD, RealMesh
from tests.mesh.stranger import TEXT, USER, Stranger


async def test_a_connector_that_is_stopping_does_not_take_its_lease_again(mesh: RealMesh) -> None:
    """Clients would be sent to it, and its successor would have to wait."""
    (alice, bob) = await mesh.people("alice", "bob")
    client = await doing(Stranger, mesh.api, alice, PASSWORD)
    client.connectors = [connector for connector in client.connectors if connector["name"] == "c1"]
    await doing(client.connect)
    before = await incarnation(mesh)
    stopped = mesh.pid("c1")
    with closing(client.socket):
        try:
            for transfer in ("t1", "t2"):
                mesh.signal(transfer, signal.SIGSTOP)
            client.make((USER, client.users[bob], 0), TEXT, b"?")  # which no transfer takes: it has to be waited for
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
    """Of the connector c1 that has its lease."""
    return next((lease.incarnation for lease in await leases(mesh, "connector") if lease.name == "c1"), None)
