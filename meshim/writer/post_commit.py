"""What follows a commit in one partition: wake-up the connectors, dead-letter what was refused, acknowledge.

::

    committed ──look up──▶ presence ──tell──▶ connectors ──┐
    committed with a letter ──dead-letter──▶ dead-letter stream ──┴──acknowledge──▶ log

What arrives while a lane is taken waits and goes with the next action, all of it at once.
Nothing here is tried again: a wake-up that was lost is made good by the connector's sweep, and a message that
was not dead-lettered or not acknowledged is redelivered by the log, and all of it is done again.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from meshim.stores.ports import UserPresence
from meshim.wire.notification import WakeUp
from meshim.writer.events import (
    Acknowledge,
    Acknowledged,
    DeadLetterPublished,
    Failed,
    LookUp,
    PartitionAction,
    PresenceSeen,
    PublishDeadLetter,
    Tell,
    Told,
)
from meshim.writer.single_flight import SingleFlight
from meshim.writer.statistics import Statistics

_WAKE_UP_DEVICES_MAX = 8192
"""Keeps a wake-up far below the payload limit of NATS, 1 MiB."""

DeviceKey = tuple[int, int]
"""(user, device)"""


class PendingDeadLetter(NamedTuple):
    """What goes to the dead-letter stream, and why, for people."""

    reason: str
    data: bytes


class PostCommit:
    """The committed messages of a partition that are not acknowledged yet."""

    def __init__(self, partition: int, statistics: Statistics, jitter: Callable[[], float]) -> None:
        self.held: set[int] = set()
        self._partition = partition
        self._count = statistics
        self._devices: dict[DeviceKey, None] = {}  # to wake-up, before `_positions` are acknowledged
        self._positions: list[int] = []
        self._announcing: tuple[dict[DeviceKey, None], list[int]] = ({}, [])
        self._wake_ups: tuple[tuple[int, WakeUp], ...] = ()
        self._letters: dict[int, PendingDeadLetter] = {}
        self._dead_lettering = 0
        self._acknowledgeable: list[int] = []
        self._acknowledging: tuple[int, ...] = ()
        self._announce, self._dead_letter, self._acknowledge = self.flights = (
            SingleFlight(jitter),
            SingleFlight(jitter),
            SingleFlight(jitter),
        )

    def committed(
        self, devices: Iterable[DeviceKey], positions: Iterable[int], letters: Mapping[int, PendingDeadLetter]
    ) -> None:
        """Take over messages whose rows were written, for these devices."""
        self._devices.update(dict.fromkeys(devices))
        for position in positions:
            self.held.add(position)
            if position not in letters:
                self._positions.append(position)
        self._letters.update(letters)

    def receive(self, event: Any, now: float) -> None:
        """Take in the answer to one of the actions of this module."""
        if type(event) is Failed:
            _FAILED[type(event.action)](self, now)
        else:
            _HAPPENED[type(event)](self, event, now)

    def advance(self, now: float) -> Iterator[PartitionAction]:
        """Start whatever can be started."""
        if self._positions or self._devices:
            yield from self._look_up(now)
        if self._wake_ups:
            yield Tell(self._partition, self._wake_ups)
            self._wake_ups = ()
        if self._letters and self._dead_letter.start(now):
            self._dead_lettering, letter = next(iter(self._letters.items()))
            del self._letters[self._dead_lettering]
            yield PublishDeadLetter(self._partition, self._dead_lettering, letter.reason, letter.data)
        if self._acknowledgeable and self._acknowledge.start(now):
            self._acknowledging, self._acknowledgeable = tuple(self._acknowledgeable), []
            yield Acknowledge(self._partition, self._acknowledging)

    # ---- announcing

    def _look_up(self, now: float) -> Iterator[PartitionAction]:
        if not self._announce.start(now):
            return
        self._announcing = (self._devices, self._positions)
        self._devices, self._positions = {}, []
        if devices := self._announcing[0]:
            yield LookUp(self._partition, tuple(dict.fromkeys(user for user, _ in devices)))
        else:
            self._announced()

    def _presence_seen(self, event: PresenceSeen, now: float) -> None:
        self._wake_ups = tuple(_wake_ups(self._announcing[0], event.present))
        if not self._wake_ups:
            self._announced()

    def _presence_unknown(self, now: float) -> None:
        self._count.wake_ups_lost += 1
        self._announced()

    def _told(self, event: Told, now: float) -> None:
        self._count.woken += event.devices
        self._count.wake_ups_lost += event.missed
        self._announced()

    def _not_told(self, now: float) -> None:
        self._count.wake_ups_lost += 1
        self._announced()

    def _announced(self) -> None:
        self._acknowledgeable.extend(self._announcing[1])
        self._announcing = ({}, [])
        self._announce.done()

    # ---- burying

    def _dead_lettered(self, event: DeadLetterPublished, now: float) -> None:
        self._count.dead_lettered += 1
        self._acknowledgeable.append(self._dead_lettering)
        self._dead_letter.done()

    def _not_dead_lettered(self, now: float) -> None:
        self._forget((self._dead_lettering,))
        self._dead_letter.failed(now)

    # ---- acknowledging

    def _acknowledged(self, event: Acknowledged, now: float) -> None:
        self._forget(self._acknowledging)
        self._acknowledge.done()

    def _not_acknowledged(self, now: float) -> None:
        self._forget(self._acknowledging)
        self._acknowledge.failed(now)

    def _forget(self, positions: Iterable[int]) -> None:
        self.held.difference_update(positions)


def _wake_ups(devices: Mapping[DeviceKey, None], present: Mapping[int, UserPresence]) -> Iterator[tuple[int, WakeUp]]:
    """One wake-up for each connector incarnation that bindings some of the devices (more if they are very many)."""
    bound: dict[int, list[DeviceKey]] = {}
    for presence in present.values():
        for binding in presence.bindings:
            if (binding.user, binding.device) in devices:
                bound.setdefault(binding.incarnation, []).append((binding.user, binding.device))
    for incarnation, keys in bound.items():
        for start in range(0, len(keys), _WAKE_UP_DEVICES_MAX):
            yield incarnation, WakeUp(tuple(keys[start : start + _WAKE_UP_DEVICES_MAX]))


_HAPPENED: dict[type, Callable[[PostCommit, Any, float], None]] = {
    PresenceSeen: PostCommit._presence_seen,
    Told: PostCommit._told,
    DeadLetterPublished: PostCommit._dead_lettered,
    Acknowledged: PostCommit._acknowledged,
}

_FAILED: dict[type, Callable[[PostCommit, float], None]] = {
    LookUp: PostCommit._presence_unknown,
    Tell: PostCommit._not_told,
    PublishDeadLetter: PostCommit._not_dead_lettered,
    Acknowledge: PostCommit._not_acknowledged,
}
