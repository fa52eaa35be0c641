"""Leases: which processes are alive, and where to reach them.

Implemented on Redis (`redis/leases.py`) and in memory (`memory/redis.py`); contract:
`tests/contract/redis/test_leases.py` and `test_lease_clock.py`.
`lease_keeper.py` renews the lease of a process and watches those of others.
"""

from typing import Protocol

import msgspec


class Lease(msgspec.Struct, frozen=True):
    """The claim of a process on (role, name), valid for as long as the process renews it.

    `incarnation` is 62 or 63 random bits, made at the start of the process; `endpoint` is the address to connect to,
    empty for writers; `key` is the CURVE public key of the endpoint in Z85, empty without CURVE.  `mesh_key` is the
    public key with which the process connects to others of the mesh: only connectors do, and it differs from `key`.
    `url` is the WebSocket URL of a connector, empty without one.
    """

    role: str
    name: str
    incarnation: int
    endpoint: str = ""
    key: str = ""
    mesh_key: str = ""
    url: str = ""


class Leases(Protocol):
    """Leases with a time to live, compared by incarnation."""

    async def acquire(self, lease: Lease, ttl_s: float) -> bool:
        """Take (role, name) for `ttl_s`; return False while another incarnation holds it.

        Returns True also when this incarnation holds it already: the reply to an earlier call may have been lost.
        """

    async def extend(self, lease: Lease, ttl_s: float) -> bool:
        """Renew by compare-and-extend; return False when the lease has ended or another incarnation holds it."""

    async def release(self, lease: Lease) -> None:
        """End the lease if this incarnation holds it."""

    async def living(self, role: str) -> list[Lease]:
        """Return every lease of the role that has not ended, by name."""

    async def run_id(self) -> str:
        """Return the id of this run of the backend.  After a change, stored values may be gone or old (R9)."""
