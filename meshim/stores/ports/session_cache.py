"""A cache of verified tokens, of accounts and of the secret of the mesh, so that logins succeed while SQL is down (R8).

Implemented on Redis (`redis/session_cache.py`) and in memory (`memory/redis.py`); contract:
`tests/contract/redis/test_session_cache.py`.
"""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import msgspec


class Login(msgspec.Struct, frozen=True):
    """The user and device that a token authenticates.  `expires_at` is in seconds since 1970.

    `device` and `epoch` are 0 for a token that is valid for REST only: a connector refuses it.
    """

    user: int
    device: int
    epoch: int
    expires_at: float


class Account(msgspec.Struct, frozen=True):
    """The data of a user that a connector needs: ids of devices and of friends, as of `as_of` (seconds since 1970)."""

    user: int
    devices: tuple[int, ...]
    friends: tuple[int, ...]
    as_of: float


class CachedLogin(NamedTuple):
    """A cached token.  `run_id` is the run of the backend that answered (as `Leases.run_id`).

    `verified` is True when the login was cached during that run.  A login from an earlier run may have been revoked
    since: the backend may have come back with old data.
    """

    login: Login
    run_id: str
    verified: bool


class SessionCache(Protocol):
    """Keys are SHA-256 hashes of tokens, and user ids."""

    async def put_login(self, token_hash: bytes, login: Login, run_id: str | None = None) -> None:
        """Cache the login, unless it was dropped; with `run_id`, only if the backend is still in that run."""

    async def drop_logins(self, token_hashes: Sequence[bytes]) -> None:
        """Remove these logins, and refuse a `put_login` for one of them that is under way (for a day)."""

    async def logins(self, token_hashes: Sequence[bytes]) -> list[CachedLogin | None]:
        """Return one item per hash; None when the token is not cached or was dropped."""

    async def put_accounts(self, accounts: Sequence[Account]) -> None:
        """Cache each account, unless one with a later `as_of` is cached."""

    async def accounts(self, users: Sequence[int]) -> list[Account | None]:
        """Return one item per user; None when the account is not cached."""

    async def put_mesh_secret(self, secret: bytes) -> None:
        """Cache the secret of the mesh, in place of any other."""

    async def mesh_secret(self) -> bytes | None:
        """Return the cached secret of the mesh; None when it is not cached."""
