"""Logins and accounts in Redis, so that people get in while the database is away.

A login carries the run of Redis that it was put into: a Redis that comes back with an old dump says by itself which of
them it may have been told to drop since.
What was revoked stays revoked: dropping a login leaves an empty value behind, which a put that was
on its way (read from the database before the logout, written after it) does not replace.
In the same way an account never replaces one that was read later.
"""

import struct
from collections.abc import Sequence
from typing import TypeVar

import msgspec

from meshim.stores.ports import Account, CachedLogin, Login
from meshim.stores.redis.client import RedisClient

_REVOKED = b""
_REVOKED_S = 86400
"""Longer than any put can be delayed; it need not be as long as the token would have lived."""

_DROP_LOGINS = """
for _, key in ipairs(KEYS) do redis.call('SET', key, ARGV[1], 'EX', ARGV[2]) end
return 0
"""

_RUN = """
local run = redis.call('INFO', 'server'):match('run_id:(%x+)')
"""
_RUN_SIZE = 40

# What a token stands for never changes, so the first value of a run is as good as any other.
_PUT_LOGIN = f"""{_RUN}
if ARGV[3] ~= '' and ARGV[3] ~= run then return 0 end
local held = redis.call('GET', KEYS[1])
if held and (held == '' or held:sub(1, {_RUN_SIZE}) == run) then return 0 end
redis.call('SET', KEYS[1], run .. ARGV[1], 'PXAT', ARGV[2])
return 1
"""
_LOGINS = f"""{_RUN}
local held = {{}}
for index, key in ipairs(KEYS) do held[index] = redis.call('GET', key) end
return {{run, held}}
"""

# The first eight bytes of a value are `as_of`, which is all that Lua must read of it.
_PUT_ACCOUNTS = """
for index, key in ipairs(KEYS) do
    local held, value = redis.call('GET', key), ARGV[index + 1]
    if not held or struct.unpack('>d', held) <= struct.unpack('>d', value) then
        redis.call('SET', key, value, 'EX', ARGV[1])
    end
end
return 0
"""
_AS_OF = struct.Struct(">d")

_Value = TypeVar("_Value")

_encoder = msgspec.msgpack.Encoder()
_login = msgspec.msgpack.Decoder(Login)
_account = msgspec.msgpack.Decoder(Account)


class RedisSessionCache:
    """The port `SessionCache` on Redis.  A value of a version that cannot be read here is as good as missing."""

    def __init__(self, client: RedisClient, namespace: str, *, account_ttl_s: float = 30 * 86400.0) -> None:
        """`account_ttl_s` should be the life of tokens: a greeting needs the login and the account."""
        self._client = client
        self._namespace = namespace
        self._account_ttl_s = max(1, round(account_ttl_s))
        self._put_login = client.script(_PUT_LOGIN)
        self._logins = client.script(_LOGINS)
        self._drop_logins = client.script(_DROP_LOGINS)
        self._put_accounts = client.script(_PUT_ACCOUNTS)

    async def put_login(self, token_hash: bytes, login: Login, run: str | None = None) -> None:
        ends_ms = max(1, round(login.expires_at * 1000))
        await self._put_login([self._login_key(token_hash)], [_encoder.encode(login), ends_ms, run or ""])

    async def drop_logins(self, token_hashes: Sequence[bytes]) -> None:
        if token_hashes:
            await self._drop_logins([self._login_key(each) for each in token_hashes], [_REVOKED, _REVOKED_S])

    async def logins(self, token_hashes: Sequence[bytes]) -> list[CachedLogin | None]:
        if not token_hashes:
            return []
        run, values = await self._logins([self._login_key(each) for each in token_hashes])
        return [_cached(value, run) if value else None for value in values]

    async def put_accounts(self, accounts: Sequence[Account]) -> None:
        if accounts:
            values = [_AS_OF.pack(account.as_of) + _encoder.encode(account) for account in accounts]
            await self._put_accounts([self._account_key(a.user) for a in accounts], [self._account_ttl_s, *values])

    async def accounts(self, users: Sequence[int]) -> list[Account | None]:
        return [
            _read(_account, memoryview(value)[_AS_OF.size :]) if value else None
            for value in await self._values([self._account_key(user) for user in users])
        ]

    async def _values(self, keys: list[str]) -> list[bytes | None]:
        return await self._client.execute("MGET", *keys) if keys else []

    def _login_key(self, token_hash: bytes) -> str:
        return f"{self._namespace}:login:{token_hash.hex()}"

    def _account_key(self, user: int) -> str:
        return f"{self._namespace}:account:{user}"


def _cached(value: bytes, run: bytes) -> CachedLogin | None:
    login = _read(_login, memoryview(value)[_RUN_SIZE:])
    return None if login is None else CachedLogin(login, run.decode(), value[:_RUN_SIZE] == run)


def _read(decoder: "msgspec.msgpack.Decoder[_Value]", value: bytes | memoryview) -> _Value | None:
    try:
        return decoder.decode(value)
    except msgspec.DecodeError:
        return None
