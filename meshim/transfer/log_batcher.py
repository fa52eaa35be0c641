"""What goes to the log: entries gathered into records, one bundle per partition and publish.

A lone entry is published at once; while `at_once` publishes of a partition are under way, what comes
waits and travels together.  What waits is bounded: beyond that the mesh is busy, and senders keep their messages.
"""

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from meshim.protocol.routing import partition_of
from meshim.transfer.events import Action, Publish
from meshim.wire.mesh import Stamp
from meshim.wire.offline_log import Entry, encode_record
from meshim.wire.outcome import Copy
from meshim.wire.sizes import entry_size


class PendingEntry(NamedTuple):
    """An entry, and what its sender has to be told."""

    entry: Entry
    stamp: Stamp
    done: tuple[Copy, ...]


class LogBatcher:
    """Publishes of one transfer."""

    def __init__(
        self, partitions: int, at_once: int, most: int, most_bytes: int, record_bytes: int, record_items: int
    ) -> None:
        self._at_once = max(1, at_once // partitions)
        self._most = most
        self._most_bytes = most_bytes
        self._record_bytes = record_bytes
        self._record_items = record_items
        self._waiting: list[deque[PendingEntry]] = [deque() for _ in range(partitions)]
        self._under_way: list[int] = [0] * partitions
        self._records: dict[int, tuple[int, Sequence[PendingEntry]]] = {}
        self._count = 0
        self._bytes = 0
        self._next = 1

    @property
    def idle(self) -> bool:
        return not self._count and not self._records

    def add(self, pending: PendingEntry) -> bool:
        """Take an entry; False when too much waits already."""
        if self._count >= self._most or self._bytes >= self._most_bytes:
            return False
        self._count += 1
        self._bytes += len(pending.entry.envelope)
        self._waiting[partition_of(pending.entry.user, len(self._waiting))].append(pending)
        return True

    def flush(self) -> list[Action]:
        """What can be published now."""
        actions: list[Action] = []
        for partition, waiting in enumerate(self._waiting):
            while waiting and self._under_way[partition] < self._at_once:
                batch = self._take(waiting)
                record, self._next = self._next, self._next + 1
                self._records[record] = (partition, batch)
                self._under_way[partition] += 1
                actions.append(Publish(record, partition, encode_record(tuple(pending.entry for pending in batch))))
        return actions

    def _take(self, waiting: deque[PendingEntry]) -> list[PendingEntry]:
        batch: list[PendingEntry] = []
        size = 0
        while waiting and len(batch) < self._record_items:
            size += entry_size(waiting[0].entry)
            if batch and size > self._record_bytes:
                break
            batch.append(waiting.popleft())
        self._count -= len(batch)
        self._bytes -= sum(len(pending.entry.envelope) for pending in batch)
        return batch

    def ended(self, record: int) -> Sequence[PendingEntry]:
        """The publish of this record ended, one way or the other; what was in it."""
        partition, batch = self._records.pop(record)
        self._under_way[partition] -= 1
        return batch
