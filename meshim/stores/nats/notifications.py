"""Notifications over NATS core: at most once, to connectors that listen now.

Subjects: `{namespace}.notification.{incarnation}` for one connector, `{namespace}.notification.all` for all.
"""

import asyncio
from collections.abc import AsyncGenerator

import msgspec
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from meshim.errors import BackendUnavailable
from meshim.runtime.log import Log
from meshim.stores.nats.client import NatsClient
from meshim.wire.notification import Notification, decode_notification, encode_notification

_QUEUE_MAX = 4096
"""Notifications that may wait for a listener; more are dropped."""
_SUBSCRIBE_S = 2.0


class NotificationStatistics(msgspec.Struct):
    """Counters of one listener since its start."""

    undecodable: int = 0
    """Notifications of another version, or of a foreign publisher."""
    dropped: int = 0
    """Notifications for which the queue of the listener had no room."""


class NatsNotifications:
    """The port `Notifications` on NATS."""

    def __init__(self, client: NatsClient, namespace: str, log: Log) -> None:
        self._client = client
        self._subject = f"{namespace}.notification"
        self._log = log
        self.statistics = NotificationStatistics()

    async def tell(self, incarnation: int, notification: Notification) -> None:
        await self._client.publish(f"{self._subject}.{incarnation}", encode_notification(notification))

    async def tell_all(self, notification: Notification) -> None:
        await self._client.publish(f"{self._subject}.all", encode_notification(notification))

    async def listen(self, incarnation: int) -> AsyncGenerator[Notification]:
        queue: asyncio.Queue[Notification] = asyncio.Queue(_QUEUE_MAX)

        async def receive(message: Msg) -> None:
            try:
                queue.put_nowait(decode_notification(message.data))
            except msgspec.DecodeError as error:
                self.statistics.undecodable += 1
                self._log.warning("notification not understood", reason=error)
            except asyncio.QueueFull:
                self.statistics.dropped += 1

        subscriptions: list[Subscription] = []
        try:
            for subject in (f"{self._subject}.{incarnation}", f"{self._subject}.all"):
                subscriptions.append(await self._client.subscribe(subject, receive))  # noqa: PERF401 (ended one by one below)
            await self._client.round_trip(_SUBSCRIBE_S)
        except BackendUnavailable:
            await self._end(subscriptions)
            raise
        return self._notifications(queue, subscriptions)

    async def _notifications(
        self, queue: "asyncio.Queue[Notification]", subscriptions: list[Subscription]
    ) -> AsyncGenerator[Notification]:
        try:
            while True:
                yield await queue.get()
        finally:
            await self._end(subscriptions)

    async def _end(self, subscriptions: list[Subscription]) -> None:
        for subscription in subscriptions:
            await self._client.unsubscribe(subscription)
