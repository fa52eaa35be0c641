"""Offline queues: what is stored for a device (SQL)."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import msgspec


class Row(msgspec.Struct, frozen=True, gc=False):
    """A stored message, in the order (position, index)."""

    row_id: int
    position: int
    index: int
    envelope: bytes


class Page(NamedTuple):
    """`through` is the position of the partition when the page was read; every row up to it is visible.

    `more` says that the page was cut by its bounds.
    """

    rows: tuple[Row, ...]
    through: int
    more: bool


class Queues(Protocol):
    """What is stored for a device, and the lease that lets one connector sync it."""

    async def peek(self, devices: Sequence[tuple[int, int]]) -> tuple[dict[int, int], set[int]]:
        """For (user, device) pairs, in one snapshot: positions by partition, and which devices have unread rows.

        Every partition of these users is there; its position is 0 while it never had a writer.
        """

    async def claim(self, device: int, owner: str, session: int, lease_s: float) -> int | None:
        """Lease the queue; returns a new fencing number, higher than all before.

        It is given when nobody holds the lease, it has ended (clock of the database), the holder
        is `owner`, or the holder's session number is not above `session`.  None otherwise, also
        when there is no such device.
        """

    async def page(
        self, user: int, device: int, fence: int, after: tuple[int, int], rows: int, size: int, lease_s: float
    ) -> Page:
        """Unread rows beyond (position, index) `after`, at most `rows` of them.

        Their envelopes have at most `size` bytes together, unless the first alone has more.  Renews the
        lease once half of it has gone.  Raises Fenced when `fence` is not the latest.
        """

    async def mark_read(self, device: int, fence: int, row_ids: Sequence[int]) -> None:
        """Mark rows the device has acknowledged.  Raises Fenced when `fence` is not the latest."""

    async def release(self, device: int, fence: int) -> None:
        """End the lease if it is still this one."""
