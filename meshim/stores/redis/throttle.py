"""The port `Throttle` on Redis: a hash of failures and attempts for each bucket, that expires with its window."""

from collections.abc import Sequence

from meshim.stores.ports import Bucket, Outcome
from meshim.stores.ports.throttle import UNDER_WAY_S
from meshim.stores.redis.client import RedisClient

# What is left of a window, in ms; less than 0 when there is none.  A window that lasts for longer than it may was begun
# before the clock of the server stepped back, and begins anew (adr/0016).
_LEFT = """
local function left(key, window)
    local ms = redis.call('PTTL', key)
    if ms > tonumber(window) then
        redis.call('PEXPIRE', key, window)
        return tonumber(window)
    end
    return ms
end
"""

# KEYS: buckets.  ARGV: for each the most failures, and the window in ms.  Returns the ms to wait.
_BEGIN = f"""{_LEFT}
local wait = 0
for index, key in ipairs(KEYS) do
    local most, window = tonumber(ARGV[2 * index - 1]), ARGV[2 * index]
    local held = redis.call('HMGET', key, 'failed', 'begun')
    local failed, begun = tonumber(held[1]) or 0, tonumber(held[2]) or 0
    if failed >= most then
        wait = math.max(wait, left(key, window), 1)
    elseif failed + begun >= most then
        wait = math.max(wait, {round(UNDER_WAY_S * 1000)})
    end
end
if wait > 0 then return wait end
for index, key in ipairs(KEYS) do
    redis.call('HINCRBY', key, 'begun', 1)
    if left(key, ARGV[2 * index]) < 0 then redis.call('PEXPIRE', key, ARGV[2 * index]) end
end
return 0
"""

# KEYS: buckets.  ARGV: '1' for a failure or '0', then for each bucket its window in ms, and '1' to forget failures.
_END = f"""{_LEFT}
for index, key in ipairs(KEYS) do
    local window, forgets = ARGV[2 * index], ARGV[2 * index + 1]
    local begun = (tonumber(redis.call('HGET', key, 'begun')) or 0) - 1
    if forgets == '1' then redis.call('HDEL', key, 'failed') end
    if ARGV[1] == '1' then redis.call('HINCRBY', key, 'failed', 1) end
    if begun > 0 then
        redis.call('HSET', key, 'begun', begun)
    else
        redis.call('HDEL', key, 'begun')
    end
    if left(key, window) == -1 then redis.call('PEXPIRE', key, window) end
end
return 0
"""


class RedisThrottle:
    """The port `Throttle` on Redis."""

    def __init__(self, client: RedisClient, namespace: str) -> None:
        self._namespace = namespace
        self._begin = client.script(_BEGIN)
        self._end = client.script(_END)

    async def begin(self, buckets: Sequence[Bucket]) -> float:
        arguments = [number for bucket in buckets for number in (bucket.most, _ms(bucket))]
        wait_ms: int = await self._begin([self._key(bucket) for bucket in buckets], arguments)
        return wait_ms / 1000

    async def end(self, buckets: Sequence[Bucket], outcome: Outcome) -> None:
        arguments = [int(outcome is Outcome.FAILED)]
        for bucket in buckets:
            arguments += [_ms(bucket), int(outcome is Outcome.SUCCEEDED and bucket.forgives)]
        await self._end([self._key(bucket) for bucket in buckets], arguments)

    def _key(self, bucket: Bucket) -> str:
        return f"{self._namespace}:throttle:{bucket.key}"


def _ms(bucket: Bucket) -> int:
    return max(1, round(bucket.window_s * 1000))
