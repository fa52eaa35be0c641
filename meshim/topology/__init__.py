"""The configuration of a mesh: its structs, the checks of their values, and the YAML file that holds them."""

from meshim.topology.checks import check
from meshim.topology.file import dump, load
from meshim.topology.structs import (
    Backends,
    Durability,
    Frozen,
    Limits,
    Listener,
    OnWeak,
    RestListener,
    Security,
    Timers,
    Topology,
    Worker,
    default,
)

__all__ = [
    "Backends",
    "Durability",
    "Frozen",
    "Limits",
    "Listener",
    "OnWeak",
    "RestListener",
    "Security",
    "Timers",
    "Topology",
    "Worker",
    "check",
    "default",
    "dump",
    "load",
]
