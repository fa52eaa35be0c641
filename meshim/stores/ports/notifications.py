"""Notifications to connectors: at most once, never stored (NATS core)."""

from collections.abc import AsyncGenerator
from typing import Protocol

from meshim.wire.notification import Notice


class Notices(Protocol):
    async def tell(self, incarnation: int, notice: Notice) -> None:
        """To one connector; lost if nobody listens."""

    async def tell_all(self, notice: Notice) -> None:
        """To every connector."""

    async def listen(self, incarnation: int) -> AsyncGenerator[Notice]:
        """What is told to this incarnation and to all.  Undecodable notices are counted and skipped."""
