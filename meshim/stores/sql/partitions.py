"""The port `Partitions` on SQL: the writer's side of the queues.

`write` is on the path of every stored message, so its rows bypass SQLAlchemy.  sqlite3 takes them as tuples for one
prepared statement.  MySQL takes them as literals in a few long statements, because PyMySQL takes longer to escape the
parameters of a row than InnoDB to insert it; all literals are made here, of integers and hexadecimal digits.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

from sqlalchemy import bindparam, case, delete, func, insert, select, update
from sqlalchemy.engine import Connection

from meshim.chunks import chunks
from meshim.errors import Fenced
from meshim.stores.ports import QueueKey, QueueUsage, Size, Written
from meshim.stores.sql.database import Database
from meshim.stores.sql.rows import ROW_FORMAT, DecodedEntry, NewRow, decode_entries, first_device, rows_of, sizes_of
from meshim.stores.sql.schema import (
    OFFLINE_KEY,
    im_device,
    im_offline,
    im_position,
    im_user,
    lease_ended,
    now_ms,
    to_ms,
)
from meshim.wire.offline_log import Entry

_IN_MAX = 1_000
"""Values in one IN (...)."""
_STATEMENT_CHARACTERS = 1 << 20
"""Approximate length of one INSERT; servers take 16 MiB by default."""

_COLUMNS = (*("index" if name == "bundle_index" else name for name in NewRow._fields), "gmt_create", "format")
_MYSQL_ROW = "(x'%s',%d,x'%s',%d,%d,%d,%d,%d,%d,%d,%d,%d,%d,%d,%d,%d)"


class SqlPartitions:
    """The port `Partitions` on SQL."""

    def __init__(self, database: Database, gate: Callable[[Connection], None] | None = None) -> None:
        """`gate`, called in each `write`, raises `BackendUnavailable` when a commit on the connection is not safe."""
        self._database = database
        self._gate = gate

    async def claim(self, partition: int, owner: str, lease_s: float) -> tuple[int, int] | None:
        return await self._database.write(_claim, partition, owner, to_ms(lease_s))

    async def release(self, partition: int, fence: int) -> None:
        await self._database.write(_release, partition, fence)

    async def write(
        self, partition: int, fence: int, through: int, records: Sequence[tuple[int, Sequence[Entry]]], now: float
    ) -> Written:
        def work(connection: Connection) -> Written:
            if self._gate is not None:
                self._gate(connection)
            return _write(connection, partition, fence, through, records, to_ms(now))

        return await self._database.write(work)

    async def usage(self, queues: Sequence[tuple[QueueKey, int]], rows_max: int) -> dict[QueueKey, QueueUsage]:
        return await self._database.read(_usage, queues, rows_max)

    async def purge(self, read_before: float, limit: int) -> int:
        return await self._database.write(_purge, to_ms(read_before), limit)


# ---------------------------------------------------------------- leases


def _claim(connection: Connection, partition: int, owner: str, lease_ms: int) -> tuple[int, int] | None:
    query = (
        select(im_position.c.owner, im_position.c.fence, im_position.c.position)
        .add_columns(lease_ended(im_position.c.lease_until, lease_ms).label("ended"))
        .where(im_position.c.partition == partition)
        .with_for_update()
    )
    held = connection.execute(query).first()
    until = now_ms() + lease_ms
    if held is None:
        first = {"partition": partition, "position": 0, "fence": 1, "owner": owner, "lease_until": until}
        connection.execute(insert(im_position).values(first))
        return 1, 0
    if not (held.owner in {"", owner} or held.ended):
        return None
    fence = int(held.fence) + (held.owner != owner)
    lease = {"fence": fence, "owner": owner, "lease_until": until}
    connection.execute(update(im_position).where(im_position.c.partition == partition).values(lease))
    return fence, int(held.position)


def _release(connection: Connection, partition: int, fence: int) -> None:
    this_lease = (im_position.c.partition == partition) & (im_position.c.fence == fence)
    connection.execute(update(im_position).where(this_lease).values(owner="", lease_until=0))


# ---------------------------------------------------------------- rows


def _write(
    connection: Connection,
    partition: int,
    fence: int,
    through: int,
    records: Sequence[tuple[int, Sequence[Entry]]],
    now: int,
) -> Written:
    # First: from here to the commit no other writer writes this partition, and no device is dropped (R15).
    _advance(connection, partition, fence, through)
    decoded, refused = decode_entries(records)
    rows, left_out = rows_of(decoded, _registry(connection, decoded))
    if rows:
        insert_rows = _insert_into_sqlite if connection.dialect.name == "sqlite" else _insert_into_mysql
        insert_rows(connection, rows, now)
    queues = sizes_of(rows)
    devices = tuple((user, device) for user, device in queues if device)
    return Written(devices, tuple(refused), left_out, queues)


def _advance(connection: Connection, partition: int, fence: int, through: int) -> None:
    position = im_position.c.position
    further = case((position < through, through), else_=position)  # a redelivered batch does not move it back
    this_lease = (im_position.c.partition == partition) & (im_position.c.fence == fence)
    # Both drivers count matched rows, also those that did not change.
    if connection.execute(update(im_position).where(this_lease).values(position=further)).rowcount != 1:
        raise Fenced("Another writer has taken over this partition.")


def _registry(connection: Connection, decoded: Sequence[DecodedEntry]) -> dict[int, list[int]]:
    """Return the devices of every existing user of the entries; none for users without a device."""
    registry: dict[int, list[int]] = {}
    users = sorted({entry.user for entry, *_ in decoded})
    for chunk in chunks(users, _IN_MAX):
        devices = _devices_of(connection, chunk)
        if deviceless := [user for user in chunk if user not in devices]:
            # Lock the users, then look again: either the first login finds our rows, or we find its device.
            query = select(im_user.c.id).where(im_user.c.id.in_(deviceless)).order_by(im_user.c.id)
            registered = connection.scalars(query.with_for_update(read=True)).all()
            registry.update((user, []) for user in registered)
            devices |= _devices_of(connection, registered)
        registry |= devices
    return registry


def _devices_of(connection: Connection, users: Sequence[int]) -> dict[int, list[int]]:
    devices = defaultdict[int, list[int]](list)
    query = select(im_device.c.user_id, im_device.c.id).order_by(im_device.c.user_id, im_device.c.id)
    for user, device in connection.execute(query.where(im_device.c.user_id.in_(users))):
        devices[user].append(device)
    return dict(devices)


def _insert_into_sqlite(connection: Connection, rows: list[NewRow], now: int) -> None:
    values = ", ".join("?" * len(_COLUMNS))
    # For this key only: any other conflict is an error.
    statement = f"{_insert(connection)} ({values}) ON CONFLICT ({', '.join(OFFLINE_KEY)}) DO NOTHING"
    connection.exec_driver_sql(statement, [(*row, now, ROW_FORMAT) for row in rows])


def _insert_into_mysql(connection: Connection, rows: list[NewRow], now: int) -> None:
    head = _insert(connection)
    for values in _mysql_values(rows, now):
        # Not INSERT IGNORE, which would also hide every other error.
        connection.exec_driver_sql(f"{head} {values} ON DUPLICATE KEY UPDATE id = id")


def _insert(connection: Connection) -> str:
    columns = ", ".join(map(connection.dialect.identifier_preparer.quote, _COLUMNS))
    return f"INSERT INTO im_offline ({columns}) VALUES"


def _mysql_values(rows: list[NewRow], now: int) -> Iterator[str]:
    """Yield the rows as literals, in pieces of `_STATEMENT_CHARACTERS` at most, or one longer row."""
    pieces: list[str] = []
    size = 0
    for row in rows:
        msg_id, msg_type, content, *numbers = row
        piece = _MYSQL_ROW % (msg_id.hex(), msg_type, content.hex(), *numbers, now, ROW_FORMAT)
        if pieces and size + len(piece) > _STATEMENT_CHARACTERS:
            yield ",".join(pieces)
            pieces, size = [], 0
        pieces.append(piece)
        size += len(piece)
    yield ",".join(pieces)


_UNREAD = (im_offline.c.to_device == bindparam("device")) & (im_offline.c.has_read == 0)
_HEAD = select(im_offline.c.id).where(_UNREAD).order_by(im_offline.c.position, im_offline.c.index).limit(1)
_COUNTED = (
    select(im_offline.c.from_user_id.label("sender"), func.length(im_offline.c.content).label("size"))
    .where(_UNREAD)
    .limit(bindparam("rows_max"))
    .subquery()
)
_SENDERS = select(_COUNTED.c.sender, func.count(), func.sum(_COUNTED.c.size)).group_by(_COUNTED.c.sender)


def _usage(
    connection: Connection, queues: Sequence[tuple[QueueKey, int]], rows_max: int
) -> dict[QueueKey, QueueUsage]:  # fmt: skip
    found: dict[QueueKey, QueueUsage] = {}
    for queue, known in queues:
        device = queue.device or first_device(queue.user)
        head = int(connection.scalar(_HEAD, {"device": device}) or 0)
        if head != known:
            rows = connection.execute(_SENDERS, {"device": device, "rows_max": rows_max})
            found[queue] = QueueUsage(head, {sender: Size(count, int(size)) for sender, count, size in rows})
    return found


def _purge(connection: Connection, read_before: int, limit: int) -> int:
    old = select(im_offline.c.id).where(im_offline.c.gmt_read < read_before).order_by(im_offline.c.gmt_read)
    ids = sorted(connection.scalars(old.limit(limit)))
    for chunk in chunks(ids, _IN_MAX):
        connection.execute(delete(im_offline).where(im_offline.c.id.in_(chunk)))
    return len(ids)
