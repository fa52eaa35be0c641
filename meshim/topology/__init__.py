"""The configuration of a mesh: its structs, the checks of their values, and the YAML file that holds them."""

from meshim.topology.checks import check, warnings
from meshim.topology.file import Inspection, dump, inspect, load
from meshim.topology.finding import Finding
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
    "Finding",
    "Frozen",
    "Inspection",
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
    "inspect",
    "load",
    "warnings",
]
