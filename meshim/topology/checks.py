"""Semantic validation of a topology: every check that there is, as one list of faults and one of warnings.

A check is a function that yields a `Finding` for each thing that is wrong.  A fault is refused; a warning is a file
that works and is probably not what its author wants.  To add one: write the function beside those of its kind, and name
it below.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeAlias

from meshim.errors import TopologyError
from meshim.topology import addresses, backends, limits, suspicious, timers
from meshim.topology.finding import Finding
from meshim.topology.structs import Topology

Check: TypeAlias = Callable[[Topology], Iterator[Finding]]

_FAULTS: tuple[Check, ...] = (
    addresses.empty_groups,
    addresses.names,
    addresses.bound,
    addresses.advertised,
    addresses.shared_addresses,
    addresses.tls,
    addresses.origins,
    backends.urls,
    backends.monitor,
    timers.timers_below,
    timers.client_timeouts,
    timers.acknowledgements,
    timers.silence,
    timers.detection,
    timers.presence_silence,
    limits.rate,
    limits.fits,
    limits.log,
)
_WARNINGS: tuple[Check, ...] = (
    suspicious.placeholder_passwords,
    suspicious.placeholder_hosts,
    suspicious.connectors_on_loopback,
)


def faults(topology: Topology) -> list[Finding]:
    """Return everything that is wrong: the mesh must not start with it."""
    return [finding for check in _FAULTS for finding in check(topology)]


def warnings(topology: Topology) -> list[Finding]:
    """Return what works and is probably a mistake."""
    return [finding for check in _WARNINGS for finding in check(topology)]


def check(topology: Topology) -> None:
    """Raise `TopologyError` with what is wrong.  Code that makes a topology should call it, as `load` does."""
    refuse(faults(topology))


def refuse(found: Sequence[Finding]) -> None:
    """Raise `TopologyError` with the first fault, and the number of the others, if there is any."""
    if not found:
        return
    sentence = found[0].sentence
    if others := len(found) - 1:
        sentence = f"{sentence.removesuffix('.')} (and {others} more: `meshim topology check` lists all faults)."
    raise TopologyError(sentence)
