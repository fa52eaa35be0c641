"""The counters of one process of the REST service."""

import msgspec


class Statistics(msgspec.Struct):
    """Counters that only grow."""

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
    friend_requests_dropped: int = 0
    """The oldest requests to users to whom so many had come that there was no room for one more."""
    throttled_locally: int = 0
    """Attempts that this process counted alone, or whose end it could not tell the others: Redis was away."""
    refused: dict[str, int] = msgspec.field(default_factory=dict)
    """Answers with a problem, by its code."""

    def refuse(self, code: str) -> None:
        """Count an answer with this code."""
        self.refused[code] = self.refused.get(code, 0) + 1

    def counters(self) -> dict[str, int]:
        """Return all counters by name; those of `refused` as `refused_CODE`."""
        fields = msgspec.structs.asdict(self)
        refused: dict[str, int] = fields.pop("refused")
        return fields | {f"refused_{code}": count for code, count in sorted(refused.items())}
