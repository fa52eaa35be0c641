"""Users, devices, tokens, and relations between users (friends).

Implemented on SQL (`sql/accounts.py`, `sql/relations.py`) and in memory (`memory/accounts.py`); contract:
`tests/contract/sql/test_accounts.py` and `test_first_device.py`.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import msgspec

from meshim.stores.ports.session_cache import Account, Login


class User(msgspec.Struct, frozen=True):
    """`user_id` is never reused; `name` is lower-case `[a-z0-9._-]`."""

    user_id: int
    name: str


class Device(msgspec.Struct, frozen=True):
    """`epoch` is that of the last login; `last_seen` is in seconds since 1970."""

    device_id: int
    name: str
    epoch: int
    last_seen: float


class RelationKey(NamedTuple):
    """One version of the content key of a pair, wrapped by the master key."""

    version: int
    wrapped: bytes


class RelationLimits(NamedTuple):
    """What `Accounts.request` checks, for each user."""

    relations: int
    """Friends, former friends and blocks."""
    incoming: int
    """Requests that wait for the user's answer."""
    outgoing: int
    """Requests of the user that wait for an answer."""
    pause_s: float
    """So long after a request was refused or withdrawn the same user may not ask the same peer again."""


class Requested(NamedTuple):
    """What `Accounts.request` returns: the state afterwards, and the user whose request had to go for this one."""

    state: str
    dropped: int | None = None


class Relation(msgspec.Struct, frozen=True):
    """The relation of a user to `peer`, as that user may see it.

    `state` is `requested` (by the user), `asked` (the peer has requested), `friends`, `removed` or `blocked` (by the
    user).  `keys` are all versions, oldest first; the last is in use.

    A block is private: it changes the user's own view alone.  To the peer a friendship looks removed, a request of the
    user looks withdrawn, and a request of the peer looks as if it was not answered yet.
    """

    peer: User
    state: str
    keys: tuple[RelationKey, ...]


KEY_VERSIONS_MAX = 16
"""Versions of the content key of a pair: each friendship that is made anew adds one."""


class Accounts(Protocol):
    """Everything about users.  Tokens are known by their SHA-256 hash alone."""

    async def register(self, name: str, password_hash: str) -> User:
        """Create a user.  `name` must be valid and lower-case.  Raises `StoreConflict` when it is taken."""

    async def register_invited(self, name: str, password_hash: str, invite: bytes, now: float) -> User:
        """Create a user and use up the invite with this hash.

        Raises `NoSuchInvite` when it is not valid, and `StoreConflict`, as `register`, without using it up.
        """

    async def add_invites(self, invites: Sequence[bytes], expires_at: float, now: float) -> None:
        """Add invites by their hashes, each for one user until `expires_at`; those that are over are deleted."""

    async def invited(self, invite: bytes, now: float) -> bool:
        """Whether the invite with this hash is valid."""

    async def register_many(self, users: Sequence[tuple[str, str]]) -> list[User | None]:
        """Create users from (name, password hash) in one transaction; return None for each name that is taken."""

    async def user(self, name: str) -> tuple[User, str] | None:
        """Return the user and the password hash; None when the name is not registered."""

    async def log_in(
        self,
        user_id: int,
        device: str | None,
        epoch: int,
        token_hash: bytes,
        expires_at: float,
        now: float,
        devices_max: int,
        takeover: bool = False,
    ) -> tuple[Device, tuple[bytes, ...]]:
        """Create the device, or log it in again, and add the token; with `takeover` also a device of another epoch.

        Returns the device, and the hashes of the tokens that this login revoked: all earlier ones of the device.  The
        first device of a user gets the messages stored while the user had none.

        Without a device (None) the token is valid for REST only: the returned device has id 0, no name and epoch 0,
        and of such tokens the user keeps the newest `devices_max`; older ones are revoked.

        Raises `DeviceInUse` when the device has another epoch and this is no `takeover`, and `StoreConflict` when there
        is no such user, or when a new device would be one more than `devices_max`.
        """

    async def tokens(self, user_id: int, device: str) -> dict[bytes, int]:
        """Return the token hashes of the user's device of this name, each with the epoch of its login."""

    async def log_out(self, token_hash: bytes) -> Login | None:
        """Revoke the token; return its login, or None if it did not exist."""

    async def login(self, token_hash: bytes, now: float) -> Login | None:
        """Return the login of the token; None when it does not exist or has expired."""

    async def logins(self, token_hashes: Sequence[bytes], now: float) -> dict[bytes, Login]:
        """Return the login of each token that exists and has not expired."""

    async def unrevoked(self, token_hashes: Sequence[bytes]) -> set[bytes]:
        """Return those hashes whose token was not revoked, expired or not."""

    async def seen(self, device_ids: Sequence[int], now: float) -> None:
        """Set the time when these devices were last connected; it never decreases."""

    async def drop_idle_devices(self, before: float, limit: int) -> int:
        """Delete at most `limit` devices last seen before that time, with tokens and queues; return how many.

        Unread messages of a user's last device are kept for the device that logs in next, except those addressed to
        the deleted device alone.
        """

    async def accounts(self, user_ids: Sequence[int], now: float) -> dict[int, Account]:
        """Return the accounts of those users that exist, `as_of` now, from one snapshot."""

    async def logins_by_token(self, token_hashes: Sequence[bytes], now: float) -> dict[bytes, tuple[Login, Account]]:
        """For each valid token return its login and the account of its user, from one snapshot.

        Unknown, revoked and expired tokens are missing from the result.
        """

    async def relation(self, user_id: int, peer_id: int) -> Relation | None:
        """Return the relation of the user to the peer; None when they have none."""

    async def relations(self, user_id: int) -> list[Relation]:
        """Return all relations of the user by peer name, `removed` ones too: their keys open old messages."""

    async def request(self, user_id: int, peer_id: int, now: float, limits: RelationLimits) -> Requested:
        """Request friendship; return the state afterwards.

        The state is `requested`; `hidden`, which is the same to the user, but the peer has blocked the user and must
        not learn of the request; or `asked`, `friends` or `blocked` where it was so before, and then nothing changed.

        A new request takes the place of the oldest one to the peer where `limits.incoming` wait already; the user who
        had made that one may ask again at once.  Requests count the same whether the peer sees them or not.

        Raises `StoreConflict` when there is no such user or when both are the same user; `AskedLately` when the last
        request to the peer ended less than `limits.pause_s` ago; `TooManyRequests`; and `TooManyRelations` when this
        user has as many as may be.  The relations of the peer are not counted: `accept` counts them.

        A pair counts for both users once it has a key, also when it is `removed` (its keys are kept); a request does
        not.  Each block counts for the blocker alone, beside the relation: so what a block takes of the limit looks to
        others like a relation to somebody else.
        """

    async def accept(
        self, user_id: int, peer_id: int, key: RelationKey, now: float, relations_max: int, needed_since: float = 0.0
    ) -> Relation:
        """Accept the request of the peer with this key; return the relation.

        A pair keeps `KEY_VERSIONS_MAX` versions at most.  Where one more would come, those are deleted that a later
        one replaced before `needed_since`; if there is none, `TooManyKeys` is raised, and nothing changes.

        Raises `StoreConflict` if the peer has not requested, or if the version of the key is not one above the last
        (1 for the first): the version is part of what the key was wrapped with; `TooManyRelations` when the pair has
        no key yet and either user has `relations_max`.  The same call again returns the relation as it is.
        """

    async def remove(self, user_id: int, peer_id: int, now: float) -> str | None:
        """End friendship, withdraw a request or refuse one; return the state that ended, or None when there was none.

        That state is `friends`, `asked`, `requested`, or `hidden` (a request that the peer did not see).  A user who
        has blocked the peer has none to end.  A pair that ever was friends keeps its relation as `removed`, with its
        keys; otherwise there is none any more.  When it was a request, the user who had made it has to wait before
        another one (`request`).
        """

    async def block(self, user_id: int, peer_id: int, now: float, relations_max: int) -> str | None:
        """Block the peer; return the state before, as the user saw it (as in `remove`, `removed`, `blocked`, or None).

        A friendship or a request of the user ends, as by `remove`.  A request of the peer stays, and the user sees it
        again after `unblock`.  Raises `StoreConflict` when there is no such user or when both are the same user, and,
        unless the two have a relation, `TooManyRelations` when the user has `relations_max` (see `request`).
        """

    async def unblock(self, user_id: int, peer_id: int, now: float) -> bool:
        """End a block; return False when there was none.  What the peer sees does not change."""

    async def friends(self, user_id: int, among: Sequence[int] | None = None) -> list[User]:
        """Return the friends of the user by name; with `among` only those whose id is in it."""

    async def mesh_secret(self) -> bytes:
        """Return the secret of the mesh: 32 random bytes, made by the first call."""

    async def ping(self) -> None:
        """Return when the database has answered a query."""

    async def check_writable(self) -> None:
        """Return when the database has committed a write, which changes nothing.

        Raises `BackendUnavailable` when it takes none: its disk is full, or it only reads.
        """
