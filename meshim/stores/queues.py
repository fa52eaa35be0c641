"""The port `Queues` on SQL: what is stored for a device, and the lease that lets one connector drain it."""

from collections.abc import Sequence

from sqlalchemy import func, or_, select, update
from sqlalchemy.engine import Connection

from meshim.errors import Fenced
from meshim.protocol.routing import partition_of
from meshim.stores.archive import Archive
from meshim.stores.ports import Page, Row
from meshim.stores.schema import im_device, im_offline, im_position, lease_ended, now_ms, to_ms

_CHUNK = 500  # of values in one IN (...)
_TAKEN_OVER = "Another connector has taken over the queue of this device."


class SqlQueues:
    """What is stored for a device, and the lease that lets one connector drain it."""

    def __init__(self, archive: Archive, partitions: int) -> None:
        self._archive = archive
        self._partitions = partitions

    async def peek(self, devices: Sequence[tuple[int, int]]) -> tuple[dict[int, int], set[int]]:
        partitions = {partition_of(user, self._partitions) for user, _ in devices}
        return await self._archive.read(_peek, sorted(partitions), [device for _, device in devices])

    async def claim(self, device: int, owner: str, session: int, lease_s: float) -> int | None:
        return await self._archive.write(_claim, device, owner, session, to_ms(lease_s))

    async def page(
        self, user: int, device: int, fence: int, after: tuple[int, int], rows: int, size: int, lease_s: float
    ) -> Page:
        partition = partition_of(user, self._partitions)
        page, left_ms = await self._archive.read(_page, partition, device, fence, after, rows, size)
        if not to_ms(lease_s) // 2 <= left_ms <= to_ms(lease_s):  # not each time: it costs a commit
            await self._archive.write(_renew, device, fence, to_ms(lease_s))
        return page

    async def mark_read(self, device: int, fence: int, row_ids: Sequence[int]) -> None:
        await self._archive.write(_mark_read, device, fence, sorted(row_ids))

    async def release(self, device: int, fence: int) -> None:
        await self._archive.write(_release, device, fence)


def _peek(connection: Connection, partitions: list[int], devices: list[int]) -> tuple[dict[int, int], set[int]]:
    at = im_position.c
    positions = dict.fromkeys(partitions, 0)
    for partition, position in connection.execute(
        select(at.partition, at.position).where(at.partition.in_(partitions))
    ):
        positions[partition] = position
    # One look into the index per device, however long its queue is.
    unread = select(im_offline.c.id).where(im_offline.c.to_device == im_device.c.id, im_offline.c.has_read == 0)
    waiting = select(im_device.c.id).where(unread.limit(1).scalar_subquery().is_not(None))
    found: set[int] = set()
    for start in range(0, len(devices), _CHUNK):
        found.update(connection.scalars(waiting.where(im_device.c.id.in_(devices[start : start + _CHUNK]))))
    return positions, found


def _claim(connection: Connection, device: int, owner: str, session: int, lease_ms: int) -> int | None:
    held = connection.execute(
        select(im_device.c.queue_owner, im_device.c.queue_session, im_device.c.queue_fence)
        .add_columns(lease_ended(im_device.c.queue_until, lease_ms).label("ended"))
        .where(im_device.c.id == device)
        .with_for_update()
    ).first()
    if held is None:
        return None  # dropped
    if not (held.queue_owner in {"", owner} or held.ended or held.queue_session <= session):
        return None
    fence = int(held.queue_fence) + 1
    lease = {"queue_owner": owner, "queue_session": session, "queue_fence": fence, "queue_until": now_ms() + lease_ms}
    connection.execute(update(im_device).where(im_device.c.id == device).values(lease))
    return fence


def _page(
    connection: Connection, partition: int, device: int, fence: int, after: tuple[int, int], rows: int, size: int
) -> tuple[Page, int]:
    """The page, and how long the lease lasts, in milliseconds."""
    query = select(im_device.c.queue_fence, (im_device.c.queue_until - now_ms()).label("left_ms"))
    lease = connection.execute(query.where(im_device.c.id == device)).first()
    if lease is None or lease.queue_fence != fence:
        raise Fenced(_TAKEN_OVER)
    row = im_offline.c
    # `position >=` is what the index can use; a comparison of pairs it cannot.
    beyond = (row.position >= after[0]) & or_(row.position > after[0], row.index > after[1])
    # Sizes first: only what fits is fetched, however long the contents are.
    sizes = connection.execute(
        select(row.id, func.length(row.content))
        .where(row.to_device == device, row.has_read == 0, beyond)
        .order_by(row.position, row.index)
        .limit(rows + 1)
    ).all()
    ids = _fitting([(row_id, length) for row_id, length in sizes[:rows]], size)
    contents = select(row.id, row.position, row.index, row.content).where(row.id.in_(ids))
    found = connection.execute(contents.order_by(row.position, row.index))
    page = tuple(Row(row_id, position, index, content) for row_id, position, index, content in found)
    return Page(page, _position(connection, partition), len(sizes) > len(page)), lease.left_ms


def _fitting(sizes: list[tuple[int, int]], size: int) -> list[int]:
    """The ids of the first rows that fit, at least one."""
    ids: list[int] = []
    total = 0
    for row_id, length in sizes:
        total += length
        if ids and total > size:
            break
        ids.append(row_id)
    return ids


def _position(connection: Connection, partition: int) -> int:
    query = select(im_position.c.position).where(im_position.c.partition == partition)
    return connection.scalar(query) or 0


def _renew(connection: Connection, device: int, fence: int, lease_ms: int) -> None:
    this_lease = (im_device.c.id == device) & (im_device.c.queue_fence == fence) & (im_device.c.queue_owner != "")
    connection.execute(update(im_device).where(this_lease).values(queue_until=now_ms() + lease_ms))


def _mark_read(connection: Connection, device: int, fence: int, row_ids: list[int]) -> None:
    # Shared: no claim may come between this look and our commit (R3).
    query = select(im_device.c.queue_fence).where(im_device.c.id == device).with_for_update(read=True)
    if connection.scalar(query) != fence:
        raise Fenced(_TAKEN_OVER)
    for start in range(0, len(row_ids), _CHUNK):
        acknowledged = im_offline.c.id.in_(row_ids[start : start + _CHUNK]) & (im_offline.c.to_device == device)
        connection.execute(
            update(im_offline).where(acknowledged, im_offline.c.has_read == 0).values(has_read=1, gmt_read=now_ms())
        )


def _release(connection: Connection, device: int, fence: int) -> None:
    this_lease = (im_device.c.id == device) & (im_device.c.queue_fence == fence)
    connection.execute(update(im_device).where(this_lease).values(queue_owner="", queue_until=0))
