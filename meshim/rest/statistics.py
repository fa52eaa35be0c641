"""The counters of one process of the REST service."""

import msgspec


class Statistics(msgspec.Struct):
    """Counters that only grow; read them with `msgspec.structs.asdict`."""

    notify_failures: int = 0
    """Steps after a commit (cache, presence, notification) that failed because a backend was unavailable."""
    requests_malformed: int = 0
    """No HTTP at all: 400, and the connection ends."""
    requests_too_large: int = 0
    """More bytes of headers than are allowed: 431, and the connection ends."""
    requests_late: int = 0
    """A request that did not arrive in time, or a connection without one: 408, or nothing, and the connection ends."""
    connections_cut: int = 0
    """Cut, or not taken, to make room for others."""
    connectors_postponed: int = 0
    """Questions for connectors that were told to come again later, because too many waited: 503."""
    connectors_abandoned: int = 0
    """Questions for connectors whose askers had gone before their turn."""
