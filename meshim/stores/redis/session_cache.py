"""Logins, accounts and the secret of the mesh in Redis, so that logins succeed while SQL is down (R8).

A login carries the id of the Redis run in which it was cached.  After Redis restarts from an old dump, logins of
earlier runs are not `verified`: they may have been revoked after the dump.

A revoked token stays revoked: `drop_logins` leaves an empty value, which a `put_login` that is under way (read from the
database before the logout, written after it) does not replace.  In the same way an account never replaces one that was
read from the database later.
"""

import struct
from collections.abc import Callable, Sequence
from typing import TypeVar

import msgspec

from meshim.stores.ports import Account, CachedLogin, Login
from meshim.stores.redis.client import RedisClient
from meshim.wire.codec import decoder, encode

_REVOKED = b""
_REVOKED_S = 86400
"""Time to live of an empty value: longer than a put can be delayed, independent of the lifetime of tokens."""

_DROP_LOGINS = """
for _, key in ipairs(KEYS) do redis.call('SET', key, ARGV[1], 'EX', ARGV[2]) end
return 0
"""

_RUN_ID = """
local run_id = redis.call('INFO', 'server'):match('run_id:(%x+)')
"""
_RUN_ID_SIZE = 40

# KEYS: login.  ARGV: login (msgpack), expiry in ms, required run id or ''.  Returns 1 when the login was written.  The
# login of a token never changes, so within a run the first value stays.
_PUT_LOGIN = f"""{_RUN_ID}
if ARGV[3] ~= '' and ARGV[3] ~= run_id then return 0 end
local held = redis.pcall('GET', KEYS[1])
if type(held) == 'string' and (held == '' or held:sub(1, {_RUN_ID_SIZE}) == run_id) then return 0 end
redis.call('SET', KEYS[1], run_id .. ARGV[1], 'PXAT', ARGV[2])
return 1
"""

# KEYS: logins.  Returns the run id, and the value of each.
_LOGINS = f"""{_RUN_ID}
local held = {{}}
for index, key in ipairs(KEYS) do
    local value = redis.pcall('GET', key)
    held[index] = type(value) == 'string' and value
end
return {{run_id, held}}
"""

# KEYS: accounts.  ARGV: time to live in s, then one value per account.  The first eight bytes of a value are `as_of`,
# so that the script compares values without decoding msgpack.  A value of another form is replaced.
_PUT_ACCOUNTS = """
for index, key in ipairs(KEYS) do
    local held, value = redis.pcall('GET', key), ARGV[index + 1]
    local as_of = type(held) == 'string' and #held >= 8 and struct.unpack('>d', held)
    if not as_of or not (as_of > struct.unpack('>d', value)) then
        redis.call('SET', key, value, 'EX', ARGV[1])
    end
end
return 0
"""
_AS_OF = struct.Struct(">d")

SECRET_BYTES_MAX = 64
"""The longest key of the MAC of a cookie (BLAKE2b)."""

_Value = TypeVar("_Value")

_login: Callable[[bytes], Login] = decoder(Login)
_account: Callable[[bytes], Account] = decoder(Account)


class RedisSessionCache:
    """The port `SessionCache` on Redis.  A value of a version that is not understood here counts as missing."""

    def __init__(self, client: RedisClient, namespace: str, *, account_ttl_s: float = 30 * 86400.0) -> None:
        """`account_ttl_s` should be the lifetime of tokens: the connector needs the login and the account."""
        self._client = client
        self._namespace = namespace
        self._account_ttl_s = max(1, round(account_ttl_s))
        self._put_login = client.script(_PUT_LOGIN)
        self._logins = client.script(_LOGINS)
        self._drop_logins = client.script(_DROP_LOGINS)
        self._put_accounts = client.script(_PUT_ACCOUNTS)

    async def put_login(self, token_hash: bytes, login: Login, run_id: str | None = None) -> None:
        ends_ms = max(1, round(login.expires_at * 1000))
        await self._put_login([self._login_key(token_hash)], [encode(login), ends_ms, run_id or ""])

    async def drop_logins(self, token_hashes: Sequence[bytes]) -> None:
        if token_hashes:
            await self._drop_logins([self._login_key(each) for each in token_hashes], [_REVOKED, _REVOKED_S])

    async def logins(self, token_hashes: Sequence[bytes]) -> list[CachedLogin | None]:
        if not token_hashes:
            return []
        run_id, values = await self._logins([self._login_key(each) for each in token_hashes])
        return [self._cached(value, run_id) if value else None for value in values]

    async def put_accounts(self, accounts: Sequence[Account]) -> None:
        if accounts:
            values = [_AS_OF.pack(account.as_of) + encode(account) for account in accounts]
            await self._put_accounts([self._account_key(a.user) for a in accounts], [self._account_ttl_s, *values])

    async def accounts(self, users: Sequence[int]) -> list[Account | None]:
        return [
            self._decode(_account, "account", value[_AS_OF.size :]) if value is not None else None
            for value in await self._values([self._account_key(user) for user in users])
        ]

    async def put_mesh_secret(self, secret: bytes) -> None:
        await self._client.execute("SET", self._secret_key, secret)

    async def mesh_secret(self) -> bytes | None:
        secret = (await self._values([self._secret_key]))[0]
        if secret is None or 0 < len(secret) <= SECRET_BYTES_MAX:
            return secret
        self._client.skip("secret", f"it has {len(secret)} bytes")
        return None

    async def _values(self, keys: list[str]) -> list[bytes | None]:
        return await self._client.execute("MGET", *keys) if keys else []

    def _cached(self, value: bytes, run_id: bytes) -> CachedLogin | None:
        login = self._decode(_login, "login", value[_RUN_ID_SIZE:])
        return None if login is None else CachedLogin(login, run_id.decode(), verified=value[:_RUN_ID_SIZE] == run_id)

    def _decode(self, decode: Callable[[bytes], _Value], kind: str, value: bytes) -> _Value | None:
        try:
            return decode(value)
        except msgspec.DecodeError as error:
            self._client.skip(kind, error)
            return None

    @property
    def _secret_key(self) -> str:
        return f"{self._namespace}:secret"

    def _login_key(self, token_hash: bytes) -> str:
        return f"{self._namespace}:login:{token_hash.hex()}"

    def _account_key(self, user: int) -> str:
        return f"{self._namespace}:account:{user}"
