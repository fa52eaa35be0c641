"""Which partitions a writer owns, and when.  What it does in each of them is `pipeline.py`.

A partition goes through these states; `answers` are those of actions that were under way::

    FREE ──claim──▶ CLAIMING ──Claimed──▶ OWNED ──too many, or leaving──▶ DRAINING ──empty──▶ RELEASING ─┐
     ▲                  │ ClaimDenied      │ FencedOff, renewal denied       │                            │
     ├──────────────────┘                  ▼                                 ▼                            │
     └──────────────────all answers───── LOST ◀──────────────────────────────┘                            │
     └──────────────────────────────────────────────────────────────────────────────────Released──────────┘

Shares: with n living writers each owns a n-th of the partitions, the first ones one more.  It claims one partition
after the other until it has its share, and gives the surplus back when other writers appear or leave
(and now and then without a reason, in case an outage left the shares uneven).  When nothing has changed for
`stable_s`, what can still be claimed belongs to somebody who lives but cannot write: it is taken, above the
share.  While Redis is away the writers last seen count.  The fencing number of the claim, not the
share, decides who writes: shares may disagree for a while without harm.

Every action gets exactly one answer, and a partition is claimed again only when all answers of the last time
are in: so an answer is never taken for that of another time.
"""

import enum
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import msgspec

from meshim.writer.events import (
    Action,
    Claim,
    ClaimDenied,
    Claimed,
    Event,
    Failed,
    FencedOff,
    IdleDevicesDropped,
    Purged,
    Release,
    Released,
    StopRequested,
    WritersSeen,
)
from meshim.writer.pipeline import Pipeline, PipelineOptions
from meshim.writer.single_flight import SingleFlight, jitter
from meshim.writer.statistics import Statistics
from meshim.writer.upkeep import Upkeep, UpkeepOptions


class WriterOptions(msgspec.Struct, frozen=True):
    """`name` is the writer's in the topology; `seed` makes its pauses differ from those of other writers."""

    name: str
    seed: int
    partitions: int
    partition_lease_s: float
    pipeline: PipelineOptions
    upkeep: UpkeepOptions

    @property
    def renew_s(self) -> float:
        return self.partition_lease_s / 3

    @property
    def claim_s(self) -> float:
        """Pause between two looks for partitions that nobody owns."""
        return self.partition_lease_s / 3

    @property
    def stable_s(self) -> float:
        return self.partition_lease_s * 2

    @property
    def even_s(self) -> float:
        return self.partition_lease_s * 100


class PartitionState(enum.Enum):
    """The state of a partition."""

    FREE = enum.auto()
    CLAIMING = enum.auto()
    OWNED = enum.auto()
    DRAINING = enum.auto()
    LOST = enum.auto()
    RELEASING = enum.auto()


class Partition:
    """A partition, whether it is ours or not."""

    __slots__ = ("number", "pending", "pipeline", "renew", "state")

    def __init__(self, number: int, jitter: Callable[[], float]) -> None:
        self.number = number
        self.state = PartitionState.FREE
        self.pipeline: Pipeline | None = None
        self.renew = SingleFlight(jitter)
        self.pending = 0
        """Actions under way."""

    @property
    def renews(self) -> bool:
        """The lease is needed, and not about to be released."""
        return self.pipeline is not None and not (self.state is PartitionState.DRAINING and self.pipeline.empty)


class WriterCore:
    """Decides for one writer process.  Pure: time is an argument, what happens outside are events."""

    def __init__(self, options: WriterOptions) -> None:
        self._options = options
        self._jitter = jitter(options.seed)
        self._count = Statistics()
        self._partitions = [Partition(number, self._jitter) for number in range(options.partitions)]
        self._upkeep = Upkeep(options.upkeep, self._count, self._jitter)
        self._writers: tuple[str, ...] | None = None
        self._stable_at: float | None = None
        self._even_at = float("inf")
        self._looking: list[Partition] | None = None
        """What is still to be claimed in this look, last first; None between two looks."""
        self._look = SingleFlight(self._jitter)
        self._looked = False
        self._stopping = False

    # ---- what the service asks

    @property
    def ready(self) -> bool:
        """It has looked for partitions once, and the log exists for those it owns."""
        return self._looked and all(p.pipeline is None or p.pipeline.ensured for p in self._partitions)

    @property
    def stopped(self) -> bool:
        """After StopRequested: everything was given back and every answer is in."""
        return (
            self._stopping and all(p.state is PartitionState.FREE for p in self._partitions) and not self._upkeep.busy
        )

    @property
    def owned(self) -> tuple[int, ...]:
        """The partitions it writes to now."""
        return tuple(p.number for p in self._partitions if p.state is PartitionState.OWNED)

    def statistics(self) -> Statistics:
        """What was done since the start; a copy."""
        return replace(self._count)

    # ---------------------------------------------------------------- the driver

    def receive(self, event: Event, now: float) -> list[Action]:
        """Take in what happened; return what to do."""
        cause = event.action if isinstance(event, Failed) else event
        number = getattr(cause, "partition", None)
        if number is None:
            self._for_the_writer(event, now)
            return self._advance(self._partitions, now)
        partition = self._partitions[number]
        assert partition.pending > 0, "every action has exactly one answer"
        partition.pending -= 1
        self._for_a_partition(partition, event, now)
        return self._advance((partition,), now)

    def tick(self, now: float) -> list[Action]:
        """Time has passed; return what to do."""
        return self._advance(self._partitions, now)

    def next_deadline(self) -> float | None:
        """When to call `tick`, if nothing happens before."""
        deadlines = [p.renew.not_before for p in self._partitions if p.renews and not p.renew.busy]
        deadlines.extend(at for p in self._partitions if p.pipeline and (at := p.pipeline.next_deadline()) is not None)
        if not self._stopping:
            deadlines.append(self._even_at)
            if not self._look.busy:
                deadlines.append(max(self._look.not_before, self._look_from))
            if self._keeps_up and (at := self._upkeep.next_deadline()) is not None:
                deadlines.append(at)
        return min(deadlines, default=None)

    def _advance(self, partitions: Iterable[Partition], now: float) -> list[Action]:
        if self._stable_at is None:
            self._stable_at = now + self._options.stable_s
        if now >= self._even_at:
            self._share_out(now)
        actions: list[Action] = []
        for partition in partitions:
            actions.extend(self._work(partition, now))
        if not self._stopping:
            actions.extend(self._claim(now))
            if self._keeps_up:
                actions.extend(self._upkeep.advance(now))
        return actions

    @property
    def _look_from(self) -> float:
        """Before it knows the writers it claims nothing, until it is clear that Redis will not tell."""
        return self._stable_at or 0.0 if self._writers is None else 0.0

    @property
    def _keeps_up(self) -> bool:
        return self._partitions[0].state is PartitionState.OWNED

    # ---- events

    def _for_the_writer(self, event: Event, now: float) -> None:
        match event:
            case WritersSeen(names):
                names = tuple(sorted({*names, self._options.name}))
                if names != self._writers:
                    self._writers = names
                    self._share_out(now)
            case StopRequested():
                self._stopping = True
                self._looking = None
                for partition in self._partitions:
                    self._drain(partition)
            case Purged() | IdleDevicesDropped() | Failed():
                self._upkeep.receive(event, now)
            case _:
                raise AssertionError(f"nothing was asked that {type(event).__name__} answers")

    def _for_a_partition(self, partition: Partition, event: Event, now: float) -> None:
        if partition.state is PartitionState.LOST:
            return  # answers of a time that is over
        answered = _FAILED.get(type(event.action)) if isinstance(event, Failed) else _HAPPENED.get(type(event))
        if answered is not None:
            answered(self, partition, event, now)
        else:
            assert partition.pipeline is not None
            partition.pipeline.receive(event, now)

    def _claimed(self, partition: Partition, event: Claimed, now: float) -> None:
        if partition.state is PartitionState.CLAIMING:
            self._look.done()
            partition.pipeline = Pipeline(
                partition.number, event.fence, event.position, self._options.pipeline, self._count, self._jitter
            )
            partition.state = PartitionState.OWNED
            if self._stopping:
                self._drain(partition)
        elif partition.pipeline is None or partition.pipeline.fence != event.fence:
            self._lose(partition)  # somebody had it in between
            return
        partition.renew.done(not_before=now + self._options.renew_s)

    def _denied(self, partition: Partition, event: ClaimDenied, now: float) -> None:
        if partition.state is PartitionState.CLAIMING:
            self._look.done()
            partition.state = PartitionState.FREE
        else:
            self._lose(partition)

    def _not_claimed(self, partition: Partition, event: Failed, now: float) -> None:
        self._count.retried += 1
        if partition.state is PartitionState.CLAIMING:
            self._look.failed(now)
            self._looking = None
            partition.state = PartitionState.FREE
        else:
            partition.renew.failed(now)  # it stays ours until the database says otherwise

    def _fenced_off(self, partition: Partition, event: FencedOff, now: float) -> None:
        self._lose(partition)

    def _lose(self, partition: Partition) -> None:
        """Drop everything in flight: the new owner reads it from the log."""
        self._count.fenced += 1
        partition.state = PartitionState.LOST
        partition.pipeline = None

    def _released(self, partition: Partition, event: Released | Failed, now: float) -> None:
        partition.state = PartitionState.FREE  # where it failed, the lease ends by itself

    # ---- one partition

    def _work(self, partition: Partition, now: float) -> Iterator[Action]:
        if partition.state is PartitionState.LOST and not partition.pending:
            partition.state = PartitionState.FREE
            partition.renew = SingleFlight(self._jitter)
        pipeline = partition.pipeline
        if pipeline is None:
            return
        for action in pipeline.advance(now):
            partition.pending += 1
            yield action
        if partition.renews:
            if partition.renew.start(now):
                partition.pending += 1
                yield Claim(partition.number)
        elif not partition.pending:
            partition.state = PartitionState.RELEASING
            partition.pipeline = None
            partition.pending += 1
            yield Release(partition.number, pipeline.fence)

    def _drain(self, partition: Partition) -> None:
        if partition.state is PartitionState.OWNED:
            assert partition.pipeline is not None
            partition.state = PartitionState.DRAINING
            partition.pipeline.drain()

    # ---- shares

    def _share(self) -> tuple[int, int]:
        """How many partitions are ours by rights, and the first of those that we prefer."""
        if self._writers is None:
            return 0, 0
        most = self._options.partitions
        rank, each, more = self._writers.index(self._options.name), *divmod(most, len(self._writers))
        return each + (rank < more), (rank * each + min(rank, more)) % most

    def _by_preference(self, state: PartitionState) -> list[Partition]:
        _, first = self._share()
        return [p for p in (*self._partitions[first:], *self._partitions[:first]) if p.state is state]

    def _share_out(self, now: float) -> None:
        """Give back what is above our share, and see after a while whether others took it."""
        share, _ = self._share()
        for surplus in self._by_preference(PartitionState.OWNED)[share:]:
            self._drain(surplus)
        self._stable_at = now + self._options.stable_s
        self._even_at = now + self._options.even_s * (1 + self._jitter())
        self._look.not_before = now

    def _claim(self, now: float) -> Iterator[Action]:
        """Claim the next partition of this look, or begin a look, or end it."""
        assert self._stable_at is not None
        if now < self._look_from or not self._look.start(now):
            return
        settled = now >= self._stable_at
        if self._looking is None:
            self._looking = self._by_preference(PartitionState.FREE)[::-1]
        wanted = self._options.partitions if settled else self._share()[0]
        have = sum(p.state is PartitionState.OWNED for p in self._partitions)
        while self._looking and have < wanted:
            partition = self._looking.pop()
            if partition.state is PartitionState.FREE:  # still
                partition.state = PartitionState.CLAIMING
                partition.pending += 1
                yield Claim(partition.number)
                return
        self._looking = None
        self._looked = True
        self._look.done(not_before=now + self._options.claim_s * (0.5 + self._jitter() / 2))


_HAPPENED: dict[type, Callable[[WriterCore, Partition, Any, float], None]] = {
    Claimed: WriterCore._claimed,
    ClaimDenied: WriterCore._denied,
    FencedOff: WriterCore._fenced_off,
    Released: WriterCore._released,
}

_FAILED: dict[type, Callable[[WriterCore, Partition, Any, float], None]] = {
    Claim: WriterCore._not_claimed,
    Release: WriterCore._released,
}
