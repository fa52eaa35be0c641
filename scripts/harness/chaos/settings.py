"""The settings of a chaos run: topology, kinds of faults, and the folder for its files."""

import tempfile
from collections.abc import Mapping
from pathlib import Path

import msgspec

from meshim import topology as topologies
from meshim.client.connection import Transport
from meshim.errors import UsageError
from meshim.topology import Topology
from scripts.harness.chaos import fault_plan, injector
from scripts.harness.chaos.mutations import MUTATIONS
from scripts.harness.mesh import local_mesh


class Settings(msgspec.Struct, frozen=True):
    """Settings of a run.  `everything` says that no kind of fault was excluded."""

    seed: int
    seconds: float
    rate: float
    users: int
    kinds: tuple[str, ...]
    everything: bool
    mutation: str
    transport: str
    minimal: tuple[Transport, ...]
    """The transport of each minimal client, which says in which language it is."""
    hostile: bool = False
    """Whether a fifth of the clients is modified, from a third of the time on; faults begin at two thirds."""


def topology_of(file: Path | None, backends: Mapping[str, str]) -> Topology:
    """Return the topology in a file, or 3 connectors, 3 transfers and 2 writers, with these URLs of backends."""
    mesh = topologies.load(file) if file else local_mesh.topology(3, 3, 2)
    mesh = local_mesh.prepared(mesh, backends)
    topologies.check(mesh)
    return mesh


def check_transport(transport: str, mesh: Topology) -> None:
    """Raise UsageError when the devices would find a connector that does not speak their transport."""
    without = [each.name for each in mesh.connectors if each.websocket is None]
    if transport != "zeromq" and without:
        raise UsageError(
            f"{', '.join(without)} have no `websocket` in the topology: add it, or choose --transport zeromq."
        )


def chosen_kinds(only: str | None, mesh: Topology) -> tuple[str, ...]:
    """Return the kinds of faults in a list separated by commas, or all that the mesh allows.  Raises UsageError."""
    possible = injector.possible(mesh)
    if only is None:
        return tuple(possible)
    wanted = tuple(kind.strip() for kind in only.split(","))
    for kind in wanted:
        if kind not in fault_plan.KINDS:
            raise UsageError(f"{kind!r} is no kind of fault: choose out of {', '.join(fault_plan.KINDS)}.")
        if kind not in possible:
            raise UsageError(f"{kind} cannot be done here: that backend is not ours to break.")
    return wanted


def check_mutation(name: str | None) -> None:
    """Raise UsageError unless the mechanism can be taken out of a real mesh."""
    if name is not None and name not in MUTATIONS:
        raise UsageError(f"{name!r} cannot be broken on a real mesh: choose one of {', '.join(MUTATIONS)}.")


def new_folder(wanted: Path | None) -> Path:
    """Create the folder of a run, or a temporary one.  Raises UsageError."""
    if wanted is None:
        return Path(tempfile.mkdtemp(prefix="meshim-chaos-"))
    try:
        wanted.mkdir(parents=True)
    except OSError as error:
        raise UsageError(f"{wanted} cannot be made: {error.strerror}.") from error
    return wanted.resolve()
