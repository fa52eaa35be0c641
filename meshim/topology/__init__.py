"""The configuration of a mesh: its structs, the checks of their values, and the YAML file that holds them."""

from meshim.topology.checks import check
from meshim.topology.file import dump, load
from meshim.topology.structs import (
    Backends,
    ConnectorListener,
    Durability,
    Frozen,
    Limits,
    Listener,
    OnWeak,
    RestListener,
    Security,
    Timers,
    Topology,
    WebSocketListener,
    Worker,
    default,
)

__all__ = [
    "Backends",
    "ConnectorListener",
    "Durability",
    "Frozen",
    "Limits",
    "Listener",
    "OnWeak",
    "RestListener",
    "Security",
    "Timers",
    "Topology",
    "WebSocketListener",
    "Worker",
    "check",
    "default",
    "dump",
    "load",
]
