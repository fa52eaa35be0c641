"""Sums of the counters of all processes of a mesh, over all their restarts.

Counters start at 0 in each process and are written once a second.  What a killed process counted after its last write
is unknown: a sum may be too low, never too high.
"""

from collections import Counter
from collections.abc import Mapping

from meshim.deploy.state import DataFolder, read
from meshim.runtime import counters

SHOWN: dict[str, tuple[str, ...]] = {
    "resent": ("client",),
    "rerouted": ("connector",),
    "stored": ("transfer",),
    "synced": ("connector",),
    "deduplicated": ("client",),
    "fenced": ("connector", "writer"),
    "woken": ("connector",),
    "deferred": ("connector",),
}
"""The counters in the answer of a chaos run, and the roles that count each (`statistics.py` of a role defines it)."""


class MeshCounters:
    """Sums over processes that restart; call `sample` more often than once a second."""

    def __init__(self, data: DataFolder) -> None:
        self._data = data
        self._pids: dict[tuple[str, str], int] = {}
        self._by_process: dict[tuple[str, str, int], dict[str, int]] = {}

    def sample(self) -> None:
        """Read the counters of all processes."""
        state = read(self._data)
        if state is None:
            return
        for role in state.roles:
            # A process that has just ended wrote its counters once more at the end.
            for pid in {self._pids.get((role.role, role.name)), role.pid}:
                if pid is not None and (counted := counters.read(self._data.root, role.role, role.name, pid)):
                    self._by_process[role.role, role.name, pid] = counted
            if role.pid is not None:
                self._pids[role.role, role.name] = role.pid

    def add(self, role: str, counted: Mapping[str, int]) -> None:
        """Set the counters of a role without processes of the mesh: clients, all together."""
        self._by_process[role, "all", 0] = dict(counted)

    def sums(self) -> dict[str, int]:
        """Return the sums of `SHOWN`."""
        return {name: sum(self._of(role)[name] for role in roles) for name, roles in SHOWN.items()}

    def all(self) -> dict[str, dict[str, int]]:
        """Return every counter of every role, summed over its processes."""
        roles = sorted({role for role, _, _ in self._by_process})
        return {role: dict(sorted(self._of(role).items())) for role in roles}

    def _of(self, role: str) -> Counter[str]:
        total: Counter[str] = Counter()
        for (of, _, _), counted in self._by_process.items():
            if of == role:
                total.update(counted)
        return total
