"""Which connectors may link to a transfer."""

from collections.abc import Sequence

from meshim.errors import BackendUnavailable
from meshim.stores.ports import Lease, Leases


class ConnectorAllowlist:
    """The CURVE keys of the living connectors for mesh links, as their leases name them.

    Each incarnation has one of its own.  The key that clients see may be shared (adr/0037), and admits to no transfer.
    """

    def __init__(self, leases: Leases) -> None:
        self._leases = leases
        self._keys: frozenset[bytes] = frozenset()

    def living(self, role: str, leases: Sequence[Lease]) -> None:
        """Replace the list by the keys of these leases."""
        self._keys = frozenset(lease.mesh_key.encode() for lease in leases)

    async def admit(self, key: bytes) -> bool | None:
        """Return whether a living connector has this key; None while Redis is away and the list lacks the key."""
        if key in self._keys:
            return True
        try:
            self.living("connector", await self._leases.living("connector"))
        except BackendUnavailable:
            return None
        return key in self._keys
