"""Logins and accounts in Redis, so that people get in while the database is away.

What was revoked stays revoked: dropping a login leaves an empty value behind, which a put that was
on its way (read from the database before the logout, written after it) does not replace.
In the same way an account never replaces one that was read later.
"""

import struct
from collections.abc import Sequence
from typing import TypeVar

import msgspec

from meshim.stores.ports import Account, Login
from meshim.stores.redis_client import RedisClient

_REVOKED = b""
_REVOKED_S = 86400
"""Longer than any put can be delayed; it need not be as long as the token would have lived."""

_DROP_LOGINS = """
for _, key in ipairs(KEYS) do redis.call('SET', key, ARGV[1], 'EX', ARGV[2]) end
return 0
"""

# The first eight bytes of a value are `as_of`, which is all that Lua must read of it.
_PUT_ACCOUNT = """
local held = redis.call('GET', KEYS[1])
if held and struct.unpack('>d', held) > struct.unpack('>d', ARGV[1]) then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
return 1
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
        self._drop_logins = client.script(_DROP_LOGINS)
        self._put_account = client.script(_PUT_ACCOUNT)

    async def put_login(self, token_hash: bytes, login: Login) -> None:
        # What a token stands for never changes, so the first value is as good as any other.
        ends_ms = max(1, round(login.expires_at * 1000))
        await self._client.execute("SET", self._login_key(token_hash), _encoder.encode(login), "NX", "PXAT", ends_ms)

    async def drop_logins(self, token_hashes: Sequence[bytes]) -> None:
        if token_hashes:
            await self._drop_logins([self._login_key(each) for each in token_hashes], [_REVOKED, _REVOKED_S])

    async def logins(self, token_hashes: Sequence[bytes]) -> list[Login | None]:
        return [
            _read(_login, value) if value else None
            for value in await self._values([self._login_key(each) for each in token_hashes])
        ]

    async def put_account(self, account: Account) -> None:
        value = _AS_OF.pack(account.as_of) + _encoder.encode(account)
        await self._put_account([self._account_key(account.user)], [value, self._account_ttl_s])

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


def _read(decoder: "msgspec.msgpack.Decoder[_Value]", value: bytes | memoryview) -> _Value | None:
    try:
        return decoder.decode(value)
    except msgspec.DecodeError:
        return None
