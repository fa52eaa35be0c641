"""Leases, presence and the session cache in memory, for tests and the simulation.

One `MemoryRedis` is the server; port instances made with it and the same namespace are its clients, so that one event
loop can run several processes.  Values expire by the clock given to the server.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from typing import Generic, TypeVar

from meshim.errors import BackendUnavailable
from meshim.stores.memory.throttle import Windows
from meshim.stores.ports import Account, Binding, CachedLogin, FullQueue, Lease, Login, UserPresence
from meshim.stores.redis.session_numbers import SessionNumberFloor

_Value = TypeVar("_Value")

QUIET_S = 1.0
"""Subscribers get a heartbeat after this time without a change."""


class MemoryRedis:
    """The data of the server, and whether it answers."""

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` returns seconds since 1970."""
        self.clock = clock
        self.leases: Expiring[tuple[str, str, str], Lease] = Expiring(clock)
        self.presence: dict[tuple[str, int], _Entry] = {}
        self.full: Expiring[tuple[str, int], tuple[FullQueue, ...]] = Expiring(clock)
        self.logins: Expiring[tuple[str, bytes], tuple[Login, str] | None] = Expiring(clock)
        self.accounts: Expiring[tuple[str, int], Account] = Expiring(clock)
        self.secrets: dict[str, bytes] = {}
        """By namespace."""
        self.windows = Windows(clock)
        self.last_session = 0
        self._subscribers: list[_Subscriber] = []
        self._runs = 1
        self._away = False

    @property
    def run_id(self) -> str:
        return f"run-{self._runs}"

    def stop(self) -> None:
        """Make every call raise `BackendUnavailable`; the data is kept."""
        self._away = True

    def start(self, *, wiped: bool = False) -> None:
        """Answer again; with `wiped` as a new run without data, as a server without a disk."""
        self._away = False
        if wiped:
            for held in (self.leases, self.presence, self.full, self.logins, self.accounts, self.secrets):
                held.clear()
            self.windows = Windows(self.clock)
            self.last_session = 0
            self._runs += 1
        for subscriber in self._subscribers:
            subscriber.miss()

    def answer(self) -> None:
        """Raise `BackendUnavailable` while the server is stopped."""
        if self._away:
            raise BackendUnavailable("Redis (in memory) is stopped.")

    def publish(self, namespace: str, users: Iterable[int]) -> None:
        """Publish to every subscriber of the namespace that the entries of these users changed."""
        users = tuple(users)
        if not users:
            return
        for subscriber in self._subscribers:
            if subscriber.namespace == namespace:
                subscriber.add(users)

    async def subscribe(self, namespace: str) -> AsyncGenerator[tuple[int, ...] | None]:
        """Yield published users; None when changes may have been missed; `()` as a heartbeat."""
        subscriber = _Subscriber(namespace)
        self._subscribers.append(subscriber)
        try:
            while True:
                try:
                    async with asyncio.timeout(QUIET_S):
                        users = await subscriber.take()
                except TimeoutError:
                    pass
                else:
                    yield users
                if not self._away:
                    yield ()
        finally:
            self._subscribers.remove(subscriber)


_Key = TypeVar("_Key")


class Expiring(Generic[_Key, _Value]):
    """Values that expire by the clock of the server."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._held: dict[_Key, tuple[_Value, float]] = {}

    def put(self, key: _Key, value: _Value, ends_at: float) -> None:
        self._held[key] = (value, ends_at)

    def get(self, key: _Key) -> _Value | None:
        value, ends_at = self._held.get(key, (None, 0.0))
        return value if self._clock() < ends_at else None

    def __contains__(self, key: _Key) -> bool:
        return key in self._held and self._clock() < self._held[key][1]

    def shorten(self, key: _Key, left: float) -> None:
        """Make the value expire in `left` seconds, unless it expires earlier."""
        value, ends_at = self._held[key]
        self._held[key] = value, min(ends_at, self._clock() + left)

    def remove(self, key: _Key) -> None:
        self._held.pop(key, None)

    def items(self) -> list[tuple[_Key, _Value]]:
        now = self._clock()
        return [(key, value) for key, (value, ends_at) in self._held.items() if now < ends_at]

    def clear(self) -> None:
        self._held.clear()


class _Entry:
    """The presence of one user."""

    def __init__(self, devices: Iterable[int]) -> None:
        self.devices = set(devices)
        self.bindings: dict[int, Binding] = {}


class _Subscriber:
    """The pending items of one subscription: each changed user once, or that changes may have been missed."""

    def __init__(self, namespace: str) -> None:
        self.namespace = namespace
        self._users: dict[int, None] = {}
        self._missed = True
        self._ready = asyncio.Event()
        self._ready.set()

    def add(self, users: Iterable[int]) -> None:
        self._users.update(dict.fromkeys(users))
        self._ready.set()

    def miss(self) -> None:
        self._users.clear()
        self._missed = True
        self._ready.set()

    async def take(self) -> tuple[int, ...] | None:
        await self._ready.wait()
        if self._missed:
            self._missed = False
            users = None
        else:
            users = tuple(self._users)
            self._users.clear()
        if not self._users:
            self._ready.clear()
        return users


class MemoryLeases:
    """The port `Leases` in memory."""

    def __init__(self, redis: MemoryRedis, namespace: str) -> None:
        self._redis = redis
        self._namespace = namespace
        self._longest_s = 0.0

    async def acquire(self, lease: Lease, ttl_s: float) -> bool:
        self._redis.answer()
        self._longest_s = max(self._longest_s, ttl_s)
        if self._holder(lease) not in (None, lease.incarnation):
            self._redis.leases.shorten(self._key(lease), ttl_s)
            return False
        self._redis.leases.put(self._key(lease), lease, self._redis.clock() + ttl_s)
        return True

    async def extend(self, lease: Lease, ttl_s: float) -> bool:
        self._redis.answer()
        self._longest_s = max(self._longest_s, ttl_s)
        if self._holder(lease) != lease.incarnation:
            return False
        self._redis.leases.put(self._key(lease), lease, self._redis.clock() + ttl_s)
        return True

    async def release(self, lease: Lease) -> None:
        self._redis.answer()
        if self._holder(lease) == lease.incarnation:
            self._redis.leases.remove(self._key(lease))

    async def living(self, role: str) -> list[Lease]:
        self._redis.answer()
        held = self._redis.leases.items()
        leases: list[Lease] = []
        for key, lease in held:
            if key[:2] == (self._namespace, role):
                leases.append(lease)
                if self._longest_s:
                    self._redis.leases.shorten(key, self._longest_s)
        return sorted(leases, key=lambda lease: lease.name)

    async def run_id(self) -> str:
        self._redis.answer()
        return self._redis.run_id

    def _holder(self, lease: Lease) -> int | None:
        held = self._redis.leases.get(self._key(lease))
        return None if held is None else held.incarnation

    def _key(self, lease: Lease) -> tuple[str, str, str]:
        return self._namespace, lease.role, lease.name


class MemoryPresence:
    """The port `Presence` in memory."""

    def __init__(self, redis: MemoryRedis, namespace: str, monotonic: Callable[[], float] = lambda: 0.0) -> None:
        """`monotonic` is the monotonic clock of this client, in seconds."""
        self._redis = redis
        self._namespace = namespace
        self._monotonic = monotonic
        self._floor = SessionNumberFloor()

    async def session_numbers(self, count: int) -> list[int]:
        self._redis.answer()
        now = self._monotonic()
        first = max(int(self._redis.clock() * 1_000_000), self._redis.last_session + 1, self._floor.at(now))
        if count:
            self._redis.last_session = first + count - 1
            self._floor.given(first + count - 1, now)
        return list(range(first, first + count))

    async def online(self, bindings: Sequence[tuple[Binding, tuple[int, ...]]]) -> list[Binding | bool | None]:
        self._redis.answer()
        results: list[Binding | bool | None] = []
        changed: list[int] = []
        for binding, devices in bindings:
            self._redis.last_session = max(self._redis.last_session, binding.session)
            entry = self._redis.presence.setdefault((self._namespace, binding.user), _Entry(()))
            held = entry.bindings.get(binding.device)
            if held is not None and held.session > binding.session:
                results.append(False)
                continue
            if held != binding or not entry.devices.issuperset(devices):
                entry.bindings[binding.device] = binding
                entry.devices.update(devices)
                changed.append(binding.user)
            results.append(held if held != binding else None)
        self._redis.publish(self._namespace, changed)
        return results

    async def offline(self, bindings: Sequence[Binding]) -> None:
        self._redis.answer()
        changed: list[int] = []
        for binding in bindings:
            entry = self._redis.presence.get((self._namespace, binding.user))
            if entry is not None and entry.bindings.get(binding.device) == binding:
                del entry.bindings[binding.device]
                if not entry.bindings:
                    del self._redis.presence[self._namespace, binding.user]
                changed.append(binding.user)
        self._redis.publish(self._namespace, changed)

    async def lookup(self, users: Sequence[int]) -> dict[int, UserPresence]:
        self._redis.answer()
        found: dict[int, UserPresence] = {}
        for user in users:
            entry = self._redis.presence.get((self._namespace, user))
            full = self._redis.full.get((self._namespace, user)) or ()
            if entry is not None:
                found[user] = UserPresence(tuple(sorted(entry.devices)), tuple(entry.bindings.values()), full)
            elif full:
                found[user] = UserPresence((), (), full)
        return found

    async def announce_full(self, user: int, full: Sequence[FullQueue], ttl_s: float) -> None:
        self._redis.answer()
        key, said = (self._namespace, user), tuple(full)
        before = self._redis.full.get(key) or ()
        if said:
            self._redis.full.put(key, said, self._redis.clock() + ttl_s)
        else:
            self._redis.full.remove(key)
        if said != before:
            self._redis.publish(self._namespace, [user])

    async def update_devices(self, user: int, devices: Sequence[int], removed: Sequence[int] = ()) -> None:
        self._redis.answer()
        entry = self._redis.presence.get((self._namespace, user))
        if entry is not None:
            updated = (entry.devices | set(devices)) - set(removed)
            if entry.devices == updated:
                return
            entry.devices = updated
        self._redis.publish(self._namespace, [user])

    def changes(self) -> AsyncGenerator[tuple[int, ...] | None]:
        return self._redis.subscribe(self._namespace)


class MemorySessionCache:
    """The port `SessionCache` in memory."""

    def __init__(self, redis: MemoryRedis, namespace: str, *, account_ttl_s: float = 30 * 86400.0) -> None:
        self._redis = redis
        self._namespace = namespace
        self._account_ttl_s = account_ttl_s

    async def put_login(self, token_hash: bytes, login: Login, run_id: str | None = None) -> None:
        self._redis.answer()
        key, now = (self._namespace, token_hash), self._redis.run_id
        if run_id is not None and run_id != now:
            return
        held = self._redis.logins.get(key)
        if key not in self._redis.logins or (held is not None and held[1] != now):
            self._redis.logins.put(key, (login, now), login.expires_at)

    async def drop_logins(self, token_hashes: Sequence[bytes]) -> None:
        self._redis.answer()
        for token_hash in token_hashes:
            # Kept as revoked, so that a put that is under way does not cache it again.
            self._redis.logins.put((self._namespace, token_hash), None, self._redis.clock() + 86400.0)

    async def logins(self, token_hashes: Sequence[bytes]) -> list[CachedLogin | None]:
        self._redis.answer()
        held = [self._redis.logins.get((self._namespace, token_hash)) for token_hash in token_hashes]
        now = self._redis.run_id
        return [each and CachedLogin(each[0], now, each[1] == now) for each in held]

    async def put_accounts(self, accounts: Sequence[Account]) -> None:
        self._redis.answer()
        for account in accounts:
            key = self._namespace, account.user
            held = self._redis.accounts.get(key)
            if held is None or held.as_of <= account.as_of:
                self._redis.accounts.put(key, account, self._redis.clock() + self._account_ttl_s)

    async def accounts(self, users: Sequence[int]) -> list[Account | None]:
        self._redis.answer()
        return [self._redis.accounts.get((self._namespace, user)) for user in users]

    async def put_mesh_secret(self, secret: bytes) -> None:
        self._redis.answer()
        self._redis.secrets[self._namespace] = secret

    async def mesh_secret(self) -> bytes | None:
        self._redis.answer()
        return self._redis.secrets.get(self._namespace)
