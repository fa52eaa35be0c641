"""The ports: what meshim asks of outside state.  Adapters for Redis, JetStream and SQL, and one in memory, meet them.

Every method is a coroutine, raises `BackendUnavailable` when the backend does not answer,
and takes and returns whole batches where it is on the way of a message.  Acknowledged
means kept; a call that raised may or may not have happened, so every write can be repeated.
"""

from collections.abc import AsyncGenerator, Sequence
from typing import NamedTuple, Protocol

import msgspec

from meshim.wire.log import Entry
from meshim.wire.notice import Notice

# ---------------------------------------------------------------- leases (Redis)


class Lease(msgspec.Struct, frozen=True):
    """What a living process says of itself: under (role, name), for as long as it renews.

    `incarnation` is 63 random bits made at start; `endpoint` is what to connect to, empty for writers;
    `key` is the CURVE public key of the endpoint in Z85, empty without CURVE.
    """

    role: str
    name: str
    incarnation: int
    endpoint: str = ""
    key: str = ""


class Leases(Protocol):
    async def acquire(self, lease: Lease, ttl_s: float) -> bool:
        """Take (role, name); False while another incarnation holds it."""

    async def extend(self, lease: Lease, ttl_s: float) -> bool:
        """Renew by compare-and-extend; False when it has ended or another incarnation holds it."""

    async def release(self, lease: Lease) -> None:
        """Give it back if it is still this incarnation's."""

    async def living(self, role: str) -> list[Lease]:
        """Every lease of the role that has not ended, by name."""

    async def run_id(self) -> str:
        """Names this run of the backend: another value means that what it held may be gone or old."""


# ---------------------------------------------------------------- presence (Redis)


class Seat(NamedTuple):
    """A connected device: on which connector incarnation, under which session number."""

    user: int
    device: int
    incarnation: int
    session: int


class UserPresence(msgspec.Struct, frozen=True, gc=False):
    """All devices of a user, and the seats of those that are connected."""

    devices: tuple[int, ...]
    seats: tuple[Seat, ...]


class Presence(Protocol):
    async def session_numbers(self, count: int) -> list[int]:
        """That many ascending numbers from the clock of the backend (microseconds since 1970), none given twice."""

    async def online(self, seats: Sequence[tuple[Seat, tuple[int, ...]]]) -> list[Seat | bool | None]:
        """Write seats, each with all device ids of its user.

        For each: False when a seat with a higher session number holds the place (nothing is
        written), the Seat that was replaced (another incarnation's or session's), or None when there was none.
        The same seat again is accepted and gives None.
        """

    async def offline(self, seats: Sequence[Seat]) -> None:
        """Erase each seat that is still exactly this one."""

    async def lookup(self, users: Sequence[int]) -> dict[int, UserPresence]:
        """Those of the users for whom there is an entry.  An entry without seats is left out."""

    async def set_devices(self, user: int, devices: Sequence[int]) -> None:
        """Change the device list of a user who has an entry.  Without one it is only told: caches may have one."""

    def changes(self) -> AsyncGenerator[tuple[int, ...] | None]:
        """Users whose entries changed, as it happens; None whenever changes may have been missed (also at first).

        About once a second it is nobody, an empty tuple: what changed until a moment ago (2 s at most) has been
        told.  Who does not hear that must not rely on what he keeps.
        """


# ---------------------------------------------------------------- session cache (Redis)


class Login(msgspec.Struct, frozen=True):
    """What a token stands for.  `expires_at` is in seconds since 1970.

    `device` and `epoch` are 0 for a token that is for REST alone: a greeting with it is refused.
    """

    user: int
    device: int
    epoch: int
    expires_at: float


class Account(msgspec.Struct, frozen=True):
    """What a connector must know of a user: devices, friends; `as_of` in seconds since 1970."""

    user: int
    devices: tuple[int, ...]
    friends: tuple[int, ...]
    as_of: float


class CachedLogin(NamedTuple):
    """What the cache knows of a token.  `run` names the run of the backend that answered (as `Leases.run_id`).

    `sure` says that it was put there in that run: of one from an older run nobody knows what was revoked since.
    """

    login: Login
    run: str
    sure: bool


class SessionCache(Protocol):
    """Lets greetings succeed while the database is away.  Keys of tokens are SHA-256 of the token."""

    async def put_login(self, token_hash: bytes, login: Login, run: str | None = None) -> None:
        """Keep it, unless it was dropped; with a `run` only if the backend is still in that one."""

    async def drop_logins(self, token_hashes: Sequence[bytes]) -> None:
        """Forget these, also what a put that is on its way says of them."""

    async def logins(self, token_hashes: Sequence[bytes]) -> list[CachedLogin | None]:
        """What is known of each; None for what is not, or was dropped."""

    async def put_accounts(self, accounts: Sequence[Account]) -> None:
        """Keep each, unless a later one is there."""

    async def accounts(self, users: Sequence[int]) -> list[Account | None]: ...


# ---------------------------------------------------------------- notices (NATS core)


class Notices(Protocol):
    async def tell(self, incarnation: int, notice: Notice) -> None:
        """To one connector; lost if nobody listens."""

    async def tell_all(self, notice: Notice) -> None:
        """To every connector."""

    async def listen(self, incarnation: int) -> AsyncGenerator[Notice]:
        """What is told to this incarnation and to all.  Undecodable notices are counted and skipped."""


# ---------------------------------------------------------------- log (NATS JetStream)


class LogMessage(NamedTuple):
    """One message of a partition: its position and its bytes (a `wire.log.Record`)."""

    position: int
    data: bytes


class Log(Protocol):
    """One JetStream stream per partition: work queue, discard new, file storage."""

    async def ensure(self, partition: int, first: int) -> None:
        """Create the partition's stream if it is missing; its first message will then have position `first`."""

    async def publish(self, partition: int, data: bytes) -> int:
        """Append; returns the position once it is fsynced.  Raises `BackendUnavailable` (also when full)."""

    async def fetch(self, partition: int, most: int, wait_s: float) -> list[LogMessage]:
        """The next messages that are not acknowledged, in order; empty after `wait_s` without any.

        A message is given again when it was not acknowledged for a while.
        """

    async def extend(self, partition: int, positions: Sequence[int]) -> None:
        """Say that these are still being worked on."""

    async def acknowledge(self, partition: int, positions: Sequence[int]) -> None:
        """Delete these from the log: they are in the database."""

    async def read(self, partition: int, position: int) -> bytes | None:
        """One message by its position; None when there is none any more."""

    async def bury(self, partition: int, position: int, reason: str, data: bytes) -> None:
        """Keep what can never be written in the dead-letter stream; returns once it is fsynced."""


class DeadLetter(msgspec.Struct, frozen=True):
    """What a writer buried: a record, or the entries of one that the database refused, as a record of just those.

    `number` names it among the dead letters, `position` is where it stood in its partition, `buried_at` is
    in seconds since 1970 (clock of the backend).
    """

    number: int
    partition: int
    position: int
    buried_at: float
    reason: str
    data: bytes


class DeadLetters(Protocol):
    """What `Log.bury` keeps, by ascending numbers; a number is given once."""

    async def last(self) -> int:
        """The highest number that was given so far; 0 before the first."""

    async def get(self, number: int) -> DeadLetter | None:
        """The letter of that number; None where there is none (any more)."""

    async def following(self, number: int) -> DeadLetter | None:
        """The letter with the next higher number; None behind the last."""

    async def remove(self, number: int) -> bool:
        """Delete it for good; False where there was none."""


# ---------------------------------------------------------------- archive (SQL)


class User(msgspec.Struct, frozen=True):
    user_id: int
    name: str


class Device(msgspec.Struct, frozen=True):
    """`epoch` is that of the last login; `last_seen` in seconds since 1970."""

    device_id: int
    name: str
    epoch: int
    last_seen: float


class RelationKey(NamedTuple):
    """A version of the content key of a pair, still wrapped by the master key."""

    version: int
    wrapped: bytes


class Relation(msgspec.Struct, frozen=True):
    """How `user` and `peer` stand.  `state` is `requested` (by us), `asked` (by the peer), `friends` or `removed`.

    `keys` are all versions, oldest first; the last is in use.
    """

    peer: User
    state: str
    keys: tuple[RelationKey, ...]


class Accounts(Protocol):
    """Users, devices, tokens, relations."""

    async def register(self, name: str, password_hash: str) -> User:
        """Raises StoreConflict when the name is taken.  `name` is already folded and valid."""

    async def register_many(self, users: Sequence[tuple[str, str]]) -> list[User | None]:
        """Register (name, password hash) pairs in one transaction; None for each name that is taken."""

    async def user(self, name: str) -> tuple[User, str] | None:
        """The user and her password hash."""

    async def users(self, user_ids: Sequence[int]) -> list[User]:
        """Those that there are."""

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
        """Register the device, or take it over with a new epoch, and add the token.

        The first device of a user gets what was stored for her while she had none.

        Returns the device and the hashes of the tokens that were revoked by it: all earlier ones of the
        device.  Raises StoreConflict when the user has `most_devices` others.

        Without a device (None) the token is for REST alone: no device is touched, the one returned
        has id 0, no name and epoch 0, and the user keeps the `most_devices` newest such tokens.
        """

    async def tokens(self, user_id: int, device: str) -> tuple[bytes, ...]:
        """The hashes of the tokens that the user's device of this name has; none when there is no such device."""

    async def log_out(self, token_hash: bytes) -> Login | None:
        """Revoke the token; what it stood for, or None if it was not there."""

    async def login(self, token_hash: bytes, now: float) -> Login | None:
        """What the token stands for, unless it has expired."""

    async def standing(self, token_hashes: Sequence[bytes]) -> set[bytes]:
        """Those of them that were not revoked, whether they have expired or not."""

    async def devices(self, user_id: int) -> list[Device]: ...

    async def seen(self, device_ids: Sequence[int], now: float) -> None:
        """Note when these devices were last connected."""

    async def drop_idle_devices(self, before: float, most: int) -> int:
        """Delete at most that many devices not seen since, with their tokens and queues; returns how many.

        What is unread in the queue of a user's last device is kept for the one she logs in with next.
        """

    async def accounts(self, user_ids: Sequence[int], now: float) -> dict[int, Account]:
        """What a connector must know of those users that there are."""

    async def whose(self, token_hashes: Sequence[bytes], now: float) -> dict[bytes, tuple[Login, Account]]:
        """For those tokens that are good: what they stand for, and the accounts of their users, in one snapshot."""

    async def relation(self, user_id: int, peer_id: int) -> Relation | None: ...

    async def relations(self, user_id: int) -> list[Relation]:
        """All of them, `removed` ones too (their keys open old messages), by peer name."""

    async def request(self, user_id: int, peer_id: int, now: float, most_relations: int) -> str:
        """Ask for friendship; the state after it.

        That is `requested`, or `asked` or `friends` where they stood so before, and then nothing was changed.
        Raises StoreConflict when either has `most_relations` (removed ones count, they are kept for their
        keys), when there is no such user, and for oneself.
        """

    async def accept(self, user_id: int, peer_id: int, key: RelationKey, now: float) -> Relation:
        """Become friends with a peer who has asked, from now on with this key.

        Raises StoreConflict if the peer has not asked, or if the version of the key is not one above
        the last (1 for the first): it is part of what the key was wrapped with.  Friends already, and
        with this very key: the relation as it is.
        """

    async def remove(self, user_id: int, peer_id: int, now: float) -> bool:
        """End friendship, withdraw or refuse a request; False when there was nothing.

        What they were friends for is kept as `removed`, with its keys; otherwise nothing is left.
        """

    async def ping(self) -> None: ...


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
    """What is stored for a device, and the lease that lets one connector drain it."""

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

    async def positions(self) -> dict[int, int]:
        """The position of every partition that ever had a writer."""

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
