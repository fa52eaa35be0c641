"""Batches entries into records for the log: one bundle per partition and publish.

An entry is published at once while fewer than `publishes / partitions` records of its partition are in flight;
otherwise it waits, and goes out in one record with the others that wait.  The queues are bounded: what finds no room
is refused, its sender is told BUSY and keeps the message.
"""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from meshim.protocol.routing import partition_of
from meshim.transfer.events import Action, Publish
from meshim.transfer.options import TransferOptions
from meshim.wire.mesh import Stamp
from meshim.wire.offline_log import Entry, encode_record
from meshim.wire.outcome import Copy
from meshim.wire.sizes import entry_size


class PendingEntry(NamedTuple):
    """An entry, and what its outcome names: the stamp of the message, and the copies that the entry stands for."""

    entry: Entry
    stamp: Stamp
    done: tuple[Copy, ...]


class LogBatcher:
    """The entries of one transfer that the log has not acknowledged."""

    def __init__(self, options: TransferOptions) -> None:
        self._in_flight_max = max(1, options.publishes // options.partitions)
        self._pending_max = options.pending
        self._pending_bytes_max = options.pending_bytes
        self._record_bytes = options.record_bytes
        self._record_items = options.record_items
        self._queues: list[deque[PendingEntry]] = [deque() for _ in range(options.partitions)]
        """By partition."""
        self._pending = 0
        """Entries in the queues."""
        self._pending_bytes = 0
        """Of their envelopes."""
        self._in_flight: list[int] = [0] * options.partitions
        """By partition: how many records."""
        self._records: dict[int, tuple[int, Sequence[PendingEntry]]] = {}
        """Those in flight: (partition, entries) by record number."""
        self._next_record = 1

    @property
    def idle(self) -> bool:
        """Nothing waits, nothing is in flight."""
        return not self._pending and not self._records

    def add(self, pending: PendingEntry) -> bool:
        """Queue an entry; False (and nothing happens) when the queues are full."""
        if self._pending >= self._pending_max or self._pending_bytes >= self._pending_bytes_max:
            return False
        self._pending += 1
        self._pending_bytes += len(pending.entry.envelope)
        self._queues[partition_of(pending.entry.user, len(self._queues))].append(pending)
        return True

    def flush(self) -> list[Action]:
        """Return the publishes that may start now; their records are in flight from here on."""
        actions: list[Action] = []
        for partition, queue in enumerate(self._queues):
            while queue and self._in_flight[partition] < self._in_flight_max:
                batch = self._take_batch(queue)
                record, self._next_record = self._next_record, self._next_record + 1
                self._records[record] = (partition, batch)
                self._in_flight[partition] += 1
                actions.append(Publish(record, partition, encode_record(tuple(pending.entry for pending in batch))))
        return actions

    def _take_batch(self, queue: deque[PendingEntry]) -> list[PendingEntry]:
        batch: list[PendingEntry] = []
        size = 0
        while queue and len(batch) < self._record_items:
            size += entry_size(queue[0].entry)
            if batch and size > self._record_bytes:
                break
            batch.append(queue.popleft())
        self._pending -= len(batch)
        self._pending_bytes -= sum(len(pending.entry.envelope) for pending in batch)
        return batch

    def complete(self, record: int) -> Sequence[PendingEntry]:
        """End the flight of a record, published or not; return its entries."""
        partition, batch = self._records.pop(record)
        self._in_flight[partition] -= 1
        return batch
