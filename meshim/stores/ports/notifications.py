"""Notifications to connectors (wake-up, kick, account changed): at most once, never stored.

Implemented on NATS core (`nats/notifications.py`) and in memory (`memory/nats.py`); contract:
`tests/contract/nats/test_notifications.py`.
"""

from collections.abc import AsyncGenerator
from typing import Protocol

from meshim.wire.notification import Notification


class Notifications(Protocol):
    """Publish and subscribe: one subject per connector incarnation, and one for all connectors."""

    async def tell(self, incarnation: int, notification: Notification) -> None:
        """Send to one connector.  The notification is lost if that connector does not listen."""

    async def tell_all(self, notification: Notification) -> None:
        """Send to every connector."""

    async def listen(self, incarnation: int) -> AsyncGenerator[Notification]:
        """Subscribe, then return a generator of the notifications to this incarnation and to all.

        Every notification sent after `listen` returned is yielded, except while the connection is down or when the
        listener is too slow.  Undecodable notifications are counted and skipped.  Close the generator to unsubscribe.
        """
