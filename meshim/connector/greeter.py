"""Checks tokens: in the cache, so that greetings need no database (R8), and in the database whenever it is asked."""

import asyncio
import time
from collections.abc import Sequence
from typing import NamedTuple

from meshim.connector.events import CheckGreet, GreetAccepted, GreetRefused
from meshim.connector.timely import timely
from meshim.errors import BackendUnavailable, Code, PeerError
from meshim.runtime.crypto import hash_token
from meshim.runtime.service import Service
from meshim.stores.ports import Account, Accounts, CachedLogin, Login, Notices, Presence, Queues, SessionCache

DATABASE_S = 1.5
"""How long a greeting waits for the database: the next batch of them waits too, and clients for `greet_timeout_s`."""
TOKENS_AT_ONCE = 500
"""In one question: what a slow database does not answer in time is taken for good without the rest."""
BAD_TOKEN = "the token is unknown, expired or revoked: log in again"  # noqa: S105  # a sentence


class Backends(NamedTuple):
    """The ports that a connector uses."""

    presence: Presence
    cache: SessionCache
    accounts: Accounts
    queues: Queues
    notices: Notices


class Greeter:
    """Tells who a token belongs to, and gives her a session number."""

    def __init__(self, backends: Backends, fresh_s: float, service: Service) -> None:
        """An account in the cache counts as fresh for `fresh_s` seconds."""
        self._backends = backends
        self._fresh_s = fresh_s
        self._service = service
        self._doubted_at = 0.0

    def doubt(self) -> None:
        """R9: the cache may have come back as it was once.  What was put there before now is not fresh any more."""
        self._doubted_at = time.time()

    async def check(self, greets: Sequence[CheckGreet]) -> list[GreetAccepted | GreetRefused]:
        """A verdict for each greeting."""
        # Numbers come first: a token that is revoked while it is checked then has a lower one than any session of
        # the login that revoked it, which it cannot replace (R14).
        try:
            numbers = await self._backends.presence.session_numbers(len(greets))
        except BackendUnavailable:
            sentence = "presence does not answer: try again"
            return [GreetRefused(greet.peer, greet.link, Code.BUSY, sentence) for greet in greets]
        hashes = [hash_token(greet.token) for greet in greets]
        cached: Sequence[CachedLogin | None] = [None] * len(greets)
        try:
            cached = await self._backends.cache.logins(hashes)
        except BackendUnavailable:
            self._service.log.warning("token cache does not answer", greetings=len(greets))
        checks = [self._check(*each) for each in zip(greets, hashes, cached, numbers, strict=True)]
        return await asyncio.gather(*checks)

    async def _check(
        self, greet: CheckGreet, token_hash: bytes, cached: CachedLogin | None, number: int
    ) -> GreetAccepted | GreetRefused:
        try:
            login, account = await self._who(greet, token_hash, cached)
        except PeerError as error:
            return GreetRefused(greet.peer, greet.link, error.code, error.sentence)
        except BackendUnavailable:
            return GreetRefused(greet.peer, greet.link, Code.BUSY, "the database does not answer: try again")
        return GreetAccepted(greet.peer, greet.link, token_hash, login, account, number)

    async def _who(self, greet: CheckGreet, token_hash: bytes, cached: CachedLogin | None) -> tuple[Login, Account]:
        now = time.time()
        login = await self._login(token_hash, cached, now)
        if login is None or login.expires_at <= now or not login.device:
            raise PeerError(Code.BAD_TOKEN, BAD_TOKEN)
        if login.epoch != greet.epoch:
            raise PeerError(Code.BAD_TOKEN, "the token was given for another state file: log in again")
        account = await self._account(login, token_hash, now)
        if account is None:
            raise PeerError(Code.BAD_TOKEN, BAD_TOKEN)
        return login, account

    async def _login(self, token_hash: bytes, cached: CachedLogin | None, now: float) -> Login | None:
        """The cached one where it is sure; else the database's, or one that is not sure while that is away.

        What an old dump knows may have been revoked since (R9, R14): it is asked for once, and sure from then on.
        """
        if cached is not None and cached.sure:
            return cached.login
        try:
            login = await timely(self._backends.accounts.login(token_hash, now), DATABASE_S)
        except BackendUnavailable:
            if cached is None:
                raise
            return cached.login
        if login is not None and cached is not None:
            await self._make_sure(token_hash, login, cached.run)
        return login

    async def _make_sure(self, token_hash: bytes, login: Login, run: str) -> None:
        # Into the run that was asked before the database was: what is revoked since then is dropped there.
        try:
            await self._backends.cache.put_login(token_hash, login, run)
        except BackendUnavailable:
            self._service.log.warning("login not cached", user=login.user)

    async def _account(self, login: Login, token_hash: bytes, now: float) -> Account | None:
        """The cached account while it is fresh; else the database's, or the stale one while that is away.

        One that does not know the device of this login was read before its registration.  None when the database
        does not know the token (any more): whoever revoked it, or dropped the device, may not have reached the cache.
        """
        try:
            (cached,) = await self._backends.cache.accounts((login.user,))
        except BackendUnavailable:
            cached = None
        # One from the future was read before the clock stepped back: nobody knows how old it is.
        fresh_from = max(now - self._fresh_s, self._doubted_at)
        if cached is not None and fresh_from <= cached.as_of <= now and login.device in cached.devices:
            return cached
        try:
            account = await timely(self._read(login, token_hash, now), DATABASE_S)
        except BackendUnavailable:
            if cached is None:
                raise
            return cached
        if account is not None:
            await self.cache(account)
        return account

    async def _read(self, login: Login, token_hash: bytes, now: float) -> Account | None:
        if await self._backends.accounts.login(token_hash, now) is None:
            return None
        return await self._backends.accounts.account(login.user, now)

    async def standing(self, token_hashes: Sequence[bytes]) -> set[bytes]:
        """Those that were not revoked, and those of which the database does not say so in time."""
        chunks = [token_hashes[at : at + TOKENS_AT_ONCE] for at in range(0, len(token_hashes), TOKENS_AT_ONCE)]
        found = await asyncio.gather(*map(self._standing, chunks))
        return {token_hash for some in found for token_hash in some}

    async def _standing(self, token_hashes: Sequence[bytes]) -> set[bytes]:
        try:
            return await timely(self._backends.accounts.standing(token_hashes), DATABASE_S)
        except BackendUnavailable:
            self._service.log.warning("tokens not checked again", count=len(token_hashes))
            return set(token_hashes)

    async def cache(self, account: Account) -> None:
        try:
            await self._backends.cache.put_account(account)
        except BackendUnavailable:
            self._service.log.warning("account not cached", user=account.user)
