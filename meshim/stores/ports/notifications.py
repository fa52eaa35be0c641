"""Notifications to connectors: at most once, never stored (NATS core)."""

from collections.abc import AsyncGenerator
from typing import Protocol

from meshim.wire.notification import Notification


class Notifications(Protocol):
    async def tell(self, incarnation: int, notification: Notification) -> None:
        """To one connector; lost if nobody listens."""

    async def tell_all(self, notification: Notification) -> None:
        """To every connector."""

    async def listen(self, incarnation: int) -> AsyncGenerator[Notification]:
        """What is told to this incarnation and to all.  Undecodable notifications are counted and skipped."""
