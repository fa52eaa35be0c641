"""The side of the offline queues that a writer uses (SQL)."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from meshim.wire.offline_log import Entry


class Written(NamedTuple):
    """What became of entries.

    `devices`, as (user, device), are all that have a row of theirs, new or from before.  One whose rows
    were read already may be among them: finding that out costs more than a look at an empty queue.
    `refused` could not be written, and never can, as (position, entry, reason).  `left_out` counts
    copies for users and devices that there are not (any more).
    """

    devices: tuple[tuple[int, int], ...]
    refused: tuple[tuple[int, Entry, str], ...]
    left_out: int = 0


class Partitions(Protocol):
    """The writer's side of the queues."""

    async def claim(self, partition: int, owner: str, lease_s: float) -> tuple[int, int] | None:
        """Lease the partition: (fencing number, position), or None while another owner's lease lasts.

        Claiming again as the same owner renews the lease and keeps the fencing number.
        """

    async def release(self, partition: int, fence: int) -> None:
        """End the lease if it is still this one."""

    async def write(
        self, partition: int, fence: int, through: int, records: Sequence[tuple[int, Sequence[Entry]]], now: float
    ) -> Written:
        """In one transaction: rows for the devices of every (position, entries), and the partition's position.

        The position becomes `through`, unless it is beyond that already.  A row that is there already (same
        stream, seq and device) stays as it is.  Entries without devices get a row for each device of the
        user, or one for her first device while she has none; those for unknown users or devices are left out
        and counted.
        An entry that violates a limit of the table is not written but returned as refused, (position, entry, reason).
        Raises Fenced when `fence` is not the latest.
        """

    async def purge(self, read_before: float, most: int) -> int:
        """Delete at most that many rows that were read before that time; returns how many."""
