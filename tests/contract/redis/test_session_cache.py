"""The port `SessionCache`: what is cached is there while SQL is down, and a revoked login stays revoked."""

import time
from collections.abc import AsyncIterator

import pytest

from meshim.stores.ports import Account, CachedLogin, Login
from meshim.stores.redis.client import RedisClient
from meshim.stores.redis.session_cache import RedisSessionCache
from tests.contract.redis.backends import LOG, Backend, open_backend

ONE, OTHER = b"\x00" * 32, b"\xff" * 32


@pytest.fixture(params=["memory", "redis"])
async def backend(request: pytest.FixtureRequest, namespace: str) -> AsyncIterator[Backend]:
    async with open_backend(request.param, lambda: str(request.getfixturevalue("valkey_url")), namespace) as backend:
        yield backend


async def test_a_login_is_cached_until_it_is_dropped(backend: Backend) -> None:
    cache, elsewhere = backend.session_cache(), backend.session_cache()
    login = Login(user=1, device=2, epoch=2**53 - 1, expires_at=backend.now() + 60.0)
    assert await elsewhere.logins([]) == []
    assert await elsewhere.logins([ONE]) == [None]
    await cache.put_login(ONE, login)
    await cache.put_login(ONE, login)
    run = await backend.leases().run_id()
    assert await elsewhere.logins([OTHER, ONE, OTHER]) == [None, CachedLogin(login, run, verified=True), None]
    await cache.drop_logins([])
    await cache.drop_logins([ONE, OTHER])
    assert await elsewhere.logins([ONE, OTHER]) == [None, None]


async def test_a_late_put_does_not_restore_a_revoked_login(backend: Backend) -> None:
    """Read from the database before the logout, written to the cache after it."""
    cache, elsewhere = backend.session_cache(), backend.session_cache()
    await elsewhere.drop_logins([ONE])
    await cache.put_login(ONE, Login(1, 2, 3, backend.now() + 60.0))
    assert await elsewhere.logins([ONE]) == [None]


async def test_a_put_for_another_run_is_ignored(backend: Backend) -> None:
    """A login read from the database before Redis restarted may have been revoked before Redis was back."""
    cache, login = backend.session_cache(), Login(1, 2, 3, backend.now() + 60.0)
    await cache.put_login(ONE, login, "0" * 40)
    assert await cache.logins([ONE]) == [None]
    run = await backend.leases().run_id()
    await cache.put_login(ONE, login, run)
    assert await cache.logins([ONE]) == [CachedLogin(login, run, verified=True)]


async def test_a_login_from_an_old_dump_is_not_verified_until_it_is_put_again(valkey_url: str, namespace: str) -> None:
    client = RedisClient(valkey_url, LOG)
    cache = RedisSessionCache(client, namespace)
    await cache.put_login(ONE, login := Login(1, 2, 3, time.time() + 60.0))
    key = f"{namespace}:login:{ONE.hex()}"
    value = await client.execute("GET", key)
    await client.execute("SET", key, b"0" * 40 + value[40:])
    [cached] = await cache.logins([ONE])
    assert cached is not None
    assert (cached.login, cached.verified) == (login, False)
    await cache.put_login(ONE, login, cached.run_id)
    assert await cache.logins([ONE]) == [CachedLogin(login, cached.run_id, verified=True)]
    await client.close()


async def test_a_login_expires_with_its_token(backend: Backend) -> None:
    cache = backend.session_cache()
    await cache.put_login(ONE, Login(1, 2, 3, backend.now() + 0.2))
    await cache.put_login(OTHER, Login(1, 2, 3, backend.now() - 60.0))
    assert (await cache.logins([OTHER])) == [None]

    async def ended() -> bool:
        return await cache.logins([ONE]) == [None]

    await backend.until(ended)


async def test_an_account_is_replaced_by_a_later_one_only(backend: Backend) -> None:
    cache, elsewhere = backend.session_cache(), backend.session_cache()
    old = Account(user=1, devices=(1,), friends=(2, 2**62), as_of=1000.25)
    new = Account(user=1, devices=(1, 5), friends=(), as_of=1000.5)
    assert await elsewhere.accounts([]) == []
    await cache.put_accounts([old])
    assert await elsewhere.accounts([1, 2]) == [old, None]
    await elsewhere.put_accounts([new])
    await cache.put_accounts([old])
    assert await cache.accounts([2, 1]) == [None, new]


async def test_an_account_expires(backend: Backend) -> None:
    cache = backend.session_cache(account_ttl_s=1.0)
    await cache.put_accounts([Account(1, (1,), (2,), 1000.0)])

    async def ended() -> bool:
        return await cache.accounts([1]) == [None]

    await backend.until(ended)


async def test_a_large_account_is_kept_whole(backend: Backend) -> None:
    cache = backend.session_cache()
    account = Account(1, tuple(range(10)), tuple(range(2**62, 2**62 + 5000)), 1000.0)
    await cache.put_accounts([account])
    assert await cache.accounts([1]) == [account]


async def test_the_secret_of_the_mesh_is_kept_until_it_is_replaced(backend: Backend) -> None:
    cache, elsewhere = backend.session_cache(), backend.session_cache()
    assert await cache.mesh_secret() is None
    await cache.put_mesh_secret(ONE)
    assert await elsewhere.mesh_secret() == ONE
    await elsewhere.put_mesh_secret(OTHER)
    assert await cache.mesh_secret() == OTHER


async def test_values_of_an_unknown_version_are_missing(valkey_url: str, namespace: str) -> None:
    client = RedisClient(valkey_url, LOG)
    cache = RedisSessionCache(client, namespace)
    await client.execute("SET", f"{namespace}:login:{ONE.hex()}", b"\x93from the future")
    await client.execute("SET", f"{namespace}:login:{OTHER.hex()}", b"0" * 40 + b"\x93from the future")
    await client.execute("SET", f"{namespace}:account:1", b"\x00" * 8 + b"\x93from the future")
    assert await cache.logins([ONE, OTHER]) == [None, None]
    assert await cache.accounts([1]) == [None]
    account = Account(1, (1,), (), time.time())
    await cache.put_accounts([account])
    assert await cache.accounts([1]) == [account]
    await client.close()


@pytest.mark.parametrize("value", [b"", b"x", b"1234567", b"12345678", b"\x7f\xf8" + b"\0" * 6 + b"x", b"x" * 100])
async def test_a_malformed_value_counts_as_missing_and_is_replaced(
    valkey_url: str, namespace: str, value: bytes
) -> None:
    client = RedisClient(valkey_url, LOG)
    cache = RedisSessionCache(client, namespace)
    await client.execute("SET", f"{namespace}:account:1", value)
    account = Account(1, (11,), (2,), time.time())
    assert await cache.accounts([1]) == [None]
    if value[:8] < b"A":  # beyond, it looks like an account that was read later: it stays until it expires
        await cache.put_accounts([account])
        assert await cache.accounts([1]) == [account]
    await client.execute("SET", f"{namespace}:login:{ONE.hex()}", value or b"y")
    assert await cache.logins([ONE]) == [None]
    login = Login(1, 2, 3, time.time() + 60.0)
    await cache.put_login(ONE, login)
    assert [cached and cached.login for cached in await cache.logins([ONE])] == [login]
    assert client.statistics.malformed == 2
    await client.close()


async def test_keys_of_another_type_count_as_missing_and_are_replaced(valkey_url: str, namespace: str) -> None:
    client = RedisClient(valkey_url, LOG)
    cache = RedisSessionCache(client, namespace)
    for key in (f"account:{1}", f"login:{ONE.hex()}", "secret"):
        await client.execute("RPUSH", f"{namespace}:{key}", "x")
    assert (await cache.accounts([1]), await cache.logins([ONE]), await cache.mesh_secret()) == ([None], [None], None)
    account, login = Account(1, (11,), (2,), time.time()), Login(1, 2, 3, time.time() + 60.0)
    await cache.put_accounts([account])
    await cache.put_login(ONE, login)
    assert await cache.accounts([1]) == [account]
    assert [cached and cached.login for cached in await cache.logins([ONE])] == [login]
    await client.close()


@pytest.mark.parametrize("size", [0, 65])
async def test_a_secret_that_keys_no_mac_counts_as_missing(valkey_url: str, namespace: str, size: int) -> None:
    client = RedisClient(valkey_url, LOG)
    cache = RedisSessionCache(client, namespace)
    await cache.put_mesh_secret(b"x" * size)
    assert await cache.mesh_secret() is None
    await cache.put_mesh_secret(b"x" * 64)
    assert await cache.mesh_secret() == b"x" * 64
    assert client.statistics.malformed == 1
    await client.close()
