"""Verified tokens and accounts, so that greetings succeed while SQL is down (Redis)."""

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import msgspec


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

    `verified` says that it was put there in that run: of one from an older run nobody knows what was revoked since.
    """

    login: Login
    run: str
    verified: bool


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
