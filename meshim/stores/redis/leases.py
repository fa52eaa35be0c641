"""Leases in Redis: one key with a time to live per (role, name), and one set of names per role.

The value of a key is the incarnation in decimal, a blank, and the lease in msgpack.  Scripts compare incarnations as
text: 63 bits do not fit into a Lua number.

Redis keeps the expiry of a key by its wall clock.  If that clock steps back, a lease outlives its process by that
amount.  So `acquire` and `living` shorten a lease that lasts longer than any lease was ever taken for (adr/0016).

The set only names the keys that `living` reads.  `living` removes names without a key, in the same script, so that no
name of a living lease is lost.
"""

from typing import Any

import msgspec

from meshim.stores.ports import Lease
from meshim.stores.redis.client import RedisClient
from meshim.wire.codec import decoder, encode

# A key of another type counts as no lease, and one without an expiry gets one: only a foreign writer makes them.
_HELD = """
local function held_at(key)
    local held = redis.pcall('GET', key)
    return type(held) == 'string' and held
end
local function shorten(key, ttl_ms)
    local left_ms = redis.call('PTTL', key)
    if left_ms < 0 or left_ms > tonumber(ttl_ms) then redis.call('PEXPIRE', key, ttl_ms) end
end
"""

_ACQUIRE = f"""{_HELD}
local held = held_at(KEYS[1])
if held and string.match(held, '^%d+') ~= ARGV[1] then
    shorten(KEYS[1], ARGV[3])
    return 0
end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
redis.call('SADD', KEYS[2], ARGV[4])
return 1
"""

_EXTEND = f"""{_HELD}
local held = held_at(KEYS[1])
if not held or string.match(held, '^%d+') ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
return 1
"""

_RELEASE = f"""{_HELD}
local held = held_at(KEYS[1])
if held and string.match(held, '^%d+') == ARGV[1] then
    redis.call('DEL', KEYS[1])
    redis.call('SREM', KEYS[2], ARGV[2])
end
return 0
"""

_LIVING = f"""{_HELD}
local living = {{}}
for _, name in ipairs(redis.call('SMEMBERS', KEYS[1])) do
    local key = KEYS[2] .. name
    local held = held_at(key)
    if held then living[#living + 1] = held else redis.call('SREM', KEYS[1], name) end
    if held then shorten(key, ARGV[1]) end
end
return living
"""

_FOREVER_MS = 1 << 52
"""Limit for a process that holds no lease: it does not know the time to live of others, and shortens none."""

_decode = decoder(Lease)


class RedisLeases:
    """The port `Leases` on Redis."""

    def __init__(self, client: RedisClient, namespace: str) -> None:
        self._client = client
        self._namespace = namespace
        self._skipped: dict[str, set[bytes]] = {}
        """By role: values that the last look skipped.  `living` runs every second, and counts each value once."""
        self._ttl_max_ms = 0  # of the leases taken here; the topology gives all processes the same
        self._acquire = client.script(_ACQUIRE)
        self._extend = client.script(_EXTEND)
        self._release = client.script(_RELEASE)
        self._living = client.script(_LIVING)

    async def acquire(self, lease: Lease, ttl_s: float) -> bool:
        keys = [self._key(lease.role, lease.name), self._names(lease.role)]
        return bool(await self._acquire(keys, [lease.incarnation, _value(lease), self._ms(ttl_s), lease.name]))

    async def extend(self, lease: Lease, ttl_s: float) -> bool:
        key = self._key(lease.role, lease.name)
        return bool(await self._extend([key], [lease.incarnation, _value(lease), self._ms(ttl_s)]))

    async def release(self, lease: Lease) -> None:
        keys = [self._key(lease.role, lease.name), self._names(lease.role)]
        await self._release(keys, [lease.incarnation, lease.name])

    async def living(self, role: str) -> list[Lease]:
        values: list[bytes] = await self._living(
            [self._names(role), self._key(role, "")], [self._ttl_max_ms or _FOREVER_MS]
        )
        leases: list[Lease] = []
        skipped: set[bytes] = set()
        for value in values:
            try:
                leases.append(_decode(value.partition(b" ")[2]))
            except msgspec.DecodeError as error:  # of a version that is not understood here: it does not exist for us
                skipped.add(value)
                if value not in self._skipped.get(role, ()):
                    self._client.skip("lease", error)
        self._skipped[role] = skipped
        return sorted(leases, key=lambda lease: lease.name)

    async def run_id(self) -> str:
        information: dict[str, Any] = await self._client.execute("INFO", "server")
        return str(information["run_id"])

    def _ms(self, ttl_s: float) -> int:
        ms = max(1, round(ttl_s * 1000))
        self._ttl_max_ms = max(self._ttl_max_ms, ms)
        return ms

    def _key(self, role: str, name: str) -> str:
        return f"{self._namespace}:lease:{role}:{name}"

    def _names(self, role: str) -> str:
        return f"{self._namespace}:leases:{role}"


def _value(lease: Lease) -> bytes:
    return b"%d %s" % (lease.incarnation, encode(lease))
