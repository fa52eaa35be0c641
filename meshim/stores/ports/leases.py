"""Leases: which processes live, and where to reach them (Redis)."""

from typing import Protocol

import msgspec


class Lease(msgspec.Struct, frozen=True):
    """What a living process says of itself: under (role, name), for as long as it renews.

    `incarnation` is 63 random bits made at start; `endpoint` is what to connect to, empty for writers;
    `key` is the CURVE public key of the endpoint in Z85, empty without CURVE.
    """

    role: str
    name: str
    incarnation: int
    endpoint: str = ""
    key: str = ""


class Leases(Protocol):
    async def acquire(self, lease: Lease, ttl_s: float) -> bool:
        """Take (role, name); False while another incarnation holds it."""

    async def extend(self, lease: Lease, ttl_s: float) -> bool:
        """Renew by compare-and-extend; False when it has ended or another incarnation holds it."""

    async def release(self, lease: Lease) -> None:
        """Give it back if it is still this incarnation's."""

    async def living(self, role: str) -> list[Lease]:
        """Every lease of the role that has not ended, by name."""

    async def run_id(self) -> str:
        """Names this run of the backend: another value means that what it held may be gone or old."""
