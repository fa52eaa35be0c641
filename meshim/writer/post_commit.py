"""The steps after a commit in one partition: wake up the connectors, publish dead letters, acknowledge.

::

    committed ──read presence──▶ wake up connectors ──▶ acknowledge to the log
    committed, refused by the database ──publish dead letter──▶ acknowledge to the log

At most one action of each kind is in flight; items that arrive meanwhile are batched into the next action.
Nothing here is repeated: a lost wake-up is made good by the sweep of the connector, and a message whose dead letter or
acknowledgement failed is redelivered by the log and goes through all of it again.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from meshim.chunks import chunks
from meshim.stores.ports import UserPresence
from meshim.wire.notification import WakeUp
from meshim.writer.events import (
    Acknowledge,
    Acknowledged,
    DeadLetterPublished,
    Failed,
    PartitionAction,
    PresenceRead,
    PublishDeadLetter,
    ReadPresence,
    SendWakeUps,
    WakeUpsSent,
)
from meshim.writer.single_flight import SingleFlight
from meshim.writer.statistics import Statistics

_WAKE_UP_DEVICES_MAX = 8192
"""Keeps a wake-up far below the payload limit of NATS, 1 MiB."""

DeviceKey = tuple[int, int]
"""(user, device)"""


class PendingDeadLetter(NamedTuple):
    """A record for the dead-letter stream; `reason` is a sentence for people."""

    reason: str
    data: bytes


class PostCommit:
    """The committed messages of one partition that are not acknowledged yet."""

    def __init__(self, partition: int, statistics: Statistics, jitter: Callable[[], float]) -> None:
        self.handlers: dict[type[Any], Callable[[Any, float], None]] = {
            PresenceRead: self._presence_read,
            WakeUpsSent: self._wake_ups_sent,
            DeadLetterPublished: self._dead_letter_published,
            Acknowledged: self._acknowledged,
        }
        self.failure_handlers: dict[type[Any], Callable[[Any, float], None]] = {
            ReadPresence: self._wake_up_failed,
            SendWakeUps: self._wake_up_failed,
            PublishDeadLetter: self._dead_letter_failed,
            Acknowledge: self._acknowledge_failed,
        }
        self.unacknowledged: set[int] = set()
        """Positions."""
        self._partition = partition
        self._statistics = statistics
        self._devices: dict[DeviceKey, None] = {}
        """To wake up with the next round."""
        self._positions: list[int] = []
        """To acknowledge when the next round of wake-ups is over."""
        self._waking_devices: dict[DeviceKey, None] = {}
        """The same of the round in flight."""
        self._waking_positions: list[int] = []
        self._wake_ups: tuple[tuple[int, WakeUp], ...] = ()
        self._dead_letters: dict[int, PendingDeadLetter] = {}
        self._dead_letter_position = 0
        """Of the dead letter in flight."""
        self._to_acknowledge: list[int] = []
        self._acknowledging: tuple[int, ...] = ()
        self._wake_up_flight = SingleFlight(jitter)
        self._dead_letter_flight = SingleFlight(jitter)
        self._acknowledge_flight = SingleFlight(jitter)

    @property
    def flights(self) -> tuple[SingleFlight, ...]:
        """All of them, for their deadlines."""
        return (self._wake_up_flight, self._dead_letter_flight, self._acknowledge_flight)

    def committed(
        self, devices: Iterable[DeviceKey], positions: Iterable[int], dead_letters: Mapping[int, PendingDeadLetter]
    ) -> None:
        """Take over committed messages: the devices to wake up, all positions, dead letters for some of them."""
        self._devices.update(dict.fromkeys(devices))
        for position in positions:
            self.unacknowledged.add(position)
            if position not in dead_letters:
                self._positions.append(position)
        self._dead_letters.update(dead_letters)

    def advance(self, now: float) -> Iterator[PartitionAction]:
        """Start all that can be started."""
        if self._positions or self._devices:
            yield from self._start_wake_up(now)
        if self._wake_ups:
            yield SendWakeUps(self._partition, self._wake_ups)
            self._wake_ups = ()
        if self._dead_letters and self._dead_letter_flight.start(now):
            self._dead_letter_position, letter = next(iter(self._dead_letters.items()))
            del self._dead_letters[self._dead_letter_position]
            yield PublishDeadLetter(self._partition, self._dead_letter_position, letter.reason, letter.data)
        if self._to_acknowledge and self._acknowledge_flight.start(now):
            self._acknowledging, self._to_acknowledge = tuple(self._to_acknowledge), []
            yield Acknowledge(self._partition, self._acknowledging)

    # ---------------------------------------------------------------- wake-ups

    def _start_wake_up(self, now: float) -> Iterator[PartitionAction]:
        if not self._wake_up_flight.start(now):
            return
        self._waking_devices, self._devices = self._devices, {}
        self._waking_positions, self._positions = self._positions, []
        if self._waking_devices:
            yield ReadPresence(self._partition, tuple(dict.fromkeys(user for user, _ in self._waking_devices)))
        else:
            self._end_wake_up()

    def _presence_read(self, event: PresenceRead, now: float) -> None:
        self._wake_ups = tuple(_wake_ups(self._waking_devices, event.found))
        if not self._wake_ups:
            self._end_wake_up()

    def _wake_ups_sent(self, event: WakeUpsSent, now: float) -> None:
        self._statistics.woken += event.devices
        self._statistics.wake_ups_lost += event.lost
        self._end_wake_up()

    def _wake_up_failed(self, event: Failed, now: float) -> None:
        self._statistics.wake_ups_lost += 1
        self._end_wake_up()

    def _end_wake_up(self) -> None:
        self._to_acknowledge.extend(self._waking_positions)
        self._waking_devices, self._waking_positions = {}, []
        self._wake_up_flight.done()

    # ---------------------------------------------------------------- dead letters

    def _dead_letter_published(self, event: DeadLetterPublished, now: float) -> None:
        self._statistics.dead_lettered += 1
        self._to_acknowledge.append(self._dead_letter_position)
        self._dead_letter_flight.done()

    def _dead_letter_failed(self, event: Failed, now: float) -> None:
        self.unacknowledged.discard(self._dead_letter_position)  # the log redelivers it
        self._dead_letter_flight.failed(now)

    # ---------------------------------------------------------------- acknowledgements

    def _acknowledged(self, event: Acknowledged, now: float) -> None:
        self.unacknowledged.difference_update(self._acknowledging)
        self._acknowledge_flight.done()

    def _acknowledge_failed(self, event: Failed, now: float) -> None:
        self.unacknowledged.difference_update(self._acknowledging)  # the log redelivers them
        self._acknowledge_flight.failed(now)


def _wake_ups(devices: Mapping[DeviceKey, None], found: Mapping[int, UserPresence]) -> Iterator[tuple[int, WakeUp]]:
    """Yield (incarnation, wake-up) for each connector to which some of the devices are bound, more if they are many."""
    bound: dict[int, list[DeviceKey]] = {}
    for presence in found.values():
        for binding in presence.bindings:
            if (binding.user, binding.device) in devices:
                bound.setdefault(binding.incarnation, []).append((binding.user, binding.device))
    for incarnation, keys in bound.items():
        for some in chunks(keys, _WAKE_UP_DEVICES_MAX):
            yield incarnation, WakeUp(tuple(some))
