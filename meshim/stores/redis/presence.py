"""Presence in Redis: one hash per user with a connected device.

===========  ==========================================  ===================================================
field        value                                       written by
===========  ==========================================  ===================================================
`devices`    ``[device,...]``, all known devices         `online` (adds), `update_devices` (adds and removes)
``<device>``  ``[user,device,incarnation,session]``        `online`
===========  ==========================================  ===================================================

Values are JSON text, which scripts concatenate without parsing: a look-up of many users is one script, one reply and
one decode (4 times faster than a pipeline of HGETALL), and no number passes through Lua's doubles, which hold 53 bits
while incarnations have 63.  Only session numbers are compared as numbers: microseconds since 1970 fit into 53 bits
until the year 2255.

Beside it, `NAMESPACE:full:USER` is a string for as long as a queue of the user is full: ``[[device,sender],...]``.

A hash exists as long as it has a binding, and at most `unseen_s` after the last `online`, which connectors repeat for
every session.  A binding of a crashed connector stays until then, or until the device connects again; readers
recognise it by its incarnation, which holds no lease.

Every script that changes either publishes the id of the user, so that caches can drop it.
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

import msgspec

from meshim.chunks import chunks
from meshim.stores.ports import Binding, FullQueue, UserPresence
from meshim.stores.ports.presence import Number
from meshim.stores.redis.client import RedisClient
from meshim.stores.redis.session_numbers import SessionNumberFloor

UNSEEN_S = 3_600
"""Time to live of an entry; connectors write each session again within `relation_ttl_s`, a minute by default."""
_USERS_PER_SCRIPT = 256
"""Redis serves nothing else while a script runs, so a script must take no more than about a millisecond."""

# KEYS: last number given.  ARGV: count, least number allowed.  Returns the first of `count` ascending numbers.
_SESSION_NUMBERS = """
local time = redis.call('TIME')
local last = tonumber(redis.pcall('GET', KEYS[1]) or 0) or 0
if not (last < 2 ^ 53) then last = 0 end
local first = math.max(time[1] * 1000000 + time[2], last + 1, tonumber(ARGV[2]))
redis.call('SET', KEYS[1], first + ARGV[1] - 1)
return first
"""

# The union of two lists without the devices of a third, each JSON or false.
_MERGED = """
local function merged(old, new, without)
    if not without and (not old or old == new) then return new end
    local seen, ids = {}, {}
    for id in string.gmatch(without or '', '%d+') do seen[id] = true end
    for id in string.gmatch((old or '') .. new, '%d+') do
        if not seen[id] and string.match(id, '^[1-9]') and #id <= 16 then seen[id] = true; ids[#ids + 1] = id end
    end
    table.sort(ids, function(a, b) if #a ~= #b then return #a < #b end return a < b end)
    return '[' .. table.concat(ids, ',') .. ']'
end
"""

# KEYS: channel, last number given, then one hash per binding.  ARGV: per binding user, device, session, binding (JSON),
# devices (JSON).  Returns JSON: per binding false, null or the binding that was replaced.  Raises the last number given
# to the highest session written, so that numbers ascend also after a wipe, when connectors write their sessions again.
_ONLINE = (
    _MERGED
    + """
-- Four numbers of at most 19 digits, as JSON writes them: another value would spoil the answer for all bindings, or be
-- a session that no device can follow.
local function well_formed(binding)
    return string.match(binding, '^%[%d+,%d+,%d+,%d+%]$') and #binding <= 81 and not string.find(binding, '[%[,]0%d')
        and not string.find(binding, string.rep('%d', 20))
end

local results, changed, highest = {}, {}, '0'
for i = 3, #KEYS do
    local at = (i - 3) * 5
    local user, device, session, binding, devices = unpack(ARGV, at + 1, at + 5)
    if tonumber(session) > tonumber(highest) then highest = session end
    local held = redis.pcall('HMGET', KEYS[i], device, 'devices')
    if held.err then redis.call('DEL', KEYS[i]); held = {} end -- of another type: a foreign writer made it
    if held[1] and not well_formed(held[1]) then held[1] = false end
    local session_held = held[1] and tonumber(string.match(held[1], '(%d+)%]$'))
    if session_held and session_held > tonumber(session) then
        results[i - 2] = 'false'
    else
        local all = merged(held[2], devices)
        results[i - 2] = held[1] and held[1] ~= binding and held[1] or 'null'
        if held[1] ~= binding or held[2] ~= all then
            redis.call('HSET', KEYS[i], device, binding, 'devices', all)
            changed[#changed + 1] = user
        end
        redis.call('EXPIRE', KEYS[i], UNSEEN_S)
    end
end
if tonumber(highest) > (tonumber(redis.pcall('GET', KEYS[2]) or 0) or 0) then redis.call('SET', KEYS[2], highest) end
if #changed > 0 then redis.call('PUBLISH', KEYS[1], table.concat(changed, ',')) end
return '[' .. table.concat(results, ',') .. ']'
"""
)

# KEYS: channel, then one hash per binding.  ARGV: per binding user, device, binding (JSON).
_OFFLINE = """
local changed = {}
for i = 2, #KEYS do
    local at = (i - 2) * 3
    local user, device, binding = unpack(ARGV, at + 1, at + 3)
    if redis.pcall('HGET', KEYS[i], device) == binding then
        redis.call('HDEL', KEYS[i], device)
        if redis.call('HLEN', KEYS[i]) == 1 then redis.call('DEL', KEYS[i]) end
        changed[#changed + 1] = user
    end
end
if #changed > 0 then redis.call('PUBLISH', KEYS[1], table.concat(changed, ',')) end
return #changed
"""

# KEYS: one hash per user, then one string per user.  Returns JSON: per user null or the presence; what is full is a
# string in it, so that a malformed one spoils nothing else.
_LOOKUP = """
local results, users = {}, #KEYS / 2
for i = 1, users do
    local fields = redis.pcall('HGETALL', KEYS[i]) -- of a key of another type an error, which has no fields
    local devices, bindings = nil, {}
    for at = 1, #fields, 2 do
        if fields[at] == 'devices' then devices = fields[at + 1] else bindings[#bindings + 1] = fields[at + 1] end
    end
    local full = redis.pcall('GET', KEYS[users + i])
    full = type(full) == 'string' and ',"full":"' .. (string.match(full, '^[%[%]%d,]*$') or '?') .. '"' or ''
    if not devices then bindings = {} end
    if devices or full ~= '' then
        local list = table.concat(bindings, ',')
        results[i] = '{"devices":' .. (devices or '[]') .. ',"bindings":[' .. list .. ']' .. full .. '}'
    else
        results[i] = 'null'
    end
end
return '[' .. table.concat(results, ',') .. ']'
"""

# KEYS: channel, hash.  ARGV: user, devices (JSON), removed devices (JSON).
_UPDATE_DEVICES = (
    _MERGED
    + """
local held = redis.pcall('HGET', KEYS[2], 'devices')
if held and held.err then held = false end -- of another type: no entry; the next `online` replaces it
local all = held and merged(held, ARGV[2], ARGV[3])
if held and held ~= all then redis.call('HSET', KEYS[2], 'devices', all) end
-- Publish also without an entry: caches may still hold one that has expired.
if not held or held ~= all then redis.call('PUBLISH', KEYS[1], ARGV[1]) end
return 0
"""
)

# KEYS: channel, string.  ARGV: user, what is full (JSON, empty for nothing), milliseconds to live.
_ANNOUNCE_FULL = """
local held = redis.pcall('GET', KEYS[2])
if type(held) ~= 'string' then held = '' end -- none, or of another type, which SET replaces
if ARGV[2] == '' then redis.call('DEL', KEYS[2]) else redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3]) end
if held ~= ARGV[2] then redis.call('PUBLISH', KEYS[1], ARGV[1]) end
return 0
"""


class _Presence(msgspec.Struct, frozen=True, gc=False):
    """An answer of `_LOOKUP`."""

    devices: tuple[Number, ...]
    bindings: tuple[Binding, ...]
    full: str = ""


_json = msgspec.json.Encoder()
_replaced = msgspec.json.Decoder(list[Binding | bool | None])
_presences = msgspec.json.Decoder(list[_Presence | None])
_full_queues = msgspec.json.Decoder(tuple[FullQueue, ...])


class RedisPresence:
    """The port `Presence` on Redis."""

    def __init__(self, client: RedisClient, namespace: str, unseen_s: int = UNSEEN_S) -> None:
        self._client = client
        self._namespace = namespace
        self._channel = f"{namespace}:presence"
        self._last_number = f"{namespace}:session"
        self._floor = SessionNumberFloor()
        self._session_numbers = client.script(_SESSION_NUMBERS)
        self._online = client.script(_ONLINE.replace("UNSEEN_S", str(unseen_s)))
        self._offline = client.script(_OFFLINE)
        self._lookup = client.script(_LOOKUP)
        self._update_devices = client.script(_UPDATE_DEVICES)
        self._announce_full = client.script(_ANNOUNCE_FULL)

    async def session_numbers(self, count: int) -> list[int]:
        if count == 0:
            return []
        loop = asyncio.get_running_loop()
        first: int = await self._session_numbers([self._last_number], [count, self._floor.at(loop.time())])
        self._floor.given(first + count - 1, loop.time())
        return list(range(first, first + count))

    async def online(self, bindings: Sequence[tuple[Binding, tuple[int, ...]]]) -> list[Binding | bool | None]:
        """Add the devices to those of the entry.

        The list of a connector may be older than that of the entry.  A device too many costs one copy, which the
        writer leaves out; a device too few would miss its messages.
        """
        results: list[Binding | bool | None] = []
        for batch in chunks(bindings, _USERS_PER_SCRIPT):
            keys = [self._channel, self._last_number, *(self._key(binding.user) for binding, _ in batch)]
            arguments: list[int | bytes] = []
            for binding, devices in batch:
                arguments += (
                    binding.user,
                    binding.device,
                    binding.session,
                    _json.encode(binding),
                    _json.encode(sorted(devices)),
                )
            results += _replaced.decode(await self._online(keys, arguments))
        return results

    async def offline(self, bindings: Sequence[Binding]) -> None:
        for batch in chunks(bindings, _USERS_PER_SCRIPT):
            keys = [self._channel, *(self._key(binding.user) for binding in batch)]
            arguments: list[int | bytes] = []
            for binding in batch:
                arguments += (binding.user, binding.device, _json.encode(binding))
            await self._offline(keys, arguments)

    async def lookup(self, users: Sequence[int]) -> dict[int, UserPresence]:
        found: dict[int, UserPresence] = {}
        for batch in chunks(users, _USERS_PER_SCRIPT):
            found.update(await self._lookup_batch(batch))
        return found

    async def _lookup_batch(self, users: Sequence[int]) -> dict[int, UserPresence]:
        """Look users up with one script; one by one where an entry is malformed, and without that entry."""
        try:
            keys = [*map(self._key, users), *map(self._full_key, users)]
            presences = zip(users, _presences.decode(await self._lookup(keys)), strict=True)
            return {user: self._presence(each) for user, each in presences if each is not None}
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            if len(users) == 1:
                self._client.skip("presence", error)
                return {}
        found: dict[int, UserPresence] = {}
        for user in users:
            found.update(await self._lookup_batch((user,)))
        return found

    def _presence(self, found: _Presence) -> UserPresence:
        full: tuple[FullQueue, ...] = ()
        if found.full:
            try:
                full = _full_queues.decode(found.full)
            except (msgspec.DecodeError, ValueError, RecursionError) as error:
                self._client.skip("full queues", error)
        return UserPresence(found.devices, found.bindings, full)

    async def announce_full(self, user: int, full: Sequence[FullQueue], ttl_s: float) -> None:
        keys, said = [self._channel, self._full_key(user)], _json.encode(full) if full else b""
        await self._announce_full(keys, [user, said, round(ttl_s * 1000)])

    async def update_devices(self, user: int, devices: Sequence[int], removed: Sequence[int] = ()) -> None:
        keys, lists = [self._channel, self._key(user)], (_json.encode(sorted(devices)), _json.encode(sorted(removed)))
        await self._update_devices(keys, [user, *lists])

    async def changes(self) -> AsyncGenerator[tuple[int, ...] | None]:
        """Yield as the port says; a tuple names each user once.

        Close the generator (`contextlib.aclosing`) to return its connection to the pool.
        """
        async with aclosing(self._client.subscribe(self._channel)) as batches:
            async for batch in batches:
                if batch is None:
                    yield None
                    continue
                users = tuple(dict.fromkeys(user for message in batch for user in self._users(message)))
                if users or not batch:  # `()` is a heartbeat: messages of foreign publishers alone are none
                    yield users

    def _users(self, message: bytes) -> list[int]:
        """Return the users in a message of the channel; none for a message of a foreign publisher."""
        try:
            return [int(user) for user in message.split(b",")]
        except ValueError as error:
            self._client.skip("presence message", error)
            return []

    def _key(self, user: int) -> str:
        return f"{self._namespace}:presence:{user}"

    def _full_key(self, user: int) -> str:
        return f"{self._namespace}:full:{user}"
