"""Which tokens are accepted, with a cache that may be old and a database that may be away."""

import asyncio
import secrets
import time
from collections.abc import Sequence
from typing import Any

from meshim.connector.authenticator import DATABASE_S, TOKENS_AT_ONCE, Authenticator, Backends
from meshim.connector.events import CheckGreet, GreetAccepted, GreetRefused
from meshim.errors import BackendUnavailable, Code
from meshim.runtime.crypto import hash_token
from meshim.runtime.service import Service
from meshim.stores.memory.accounts import MemoryAccounts
from meshim.stores.memory.database import MemoryDatabase, MemoryQueues
from meshim.stores.memory.nats import MemoryNats, MemoryNotifications
from meshim.stores.memory.redis import MemoryPresence, MemoryRedis, MemorySessionCache
from meshim.stores.ports import Account, Login
from tests.virtual_time import run

TOKEN = b"t" * 32
EPOCH = 7
FRESH_S = 15.0


class Accounts(MemoryAccounts):
    """A database that can be away or hang."""

    away = False
    hangs = False
    hangs_for = b""
    asked = 0

    async def logins_by_token(self, token_hashes: Sequence[bytes], now: float) -> dict[bytes, tuple[Login, Account]]:
        self.asked += 1
        await self._answer()
        return await super().logins_by_token(token_hashes, now)

    async def unrevoked(self, token_hashes: Sequence[bytes]) -> set[bytes]:
        if self.hangs_for in token_hashes:
            await asyncio.sleep(10)
        await self._answer()
        return await super().unrevoked(token_hashes)

    async def _answer(self) -> None:
        if self.away:
            raise BackendUnavailable("The database is away.")
        if self.hangs:
            await asyncio.sleep(10)


class OldRedis(MemoryRedis):
    """A Redis that can come back with an old dump."""

    def restart(self, logins: dict[Any, Any]) -> None:
        self.start(wiped=True)
        self.logins._held = dict(logins)

    def dump(self) -> dict[Any, Any]:
        return dict(self.logins._held)


class World:
    """One user with one device, whose token is in the database and in the cache."""

    def __init__(self) -> None:
        self.database, self.redis = MemoryDatabase(time.time), OldRedis(time.time)
        redis = self.redis
        self.accounts = Accounts(self.database)
        self.presence = MemoryPresence(redis, "test")
        self.cache = MemorySessionCache(redis, "test")
        self.doubts = False

    async def log_in(self) -> Login:
        user = await self.accounts.register("bob", "hash")
        now = time.time()
        device, _ = await self.accounts.log_in(user.user_id, "phone", EPOCH, hash_token(TOKEN), now + 60, now, 10)
        login = Login(user.user_id, device.device_id, EPOCH, now + 60)
        await self.cache.put_login(hash_token(TOKEN), login)
        return login

    async def greet(self, token: bytes = TOKEN, epoch: int = EPOCH) -> Code | None:
        """The code of the refusal; None for a greeting that is accepted."""
        verdict = await self.verdict(self.accounts, token, epoch)
        return verdict.code if isinstance(verdict, GreetRefused) else None

    def authenticator(self, accounts: Accounts) -> Authenticator:
        backends = Backends(
            self.presence, self.cache, accounts, MemoryQueues(self.database, 4),
            MemoryNotifications(MemoryNats(time.time), "test"),
        )  # fmt: skip
        return Authenticator(backends, FRESH_S, Service("connector", "c1", shutdown_s=1.0))

    async def verdict(
        self, accounts: Accounts, token: bytes = TOKEN, epoch: int = EPOCH
    ) -> GreetAccepted | GreetRefused:  # fmt: skip
        authenticator = self.authenticator(accounts)
        if self.doubts:
            authenticator.invalidate()
        (verdict,) = await authenticator.check([CheckGreet(b"peer", 1, token, epoch)])
        return verdict


async def test_a_token_is_good_for_its_state_file_alone() -> None:
    world = World()
    await world.log_in()
    assert await world.greet() is None
    assert await world.greet(epoch=EPOCH + 1) is Code.BAD_TOKEN
    assert await world.greet(token=b"x" * 32) is Code.BAD_TOKEN


async def test_without_the_database_the_cache_decides() -> None:
    world = World()
    await world.log_in()
    assert await world.greet() is None
    world.accounts.away = True
    assert await world.greet() is None
    assert await world.greet(token=b"x" * 32) is Code.BUSY, "not known now"


async def test_a_token_that_was_revoked_without_the_cache_is_refused() -> None:
    world = World()
    await world.log_in()
    await world.accounts.log_out(hash_token(TOKEN))
    assert await world.greet() is Code.BAD_TOKEN


async def test_a_device_that_was_dropped_is_refused_although_the_cache_has_it() -> None:
    """Live messages would reach it, and no rows would be stored for it."""
    world = World()
    await world.log_in()
    assert await world.accounts.drop_idle_devices(time.time() + 1, 10) == 1
    assert await world.greet() is Code.BAD_TOKEN


async def test_a_token_that_is_revoked_while_it_is_verified_cannot_replace_the_later_login() -> None:
    """R14: the token was valid when it was looked up, and is revoked before the answer is used."""
    world = World()
    login = await world.log_in()
    taker = hash_token(b"n" * 32)

    class Slow(Accounts):
        async def logins_by_token(
            self, token_hashes: Sequence[bytes], now: float
        ) -> dict[bytes, tuple[Login, Account]]:
            found = await super().logins_by_token(token_hashes, now)
            await world.accounts.log_in(login.user, "phone", EPOCH + 1, taker, now + 60, now, 10, takeover=True)
            await world.cache.drop_logins([hash_token(TOKEN)])
            (self.later,) = await world.presence.session_numbers(1)
            return found

    slow = Slow(world.database)
    verdict = await world.verdict(slow)
    assert isinstance(verdict, GreetAccepted)
    assert verdict.login == login
    assert verdict.session < slow.later


async def test_a_token_that_the_cache_hides_is_looked_up_in_the_database() -> None:
    """R14: valid before another state file takes the device over, not after, however fresh the account."""
    world = World()
    login = await world.log_in()
    await world.cache.put_accounts([Account(login.user, (login.device,), (), time.time())])
    await world.cache.drop_logins([hash_token(TOKEN)])
    await world.cache.put_login(hash_token(TOKEN), login)
    assert await world.greet() is None
    world.accounts.away = True
    assert await world.greet() is Code.BUSY, "not known now"
    world.accounts.away = False
    now = time.time()
    await world.accounts.log_in(login.user, "phone", EPOCH + 1, hash_token(b"n" * 32), now + 60, now, 10, takeover=True)
    assert await world.greet() is Code.BAD_TOKEN


async def test_an_old_account_in_the_cache_is_enough_while_the_database_is_away() -> None:
    world = World()
    login = await world.log_in()
    await world.cache.put_accounts([Account(login.user, (login.device,), (), time.time() - 10 * FRESH_S)])
    world.accounts.away = True
    assert await world.greet() is None


async def test_accounts_in_an_old_dump_of_the_cache_are_not_fresh() -> None:
    """R9, R14: the dump has a token that was revoked since, and an account that was read a moment before."""
    world = World()
    login = await world.log_in()
    await world.cache.put_accounts([Account(login.user, (login.device,), (), time.time())])
    await world.accounts.log_out(hash_token(TOKEN))
    assert await world.greet() is None, "the account is fresh: no query"
    world.doubts = True
    assert await world.greet() is Code.BAD_TOKEN


async def test_a_revoked_token_in_an_old_dump_of_the_cache_is_refused() -> None:
    """R9, R14: at any time after the start, and however fresh the account that another device put there."""
    world = World()
    login = await world.log_in()
    dump = world.redis.dump()
    await world.accounts.log_out(hash_token(TOKEN))
    await world.cache.drop_logins([hash_token(TOKEN)])
    world.redis.restart(dump)
    await world.cache.put_accounts([Account(login.user, (login.device,), (), time.time())])
    assert await world.greet() is Code.BAD_TOKEN


async def test_a_valid_token_in_an_old_dump_of_the_cache_is_looked_up_once() -> None:
    world = World()
    login = await world.log_in()
    world.redis.restart(world.redis.dump())
    await world.cache.put_accounts([Account(login.user, (login.device,), (), time.time())])
    world.accounts.away = True
    assert await world.greet() is None, "R8: not known now"
    world.accounts.away = False
    world.accounts.asked = 0
    assert [await world.greet() for _ in range(3)] == [None] * 3
    assert world.accounts.asked == 1


async def test_an_answer_of_the_database_is_not_put_into_a_later_run_of_the_cache() -> None:
    """R14: Redis restarts with its old dump during the query, and the token is revoked in between."""
    world = World()
    login = await world.log_in()
    dump = world.redis.dump()
    world.redis.restart(dump)

    class Slow(Accounts):
        async def logins_by_token(
            self, token_hashes: Sequence[bytes], now: float
        ) -> dict[bytes, tuple[Login, Account]]:
            found = await super().logins_by_token(token_hashes, now)
            await world.accounts.log_out(hash_token(TOKEN))
            await world.cache.drop_logins([hash_token(TOKEN)])
            world.redis.restart(dump)
            await world.cache.put_accounts([Account(login.user, (login.device,), (), time.time())])
            return found

    await world.verdict(Slow(world.database))
    assert await world.greet() is Code.BAD_TOKEN


async def test_an_account_from_the_future_counts_as_old() -> None:
    """The clock stepped back by an hour since it was read: it would be fresh for that hour."""
    world = World()
    login = await world.log_in()
    await world.cache.put_accounts([Account(login.user, (login.device,), (77,), time.time() + 3600.0)])
    verdict = await world.verdict(world.accounts)
    assert isinstance(verdict, GreetAccepted)
    assert verdict.account.friends == (), "from the database"


def test_a_database_that_hangs_does_not_delay_known_tokens() -> None:
    async def main() -> None:
        world = World()
        login = await world.log_in()
        await world.cache.put_accounts([Account(login.user, (login.device,), (), time.time() - 3 * FRESH_S)])
        world.accounts.hangs = True
        loop = asyncio.get_running_loop()
        before = loop.time()
        assert await world.greet() is None
        assert await world.greet(token=b"?" * 32) is Code.BUSY
        assert loop.time() - before <= 2 * DATABASE_S
        world.accounts.hangs = False
        assert await world.greet() is None

    run(main)


async def test_a_token_is_valid_until_it_is_revoked() -> None:
    world = World()
    await world.log_in()
    other = hash_token(b"x" * 32)
    authenticator = world.authenticator(world.accounts)
    assert await authenticator.unrevoked([hash_token(TOKEN), other]) == {hash_token(TOKEN)}
    assert await authenticator.unrevoked([]) == set()
    world.accounts.away = True
    assert await authenticator.unrevoked([hash_token(TOKEN), other]) == {hash_token(TOKEN), other}, "not known now"


async def test_a_token_that_was_revoked_leaves_the_cache_so_that_the_next_greeting_is_refused() -> None:
    """It was deleted without a logout: its session has just been cut, and a fresh account must not let it in again."""
    world = World()
    login = await world.log_in()
    await world.cache.put_accounts([Account(login.user, (login.device,), (), time.time())])
    await world.accounts.log_out(hash_token(TOKEN))
    assert await world.greet() is None, "the cache is trusted"
    assert await world.authenticator(world.accounts).unrevoked([hash_token(TOKEN)]) == set()
    assert await world.greet() is Code.BAD_TOKEN
    world.accounts.away = True
    assert await world.greet() is Code.BUSY, "nor without the database"


async def test_while_redis_is_away_a_revoked_token_is_revoked_all_the_same() -> None:
    world = World()
    await world.log_in()
    await world.accounts.log_out(hash_token(TOKEN))
    world.redis.stop()
    assert await world.authenticator(world.accounts).unrevoked([hash_token(TOKEN)]) == set()


def test_the_tokens_of_a_query_that_times_out_count_as_valid() -> None:
    async def main() -> None:
        world = World()
        revoked = [number.to_bytes(32, "big") for number in range(TOKENS_AT_ONCE + 1)]
        world.accounts.hangs_for = revoked[-1]
        loop = asyncio.get_running_loop()
        before = loop.time()
        assert await world.authenticator(world.accounts).unrevoked(revoked) == {revoked[-1]}
        assert loop.time() - before <= 1.01 * DATABASE_S

    run(main)


async def test_many_greetings_are_one_query() -> None:
    world = World()
    people = [await world.accounts.register(f"user{number}", "hash") for number in range(20)]
    now = time.time()
    tokens = [secrets.token_bytes(32) for _ in people]
    for user, token in zip(people, tokens, strict=True):
        await world.accounts.log_in(user.user_id, "phone", EPOCH, hash_token(token), now + 60, now, 10)
    greets = [CheckGreet(token, number, token, EPOCH) for number, token in enumerate(tokens)]
    verdicts = await world.authenticator(world.accounts).check([*greets, CheckGreet(b"x", 99, b"x" * 32, EPOCH)])
    assert [each.login.user for each in verdicts if isinstance(each, GreetAccepted)] == [p.user_id for p in people]
    assert [each.code for each in verdicts if isinstance(each, GreetRefused)] == [Code.BAD_TOKEN]
    assert world.accounts.asked == 1
