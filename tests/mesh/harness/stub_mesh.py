"""`meshim up` with stub roles, as a process of its own: `stub_mesh.py TOPOLOGY DATA`."""

import asyncio
import sys
from pathlib import Path

from meshim import topology
from meshim.deploy import supervisor
from meshim.deploy.state import DataFolder
from meshim.errors import MeshimError
from tests.mesh.harness import stub_role


def command(role: str, name: str, data: DataFolder) -> list[str]:
    return [sys.executable, stub_role.__file__, role, name, str(data.topology)]


async def run(mesh: topology.Topology, data: DataFolder) -> None:
    def announce(api: str) -> None:
        print("ready", api, flush=True)

    def upgrade(url: str, upgraded_for: topology.Topology) -> None:
        assert (url, upgraded_for) == (data.sqlite_url, mesh)

    await supervisor.run(mesh, data, announce, command=command, upgrade=upgrade)


if __name__ == "__main__":
    try:
        asyncio.run(run(topology.load(Path(sys.argv[1])), DataFolder(Path(sys.argv[2]))))
    except MeshimError as error:
        sys.exit(error.sentence)
