"""Notifications, the offline log and dead letters in memory, for tests and the simulation.

One `MemoryNats` is the server; port instances made with it and the same namespace are its clients.  Redelivery uses the
clock given to the server; only waiting for messages uses the time of the event loop.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence

from meshim.errors import BackendUnavailable, UsageError
from meshim.stores.ports import DeadLetter, LogMessage
from meshim.wire.notification import Notification, decode_notification, encode_notification

_QUEUE_MAX = 4096


class MemoryNats:
    """The data of the server, and whether it answers."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` returns seconds since any moment."""
        self.clock = clock
        self.partitions: dict[tuple[str, int], _Partition] = {}
        self.dead: dict[str, list[DeadLetter | None]] = {}
        """Dead letters of a namespace, by number - 1; None where one was removed."""
        self.listeners: list[tuple[frozenset[str], asyncio.Queue[bytes]]] = []
        self.dropped = 0
        """Notifications for which the queue of a listener had no room."""
        self._away = False

    def stop(self) -> None:
        """Make every call raise `BackendUnavailable`; the log is kept, notifications are lost."""
        self._away = True

    def start(self) -> None:
        """Answer again."""
        self._away = False

    def answer(self) -> None:
        """Raise `BackendUnavailable` while the server is stopped."""
        if self._away:
            raise BackendUnavailable("NATS (in memory) is stopped.")


class _Partition:
    """A stream and its consumer."""

    def __init__(self, first: int, max_bytes: int) -> None:
        self.last = first - 1
        self.max_bytes = max_bytes
        self.messages: dict[int, bytes] = {}
        self.given_until: dict[int, float] = {}
        self.stored = asyncio.Event()

    def append(self, data: bytes) -> int:
        if sum(map(len, self.messages.values())) + len(data) > self.max_bytes:
            raise BackendUnavailable("The log (in memory) is full.")
        self.last += 1
        self.messages[self.last] = data
        self.stored.set()
        return self.last

    def take(self, limit: int, now: float, ack_wait_s: float) -> list[LogMessage]:
        due = [position for position in self.messages if self.given_until.get(position, now) <= now][:limit]
        self.given_until.update(dict.fromkeys(due, now + ack_wait_s))
        return [LogMessage(position, self.messages[position]) for position in due]

    def remove(self, position: int) -> None:
        self.messages.pop(position, None)
        self.given_until.pop(position, None)


class MemoryNotifications:
    """The port `Notifications` in memory."""

    def __init__(self, nats: MemoryNats, namespace: str) -> None:
        self._nats = nats
        self._namespace = namespace

    async def tell(self, incarnation: int, notification: Notification) -> None:
        self._publish(str(incarnation), notification)

    async def tell_all(self, notification: Notification) -> None:
        self._publish("all", notification)

    async def listen(self, incarnation: int) -> AsyncGenerator[Notification]:
        self._nats.answer()
        subjects = frozenset((f"{self._namespace}.{incarnation}", f"{self._namespace}.all"))
        listener = subjects, asyncio.Queue[bytes](_QUEUE_MAX)
        self._nats.listeners.append(listener)
        return self._notifications(listener)

    async def _notifications(
        self, listener: tuple[frozenset[str], "asyncio.Queue[bytes]"]
    ) -> AsyncGenerator[Notification]:
        try:
            while True:
                yield decode_notification(await listener[1].get())
        finally:
            self._nats.listeners.remove(listener)

    def _publish(self, to: str, notification: Notification) -> None:
        self._nats.answer()
        subject = f"{self._namespace}.{to}"
        for subjects, queue in self._nats.listeners:
            if subject not in subjects:
                continue
            if queue.full():
                self._nats.dropped += 1
            else:
                queue.put_nowait(encode_notification(notification))


class MemoryOfflineLog:
    """The port `OfflineLog` in memory."""

    def __init__(self, nats: MemoryNats, namespace: str, *, max_bytes: int = 4 << 30, ack_wait_s: float = 30.0) -> None:
        self._nats = nats
        self._namespace = namespace
        self._max_bytes = max_bytes
        self._ack_wait_s = ack_wait_s

    async def ensure(self, partition: int, first: int) -> None:
        self._nats.answer()
        key = self._namespace, partition
        stream = self._nats.partitions.setdefault(key, _Partition(first, self._max_bytes))
        stream.max_bytes = self._max_bytes
        if stream.last + 1 < first:
            if stream.messages:
                raise UsageError(f"The log (in memory) ends at position {stream.last}, below {first - 1}.")
            stream.last = first - 1

    async def publish(self, partition: int, data: bytes) -> int:
        return self._partition(partition).append(data)

    async def fetch(self, partition: int, limit: int, wait_s: float) -> list[LogMessage]:
        stream = self._partition(partition)
        messages = self._take(stream, limit)
        if not messages and wait_s > 0.0:
            stream.stored.clear()
            try:
                async with asyncio.timeout(wait_s):
                    await stream.stored.wait()
            except TimeoutError:
                """Messages given out before may be due for redelivery by now."""
            self._nats.answer()
            messages = self._take(stream, limit)
        return messages

    async def extend(self, partition: int, positions: Sequence[int]) -> None:
        stream = self._partition(partition)
        until = self._nats.clock() + self._ack_wait_s
        stream.given_until.update((position, until) for position in positions if position in stream.given_until)

    async def acknowledge(self, partition: int, positions: Sequence[int]) -> None:
        stream = self._partition(partition)
        for position in positions:
            stream.remove(position)

    async def read(self, partition: int, position: int) -> bytes | None:
        return self._partition(partition).messages.get(position)

    async def dead_letter(self, partition: int, position: int, reason: str, data: bytes) -> None:
        self._nats.answer()
        dead = self._nats.dead.setdefault(self._namespace, [])
        dead.append(DeadLetter(len(dead) + 1, partition, position, self._nats.clock(), reason, data))

    def _take(self, stream: _Partition, limit: int) -> list[LogMessage]:
        return stream.take(limit, self._nats.clock(), self._ack_wait_s)

    def _partition(self, partition: int) -> _Partition:
        self._nats.answer()
        stream = self._nats.partitions.get((self._namespace, partition))
        if stream is None:
            raise BackendUnavailable(f"The log (in memory) has no partition {partition}.")
        return stream


class MemoryDeadLetters:
    """The port `DeadLetters` in memory."""

    def __init__(self, nats: MemoryNats, namespace: str) -> None:
        self._nats = nats
        self._namespace = namespace

    async def last(self) -> int:
        return len(self._letters())

    async def get(self, number: int) -> DeadLetter | None:
        letters = self._letters()
        return letters[number - 1] if 0 < number <= len(letters) else None

    async def following(self, number: int) -> DeadLetter | None:
        return next((letter for letter in self._letters()[max(number, 0) :] if letter is not None), None)

    async def remove(self, number: int) -> bool:
        found = await self.get(number)
        if found is not None:
            self._letters()[number - 1] = None
        return found is not None

    def _letters(self) -> list[DeadLetter | None]:
        self._nats.answer()
        return self._nats.dead.get(self._namespace, [])
