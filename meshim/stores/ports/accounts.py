"""Users, devices, tokens, friends (SQL)."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import msgspec

from meshim.stores.ports.session_cache import Account, Login


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

    async def unrevoked(self, token_hashes: Sequence[bytes]) -> set[bytes]:
        """Those of them that were not revoked, whether they have expired or not."""

    async def seen(self, device_ids: Sequence[int], now: float) -> None:
        """Note when these devices were last connected."""

    async def drop_idle_devices(self, before: float, most: int) -> int:
        """Delete at most that many devices not seen since, with their tokens and queues; returns how many.

        What is unread in the queue of a user's last device is kept for the one she logs in with next.
        """

    async def accounts(self, user_ids: Sequence[int], now: float) -> dict[int, Account]:
        """What a connector must know of those users that there are."""

    async def logins_by_token(self, token_hashes: Sequence[bytes], now: float) -> dict[bytes, tuple[Login, Account]]:
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
