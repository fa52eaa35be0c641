"""Leaves one sync out of meshim, to show that a power loss then loses messages.

    python -m scripts.harness.power_loss.mutations NAME meshim-arguments...

is the `meshim` command without that sync; NAME is one of `MUTATIONS`.
"""

import asyncio
import sys
from pathlib import Path

from meshim import topology as topologies
from meshim.cli.main import main as meshim
from meshim.client import state as state_file
from meshim.deploy import embedded, supervisor
from meshim.deploy.state import DataFolder
from meshim.stores.sql import engine

MUTATIONS = ("nats", "sql-normal", "sql-off", "state")


def program(name: str) -> list[str]:
    """Return the command line of meshim with this mutation."""
    return [sys.executable, "-P", "-m", "scripts.harness.power_loss.mutations", name]


def apply(name: str) -> None:
    """Leave the sync out in this process."""
    match name:
        case "nats":
            command = embedded.Nats.command

            def weak(self: embedded.Nats) -> list[str]:
                arguments = command(self)
                config = Path(arguments[-1])
                config.write_text(config.read_text().replace("sync_interval: always", "sync_interval: 2m"))
                return arguments

            embedded.Nats.command = weak  # type: ignore[method-assign]  # the mutation
        case "sql-normal" | "sql-off":
            level = name.removeprefix("sql-").upper()
            full = "synchronous = FULL"
            assert full in engine._SQLITE_PRAGMAS
            engine._SQLITE_PRAGMAS = tuple(  # type: ignore[assignment]
                f"synchronous = {level}" if pragma == full else pragma for pragma in engine._SQLITE_PRAGMAS
            )
        case "state":
            state_file._DURABLE = "synchronous=OFF"
        case _:
            raise AssertionError(name)


def main(name: str, *arguments: str) -> None:
    apply(name)
    if arguments[0] != "up":
        sys.argv = ["meshim", *arguments]
        meshim()
    _, _, file, _, folder = arguments  # the arguments of `local_mesh.running`

    def role(kind: str, member: str, data: DataFolder) -> list[str]:
        return [*program(name), kind, member, "-t", str(data.topology), "--data", str(data.root)]

    asyncio.run(supervisor.run(topologies.load(Path(file)), DataFolder(Path(folder)), print, command=role))


if __name__ == "__main__":
    main(*sys.argv[1:])
