"""One partition, from the log to the database.

::

    log ──fetch──▶ messages ──write──▶ database ──▶ post_commit.py
     └─────read (gaps)──▶┘

At most one action of each kind is in flight, and the kinds do not wait for one another: the next messages arrive while
a transaction is under way.  No transaction waits to be full: it takes what is there.

What happens to a message depends on how its position compares with the next one to be written:

    equal       it goes into the next transaction, with those that follow it without a gap
    above       the gap before it is read: what exists is written first, what does not is passed over
    below       it was redelivered, and is written again: its rows stay as they are, but only the database can
                say once more which devices to wake up, and which entries it refuses

So the position of the partition never passes a message that exists (R15), and a message is acknowledged only after its
commit: after a crash at any point the log redelivers it.  While the database is away the messages are kept, and the
log is told that they are still in work (R8).
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
from meshim.writer.options import PipelineOptions
from meshim.writer.post_commit import PendingDeadLetter, PostCommit
from meshim.writer.quotas import QueueQuotas
from meshim.writer.single_flight import SingleFlight
from meshim.writer.statistics import Statistics

_READ_MOST = 64
"""Positions in one look at a gap, so that it is quick."""


class Batch(NamedTuple):
    """One transaction: the records, and the dead letters for those of them that do not decode."""

    through: int
    records: tuple[tuple[int, tuple[Entry, ...]], ...]
    positions: frozenset[int]
    dead_letters: dict[int, PendingDeadLetter]


class Pipeline:
    """The records in flight in one partition that this writer owns."""

    def __init__(
        self,
        *,
        partition: int,
        fence: int,
        position: int,
        options: PipelineOptions,
        statistics: Statistics,
        jitter: Callable[[], float],
    ) -> None:
        """`fence` and `position` are those of the claim."""
        self._post_commit = PostCommit(partition, statistics, jitter)
        self._quotas = QueueQuotas(partition, options.quota, statistics, jitter)
        self._handlers: dict[type[Any], Callable[[Any, float], None]] = {
            LogEnsured: self._log_ensured,
            MessagesFetched: self._messages_fetched,
            MessagesRead: self._messages_read,
            Extended: self._extended,
            BatchWritten: self._batch_written,
            Failed: self._failed,
            **self._post_commit.handlers,
            **self._quotas.handlers,
        }
        self._failure_handlers: dict[type[Any], Callable[[Any, float], None]] = {
            Ensure: self._fetch_failed,
            Fetch: self._fetch_failed,
            Read: self._read_failed,
            Extend: self._extend_failed,
            Write: self._write_failed,
            **self._post_commit.failure_handlers,
            **self._quotas.failure_handlers,
        }
        self.fence = fence
        self.ensured = False
        """Whether the log of the partition is known to exist."""
        self._partition = partition
        self._options = options
        self._statistics = statistics
        self._now = 0.0
        self._draining = False
        self._next = position + 1
        """The lowest position that went into no transaction."""
        self._highest = position
        """The highest position ever seen here."""
        self._messages: dict[int, bytes] = {}
        """By position: fetched, and not in a transaction yet."""
        self._absent: set[int] = set()
        """Positions from `_next` on that were read, and that the log does not have."""
        self._batch: Batch | None = None
        self._fetch_flight = SingleFlight(jitter)
        self._read_flight = SingleFlight(jitter)
        self._write_flight = SingleFlight(jitter)
        self._extend_flight = SingleFlight(jitter)
        self._flights = (
            self._fetch_flight,
            self._read_flight,
            self._write_flight,
            self._extend_flight,
            *self._post_commit.flights,
            *self._quotas.flights,
        )

    # ---------------------------------------------------------------- what the core asks

    @property
    def empty(self) -> bool:
        """Whether everything that was fetched is acknowledged."""
        return not (self._messages or self._batch or self._post_commit.unacknowledged)

    def drain(self) -> None:
        """Fetch nothing more; write what was fetched, but drop it when the database fails."""
        self._draining = True

    def next_deadline(self) -> float | None:
        """Return when to call `advance` although nothing happened; None when that would start nothing."""
        deadlines = [each.not_before for each in self._flights if not each.busy and each.not_before > self._now]
        if not self._draining and (renewal := self._quotas.next_deadline()) is not None:
            deadlines.append(renewal)
        return min(deadlines, default=None)

    def receive(self, event: Any, now: float) -> None:
        """Take in the answer to one of the actions."""
        self._handlers[type(event)](event, now)

    def _failed(self, event: Failed, now: float) -> None:
        self._statistics.retried += 1
        self._failure_handlers[type(event.action)](event, now)

    def advance(self, now: float) -> list[PartitionAction]:
        """Start all that can be started."""
        self._now = now
        quotas = () if self._draining else self._quotas.advance(now)
        return [*self._read_log(now), *self._write_batch(now), *self._post_commit.advance(now), *quotas]

    # ---------------------------------------------------------------- from the log

    def _read_log(self, now: float) -> Iterator[PartitionAction]:
        room = self._options.records - len(self._messages)
        if room > 0 and not self._draining and self._fetch_flight.start(now):
            # A log that was lost and is created anew must not give a position twice, committed or not.
            yield Fetch(self._partition, room) if self.ensured else Ensure(self._partition, self._highest + 1)
        if (gap := self._gap()) and self._read_flight.start(now):
            yield Read(self._partition, gap)
        if not self.empty and self._extend_flight.start(now):
            yield Extend(self._partition, self._unacknowledged())

    def _log_ensured(self, event: LogEnsured, now: float) -> None:
        self.ensured = True
        self._fetch_flight.done()

    def _messages_fetched(self, event: MessagesFetched, now: float) -> None:
        self._fetch_flight.done()
        if self.empty:
            self._extend_flight.not_before = now + self._options.extend_s
        for position, data in event.messages:
            self._take(position, data)

    def _fetch_failed(self, event: Failed, now: float) -> None:
        self.ensured = False  # the log may come back empty
        self._fetch_flight.failed(now)

    def _take(self, position: int, data: bytes) -> None:
        """Keep a message for a transaction, unless it is in one already, or committed and not acknowledged."""
        if position in self._post_commit.unacknowledged or (self._batch and position in self._batch.positions):
            return
        self._highest = max(self._highest, position)
        self._messages[position] = data

    def _gap(self) -> tuple[int, ...]:
        """Return the positions before the first message that came early, `_READ_MOST` at most."""
        if not self._messages or self._next in self._messages:
            return ()
        early = min((position for position in self._messages if position > self._next), default=self._next)
        return tuple(range(self._next, min(early, self._next + _READ_MOST)))

    def _messages_read(self, event: MessagesRead, now: float) -> None:
        self._read_flight.done()
        for position, data in event.found:
            if data is not None:
                self._take(position, data)
            elif position >= self._next:
                self._absent.add(position)
        self._skip_absent()

    def _skip_absent(self) -> None:
        while self._next in self._absent and self._next not in self._messages:
            self._absent.remove(self._next)
            self._statistics.skipped += 1
            self._next += 1

    def _read_failed(self, event: Failed, now: float) -> None:
        self._read_flight.failed(now)
        self._drop_uncommitted()

    def _unacknowledged(self) -> tuple[int, ...]:
        batch = self._batch.positions if self._batch else ()
        return (*self._messages, *batch, *self._post_commit.unacknowledged)

    def _extended(self, event: Extended, now: float) -> None:
        self._extend_flight.done(not_before=now + self._options.extend_s)

    def _extend_failed(self, event: Failed, now: float) -> None:
        self._extend_flight.failed(now)

    # ---------------------------------------------------------------- to the database

    def _write_batch(self, now: float) -> Iterator[PartitionAction]:
        # No transaction while too many messages wait for wake-ups and acknowledgements: these are bounded too.
        if self._batch is None and len(self._post_commit.unacknowledged) <= self._options.records:
            self._batch = self._next_batch()
        if self._batch is not None and self._write_flight.start(now):
            yield Write(self._partition, self.fence, self._batch.through, self._batch.records)

    def _next_batch(self) -> Batch | None:
        """Return the next transaction: what was redelivered, then what comes next; None when there is neither."""
        records: list[tuple[int, tuple[Entry, ...]]] = []
        dead_letters: dict[int, PendingDeadLetter] = {}
        size = 0
        for position in self._writable():
            data = self._messages.pop(position)
            entries = _decode(data)
            if isinstance(entries, PendingDeadLetter):
                dead_letters[position] = entries
                entries = ()
            records.append((position, entries))
            size += len(data)
            if size >= self._options.batch_bytes or len(records) >= self._options.records:
                break
        if not records:
            return None
        return Batch(self._next - 1, tuple(records), frozenset(position for position, _ in records), dead_letters)

    def _writable(self) -> Iterator[int]:
        """Yield the positions that may be written now, in order; each one that is taken moves `_next` behind it."""
        for position in sorted(position for position in self._messages if position < self._next):
            self._statistics.duplicates += 1
            yield position
        while self._next in self._messages:
            position = self._next
            self._next += 1
            self._skip_absent()
            yield position

    def _batch_written(self, event: BatchWritten, now: float) -> None:
        assert self._batch is not None
        batch, self._batch = self._batch, None
        self._write_flight.done()
        self._statistics.transactions += 1
        self._statistics.records += len(batch.records)
        self._statistics.entries += sum(len(entries) for _, entries in batch.records)
        self._statistics.left_out += event.written.left_out
        self._quotas.inserted(event.written.queues)
        dead_letters = batch.dead_letters | _dead_letters_of(event.written.refused)
        self._post_commit.committed(event.written.devices, sorted(batch.positions), dead_letters)

    def _write_failed(self, event: Failed, now: float) -> None:
        self._write_flight.failed(now)
        self._drop_uncommitted()

    def _drop_uncommitted(self) -> None:
        """While draining, do not wait for a database or a log that is away: the log redelivers to the next owner.

        A batch that is being written stays until its answer: a gap that cannot be read says nothing about it.
        """
        if self._draining:
            self._messages.clear()
            if not self._write_flight.busy:
                self._batch = None


def _decode(data: bytes) -> tuple[Entry, ...] | PendingDeadLetter:
    """Return the entries of a record, or a dead letter when it does not decode."""
    try:
        record = decode_record(data)
    except msgspec.DecodeError as error:
        return PendingDeadLetter(f"The record does not decode: {error}.", data)
    if record.version != WIRE_VERSION:
        return PendingDeadLetter(f"The record has version {record.version}, this writer reads {WIRE_VERSION}.", data)
    return record.entries


def _dead_letters_of(refused: Sequence[tuple[int, Entry, str]]) -> dict[int, PendingDeadLetter]:
    """Return, by position, one dead letter with all entries that the database refused: a record of just those."""
    entries: dict[int, list[Entry]] = {}
    reasons: dict[int, str] = {}
    for position, entry, reason in refused:
        entries.setdefault(position, []).append(entry)
        reasons.setdefault(position, reason)
    return {at: PendingDeadLetter(reasons[at], encode_record(tuple(entries[at]))) for at in entries}
