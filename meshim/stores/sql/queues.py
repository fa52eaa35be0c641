"""The port `Queues` on SQL: stored messages of devices, and the lease that lets one connector sync a queue."""

from collections.abc import Sequence

from sqlalchemy import Integer, Select, bindparam, func, or_, select, update
from sqlalchemy.engine import Connection

from meshim.chunks import chunks
from meshim.errors import Fenced
from meshim.protocol.routing import partition_of
from meshim.stores.ports import Page, Row
from meshim.stores.sql.database import Database
from meshim.stores.sql.schema import im_device, im_offline, im_position, lease_ended, now_ms, to_ms

_IN_MAX = 500
"""Values in one IN (...)."""
_TAKEN_OVER = "Another connector has taken over the queue of this device."


class SqlQueues:
    """The port `Queues` on SQL."""

    def __init__(self, database: Database, partitions: int) -> None:
        self._database = database
        self._partitions = partitions

    async def check(self, devices: Sequence[tuple[int, int]]) -> tuple[dict[int, int], set[int]]:
        partitions = {partition_of(user, self._partitions) for user, _ in devices}
        return await self._database.read(_check, sorted(partitions), [device for _, device in devices])

    async def claim(self, device: int, owner: str, session: int, lease_s: float) -> int | None:
        return await self._database.write(_claim, device, owner, session, to_ms(lease_s))

    async def page(
        self, user: int, device: int, fence: int, after: tuple[int, int], rows: int, size: int, lease_s: float
    ) -> Page:
        partition = partition_of(user, self._partitions)
        page, left_ms = await self._database.read(_page, partition, device, fence, after, rows, size)
        if not to_ms(lease_s) // 2 <= left_ms <= to_ms(lease_s):  # not for each page: a renewal costs a commit
            await self._database.write(_renew, device, fence, to_ms(lease_s))
        return page

    async def mark_read(self, device: int, fence: int, row_ids: Sequence[int]) -> None:
        await self._database.write(_mark_read, device, fence, sorted(row_ids))

    async def release(self, device: int, fence: int) -> None:
        await self._database.write(_release, device, fence)


def _check(connection: Connection, partitions: list[int], devices: list[int]) -> tuple[dict[int, int], set[int]]:
    at = im_position.c
    positions = dict.fromkeys(partitions, 0)
    for partition, position in connection.execute(
        select(at.partition, at.position).where(at.partition.in_(partitions))
    ):
        positions[partition] = position
    # One index look-up per device, however long its queue is.
    unread = select(im_offline.c.id).where(im_offline.c.to_device == im_device.c.id, im_offline.c.has_read == 0)
    waiting = select(im_device.c.id).where(unread.limit(1).scalar_subquery().is_not(None))
    found: set[int] = set()
    for chunk in chunks(devices, _IN_MAX):
        found.update(connection.scalars(waiting.where(im_device.c.id.in_(chunk))))
    return positions, found


def _claim(connection: Connection, device: int, owner: str, session: int, lease_ms: int) -> int | None:
    held = connection.execute(_HELD, {"device": device, "lease_ms": lease_ms}).first()
    if held is None:
        return None  # dropped
    if not (held.queue_owner in {"", owner} or held.ended or held.queue_session <= session):
        return None
    fence = int(held.queue_fence) + 1
    connection.execute(
        _TAKE, {"device": device, "owner": owner, "session": session, "fence": fence, "lease_ms": lease_ms}
    )
    return fence


def _page(
    connection: Connection, partition: int, device: int, fence: int, after: tuple[int, int], rows: int, size: int
) -> tuple[Page, int]:
    """Return the page, and the time left of the lease in milliseconds."""
    left_ms, through = _lease(connection, partition, device, fence)
    position, index = after
    found = connection.execute(
        _PAGE, {"device": device, "position": position, "index": index, "rows": rows, "more": rows + 1, "bytes": size}
    ).all()
    page = tuple(Row(row_id, position, index, content) for row_id, position, index, content, _ in found)
    more = bool(found) and found[0].beyond > len(page)
    return Page(page, through, more), left_ms


def _lease(connection: Connection, partition: int, device: int, fence: int) -> tuple[int, int]:
    """Return the time left of the lease in milliseconds, and the position of the partition, before rows are read.

    All rows up to that position are in the snapshot of the page.  Raises `Fenced`.
    """
    lease = connection.execute(_LEASE, {"device": device, "partition": partition}).first()
    if lease is None or lease.queue_fence != fence:
        raise Fenced(_TAKEN_OVER)
    return lease.left_ms, lease.position or 0


def _page_query() -> Select[int, int, int, bytes, int]:
    """Select the rows of a page in order, and how many rows there are beyond `after`: `rows` and one more at most.

    The database sums up sizes before it fetches contents, so that it reads only the contents that fit.
    """
    row = im_offline.c
    # The index can serve `position >=`; it cannot serve a comparison of pairs.
    beyond = (row.position >= bindparam("position")) & or_(
        row.position > bindparam("position"), row.index > bindparam("index")
    )
    sizes = (
        select(row.id, row.position, row.index, func.length(row.content).label("size"))
        .where(row.to_device == bindparam("device"), row.has_read == 0, beyond)
        .order_by(row.position, row.index)
        .limit(bindparam("more"))
        .subquery()
    )
    order = (sizes.c.position, sizes.c.index)
    summed = select(
        sizes.c.id,
        func.row_number().over(order_by=order).label("number"),
        func.sum(sizes.c.size).over(order_by=order, rows=(None, 0)).label("bytes"),
        func.count().over().label("beyond"),
    ).subquery()
    fitting = (summed.c.number == 1) | ((summed.c.number <= bindparam("rows")) & (summed.c.bytes <= bindparam("bytes")))
    page = select(row.id, row.position, row.index, row.content, summed.c.beyond)
    return page.join(summed, summed.c.id == row.id).where(fitting).order_by(row.position, row.index)


def _renew(connection: Connection, device: int, fence: int, lease_ms: int) -> None:
    this_lease = (im_device.c.id == device) & (im_device.c.queue_fence == fence) & (im_device.c.queue_owner != "")
    connection.execute(update(im_device).where(this_lease).values(queue_until=now_ms() + lease_ms))


def _mark_read(connection: Connection, device: int, fence: int, row_ids: list[int]) -> None:
    if connection.scalar(_FENCE, {"device": device}) != fence:
        raise Fenced(_TAKEN_OVER)
    for chunk in chunks(row_ids, _IN_MAX):
        connection.execute(_MARK, {"ids": chunk, "device": device})


def _release(connection: Connection, device: int, fence: int) -> None:
    this_lease = (im_device.c.id == device) & (im_device.c.queue_fence == fence)
    connection.execute(update(im_device).where(this_lease).values(queue_owner="", queue_until=0))


# Statements are made once, at import: making one costs more than running it.
_THIS_DEVICE = im_device.c.id == bindparam("device")
_HELD = (
    select(im_device.c.queue_owner, im_device.c.queue_session, im_device.c.queue_fence)
    .add_columns(lease_ended(im_device.c.queue_until, bindparam("lease_ms", type_=Integer)).label("ended"))
    .where(_THIS_DEVICE)
    .with_for_update()
)
_TAKE = (
    update(im_device)
    .where(_THIS_DEVICE)
    .values(queue_owner=bindparam("owner"), queue_session=bindparam("session"), queue_fence=bindparam("fence"))
    .values(queue_until=now_ms() + bindparam("lease_ms"))
)
_LEASE = select(
    im_device.c.queue_fence,
    (im_device.c.queue_until - now_ms()).label("left_ms"),
    select(im_position.c.position)
    .where(im_position.c.partition == bindparam("partition"))
    .scalar_subquery()
    .label("position"),
).where(_THIS_DEVICE)
_PAGE = _page_query()
# A shared lock: no claim may commit between this read and the commit of the marks (R3).
_FENCE = select(im_device.c.queue_fence).where(_THIS_DEVICE).with_for_update(read=True)
_MARK = (
    update(im_offline)
    .where(im_offline.c.id.in_(bindparam("ids", expanding=True)), im_offline.c.to_device == bindparam("device"))
    .where(im_offline.c.has_read == 0)
    .values(has_read=1, gmt_read=now_ms())
)
