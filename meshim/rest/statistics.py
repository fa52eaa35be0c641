"""The counters of one process of the REST service."""

import msgspec


class Statistics(msgspec.Struct):
    """Counters that only grow; read them with `msgspec.structs.asdict`."""

    notify_failures: int = 0
    """Steps after a commit (cache, presence, notification) that failed because a backend was unavailable."""
