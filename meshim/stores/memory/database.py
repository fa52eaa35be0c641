"""The database in memory, for tests and the simulation: its state, and the ports `Queues` and `Partitions`.

Behaves as the adapters in `sql/`.  The port `Accounts` is in `accounts.py`.  No method awaits, so each is one
transaction.
"""

import itertools
import time
from bisect import insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from meshim.errors import Fenced
from meshim.protocol.routing import partition_of
from meshim.stores.ports import Login, Page, QueueKey, QueueUsage, RelationKey, Row, Size, User, Written
from meshim.stores.sql.rows import NewRow, decode_entries, first_device, rows_of, sizes_of
from meshim.wire.offline_log import Entry


@dataclass
class Lease:
    """The lease of a queue or a partition.  An empty owner means free."""

    owner: str = ""
    session: int = 0
    fence: int = 0
    until: float = 0.0

    def is_free_for(self, owner: str, now: float, lease_s: float) -> bool:
        """Whether `owner` may claim: as `schema.lease_ended`, also after the clock stepped back."""
        return self.owner in {"", owner} or not now < self.until <= now + 2 * lease_s

    def end(self) -> None:
        self.owner, self.until = "", 0.0


@dataclass
class StoredRow:
    row_id: int
    new: NewRow
    read_at: float | None = None

    @property
    def order(self) -> tuple[int, int]:
        return self.new.position, self.new.bundle_index


@dataclass
class StoredDevice:
    device_id: int
    user_id: int
    name: str
    epoch: int
    last_seen: float
    lease: Lease = field(default_factory=Lease)
    queue: list[StoredRow] = field(default_factory=list)
    """By (position, index)."""
    messages: set[tuple[int, ...]] = field(default_factory=set)
    """The keys (stream and seq) of the queue."""

    def keep(self, row: StoredRow) -> None:
        """Insert a row into the queue, unless a row of the same message is there."""
        message = _message(row.new)
        if message not in self.messages:
            self.messages.add(message)
            insort(self.queue, row, key=lambda stored: stored.order)


@dataclass
class StoredRelation:
    state: str
    requested_by: int
    keys: list[RelationKey] = field(default_factory=list)
    keys_made: list[float] = field(default_factory=list)
    """When each of `keys` was."""
    blocked_by: set[int] = field(default_factory=set)
    request_changed_at: float = 0.0

    def state_for(self, user_id: int) -> str | None:
        """Return what this user sees; None: no relation."""
        if user_id in self.blocked_by:
            return "blocked"
        if self.state == "requested" and self.requested_by != user_id:
            return "asked"
        return None if self.state == "none" else self.state


@dataclass
class StoredPartition:
    position: int = 0
    lease: Lease = field(default_factory=Lease)


class MemoryDatabase:
    """The state of one database.  `clock` is the clock of the database, in seconds since 1970."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.clock = clock
        self.ids = itertools.count(1)
        self.users: dict[str, tuple[User, str]] = {}
        self.names: dict[int, str] = {}
        self.invites: dict[bytes, float] = {}
        """Hash to the time when it is over."""
        self.devices: dict[int, StoredDevice] = {}
        self.tokens: dict[bytes, Login] = {}
        self.relations: dict[tuple[int, int], StoredRelation] = {}
        self.secret = bytes(range(32))
        self.partitions: dict[int, StoredPartition] = {}
        self.first_devices: dict[int, StoredDevice] = {}
        """Rows kept for the first device of a user, by user."""

    def first_device_of(self, user_id: int) -> StoredDevice:
        stands_in = StoredDevice(first_device(user_id), user_id, "", 0, 0.0)
        return self.first_devices.setdefault(user_id, stands_in)

    def devices_of(self, user_id: int) -> list[StoredDevice]:
        return [device for device in self.devices.values() if device.user_id == user_id]

    def relations_of(self, user_id: int) -> list[tuple[User, StoredRelation]]:
        """Return (peer, relation) by name of the peer."""
        pairs = [
            (low + high - user_id, related) for (low, high), related in self.relations.items() if user_id in (low, high)
        ]
        peers = [(User(peer, self.names[peer]), related) for peer, related in pairs]
        return sorted(peers, key=lambda pair: pair[0].name)


class MemoryQueues:
    """The port `Queues` in memory."""

    def __init__(self, database: MemoryDatabase, partitions: int) -> None:
        self._database = database
        self._partitions = partitions

    async def check(self, devices: Sequence[tuple[int, int]]) -> tuple[dict[int, int], set[int]]:
        positions = {partition_of(user, self._partitions): self._position(user) for user, _ in devices}
        known = self._database.devices
        waiting = {d for _, d in devices if d in known and any(row.read_at is None for row in known[d].queue)}
        return positions, waiting

    def _position(self, user: int) -> int:
        partition = self._database.partitions.get(partition_of(user, self._partitions))
        return partition.position if partition is not None else 0

    async def claim(self, device: int, owner: str, session: int, lease_s: float) -> int | None:
        found = self._database.devices.get(device)
        if found is None:
            return None
        lease, now = found.lease, self._database.clock()
        if not (lease.is_free_for(owner, now, lease_s) or lease.session <= session):
            return None
        lease.owner, lease.session, lease.fence, lease.until = owner, session, lease.fence + 1, now + lease_s
        return lease.fence

    async def page(
        self, user: int, device: int, fence: int, after: tuple[int, int], rows: int, size: int, lease_s: float
    ) -> Page:
        found = self._fenced(device, fence)
        if found.lease.owner:
            found.lease.until = self._database.clock() + lease_s
        unread = [row for row in found.queue if row.read_at is None and row.order > after]
        page: list[Row] = []
        total = 0
        for row in unread[:rows]:
            total += len(row.new.content)
            if page and total > size:
                break
            page.append(Row(row.row_id, row.new.position, row.new.bundle_index, row.new.content))
        return Page(tuple(page), self._position(user), len(unread) > len(page))

    async def mark_read(self, device: int, fence: int, row_ids: Sequence[int]) -> None:
        acknowledged = set(row_ids)
        for row in self._fenced(device, fence).queue:
            if row.row_id in acknowledged and row.read_at is None:
                row.read_at = self._database.clock()

    async def release(self, device: int, fence: int) -> None:
        found = self._database.devices.get(device)
        if found is not None and found.lease.fence == fence:
            found.lease.end()

    def _fenced(self, device: int, fence: int) -> StoredDevice:
        found = self._database.devices.get(device)
        if found is None or found.lease.fence != fence:
            raise Fenced("Another connector has taken over the queue of this device.")
        return found


class MemoryPartitions:
    """The port `Partitions` in memory."""

    def __init__(self, database: MemoryDatabase) -> None:
        self._database = database

    async def claim(self, partition: int, owner: str, lease_s: float) -> tuple[int, int] | None:
        found = self._database.partitions.setdefault(partition, StoredPartition())
        lease, now = found.lease, self._database.clock()
        if not lease.is_free_for(owner, now, lease_s):
            return None
        lease.fence += lease.owner != owner
        lease.owner, lease.until = owner, now + lease_s
        return lease.fence, found.position

    async def release(self, partition: int, fence: int) -> None:
        found = self._database.partitions.get(partition)
        if found is not None and found.lease.fence == fence:
            found.lease.end()

    async def write(
        self, partition: int, fence: int, through: int, records: Sequence[tuple[int, Sequence[Entry]]], now: float
    ) -> Written:
        found = self._database.partitions.get(partition)
        if found is None or found.lease.fence != fence:
            raise Fenced("Another writer has taken over this partition.")
        found.position = max(found.position, through)
        decoded, refused = decode_entries(records)
        users = {entry.user for entry, *_ in decoded}
        registry = {
            user: [device.device_id for device in self._database.devices_of(user)]
            for user in users & self._database.names.keys()
        }
        rows, left_out = rows_of(decoded, registry)
        for row in rows:
            device = self._database.devices.get(row.to_device) or self._database.first_device_of(row.to_user_id)
            device.keep(StoredRow(next(self._database.ids), row))
        queues = sizes_of(rows)
        devices = tuple((user, device) for user, device in queues if device)
        return Written(devices, tuple(refused), left_out, queues)

    async def usage(self, queues: Sequence[tuple[QueueKey, int]], rows_max: int) -> dict[QueueKey, QueueUsage]:
        found: dict[QueueKey, QueueUsage] = {}
        for queue, known in queues:
            database = self._database
            stored = database.devices.get(queue.device) if queue.device else database.first_devices.get(queue.user)
            unread = [row for row in stored.queue if row.read_at is None] if stored is not None else []
            head = unread[0].row_id if unread else 0
            if head != known:
                senders: dict[int, Size] = {}
                for row in unread[:rows_max]:
                    count, size = senders.get(row.new.from_user_id, (0, 0))
                    senders[row.new.from_user_id] = Size(count + 1, size + len(row.new.content))
                found[queue] = QueueUsage(head, senders)
        return found

    async def purge(self, read_before: float, limit: int) -> int:
        old = [
            (row.read_at, device, row)
            for device in self._database.devices.values()
            for row in device.queue
            if row.read_at is not None and row.read_at < read_before
        ]
        oldest = sorted(old, key=lambda found: found[0])[:limit]
        for _, device, row in oldest:
            device.queue.remove(row)
            device.messages.remove(_message(row.new))
        return len(oldest)


def _message(row: NewRow) -> tuple[int, ...]:
    """Return the key of the message: stream and seq."""
    sender = (row.from_user_id, row.from_device, row.epoch)
    return (*sender, row.destination_type, row.destination_id, row.destination_device, row.seq)
