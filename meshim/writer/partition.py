"""One partition, as one writer sees it: who owns it, and what is in flight for it.

::

    FREE ──claim──▶ CLAIMING ──claimed──▶ OWNED ──drain──▶ DRAINING ──release──▶ RELEASING ──released──▶ FREE
                       │                    │                 │
                     denied            fenced off        fenced off
                       ▼                    ▼                 ▼
                      FREE                 LOST ◀─────────────┘
                                            │
                                       all answered
                                            ▼
                                           FREE
"""

import enum
from collections.abc import Callable

from meshim.writer.pipeline import Pipeline
from meshim.writer.single_flight import SingleFlight


class PartitionState(enum.Enum):
    """The state of a partition."""

    FREE = enum.auto()
    """Not ours."""
    CLAIMING = enum.auto()
    """Our claim is not answered yet."""
    OWNED = enum.auto()
    """We hold the lease, and write."""
    DRAINING = enum.auto()
    """We hold the lease until what was fetched is written and acknowledged; nothing more is fetched."""
    RELEASING = enum.auto()
    """The lease is being given back."""
    LOST = enum.auto()
    """Another writer has the lease; some of our actions are not answered yet."""


class Trigger(enum.Enum):
    """The causes of transitions between the states of a partition."""

    CLAIM = enum.auto()
    """A claim starts."""
    CLAIMED = enum.auto()
    DENIED = enum.auto()
    """Another writer's lease lasts, or the claim failed."""
    DRAIN = enum.auto()
    """The partition is above our share, or this writer is leaving."""
    FENCED_OFF = enum.auto()
    """A write was fenced off, or a renewal was denied or turned out to be a new claim."""
    ALL_ANSWERED = enum.auto()
    RELEASE = enum.auto()
    """The pipeline is empty and all actions are answered."""
    RELEASED = enum.auto()
    """Or the release failed: then the lease expires."""


_TRANSITIONS: dict[tuple[PartitionState, Trigger], PartitionState] = {
    (PartitionState.FREE, Trigger.CLAIM): PartitionState.CLAIMING,
    (PartitionState.CLAIMING, Trigger.CLAIMED): PartitionState.OWNED,
    (PartitionState.CLAIMING, Trigger.DENIED): PartitionState.FREE,
    (PartitionState.OWNED, Trigger.DRAIN): PartitionState.DRAINING,
    (PartitionState.OWNED, Trigger.FENCED_OFF): PartitionState.LOST,
    (PartitionState.DRAINING, Trigger.FENCED_OFF): PartitionState.LOST,
    (PartitionState.DRAINING, Trigger.RELEASE): PartitionState.RELEASING,
    (PartitionState.RELEASING, Trigger.RELEASED): PartitionState.FREE,
    (PartitionState.LOST, Trigger.ALL_ANSWERED): PartitionState.FREE,
}


class Partition:
    """A partition, ours or not.  `pipeline` is there while it is OWNED or DRAINING."""

    __slots__ = ("number", "pipeline", "renewal", "state", "unanswered")

    def __init__(self, number: int, jitter: Callable[[], float]) -> None:
        self.number = number
        self.state = PartitionState.FREE
        self.pipeline: Pipeline | None = None
        self.renewal = SingleFlight(jitter)
        self.unanswered = 0
        """Actions in flight."""

    def move(self, trigger: Trigger) -> None:
        """Change the state; a trigger that the state does not know is our bug."""
        assert (self.state, trigger) in _TRANSITIONS, f"partition {self.number} is {self.state} at {trigger}"
        self.state = _TRANSITIONS[self.state, trigger]

    @property
    def renews(self) -> bool:
        """Whether the lease is needed, and not about to be released."""
        return self.pipeline is not None and not (self.state is PartitionState.DRAINING and self.pipeline.empty)
