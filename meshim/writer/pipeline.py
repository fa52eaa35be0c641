"""One partition, from the log to the database.

::

    log ──fetch──▶ waiting ──write──▶ database ──▶ post_commit.py
     └────read (gaps)──▶┘

Each arrow is a lane: one action at a time, the lanes at the same time as each other, so that
the next messages arrive while a transaction is under way.  Nothing waits for company:
a transaction takes what is there.

Rules, by where a message stands to the next position to be written:

    equal       it goes into the next transaction, and what follows it without a gap
    above       read what is missing: what exists is written first, what is gone is passed over
    below       given again: written again.  Its rows are there and stay as they are, but only the
                database can say once more which devices to wake-up, and which entries it refuses

So the position of the partition never passes a message that exists (R15), and a message is
acknowledged only behind its commit: a crash anywhere makes the log give it again.  While the database
is away messages are kept, and the log is told that they are being worked on (R8).
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import msgspec

from meshim.wire.envelope import WIRE_VERSION
from meshim.wire.offline_log import Entry, decode_record, encode_record
from meshim.writer.events import (
    BatchWritten,
    Ensure,
    Extend,
    Extended,
    Failed,
    Fetch,
    LogEnsured,
    MessagesFetched,
    MessagesRead,
    PartitionAction,
    Read,
    Write,
)
from meshim.writer.post_commit import PendingDeadLetter, PostCommit
from meshim.writer.single_flight import SingleFlight
from meshim.writer.statistics import Statistics

_READ_MOST = 64


class PipelineOptions(msgspec.Struct, frozen=True):
    """`records` and `batch_bytes` bound one transaction; `records` also bounds what waits and what settles."""

    records: int
    batch_bytes: int
    extend_s: float


class Batch(NamedTuple):
    """One transaction, and the messages in it that cannot be decoded."""

    through: int
    records: tuple[tuple[int, tuple[Entry, ...]], ...]
    positions: frozenset[int]
    letters: dict[int, PendingDeadLetter]


class Pipeline:
    """What is under way in a partition that this writer owns."""

    def __init__(
        self,
        partition: int,
        fence: int,
        position: int,
        options: PipelineOptions,
        statistics: Statistics,
        jitter: Callable[[], float],
    ) -> None:
        """`fence` and `position` are those of the claim."""
        self.partition = partition
        self.fence = fence
        self.ensured = False
        self._options = options
        self._count = statistics
        self._now = 0.0
        self._draining = False
        self._next = position + 1  # lowest position that went into no transaction
        self._highest = position  # that was ever seen here
        self._waiting: dict[int, bytes] = {}
        self._gone: set[int] = set()  # from `_next` on: was read, and does not exist
        self._batch: Batch | None = None
        self._post_commit = PostCommit(partition, statistics, jitter)
        self._follow, self._read, self._write, self._extend = flights = tuple(SingleFlight(jitter) for _ in range(4))
        self._flights = (*flights, *self._post_commit.flights)

    # ---- what the core asks

    @property
    def empty(self) -> bool:
        """Nothing is held that is not acknowledged."""
        return not (self._waiting or self._batch or self._post_commit.held)

    def drain(self) -> None:
        """Fetch no more; write what is held, but let go of it when the database fails."""
        self._draining = True

    def next_deadline(self) -> float | None:
        """When `advance` is worth a call though nothing happened; None if it is not."""
        return min(
            (flight.not_before for flight in self._flights if not flight.busy and flight.not_before > self._now),
            default=None,
        )

    def receive(self, event: Any, now: float) -> None:
        """Take in the answer to one of the actions."""
        if type(event) is Failed:
            self._count.retried += 1
            handle = _FAILED.get(type(event.action))
        else:
            handle = _HAPPENED.get(type(event))
        if handle is None:
            self._post_commit.receive(event, now)
        else:
            handle(self, event, now)

    def advance(self, now: float) -> list[PartitionAction]:
        """Start whatever can be started."""
        self._now = now
        return [*self._take_in(now), *self._store(now), *self._post_commit.advance(now)]

    # ---- from the log

    def _take_in(self, now: float) -> Iterator[PartitionAction]:
        room = self._options.records - len(self._waiting)
        if room > 0 and not self._draining and self._follow.start(now):
            # A log that was lost and is made anew must give no position twice, committed or not.
            yield Fetch(self.partition, room) if self.ensured else Ensure(self.partition, self._highest + 1)
        if (missing := self._missing()) and self._read.start(now):
            yield Read(self.partition, missing)
        if not self.empty and self._extend.start(now):
            yield Extend(self.partition, self._held())

    def _ensured(self, event: LogEnsured, now: float) -> None:
        self.ensured = True
        self._follow.done()

    def _fetched(self, event: MessagesFetched, now: float) -> None:
        self._follow.done()
        if self.empty:
            self._extend.not_before = now + self._options.extend_s
        for position, data in event.messages:
            self._hold(position, data)

    def _not_fetched(self, event: Failed, now: float) -> None:
        self.ensured = False  # the log may have come back empty
        self._follow.failed(now)

    def _hold(self, position: int, data: bytes) -> None:
        """Put a message where the next transaction finds it, unless it is on its way already."""
        if position in self._post_commit.held or (self._batch and position in self._batch.positions):
            return
        self._highest = max(self._highest, position)
        self._waiting[position] = data

    def _missing(self) -> tuple[int, ...]:
        """The positions right before a message that arrived early; at most so many that one look at them is quick."""
        if not self._waiting or self._next in self._waiting:
            return ()
        following = min((position for position in self._waiting if position > self._next), default=self._next)
        return tuple(range(self._next, min(following, self._next + _READ_MOST)))

    def _looked(self, event: MessagesRead, now: float) -> None:
        self._read.done()
        for position, data in event.found:
            if data is not None:
                self._hold(position, data)
            elif position >= self._next:
                self._gone.add(position)
        self._pass_over()

    def _pass_over(self) -> None:
        while self._next in self._gone and self._next not in self._waiting:
            self._gone.remove(self._next)
            self._count.skipped += 1
            self._next += 1

    def _not_looked(self, event: Failed, now: float) -> None:
        self._read.failed(now)
        self._let_go()

    def _held(self) -> tuple[int, ...]:
        batch = self._batch.positions if self._batch else ()
        return (*self._waiting, *batch, *self._post_commit.held)

    def _extended(self, event: Extended, now: float) -> None:
        self._extend.done(not_before=now + self._options.extend_s)

    def _not_extended(self, event: Failed, now: float) -> None:
        self._extend.failed(now)

    # ---- to the database

    def _store(self, now: float) -> Iterator[PartitionAction]:
        # Slow connectors and acknowledgements hold the writing back, so that this is bounded too.
        if self._batch is None and len(self._post_commit.held) <= self._options.records:
            self._batch = self._pack()
        if self._batch is not None and self._write.start(now):
            yield Write(self.partition, self.fence, self._batch.through, self._batch.records)

    def _pack(self) -> Batch | None:
        """The next transaction: what was given again, then what comes next; None if there is neither."""
        records: list[tuple[int, tuple[Entry, ...]]] = []
        letters: dict[int, PendingDeadLetter] = {}
        size = 0
        for position in self._ready():
            data = self._waiting.pop(position)
            entries = _open(data)
            if isinstance(entries, PendingDeadLetter):
                letters[position] = entries
                entries = ()
            records.append((position, entries))
            size += len(data)
            if size >= self._options.batch_bytes or len(records) >= self._options.records:
                break
        if not records:
            return None
        return Batch(self._next - 1, tuple(records), frozenset(position for position, _ in records), letters)

    def _ready(self) -> Iterator[int]:
        for position in sorted(position for position in self._waiting if position < self._next):
            self._count.duplicates += 1
            yield position
        while self._next in self._waiting:
            position = self._next
            self._next += 1
            self._pass_over()
            yield position

    def _written(self, event: BatchWritten, now: float) -> None:
        assert self._batch is not None
        batch, self._batch = self._batch, None
        self._write.done()
        self._count.transactions += 1
        self._count.records += len(batch.records)
        self._count.entries += sum(len(entries) for _, entries in batch.records)
        self._count.left_out += event.written.left_out
        letters = batch.letters | _letters(event.written.refused)
        self._post_commit.committed(event.written.devices, sorted(batch.positions), letters)

    def _not_written(self, event: Failed, now: float) -> None:
        self._write.failed(now)
        self._let_go()

    def _let_go(self) -> None:
        """Leaving, and the database or the log is away: somebody else will be given what is not committed."""
        if self._draining:
            self._batch = None
            self._waiting.clear()


def _open(data: bytes) -> tuple[Entry, ...] | PendingDeadLetter:
    """The entries of a record, or why they cannot be known."""
    try:
        record = decode_record(data)
    except msgspec.DecodeError as error:
        return PendingDeadLetter(f"The record does not decode: {error}.", data)
    if record.version != WIRE_VERSION:
        return PendingDeadLetter(f"The record has version {record.version}, this writer reads {WIRE_VERSION}.", data)
    return record.entries


def _letters(refused: Sequence[tuple[int, Entry, str]]) -> dict[int, PendingDeadLetter]:
    """One letter for each position of which the database refused entries: a record of just those."""
    entries: dict[int, list[Entry]] = {}
    reasons: dict[int, str] = {}
    for position, entry, reason in refused:
        entries.setdefault(position, []).append(entry)
        reasons.setdefault(position, reason)
    return {at: PendingDeadLetter(reasons[at], encode_record(tuple(entries[at]))) for at in entries}


_HAPPENED: dict[type, Callable[[Pipeline, Any, float], None]] = {
    LogEnsured: Pipeline._ensured,
    MessagesFetched: Pipeline._fetched,
    MessagesRead: Pipeline._looked,
    Extended: Pipeline._extended,
    BatchWritten: Pipeline._written,
}

_FAILED: dict[type, Callable[[Pipeline, Any, float], None]] = {
    Ensure: Pipeline._not_fetched,
    Fetch: Pipeline._not_fetched,
    Read: Pipeline._not_looked,
    Extend: Pipeline._not_extended,
    Write: Pipeline._not_written,
}
