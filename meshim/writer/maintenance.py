"""Retention jobs, run by the owner of partition 0.

They delete rows and idle devices that are past their retention, in small batches, so that no transaction delays the
writing of messages: the next batch follows soon when one was full, and after a long pause when it was not.
"""

from collections.abc import Callable, Iterator
from typing import Any

from meshim.writer.events import Action, DropIdleDevices, Failed, IdleDevicesDropped, Purge, Purged
from meshim.writer.options import MaintenanceOptions
from meshim.writer.single_flight import SingleFlight
from meshim.writer.statistics import Statistics


class Maintenance:
    """Two jobs, independent of each other."""

    def __init__(self, options: MaintenanceOptions, statistics: Statistics, jitter: Callable[[], float]) -> None:
        self.handlers: dict[type[Any], Callable[[Any, float], None]] = {
            Purged: self._purged,
            IdleDevicesDropped: self._idle_devices_dropped,
        }
        self.failure_handlers: dict[type[Any], Callable[[Any, float], None]] = {
            Purge: self._purge_failed,
            DropIdleDevices: self._drop_failed,
        }
        self._options = options
        self._statistics = statistics
        self._purge = SingleFlight(jitter)
        self._drop = SingleFlight(jitter)

    @property
    def busy(self) -> bool:
        """Whether an action is not answered yet."""
        return self._purge.busy or self._drop.busy

    def advance(self, now: float) -> Iterator[Action]:
        """Start what is due."""
        if self._purge.start(now):
            yield Purge(self._options.rows)
        if self._drop.start(now):
            yield DropIdleDevices(self._options.devices)

    def next_deadline(self) -> float | None:
        """Return when the next job is due; None while both are in flight."""
        return min((flight.not_before for flight in (self._purge, self._drop) if not flight.busy), default=None)

    def _purged(self, event: Purged, now: float) -> None:
        self._statistics.purged += event.rows
        self._done(self._purge, event.rows >= self._options.rows, now)

    def _idle_devices_dropped(self, event: IdleDevicesDropped, now: float) -> None:
        self._statistics.idle_devices += event.devices
        self._done(self._drop, event.devices >= self._options.devices, now)

    def _done(self, flight: SingleFlight, full: bool, now: float) -> None:
        flight.done(not_before=now + (self._options.full_pause_s if full else self._options.long_pause_s))

    def _purge_failed(self, event: Failed, now: float) -> None:
        self._purge.failed(now)

    def _drop_failed(self, event: Failed, now: float) -> None:
        self._drop.failed(now)
