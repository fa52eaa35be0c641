"""Assigns partitions to writers; `pipeline.py` processes one partition.

Shares: with n living writers each owns an n-th of the partitions, and the first writers own one more.  A writer claims
one partition after the other until it has its share, and drains the surplus when other writers appear or leave, and
every `rebalance_s` in case an outage left the shares uneven.  When the shares have not changed for `takeover_s`, a
partition that can still be claimed belongs to a writer that lives but cannot write: it is claimed above the share.
While Redis is away the writers last seen count.  The fencing token of the claim, not the share, decides who writes:
the writers may disagree about the shares for a while without harm.

`partition.py` has the states of a partition.  Every action gets exactly one answer, and a partition that was lost is
claimed again only when all its actions are answered, so a late answer cannot be mistaken for one of the next
ownership.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from meshim.writer.events import (
    Action,
    Claim,
    ClaimDenied,
    Claimed,
    Event,
    Failed,
    FencedOff,
    Release,
    Released,
    StopRequested,
    WritersLiving,
)
from meshim.writer.maintenance import Maintenance
from meshim.writer.options import WriterOptions
from meshim.writer.partition import Partition, PartitionState, Trigger
from meshim.writer.pipeline import Pipeline
from meshim.writer.single_flight import SingleFlight, jitter
from meshim.writer.statistics import Statistics


class WriterCore:
    """The partitions of one writer process."""

    def __init__(self, options: WriterOptions) -> None:
        self.statistics = Statistics()
        self._options = options
        self._jitter = jitter(options.seed)
        self._maintenance = Maintenance(options.maintenance, self.statistics, self._jitter)
        self._handlers: dict[type[Any], Callable[[Any, float], None]] = {
            WritersLiving: self._writers_living,
            StopRequested: self._stop_requested,
            Claimed: self._claimed,
            ClaimDenied: self._claim_denied,
            FencedOff: self._fenced_off,
            Released: self._released,
            Failed: self._failed,
            **self._maintenance.handlers,
        }
        """Events of other types are for the pipeline of their partition."""
        self._failure_handlers: dict[type[Any], Callable[[Any, float], None]] = {
            Claim: self._claim_failed,
            Release: self._release_failed,
            **self._maintenance.failure_handlers,
        }
        """By action that failed; the same."""
        self._partitions = [Partition(number, self._jitter) for number in range(options.partitions)]
        self._writers: tuple[str, ...] | None = None
        """The names of the living writers, sorted; None before they are known."""
        self._takeover_at: float | None = None
        self._rebalance_at = float("inf")
        self._claiming = SingleFlight(self._jitter)
        """The round of claims: one claim at a time, and a pause after the round."""
        self._candidates: list[Partition] | None = None
        """Partitions still to be claimed in this round, last first; None between two rounds."""
        self._claimed_once = False
        """Whether one round is complete."""
        self._stopping = False

    # ---------------------------------------------------------------- what the shell asks

    @property
    def ready(self) -> bool:
        """Whether one round of claims is complete, and the log exists for the partitions that are owned."""
        return self._claimed_once and all(p.pipeline is None or p.pipeline.ensured for p in self._partitions)

    @property
    def stopped(self) -> bool:
        """After StopRequested: all partitions are given back and all actions answered."""
        return (
            self._stopping
            and all(p.state is PartitionState.FREE for p in self._partitions)
            and not self._maintenance.busy
        )

    @property
    def owned(self) -> tuple[int, ...]:
        """The partitions that this writer owns and is not giving back."""
        return tuple(p.number for p in self._partitions if p.state is PartitionState.OWNED)

    # ---------------------------------------------------------------- the driver

    def receive(self, event: Event, now: float) -> list[Action]:
        """Take in what happened; return what to do."""
        number = _partition_of(event)
        if number is None:
            self._handlers[type(event)](event, now)
            return self._advance(self._partitions, now)
        partition = self._partitions[number]
        assert partition.unanswered > 0, "every action has exactly one answer"
        partition.unanswered -= 1
        if partition.state is not PartitionState.LOST:  # else it is an answer of an ownership that is over
            self._handlers.get(type(event), self._pipeline_answered)(event, now)
        return self._advance((partition,), now)

    def tick(self, now: float) -> list[Action]:
        """Do what time demands; return what to do."""
        return self._advance(self._partitions, now)

    def next_deadline(self) -> float | None:
        """Return when to call `tick` at the latest; None when only an event can change anything."""
        deadlines = [p.renewal.not_before for p in self._partitions if p.renews and not p.renewal.busy]
        deadlines.extend(at for p in self._partitions if p.pipeline and (at := p.pipeline.next_deadline()) is not None)
        if not self._stopping:
            deadlines.append(self._rebalance_at)
            if not self._claiming.busy:
                deadlines.append(max(self._claiming.not_before, self._claims_from))
            if self._maintains and (at := self._maintenance.next_deadline()) is not None:
                deadlines.append(at)
        return min(deadlines, default=None)

    def _advance(self, partitions: Iterable[Partition], now: float) -> list[Action]:
        if self._takeover_at is None:
            self._takeover_at = now + self._options.takeover_s
        if now >= self._rebalance_at:
            self._rebalance(now)
        actions: list[Action] = []
        for partition in partitions:
            actions.extend(self._work(partition, now))
        if not self._stopping:
            actions.extend(self._claim(now))
            if self._maintains:
                actions.extend(self._maintenance.advance(now))
        return actions

    @property
    def _maintains(self) -> bool:
        """The owner of partition 0 does the maintenance for all."""
        return self._partitions[0].state is PartitionState.OWNED

    # ---------------------------------------------------------------- events of the writer

    def _writers_living(self, event: WritersLiving, now: float) -> None:
        names = tuple(sorted({*event.names, self._options.name}))
        if names != self._writers:
            self._writers = names
            self._rebalance(now)

    def _stop_requested(self, event: StopRequested, now: float) -> None:
        self._stopping = True
        self._candidates = None
        for partition in self._partitions:
            self._drain(partition)

    def _failed(self, event: Failed, now: float) -> None:
        self._failure_handlers.get(type(event.action), self._pipeline_answered)(event, now)

    # ---------------------------------------------------------------- answers of one partition

    def _claimed(self, event: Claimed, now: float) -> None:
        partition = self._partitions[event.partition]
        if partition.state is PartitionState.CLAIMING:
            self._claiming.done()
            partition.pipeline = Pipeline(
                partition=event.partition,
                fence=event.fence,
                position=event.position,
                options=self._options.pipeline,
                statistics=self.statistics,
                jitter=self._jitter,
            )
            partition.move(Trigger.CLAIMED)
            if self._stopping:
                self._drain(partition)
        elif partition.pipeline is None or partition.pipeline.fence != event.fence:
            self._lose(partition)  # another writer had it since the last renewal
            return
        partition.renewal.done(not_before=now + self._options.renew_interval_s)

    def _claim_denied(self, event: ClaimDenied, now: float) -> None:
        partition = self._partitions[event.partition]
        if partition.state is PartitionState.CLAIMING:
            self._claiming.done()
            partition.move(Trigger.DENIED)
        else:
            self._lose(partition)

    def _claim_failed(self, event: Failed, now: float) -> None:
        assert isinstance(event.action, Claim)
        partition = self._partitions[event.action.partition]
        self.statistics.retried += 1
        if partition.state is PartitionState.CLAIMING:
            self._claiming.failed(now)
            self._candidates = None
            partition.move(Trigger.DENIED)
        else:
            partition.renewal.failed(now)  # the partition stays ours until the database says otherwise

    def _fenced_off(self, event: FencedOff, now: float) -> None:
        self._lose(self._partitions[event.partition])

    def _lose(self, partition: Partition) -> None:
        """Drop everything in flight: the new owner gets it from the log."""
        self.statistics.fenced += 1
        partition.move(Trigger.FENCED_OFF)
        partition.pipeline = None

    def _released(self, event: Released, now: float) -> None:
        self._partitions[event.partition].move(Trigger.RELEASED)

    def _release_failed(self, event: Failed, now: float) -> None:
        assert isinstance(event.action, Release)
        self._partitions[event.action.partition].move(Trigger.RELEASED)  # the lease expires

    def _pipeline_answered(self, event: Any, now: float) -> None:
        number = _partition_of(event)
        assert number is not None
        pipeline = self._partitions[number].pipeline
        assert pipeline is not None
        pipeline.receive(event, now)

    # ---------------------------------------------------------------- work in one partition

    def _work(self, partition: Partition, now: float) -> Iterator[Action]:
        if partition.state is PartitionState.LOST and not partition.unanswered:
            partition.move(Trigger.ALL_ANSWERED)
            partition.renewal = SingleFlight(self._jitter)
        pipeline = partition.pipeline
        if pipeline is None:
            return
        for action in pipeline.advance(now):
            partition.unanswered += 1
            yield action
        if partition.renews:
            if partition.renewal.start(now):
                partition.unanswered += 1
                yield Claim(partition.number)
        elif not partition.unanswered:
            partition.move(Trigger.RELEASE)
            partition.pipeline = None
            partition.unanswered += 1
            yield Release(partition.number, pipeline.fence)

    def _drain(self, partition: Partition) -> None:
        if partition.state is PartitionState.OWNED:
            assert partition.pipeline is not None
            partition.move(Trigger.DRAIN)
            partition.pipeline.drain()

    # ---------------------------------------------------------------- shares

    def _share(self) -> tuple[int, int]:
        """Return how many partitions are our share, and the first of those that we prefer."""
        if self._writers is None:
            return 0, 0
        partitions = self._options.partitions
        rank, each, remainder = self._writers.index(self._options.name), *divmod(partitions, len(self._writers))
        return each + (rank < remainder), (rank * each + min(rank, remainder)) % partitions

    def _by_preference(self, state: PartitionState) -> list[Partition]:
        _, first = self._share()
        return [p for p in (*self._partitions[first:], *self._partitions[:first]) if p.state is state]

    def _rebalance(self, now: float) -> None:
        """Drain what is above our share, and begin a round of claims."""
        share, _ = self._share()
        for surplus in self._by_preference(PartitionState.OWNED)[share:]:
            self._drain(surplus)
        self._takeover_at = now + self._options.takeover_s
        self._rebalance_at = now + self._options.rebalance_s * (1 + self._jitter())
        self._claiming.not_before = now

    @property
    def _claims_from(self) -> float:
        """While the writers are not known nothing is claimed, until it is clear that Redis is away."""
        return self._takeover_at or 0.0 if self._writers is None else 0.0

    def _claim(self, now: float) -> Iterator[Action]:
        """Claim the next partition of this round, or begin a round, or end it."""
        assert self._takeover_at is not None
        if now < self._claims_from or not self._claiming.start(now):
            return
        if self._candidates is None:
            self._candidates = self._by_preference(PartitionState.FREE)[::-1]
        wanted = self._options.partitions if now >= self._takeover_at else self._share()[0]
        owned = sum(p.state is PartitionState.OWNED for p in self._partitions)
        while self._candidates and owned < wanted:
            partition = self._candidates.pop()
            if partition.state is PartitionState.FREE:  # still
                partition.move(Trigger.CLAIM)
                partition.unanswered += 1
                yield Claim(partition.number)
                return
        self._candidates = None
        self._claimed_once = True
        self._claiming.done(not_before=now + self._options.claim_interval_s * (0.5 + self._jitter() / 2))


def _partition_of(event: Event) -> int | None:
    """Return the partition of the action that the event answers; None when it is an event of the whole writer."""
    answered = event.action if isinstance(event, Failed) else event
    number: int | None = getattr(answered, "partition", None)
    return number
