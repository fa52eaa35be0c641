"""The writer's side of the offline queues: leases of partitions, and the transactions that store rows.

Implemented on SQL (`sql/partitions.py`) and in memory (`memory/database.py`); contract:
`tests/contract/sql/test_partitions.py` and `writer/test_refused_entries.py`.  Connectors read the rows through
`Queues`.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from meshim.wire.offline_log import Entry


class QueueKey(NamedTuple):
    """An offline queue: that of a device, or with device 0 what waits for the first device of a user."""

    user: int
    device: int


class Size(NamedTuple):
    """Of rows: their number, and the bytes of their envelopes."""

    rows: int
    bytes: int


class QueueUsage(NamedTuple):
    """The unread rows of a queue.  `head` names the first of them, 0 when there is none; the sizes are by sender."""

    head: int
    senders: Mapping[int, Size]


class Written(NamedTuple):
    """The result of one `Partitions.write`.

    `devices`, as (user, device), have a row of one of the entries: new, or there already.  It may be read already:
    finding that out costs more than a wake-up for an empty queue.  `refused`, as (position, entry, reason), can never
    be written.  `left_out` counts copies for users and devices that do not exist (any more).  `queues` has how much was
    inserted into each queue, at most: a row that was there already counts too.
    """

    devices: tuple[tuple[int, int], ...]
    refused: tuple[tuple[int, Entry, str], ...]
    left_out: int = 0
    queues: Mapping[QueueKey, Size] = {}


class Partitions(Protocol):
    """One fenced writer per partition."""

    async def claim(self, partition: int, owner: str, lease_s: float) -> tuple[int, int] | None:
        """Lease the partition; return (fencing token, position), or None while the lease of another owner lasts.

        `position` is the highest position of the log that is committed, 0 before the first.  A claim of the owner
        that holds the lease renews it and keeps the fencing token; any other successful claim raises it by 1.
        """

    async def release(self, partition: int, fence: int) -> None:
        """End the lease, unless its fencing token is another one."""

    async def write(
        self, partition: int, fence: int, through: int, records: Sequence[tuple[int, Sequence[Entry]]], now: float
    ) -> Written:
        """In one transaction, insert the rows of every (position, entries) and set the position of the partition.

        The position becomes `through`, unless it is higher already.  A row that exists (same stream, seq and device)
        stays as it is.  An entry without devices gets one row for each device of its user, or one row for the user's
        first device if there is none yet.  Copies for unknown users or devices are left out and counted.  An entry
        that violates a limit of the table is not written but returned in `Written.refused`.

        Raises `Fenced` when `fence` is not the latest fencing token of the partition; then nothing is written.
        """

    async def usage(self, queues: Sequence[tuple[QueueKey, int]], rows_max: int) -> dict[QueueKey, QueueUsage]:
        """Count the unread rows of these queues, each given with a head: left out is one that still has this head.

        At most `rows_max` rows of a queue are counted.
        """

    async def purge(self, read_before: float, limit: int) -> int:
        """Delete at most `limit` rows that were marked read before that time, oldest first; return how many."""
