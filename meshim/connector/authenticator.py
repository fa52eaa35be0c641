"""Checks tokens: in the cache, so that greetings need no database (R8), and in the database whenever it is asked."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from meshim.chunks import chunks
from meshim.connector.events import CheckGreet, GreetAccepted, GreetRefused
from meshim.errors import BackendUnavailable, Code
from meshim.runtime.crypto import hash_token
from meshim.runtime.service import Service
from meshim.runtime.timeouts import with_timeout
from meshim.stores.ports import Account, Accounts, CachedLogin, Login, Notifications, Presence, Queues, SessionCache

DATABASE_S = 1.5
"""How long a greeting waits for the database: the next batch of them waits too, and clients for `greet_timeout_s`."""
TOKENS_AT_ONCE = 500
"""In one question: what a slow database does not answer in time is taken for good without the rest."""
GREETINGS_AT_ONCE = 64
"""In one question: it reads the friends of each, and who waits for a slow one has to come again."""
BAD_TOKEN = "the token is unknown, expired or revoked: log in again"  # noqa: S105  # a sentence


class Backends(NamedTuple):
    """The ports that a connector uses."""

    presence: Presence
    cache: SessionCache
    accounts: Accounts
    queues: Queues
    notifications: Notifications


Authenticated = tuple[Login, Account]


class _Known(NamedTuple):
    """What the cache says of a token."""

    cached: CachedLogin
    account: Account | None

    def is_good(self, fresh_from: float, now: float) -> bool:
        """Whether nobody else has to be asked.

        What an old dump knows may have been revoked since (R9, R14).  An account that does not know the device of the
        login was read before its registration, and one from the future before the clock stepped back: nobody knows
        how old that is.
        """
        account = self.account
        if not self.cached.verified or account is None:
            return False
        return fresh_from <= account.as_of <= now and self.cached.login.device in account.devices


class Authenticator:
    """Tells who a token belongs to, and gives her a session number."""

    def __init__(self, backends: Backends, fresh_s: float, service: Service) -> None:
        """An account in the cache counts as fresh for `fresh_s` seconds."""
        self._backends = backends
        self._fresh_s = fresh_s
        self._service = service
        self._invalidated_at = 0.0

    def invalidate(self) -> None:
        """R9: the cache may have come back as it was once.  What was put there before now is not fresh any more."""
        self._invalidated_at = time.time()

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
        logins_by_token = await self._authenticate(hashes)
        return [_verdict(*each) for each in zip(greets, hashes, logins_by_token, numbers, strict=True)]

    async def _authenticate(self, hashes: Sequence[bytes]) -> list[Authenticated | Code]:
        """Whose tokens these are: by the cache where that is good enough, else by the database.

        While the database is away what the cache knows is good enough, however old it is (R8).
        """
        now = time.time()
        fresh_from = max(now - self._fresh_s, self._invalidated_at)
        known = await self._known(hashes)
        logins_by_token = {
            each: _from_cache(cached, now) for each, cached in known.items() if cached.is_good(fresh_from, now)
        }
        rest = [each for each in hashes if each not in logins_by_token]
        asked = await self._from_database(rest, now)
        await self._remember({each: who for each, who in asked.items() if not isinstance(who, Code)}, known)
        for each in rest:
            logins_by_token[each] = asked[each] if each in asked else _from_cache(known.get(each), now)
        return [logins_by_token[each] for each in hashes]

    async def _known(self, hashes: Sequence[bytes]) -> dict[bytes, _Known]:
        """What the cache knows of these tokens and their users."""
        cache = self._backends.cache
        try:
            logins = dict(zip(hashes, await cache.logins(hashes), strict=True))
            users = list({cached.login.user for cached in logins.values() if cached is not None})
            accounts = dict(zip(users, await cache.accounts(users), strict=True))
        except BackendUnavailable:
            self._service.log.warning("token cache does not answer", greetings=len(hashes))
            return {}
        return {hash_: _Known(each, accounts[each.login.user]) for hash_, each in logins.items() if each is not None}

    async def _from_database(self, hashes: Sequence[bytes], now: float) -> dict[bytes, Authenticated | Code]:
        """What the database says of these tokens, without those for which it does not answer in time."""
        answers = await asyncio.gather(*(self._query(chunk, now) for chunk in chunks(hashes, GREETINGS_AT_ONCE)))
        return {token_hash: who for answer in answers for token_hash, who in answer.items()}

    async def _query(self, hashes: Sequence[bytes], now: float) -> dict[bytes, Authenticated | Code]:
        try:
            found = await with_timeout(self._backends.accounts.logins_by_token(hashes, now), DATABASE_S)
        except BackendUnavailable:
            return {}
        return {token_hash: found.get(token_hash, Code.BAD_TOKEN) for token_hash in hashes}

    async def _remember(self, found: Mapping[bytes, Authenticated], known: Mapping[bytes, _Known]) -> None:
        if not found:
            return
        # Into the run that was asked before the database was: what is revoked since then is dropped there.
        doubtful = [hash_ for hash_ in found if hash_ in known and not known[hash_].cached.verified]
        await asyncio.gather(
            *(self._mark_verified(each, found[each][0], known[each].cached.run_id) for each in doubtful)
        )
        await self.cache([account for _, account in found.values()])

    async def _mark_verified(self, token_hash: bytes, login: Login, run: str) -> None:
        try:
            await self._backends.cache.put_login(token_hash, login, run)
        except BackendUnavailable:
            self._service.log.warning("login not cached", user=login.user)

    async def unrevoked(self, token_hashes: Sequence[bytes]) -> set[bytes]:
        """Those that were not revoked, and those of which the database does not say so in time."""
        found = await asyncio.gather(*map(self._unrevoked, chunks(token_hashes, TOKENS_AT_ONCE)))
        return {token_hash for some in found for token_hash in some}

    async def _unrevoked(self, token_hashes: Sequence[bytes]) -> set[bytes]:
        try:
            return await with_timeout(self._backends.accounts.unrevoked(token_hashes), DATABASE_S)
        except BackendUnavailable:
            self._service.log.warning("tokens not checked again", count=len(token_hashes))
            return set(token_hashes)

    async def cache(self, accounts: Sequence[Account]) -> None:
        """Have the next greetings of these users need no database."""
        try:
            await self._backends.cache.put_accounts(accounts)
        except BackendUnavailable:
            self._service.log.warning("accounts not cached", count=len(accounts))


def _from_cache(known: _Known | None, now: float) -> Authenticated | Code:
    """What the cache alone says of a token."""
    if known is None or known.account is None:
        return Code.BUSY
    login = known.cached.login
    return (login, known.account) if login.expires_at > now else Code.BAD_TOKEN


def _verdict(
    greet: CheckGreet, token_hash: bytes, who: Authenticated | Code, number: int
) -> GreetAccepted | GreetRefused:
    if isinstance(who, Code):
        sentence = BAD_TOKEN if who is Code.BAD_TOKEN else "the database does not answer: try again"
        return GreetRefused(greet.peer, greet.link, who, sentence)
    login, account = who
    if not login.device:
        return GreetRefused(greet.peer, greet.link, Code.BAD_TOKEN, BAD_TOKEN)
    if login.epoch != greet.epoch:
        sentence = "the token was given for another state file: log in again"
        return GreetRefused(greet.peer, greet.link, Code.BAD_TOKEN, sentence)
    return GreetAccepted(greet.peer, greet.link, token_hash, login, account, number)
