"""What one writer does for all, the one that owns partition 0: delete rows and devices that nobody needs.

In small batches, so that no transaction keeps the writing waiting: the next follows soon
when a batch was full, and after a long pause when it was not.
"""

from collections.abc import Callable, Iterator

import msgspec

from meshim.writer.events import Action, DropIdleDevices, Failed, IdleDevicesDropped, Purge, Purged
from meshim.writer.single_flight import SingleFlight
from meshim.writer.statistics import Statistics


class UpkeepOptions(msgspec.Struct, frozen=True):
    """`rows` and `devices` bound one transaction; pauses in seconds."""

    rows: int = 500
    devices: int = 50
    full_pause_s: float = 0.5
    long_pause_s: float = 600.0


class Upkeep:
    """Both jobs, each a lane."""

    def __init__(self, options: UpkeepOptions, statistics: Statistics, jitter: Callable[[], float]) -> None:
        self._options = options
        self._count = statistics
        self._purge = SingleFlight(jitter)
        self._drop = SingleFlight(jitter)

    @property
    def busy(self) -> bool:
        return self._purge.busy or self._drop.busy

    def advance(self, now: float) -> Iterator[Action]:
        """Start what is due."""
        if self._purge.start(now):
            yield Purge(self._options.rows)
        if self._drop.start(now):
            yield DropIdleDevices(self._options.devices)

    def receive(self, event: Purged | IdleDevicesDropped | Failed, now: float) -> None:
        """Take in the answer to one of the actions."""
        match event:
            case Purged(rows):
                self._count.purged += rows
                self._done(self._purge, rows >= self._options.rows, now)
            case IdleDevicesDropped(devices):
                self._count.idle_devices += devices
                self._done(self._drop, devices >= self._options.devices, now)
            case Failed(action):
                (self._purge if isinstance(action, Purge) else self._drop).failed(now)

    def _done(self, flight: SingleFlight, full: bool, now: float) -> None:
        flight.done(not_before=now + (self._options.full_pause_s if full else self._options.long_pause_s))

    def next_deadline(self) -> float | None:
        """When the next job is due; None while both are under way."""
        return min((flight.not_before for flight in (self._purge, self._drop) if not flight.busy), default=None)
