"""meshim with one of its syncs left out, to see what that loses: `weakened.py WHAT meshim-arguments...`.

WHAT is one of `WHATS`.  Only `power_loss.py` wants this.
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

WHATS = ("nats", "sql-normal", "sql-off", "state")


def program(what: str) -> list[str]:
    """The command line of meshim weakened in this way."""
    return [sys.executable, "-P", "-m", "scripts.harness.power_loss.mutations", what]


def weaken(what: str) -> None:
    """Leave a sync out, in this process."""
    match what:
        case "nats":
            command = embedded.Nats.command

            def weak(self: embedded.Nats) -> list[str]:
                arguments = command(self)
                config = Path(arguments[-1])
                config.write_text(config.read_text().replace("sync_interval: always", "sync_interval: 2m"))
                return arguments

            embedded.Nats.command = weak  # type: ignore[method-assign]  # that is the point
        case "sql-normal" | "sql-off":
            level = what.removeprefix("sql-").upper()
            full = "synchronous = FULL"
            assert full in engine._SQLITE_PRAGMAS
            engine._SQLITE_PRAGMAS = tuple(  # type: ignore[assignment]
                f"synchronous = {level}" if pragma == full else pragma for pragma in engine._SQLITE_PRAGMAS
            )
        case "state":
            state_file._DURABLE = "synchronous=OFF"
        case _:
            raise AssertionError(what)


def main(what: str, *arguments: str) -> None:
    weaken(what)
    if arguments[0] != "up":
        sys.argv = ["meshim", *arguments]
        meshim()
    _, _, file, _, folder = arguments  # as `own_mesh.running` has them

    def role(kind: str, name: str, data: DataFolder) -> list[str]:
        return [*program(what), kind, name, "-t", str(data.topology), "--data", str(data.root)]

    asyncio.run(supervisor.run(topologies.load(Path(file)), DataFolder(Path(folder)), print, command=role))


if __name__ == "__main__":
    main(*sys.argv[1:])
