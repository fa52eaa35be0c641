"""Gives events to the loops of an application, which may be slow: they coalesce, and their number is bounded.

What waits for a reader has a key, and a later event with the same key is merged into it:

    MessagesProgressed            stream, state, code     the ranges are united; a later state takes from earlier ones
    MessagesDelayed               peer                    the last one
    RelationChanged               user                    from the first `old` to the last `new`; nothing if equal
    PresenceChanged               name                    likewise
    TypingStarted, TypingStopped  name                    one cancels the other
    KeyChanged                    user                    the last one
    DevicesChanged                -                       one
    Connected, Disconnected       -                       the last of each, at its place in time

So a reader always ends with the state that holds, and may miss states that have passed.  At most `events_max` keys
wait, and 256 ranges in one event.  What finds no room is counted, and an EventsLost stands where it would have stood.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any
from weakref import WeakSet

import msgspec

from meshim.client.application.public_events import (
    Connected,
    DevicesChanged,
    DeviceTakenOver,
    Disconnected,
    Event,
    EventsLost,
    KeyChanged,
    MessagesDelayed,
    MessagesProgressed,
    PresenceChanged,
    RelationChanged,
    TypingStarted,
    TypingStopped,
)
from meshim.client.statistics import Statistics
from meshim.errors import MeshimError
from meshim.protocol.ranges import Ranges, united

RANGES_MAX = 256
"""Ranges in one event; beyond that the lowest is lost."""

Key = tuple[object, ...]

_KEYS: dict[type[Any], Callable[[Any], Key]] = {
    Connected: lambda event: (),
    Disconnected: lambda event: (),
    MessagesProgressed: lambda event: (event.stream, event.state, event.code, event.sentence),
    MessagesDelayed: lambda event: (event.peer,),
    RelationChanged: lambda event: (event.user_id,),
    KeyChanged: lambda event: (event.user_id,),
    DevicesChanged: lambda event: (),
    PresenceChanged: lambda event: (event.name,),
    TypingStarted: lambda event: (event.name,),
    TypingStopped: lambda event: (event.name,),
    DeviceTakenOver: lambda event: (),
    EventsLost: lambda event: (),
}
_MOVING = (Connected, Disconnected)
"""A later one stands behind what came before it: otherwise the last of the two would not tell what holds."""
_UNBOUNDED = (Connected, Disconnected, DeviceTakenOver, EventsLost)
"""One key each: they always find room."""

_EARLIER: dict[str, tuple[str, ...]] = {"delivered": ("sent",), "read": ("sent", "delivered")}
"""State of a message to those that it implies."""


def _key(event: Event) -> Key:
    kind = TypingStarted if isinstance(event, TypingStopped) else type(event)
    return (kind, *_KEYS[type(event)](event))


class Subscription(AsyncIterator[Event]):
    """The events from now on, for one loop.

    It gathers until `close`, or until nothing refers to it any more.
    """

    def __init__(self, events_max: int, statistics: Statistics) -> None:
        self._events_max = events_max
        self._statistics = statistics
        self._waiting: dict[Key, Event] = {}
        self._available = asyncio.Event()
        self._error: MeshimError | None = None
        self.closed = False

    def close(self) -> None:
        """Gather nothing more; the loop ends."""
        self.closed = True
        self._waiting.clear()
        self._available.set()

    def __aiter__(self) -> "Subscription":
        return self

    async def __anext__(self) -> Event:
        """Return the next event.  Raises the error that ended the client, after the last event."""
        while not self._waiting:
            if self.closed:
                raise StopAsyncIteration
            if self._error is not None:
                raise self._error
            self._available.clear()
            await self._available.wait()
        return self._waiting.pop(next(iter(self._waiting)))

    def put(self, event: Event) -> None:
        """For the publisher: an event has happened."""
        if isinstance(event, MessagesProgressed):
            self._supersede(event)
        key = _key(event)
        earlier = self._waiting.get(key)
        if earlier is None:
            if len(self._waiting) >= self._events_max and not isinstance(event, _UNBOUNDED):
                self._lose(1)
                return
            self._waiting[key] = self._bounded(event) if isinstance(event, MessagesProgressed) else event
        else:
            merged = self._merged(earlier, event)
            if merged is None or isinstance(event, _MOVING):
                del self._waiting[key]
            if merged is not None:
                self._waiting[key] = merged
        self._available.set()

    def end(self, error: MeshimError) -> None:
        """For the publisher: raise this error once the events that wait are read."""
        self._error = error
        self._available.set()

    def _lose(self, count: int) -> None:
        self._statistics.events_lost += count
        key = _key(EventsLost(count=0))
        before = self._waiting.get(key)
        self._waiting[key] = EventsLost(count=count + (before.count if isinstance(before, EventsLost) else 0))
        self._available.set()

    def _supersede(self, event: MessagesProgressed) -> None:
        """Take these messages out of events with earlier states that wait: no message goes back in the loop."""
        told = Ranges(event.ranges, len(event.ranges))
        for state in _EARLIER.get(event.state, ()):
            key = (MessagesProgressed, event.stream, state, 0, "")
            waiting = self._waiting.get(key)
            if isinstance(waiting, MessagesProgressed):
                left = tuple(part for first, last in waiting.ranges for part in told.missing(first, last))
                if left:
                    self._waiting[key] = self._bounded(msgspec.structs.replace(waiting, ranges=left))
                else:
                    del self._waiting[key]

    def _merged(self, earlier: Event, event: Event) -> Event | None:
        """One event for two with the same key; None when together they changed nothing."""
        match earlier, event:
            case MessagesProgressed(), MessagesProgressed():
                return self._united(earlier, event)
            case RelationChanged(), RelationChanged():
                return None if earlier.old == event.new else msgspec.structs.replace(event, old=earlier.old)
            case PresenceChanged(), PresenceChanged():
                return None if earlier.old == event.new else msgspec.structs.replace(event, old=earlier.old)
            case (TypingStarted(), TypingStopped()) | (TypingStopped(), TypingStarted()):
                return None
            case _:
                return event

    def _united(self, earlier: MessagesProgressed, event: MessagesProgressed) -> MessagesProgressed:
        ranges = tuple(united((*earlier.ranges, *event.ranges)))
        return self._bounded(msgspec.structs.replace(event, ranges=ranges))

    def _bounded(self, event: MessagesProgressed) -> MessagesProgressed:
        """The event with its highest ranges alone, if there are too many."""
        lost = len(event.ranges) - RANGES_MAX
        if lost <= 0:
            return event
        self._lose(lost)
        return msgspec.structs.replace(event, ranges=tuple(sorted(event.ranges)[lost:]))


class Publisher:
    """Gives every event to every reader.  While there is none, nothing is gathered."""

    def __init__(self, events_max: int, statistics: Statistics) -> None:
        self._events_max = events_max
        self._statistics = statistics
        self._readers: WeakSet[Subscription] = WeakSet()
        self._error: MeshimError | None = None

    @property
    def subscribed(self) -> bool:
        """Whether there is a reader."""
        return bool(self._readers) and any(not reader.closed for reader in self._readers)

    def subscribe(self) -> Subscription:
        """Return a new reader, of the events from now on."""
        reader = Subscription(self._events_max, self._statistics)
        if self._error is not None:
            reader.end(self._error)
        self._readers.add(reader)
        return reader

    def publish(self, event: Event) -> None:
        """Give this event to every reader."""
        for reader in self._readers:
            if not reader.closed:
                reader.put(event)

    def fail(self, error: MeshimError) -> None:
        """Raise this error in every reader, now and later, after its events."""
        self._error = error
        for reader in self._readers:
            reader.end(error)
