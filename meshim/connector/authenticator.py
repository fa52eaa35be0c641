"""Verifies tokens.

A fresh entry in the Redis cache is enough, so that most greetings need no database; any other token is looked up in
SQL.  While SQL is away the cache alone decides, however old it is (R8).

A token may be revoked after it was verified and before presence has the binding, where the logout would have found the
session.  So it is looked at again when the binding is written: a logout or takeover drops the token from the cache
first and reads presence last, so either it finds the binding, or the second look finds the token gone.
"""

import asyncio
import enum
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
"""How long a batch of greetings waits for the database.  The next batch waits behind it, and clients wait only for
`greet_timeout_s`."""
TOKENS_AT_ONCE = 500
"""Tokens per query of `unrevoked`.  If a query times out its tokens count as valid, so the query is kept small."""
GREETINGS_AT_ONCE = 64
"""Tokens per query of `check`: it reads the friends of each user, and clients greet again when a query times out."""
BAD_TOKEN = "the token is unknown, expired or revoked: log in again"  # noqa: S105  # a sentence


class Backends(NamedTuple):
    """The ports that a connector uses."""

    presence: Presence
    cache: SessionCache
    accounts: Accounts
    queues: Queues
    notifications: Notifications


class Held(enum.Enum):
    """What the cache holds of a token when it is looked at for the second time."""

    VERIFIED = enum.auto()
    UNVERIFIED = enum.auto()
    """A login of an earlier run of Redis, or Redis did not answer: a query that may hang must not delay the Welcome."""
    NOTHING = enum.auto()
    """It was dropped, or never cached: only the database knows."""


Authenticated = tuple[Login, Account]


class _Known(NamedTuple):
    """The cache entries of a token and of its user's account."""

    cached: CachedLogin
    account: Account | None

    def is_good(self, fresh_from: float, now: float) -> bool:
        """Whether the cache is enough; times are of the wall clock.

        A login in an old dump of Redis may have been revoked since (R9, R14).  An account without the device of the
        login was read before the device was registered.  An account from the future was read before the clock stepped
        back: its age is not known.
        """
        account = self.account
        if not self.cached.verified or account is None:
            return False
        return fresh_from <= account.as_of <= now and self.cached.login.device in account.devices


class Authenticator:
    """Finds the logins of tokens, and takes a session number for each."""

    def __init__(self, backends: Backends, fresh_s: float, service: Service) -> None:
        """An account in the cache is fresh for `fresh_s` seconds."""
        self._backends = backends
        self._fresh_s = fresh_s
        self._service = service
        self._invalidated_at = 0.0

    def invalidate(self) -> None:
        """R9: the cache may have come back with old content: no entry that was put there before now is fresh."""
        self._invalidated_at = time.time()

    async def check(self, greets: Sequence[CheckGreet]) -> list[GreetAccepted | GreetRefused]:
        """The verdict on each greeting, in their order."""
        # Numbers come first (adr/0018): a token that is revoked while it is verified then has a lower number than any
        # session of the login that revoked it, and cannot replace that session (R14).
        try:
            numbers = await self._backends.presence.session_numbers(len(greets))
        except BackendUnavailable:
            sentence = "presence does not answer: try again"
            return [GreetRefused(greet.peer, greet.link, Code.BUSY, sentence) for greet in greets]
        hashes = [hash_token(greet.token) for greet in greets]
        logins_by_token = await self._authenticate(hashes)
        return [_verdict(*each) for each in zip(greets, hashes, logins_by_token, numbers, strict=True)]

    async def _authenticate(self, hashes: Sequence[bytes]) -> list[Authenticated | Code]:
        """The login and account of each token, or the code of its refusal."""
        now = time.time()
        fresh_from = max(now - self._fresh_s, self._invalidated_at)
        known = await self._known(hashes)
        logins_by_token = {
            each: _from_cache(cached, now) for each, cached in known.items() if cached.is_good(fresh_from, now)
        }
        remaining = [each for each in hashes if each not in logins_by_token]
        found = await self._from_database(remaining, now)
        await self._cache_found({each: login for each, login in found.items() if not isinstance(login, Code)}, known)
        for each in remaining:
            logins_by_token[each] = found[each] if each in found else _from_cache(known.get(each), now)
        return [logins_by_token[each] for each in hashes]

    async def _known(self, hashes: Sequence[bytes]) -> dict[bytes, _Known]:
        """The cache entries of these tokens and of their users."""
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
        """Login or BAD_TOKEN for each token, without the tokens of queries that time out."""
        answers = await asyncio.gather(*(self._query(chunk, now) for chunk in chunks(hashes, GREETINGS_AT_ONCE)))
        return {token_hash: login for answer in answers for token_hash, login in answer.items()}

    async def _query(self, hashes: Sequence[bytes], now: float) -> dict[bytes, Authenticated | Code]:
        try:
            found = await with_timeout(self._backends.accounts.logins_by_token(hashes, now), DATABASE_S)
        except BackendUnavailable:
            return {}
        return {token_hash: found.get(token_hash, Code.BAD_TOKEN) for token_hash in hashes}

    async def _cache_found(self, found: Mapping[bytes, Authenticated], known: Mapping[bytes, _Known]) -> None:
        if not found:
            return
        # Only in the run of Redis that answered before the database did: a token that is revoked meanwhile is dropped
        # there, and must not come back in another run.
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

    async def look_again(self, token_hashes: Sequence[bytes]) -> dict[bytes, Held]:
        """What the cache holds of each token now."""
        try:
            found = await self._backends.cache.logins(token_hashes)
        except BackendUnavailable:
            return dict.fromkeys(token_hashes, Held.UNVERIFIED)
        return {token_hash: _held(cached) for token_hash, cached in zip(token_hashes, found, strict=True)}

    async def unrevoked(self, token_hashes: Sequence[bytes]) -> set[bytes]:
        """These tokens without those that were revoked; a token counts as valid when its query times out.

        The revoked ones leave the cache, which could still accept them: the next greeting gets the same verdict.
        """
        found = await asyncio.gather(*map(self._unrevoked, chunks(token_hashes, TOKENS_AT_ONCE)))
        unrevoked = {token_hash for some in found for token_hash in some}
        await self._drop([token_hash for token_hash in token_hashes if token_hash not in unrevoked])
        return unrevoked

    async def _drop(self, revoked: Sequence[bytes]) -> None:
        if not revoked:
            return
        try:
            await self._backends.cache.drop_logins(revoked)
        except BackendUnavailable:
            self._service.log.warning("revoked tokens not dropped", count=len(revoked))

    async def _unrevoked(self, token_hashes: Sequence[bytes]) -> set[bytes]:
        try:
            return await with_timeout(self._backends.accounts.unrevoked(token_hashes), DATABASE_S)
        except BackendUnavailable:
            self._service.log.warning("tokens not checked again", count=len(token_hashes))
            return set(token_hashes)

    async def cache(self, accounts: Sequence[Account]) -> None:
        """Put accounts into the cache, so that the next greetings of their users need no database."""
        try:
            await self._backends.cache.put_accounts(accounts)
        except BackendUnavailable:
            self._service.log.warning("accounts not cached", count=len(accounts))


def _held(cached: CachedLogin | None) -> Held:
    if cached is None:
        return Held.NOTHING
    return Held.VERIFIED if cached.verified else Held.UNVERIFIED


def _from_cache(known: _Known | None, now: float) -> Authenticated | Code:
    """The verdict of the cache alone."""
    if known is None or known.account is None:
        return Code.BUSY
    login = known.cached.login
    return (login, known.account) if login.expires_at > now else Code.BAD_TOKEN


def _verdict(
    greet: CheckGreet, token_hash: bytes, found: Authenticated | Code, number: int
) -> GreetAccepted | GreetRefused:
    if isinstance(found, Code):
        sentence = BAD_TOKEN if found is Code.BAD_TOKEN else "the database does not answer: try again"
        return GreetRefused(greet.peer, greet.link, found, sentence)
    login, account = found
    if not login.device:
        return GreetRefused(greet.peer, greet.link, Code.BAD_TOKEN, BAD_TOKEN)
    if login.epoch != greet.epoch:
        sentence = "the token was given for another state file: log in again"
        return GreetRefused(greet.peer, greet.link, Code.BAD_TOKEN, sentence)
    return GreetAccepted(
        peer=greet.peer, link=greet.link, token_hash=token_hash, login=login, account=account, session=number
    )
