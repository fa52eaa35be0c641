"""Offline queues: the stored messages of each device, and the lease that lets one connector sync them.

Implemented on SQL (`sql/queues.py`) and in memory (`memory/database.py`); contract: `tests/contract/sql/test_queues.py`
and `test_queues_any_order.py`.  Writers store the rows through `Partitions`.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import msgspec


class Row(msgspec.Struct, frozen=True, gc=False):
    """A stored message.  Rows of a queue are ordered by (position, index): the record, and the entry in it."""

    row_id: int
    position: int
    index: int
    envelope: bytes


class Page(NamedTuple):
    """Unread rows of a queue.

    `through` is the position of the partition when the page was read: every row up to it was visible.  `more` is True
    when the limits of the page cut it off.
    """

    rows: tuple[Row, ...]
    through: int
    more: bool


class Queues(Protocol):
    """The connector's side of the offline queues."""

    async def check(self, devices: Sequence[tuple[int, int]]) -> tuple[dict[int, int], set[int]]:
        """For (user, device) pairs return, from one snapshot, positions by partition and the devices with unread rows.

        The first has every partition of these users, with position 0 where no writer has committed yet.
        """

    async def claim(self, device: int, owner: str, session: int, lease_s: float) -> int | None:
        """Lease the queue; return a new fencing token, higher than all before, or None.

        The claim succeeds when the lease is free or has ended (clock of the database), when its holder is `owner`, or
        when the session number of its holder is at most `session`.  It fails (None) otherwise, and when the device
        does not exist.
        """

    async def page(
        self, user: int, device: int, fence: int, after: tuple[int, int], rows: int, size: int, lease_s: float
    ) -> Page:
        """Return unread rows beyond `after`, a (position, index): at most `rows`, and at most `size` bytes together.

        A first row with more than `size` bytes is returned alone.  Renews the lease when less than half of it is
        left.  Raises `Fenced` when `fence` is not the latest fencing token.
        """

    async def mark_read(self, device: int, fence: int, row_ids: Sequence[int]) -> None:
        """Mark rows that the device has acknowledged.  Raises `Fenced` when `fence` is not the latest."""

    async def release(self, device: int, fence: int) -> None:
        """End the lease, unless its fencing token is another one."""
