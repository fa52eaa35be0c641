"""The ports of the archive in memory: for tests and demonstrations, with the same answers as SQL.

Nothing here awaits in the middle, so each method is one transaction.
"""

import itertools
import time
from bisect import insort
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from meshim.errors import Fenced, StoreConflict
from meshim.protocol.routing import partition_of
from meshim.stores.ports import Account, Device, Login, Page, Relation, RelationKey, Row, User, Written
from meshim.stores.rows import NewRow, draft, expand, first_device
from meshim.wire.envelope import To
from meshim.wire.log import Entry


@dataclass
class Lease:
    """Of a queue or a partition.  No owner: free."""

    owner: str = ""
    session: int = 0
    fence: int = 0
    until: float = 0.0

    def is_free_for(self, owner: str, now: float) -> bool:
        return self.owner in {"", owner} or self.until <= now

    def end(self) -> None:
        self.owner, self.until = "", 0.0


@dataclass
class StoredRow:
    row_id: int
    new: NewRow
    read_at: float | None = None

    @property
    def order(self) -> tuple[int, int]:
        return self.new.position, self.new.place


@dataclass
class StoredDevice:
    device_id: int
    user_id: int
    name: str
    epoch: int
    last_seen: float
    lease: Lease = field(default_factory=Lease)
    queue: list[StoredRow] = field(default_factory=list)
    """By (position, place)."""
    messages: set[tuple[int, ...]] = field(default_factory=set)
    """What is in the queue: stream and seq."""

    def keep(self, row: StoredRow) -> None:
        """Put a row into the queue, unless its message is there."""
        message = _message(row.new)
        if message not in self.messages:
            self.messages.add(message)
            insort(self.queue, row, key=lambda stored: stored.order)


@dataclass
class StoredRelation:
    state: str
    requested_by: int
    keys: list[RelationKey] = field(default_factory=list)

    def state_for(self, user_id: int) -> str:
        return "asked" if self.state == "requested" and self.requested_by != user_id else self.state


@dataclass
class StoredPartition:
    position: int = 0
    lease: Lease = field(default_factory=Lease)


class MemoryArchive:
    """What the three ports share.  `clock` is that of the database, in seconds."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.clock = clock
        self.ids = itertools.count(1)
        self.users: dict[str, tuple[User, str]] = {}
        self.names: dict[int, str] = {}
        self.devices: dict[int, StoredDevice] = {}
        self.tokens: dict[bytes, Login] = {}
        self.relations: dict[tuple[int, int], StoredRelation] = {}
        self.partitions: dict[int, StoredPartition] = {}
        self.first_devices: dict[int, StoredDevice] = {}
        """What waits for the first device of a user, by user."""

    def first_device_of(self, user_id: int) -> StoredDevice:
        stands_in = StoredDevice(first_device(user_id), user_id, "", 0, 0.0)
        return self.first_devices.setdefault(user_id, stands_in)

    def devices_of(self, user_id: int) -> list[StoredDevice]:
        return [device for device in self.devices.values() if device.user_id == user_id]

    def relations_of(self, user_id: int) -> list[tuple[User, StoredRelation]]:
        """With each peer, by name."""
        pairs = [
            (low + high - user_id, related) for (low, high), related in self.relations.items() if user_id in (low, high)
        ]
        peers = [(User(peer, self.names[peer]), related) for peer, related in pairs]
        return sorted(peers, key=lambda pair: pair[0].name)


class MemoryAccounts:
    """Users, devices, tokens, relations."""

    def __init__(self, archive: MemoryArchive) -> None:
        self._archive = archive

    async def register(self, name: str, password_hash: str) -> User:
        [user] = await self.register_many([(name, password_hash)])
        if user is None:
            raise StoreConflict(f"The name {name} is taken.")
        return user

    async def register_many(self, users: Sequence[tuple[str, str]]) -> list[User | None]:
        return [self._register(name, password_hash) for name, password_hash in users]

    def _register(self, name: str, password_hash: str) -> User | None:
        if name in self._archive.users:
            return None
        user = User(next(self._archive.ids), name)
        self._archive.users[name] = user, password_hash
        self._archive.names[user.user_id] = name
        return user

    async def user(self, name: str) -> tuple[User, str] | None:
        return self._archive.users.get(name)

    async def users(self, user_ids: Sequence[int]) -> list[User]:
        names = self._archive.names
        return [User(user_id, names[user_id]) for user_id in sorted(set(user_ids)) if user_id in names]

    async def log_in(
        self,
        user_id: int,
        device: str | None,
        epoch: int,
        token_hash: bytes,
        expires_at: float,
        now: float,
        most_devices: int,
    ) -> tuple[Device, tuple[bytes, ...]]:
        if user_id not in self._archive.names:
            raise StoreConflict("There is no such user.")
        if device is None:
            stands_for = Device(0, "", 0, 0.0)
        else:
            stands_for = self._take_device(user_id, device, epoch, now, most_devices)
        tokens = self._archive.tokens
        former = [
            hash_
            for hash_, login in tokens.items()
            if (login.user, login.device) == (user_id, stands_for.device_id) and hash_ != token_hash
        ]
        if device is None:
            former = former[: max(0, len(former) - (most_devices - 1))]
        for hash_ in former:
            del tokens[hash_]
        tokens.pop(token_hash, None)  # a call repeated makes it the newest
        tokens[token_hash] = Login(user_id, stands_for.device_id, stands_for.epoch, expires_at)
        return stands_for, tuple(former)

    def _take_device(self, user_id: int, name: str, epoch: int, now: float, most_devices: int) -> Device:
        devices = self._archive.devices_of(user_id)
        device = next((device for device in devices if device.name == name), None)
        if device is None:
            if len(devices) >= most_devices:
                raise StoreConflict(
                    f"There are {most_devices} devices already, as many as there may be: log in as one of them."
                )
            device = StoredDevice(next(self._archive.ids), user_id, name, epoch, now)
            if (waiting := self._archive.first_devices.pop(user_id, None)) is not None:
                device.queue, device.messages = waiting.queue, waiting.messages
            self._archive.devices[device.device_id] = device
        device.epoch, device.last_seen = epoch, now
        return Device(device.device_id, name, epoch, now)

    async def log_out(self, token_hash: bytes) -> Login | None:
        return self._archive.tokens.pop(token_hash, None)

    async def login(self, token_hash: bytes, now: float) -> Login | None:
        login = self._archive.tokens.get(token_hash)
        return login if login is not None and login.expires_at > now else None

    async def devices(self, user_id: int) -> list[Device]:
        return [Device(d.device_id, d.name, d.epoch, d.last_seen) for d in self._archive.devices_of(user_id)]

    async def seen(self, device_ids: Sequence[int], now: float) -> None:
        for device_id in device_ids:
            if device_id in self._archive.devices:
                device = self._archive.devices[device_id]
                device.last_seen = max(device.last_seen, now)

    async def drop_idle_devices(self, before: float, most: int) -> int:
        devices = self._archive.devices
        idle = sorted((d for d in devices.values() if d.last_seen < before), key=lambda d: d.last_seen)[:most]
        for device in idle:
            del devices[device.device_id]
            for hash_ in [h for h, login in self._archive.tokens.items() if login.device == device.device_id]:
                del self._archive.tokens[hash_]
            if not self._archive.devices_of(device.user_id):
                self._keep_for_first_device(device)
        return len(idle)

    def _keep_for_first_device(self, last: StoredDevice) -> None:
        waiting = self._archive.first_device_of(last.user_id)
        for row in last.queue:
            if row.read_at is None and row.new.destination_type != To.DEVICE:
                waiting.keep(row)

    async def account(self, user_id: int, now: float) -> Account | None:
        if user_id not in self._archive.names:
            return None
        related = self._archive.relations_of(user_id)
        friends = sorted(peer.user_id for peer, relation in related if relation.state == "friends")
        return Account(user_id, tuple(d.device_id for d in self._archive.devices_of(user_id)), tuple(friends), now)

    async def relation(self, user_id: int, peer_id: int) -> Relation | None:
        return next((found for found in await self.relations(user_id) if found.peer.user_id == peer_id), None)

    async def relations(self, user_id: int) -> list[Relation]:
        related = self._archive.relations_of(user_id)
        return [Relation(peer, relation.state_for(user_id), tuple(relation.keys)) for peer, relation in related]

    async def request(self, user_id: int, peer_id: int, now: float, most_relations: int) -> str:
        if user_id == peer_id:
            raise StoreConflict("Nobody can be a friend of themselves.")
        if not {user_id, peer_id} <= self._archive.names.keys():
            raise StoreConflict("There is no such user.")
        relation = self._archive.relations.get(_pair(user_id, peer_id))
        if relation is None:
            for one, who in ((user_id, "You have"), (peer_id, "That user has")):
                if len(self._archive.relations_of(one)) >= most_relations:
                    raise StoreConflict(f"{who} {most_relations} relations, as many as there may be.")
            relation = self._archive.relations[_pair(user_id, peer_id)] = StoredRelation("requested", user_id)
        elif relation.state == "removed":
            relation.state, relation.requested_by = "requested", user_id
        return relation.state_for(user_id)

    async def accept(self, user_id: int, peer_id: int, key: RelationKey, now: float) -> Relation:
        relation = self._archive.relations.get(_pair(user_id, peer_id))
        if relation is not None and relation.state_for(user_id) == "asked":
            last = relation.keys[-1].version if relation.keys else 0
            if key.version != last + 1:
                raise StoreConflict(f"The next version of the key is {last + 1}, not {key.version}.")
            relation.keys.append(key)
            relation.state = "friends"
        elif relation is None or relation.state != "friends" or relation.keys[-1] != key:
            raise StoreConflict("That user has not asked for friendship.")
        return Relation(User(peer_id, self._archive.names[peer_id]), relation.state, tuple(relation.keys))

    async def remove(self, user_id: int, peer_id: int, now: float) -> bool:
        relation = self._archive.relations.get(_pair(user_id, peer_id))
        if relation is None or relation.state == "removed":
            return False
        if relation.keys:
            relation.state = "removed"
        else:
            del self._archive.relations[_pair(user_id, peer_id)]
        return True

    async def ping(self) -> None:
        """Memory answers."""


class MemoryQueues:
    """What is stored for a device, and the lease that lets one connector drain it."""

    def __init__(self, archive: MemoryArchive, partitions: int) -> None:
        self._archive = archive
        self._partitions = partitions

    async def peek(self, devices: Sequence[tuple[int, int]]) -> tuple[dict[int, int], set[int]]:
        positions = {partition_of(user, self._partitions): self._position(user) for user, _ in devices}
        known = self._archive.devices
        waiting = {d for _, d in devices if d in known and any(row.read_at is None for row in known[d].queue)}
        return positions, waiting

    def _position(self, user: int) -> int:
        partition = self._archive.partitions.get(partition_of(user, self._partitions))
        return partition.position if partition is not None else 0

    async def claim(self, device: int, owner: str, session: int, lease_s: float) -> int | None:
        found = self._archive.devices.get(device)
        if found is None:
            return None
        lease, now = found.lease, self._archive.clock()
        if not (lease.is_free_for(owner, now) or lease.session <= session):
            return None
        lease.owner, lease.session, lease.fence, lease.until = owner, session, lease.fence + 1, now + lease_s
        return lease.fence

    async def page(
        self, user: int, device: int, fence: int, after: tuple[int, int], rows: int, size: int, lease_s: float
    ) -> Page:
        found = self._fenced(device, fence)
        if found.lease.owner:
            found.lease.until = self._archive.clock() + lease_s
        unread = [row for row in found.queue if row.read_at is None and row.order > after]
        page: list[Row] = []
        total = 0
        for row in unread[:rows]:
            total += len(row.new.content)
            if page and total > size:
                break
            page.append(Row(row.row_id, row.new.position, row.new.place, row.new.content))
        return Page(tuple(page), self._position(user), len(unread) > len(page))

    async def mark_read(self, device: int, fence: int, row_ids: Sequence[int]) -> None:
        acknowledged = set(row_ids)
        for row in self._fenced(device, fence).queue:
            if row.row_id in acknowledged and row.read_at is None:
                row.read_at = self._archive.clock()

    async def release(self, device: int, fence: int) -> None:
        found = self._archive.devices.get(device)
        if found is not None and found.lease.fence == fence:
            found.lease.end()

    def _fenced(self, device: int, fence: int) -> StoredDevice:
        found = self._archive.devices.get(device)
        if found is None or found.lease.fence != fence:
            raise Fenced("Another connector has taken over the queue of this device.")
        return found


class MemoryPartitions:
    """The writer's side of the queues."""

    def __init__(self, archive: MemoryArchive) -> None:
        self._archive = archive

    async def claim(self, partition: int, owner: str, lease_s: float) -> tuple[int, int] | None:
        found = self._archive.partitions.setdefault(partition, StoredPartition())
        lease, now = found.lease, self._archive.clock()
        if not lease.is_free_for(owner, now):
            return None
        lease.fence += lease.owner != owner
        lease.owner, lease.until = owner, now + lease_s
        return lease.fence, found.position

    async def release(self, partition: int, fence: int) -> None:
        found = self._archive.partitions.get(partition)
        if found is not None and found.lease.fence == fence:
            found.lease.end()

    async def positions(self) -> dict[int, int]:
        return {partition: found.position for partition, found in self._archive.partitions.items()}

    async def write(
        self, partition: int, fence: int, through: int, records: Sequence[tuple[int, Sequence[Entry]]], now: float
    ) -> Written:
        found = self._archive.partitions.get(partition)
        if found is None or found.lease.fence != fence:
            raise Fenced("Another writer has taken over this partition.")
        found.position = max(found.position, through)
        drafts, refused = draft(records)
        users = {entry.user for entry, *_ in drafts}
        registry = {
            user: [device.device_id for device in self._archive.devices_of(user)]
            for user in users & self._archive.names.keys()
        }
        rows, left_out = expand(drafts, registry)
        for row in rows:
            device = self._archive.devices.get(row.to_device) or self._archive.first_device_of(row.to_user_id)
            device.keep(StoredRow(next(self._archive.ids), row))
        devices = dict.fromkeys((row.to_user_id, row.to_device) for row in rows if row.to_device > 0)
        return Written(tuple(devices), tuple(refused), left_out)

    async def purge(self, read_before: float, most: int) -> int:
        old = [
            (row.read_at, device, row)
            for device in self._archive.devices.values()
            for row in device.queue
            if row.read_at is not None and row.read_at < read_before
        ]
        oldest = sorted(old, key=lambda found: found[0])[:most]
        for _, device, row in oldest:
            device.queue.remove(row)
            device.messages.remove(_message(row.new))
        return len(oldest)


def _message(row: NewRow) -> tuple[int, ...]:
    """Stream and seq: what makes a message the same."""
    sender = (row.from_user_id, row.from_device, row.epoch)
    return (*sender, row.destination_type, row.destination_id, row.destination_device, row.seq)


def _pair(user_id: int, peer_id: int) -> tuple[int, int]:
    return min(user_id, peer_id), max(user_id, peer_id)
