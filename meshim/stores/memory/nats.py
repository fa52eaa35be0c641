"""Notifications and the log in memory, for tests and demos.

One `MemoryBroker` is the server; any number of port instances made with it and the same
namespace are its clients.  Messages are given again by the clock it was given; only waiting for
messages uses the event loop's time.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence

from meshim.errors import BackendUnavailable, UsageError
from meshim.stores.ports import DeadLetter, LogMessage
from meshim.wire.notification import Notification, decode_notification, encode_notification

_WAITING_MOST = 4096


class MemoryBroker:
    """What the server holds, and whether it answers."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` returns seconds from any start."""
        self.clock = clock
        self.partitions: dict[tuple[str, int], _Partition] = {}
        self.dead: dict[str, list[DeadLetter | None]] = {}
        """Dead letters of a namespace, by number - 1; None where one was removed."""
        self.listeners: list[tuple[frozenset[str], asyncio.Queue[bytes]]] = []
        self.dropped = 0
        """Notifications for which a listener had no room."""
        self._away = False

    def stop(self) -> None:
        """From now on every call raises `BackendUnavailable`; the log stays, notifications are lost."""
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

    def take(self, most: int, now: float, ack_wait_s: float) -> list[LogMessage]:
        due = [position for position in self.messages if self.given_until.get(position, now) <= now][:most]
        self.given_until.update(dict.fromkeys(due, now + ack_wait_s))
        return [LogMessage(position, self.messages[position]) for position in due]

    def remove(self, position: int) -> None:
        self.messages.pop(position, None)
        self.given_until.pop(position, None)


class MemoryNotifications:
    """The port `Notifications` in memory."""

    def __init__(self, broker: MemoryBroker, namespace: str) -> None:
        self._broker = broker
        self._namespace = namespace

    async def tell(self, incarnation: int, notification: Notification) -> None:
        self._publish(str(incarnation), notification)

    async def tell_all(self, notification: Notification) -> None:
        self._publish("all", notification)

    async def listen(self, incarnation: int) -> AsyncGenerator[Notification]:
        self._broker.answer()
        subjects = frozenset((f"{self._namespace}.{incarnation}", f"{self._namespace}.all"))
        listener = subjects, asyncio.Queue[bytes](_WAITING_MOST)
        self._broker.listeners.append(listener)
        return self._notifications(listener)

    async def _notifications(
        self, listener: tuple[frozenset[str], "asyncio.Queue[bytes]"]
    ) -> AsyncGenerator[Notification]:
        try:
            while True:
                yield decode_notification(await listener[1].get())
        finally:
            self._broker.listeners.remove(listener)

    def _publish(self, to: str, notification: Notification) -> None:
        self._broker.answer()
        subject = f"{self._namespace}.{to}"
        for subjects, heard in self._broker.listeners:
            if subject not in subjects:
                continue
            if heard.full():
                self._broker.dropped += 1
            else:
                heard.put_nowait(encode_notification(notification))


class MemoryOfflineLog:
    """The port `OfflineLog` in memory."""

    def __init__(
        self, broker: MemoryBroker, namespace: str, *, max_bytes: int = 4 << 30, ack_wait_s: float = 30.0
    ) -> None:
        self._broker = broker
        self._namespace = namespace
        self._max_bytes = max_bytes
        self._ack_wait_s = ack_wait_s

    async def ensure(self, partition: int, first: int) -> None:
        self._broker.answer()
        key = self._namespace, partition
        stream = self._broker.partitions.setdefault(key, _Partition(first, self._max_bytes))
        stream.max_bytes = self._max_bytes
        if stream.last + 1 < first:
            if stream.messages:
                raise UsageError(f"The log (in memory) ends at position {stream.last}, below {first - 1}.")
            stream.last = first - 1

    async def publish(self, partition: int, data: bytes) -> int:
        return self._partition(partition).append(data)

    async def fetch(self, partition: int, most: int, wait_s: float) -> list[LogMessage]:
        stream = self._partition(partition)
        messages = self._take(stream, most)
        if not messages and wait_s > 0.0:
            stream.stored.clear()
            try:
                async with asyncio.timeout(wait_s):
                    await stream.stored.wait()
            except TimeoutError:
                """What was given before may be due again by now."""
            self._broker.answer()
            messages = self._take(stream, most)
        return messages

    async def extend(self, partition: int, positions: Sequence[int]) -> None:
        stream = self._partition(partition)
        until = self._broker.clock() + self._ack_wait_s
        stream.given_until.update((position, until) for position in positions if position in stream.given_until)

    async def acknowledge(self, partition: int, positions: Sequence[int]) -> None:
        stream = self._partition(partition)
        for position in positions:
            stream.remove(position)

    async def read(self, partition: int, position: int) -> bytes | None:
        return self._partition(partition).messages.get(position)

    async def dead_letter(self, partition: int, position: int, reason: str, data: bytes) -> None:
        self._broker.answer()
        dead = self._broker.dead.setdefault(self._namespace, [])
        dead.append(DeadLetter(len(dead) + 1, partition, position, self._broker.clock(), reason, data))

    def _take(self, stream: _Partition, most: int) -> list[LogMessage]:
        return stream.take(most, self._broker.clock(), self._ack_wait_s)

    def _partition(self, partition: int) -> _Partition:
        self._broker.answer()
        stream = self._broker.partitions.get((self._namespace, partition))
        if stream is None:
            raise BackendUnavailable(f"The log (in memory) has no partition {partition}.")
        return stream


class MemoryDeadLetters:
    """The port `DeadLetters` in memory."""

    def __init__(self, broker: MemoryBroker, namespace: str) -> None:
        self._broker = broker
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
        self._broker.answer()
        return self._broker.dead.get(self._namespace, [])
