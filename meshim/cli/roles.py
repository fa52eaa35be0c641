"""One role in the foreground, as a deployment runs it: `meshim connector|transfer|writer|rest NAME`."""

import importlib
from collections.abc import Sequence
from pathlib import Path

import rich_click as click
import uvloop

from meshim.cli.options import data_option, load, topology_option
from meshim.deploy.state import DataFolder
from meshim.errors import UsageError
from meshim.topology import Listener, RestListener, Topology, Worker

_GROUPS = {"connector": "connectors", "transfer": "transfers", "writer": "writers", "rest": "rest"}
"""Role to the field of the topology that lists its members."""


def _role(role: str) -> click.Command:
    @click.command(
        role, help=f"Run one {role} of the topology in the foreground, until SIGTERM.", short_help=f"Run one {role}."
    )
    @click.argument("name")
    @topology_option
    @data_option
    def command(name: str, file: Path | None, data: DataFolder) -> None:
        topology = load(file)
        _check(role, name, topology)
        data.create()
        # Imported here: each process loads its own role only.
        service = importlib.import_module(f"meshim.{role}.service")
        uvloop.run(service.run(topology, name, data.root))

    return command


def _check(role: str, name: str, topology: Topology) -> None:
    """Raise UsageError when the topology has no such member, or a backend without a URL."""
    members: Sequence[Listener | Worker | RestListener] = getattr(topology, _GROUPS[role])
    names = [member.name for member in members]
    if name not in names:
        raise UsageError(f"The topology has no {role} named {name!r}: choose one of {', '.join(names)}.")
    for backend in ("redis", "nats", "sql"):
        if getattr(topology.backends, backend) == "embedded":
            raise UsageError(
                f"A role by itself needs a URL in `$.backends.{backend}`: `embedded` works with `meshim up` only, "
                "which writes one with URLs to run/topology.yaml in its data folder."
            )


commands: list[click.Command] = [_role(role) for role in _GROUPS]
