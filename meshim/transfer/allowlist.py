"""Which connectors may link to a transfer, and as which incarnation."""

from collections.abc import Sequence

from meshim.errors import BackendUnavailable
from meshim.stores.ports import Lease, Leases


class ConnectorAllowlist:
    """The CURVE keys of the living connectors for mesh links, as their leases name them.

    Each incarnation has one of its own, and its Hello may name that incarnation alone (adr/0045).  The key that clients
    see may be shared (adr/0037), and admits to no transfer.
    """

    def __init__(self, leases: Leases) -> None:
        self._leases = leases
        self._owners: dict[bytes, str] = {}
        """Key to incarnation, in decimal digits."""

    def living(self, role: str, leases: Sequence[Lease]) -> None:
        """Replace the list by the keys of these leases."""
        self._owners = {lease.mesh_key.encode(): str(lease.incarnation) for lease in leases if lease.mesh_key}

    async def admit(self, key: bytes) -> str | None:
        """Return the incarnation of the living connector that has this key, "" when none has.

        None while Redis is away and the list lacks the key.
        """
        owner = self._owners.get(key)
        if owner is not None:
            return owner
        try:
            self.living("connector", await self._leases.living("connector"))
        except BackendUnavailable:
            return None
        return self._owners.get(key, "")
