"""Redis, NATS and the database of the simulation: the stores in memory, each on a `Server`, reporting to the judge."""

import asyncio
import copy
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from functools import partial
from typing import Any, cast

from meshim.errors import MeshimError
from meshim.stores import ports
from meshim.stores.memory import accounts, database, nats, redis
from meshim.wire.notification import Notification, encode_notification
from meshim.wire.offline_log import decode_record
from tests.sim.judge import Judge
from tests.sim.remote_calls import Remote, Server
from tests.sim.scheduler import Process, Scheduler, current, settle

NAMESPACE = "sim"


class _Log(Remote):
    """The log.  A fetch that finds nothing waits for the next record of the partition."""

    async def fetch(self, partition: int, most: int, wait_s: float) -> list[ports.LogMessage]:
        found = await self._fetch(partition, most)
        if found or wait_s <= 0:
            return found
        loop = current().loop
        stored = loop.create_future()
        log = cast("SimLog", self._port)
        log.waiting_fetches.setdefault(partition, []).append(lambda: settle(stored, None))
        timeout = loop.call_later(wait_s, settle, stored, None)
        await stored
        timeout.cancel()
        return await self._fetch(partition, most)

    async def _fetch(self, partition: int, most: int) -> list[ports.LogMessage]:
        fetch = cast("SimLog", self._port).take
        return cast("list[ports.LogMessage]", await self._server.call("fetch", lambda: fetch(partition, most)))


class SimRedis(redis.MemoryRedis):
    """Can restart with an old dump.  Its changes reach the subscribers later, or not at all."""

    def __init__(self, clock: Callable[[], float]) -> None:
        super().__init__(clock)
        self.subscriptions: list[_Subscription] = []

    def start(self, *, wiped: bool = False) -> None:
        super().start(wiped=wiped)
        for each in self.subscriptions:
            each.miss()

    def publish(self, namespace: str, users: Iterable[int]) -> None:
        if users := tuple(users):
            for each in self.subscriptions:
                each.publish(users)

    _KEPT = ("leases", "presence", "full", "logins", "accounts", "secrets", "last_session")

    def dump(self) -> dict[str, Any]:
        """A copy of all data."""
        held = {name: getattr(self, name) for name in self._KEPT}
        return {
            name: copy.deepcopy(value._held) if isinstance(value, redis.Expiring) else copy.deepcopy(value)
            for name, value in held.items()
        }

    def restore(self, dump: dict[str, Any]) -> None:
        """Restart with the data of a dump, under a new run id."""
        self.start(wiped=True)
        for name, value in dump.items():
            held = getattr(self, name)
            if isinstance(held, redis.Expiring):
                held._held = copy.deepcopy(value)
            else:
                setattr(self, name, copy.deepcopy(value))


class _Subscription:
    """What one process hears of presence: it takes time, and is lost while the process cannot reach Redis."""

    def __init__(self, server: Server, process: Process) -> None:
        self._server = server
        self._process = process
        self._items: list[tuple[int, ...] | None] = [None]
        self._is_broken = False
        """Whether something was lost: it hears that when it is connected again."""
        self._arrived = asyncio.Event()
        self._arrived.set()
        self._beat()

    def _beat(self) -> None:
        if self._process.alive:
            self.publish(())
            self._server.scheduler.after(redis.QUIET_S, self._beat)

    def publish(self, users: tuple[int, ...]) -> None:
        self._server.push(self._process, lambda: self._hear(users), self.miss)

    def miss(self) -> None:
        self._is_broken = True

    def _hear(self, users: tuple[int, ...]) -> None:
        self._items += [None, ()] if self._is_broken else [users]
        self._is_broken = False
        self._arrived.set()

    async def items(self) -> AsyncGenerator[tuple[int, ...] | None]:
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            heard, self._items = self._items, []
            for each in heard:
                yield each


class SimPresence(redis.MemoryPresence):
    """Reports the races R4 and R5 to the judge."""

    def __init__(self, redis: SimRedis, server: Server, judge: Judge) -> None:
        super().__init__(redis, NAMESPACE)
        self._judge = judge
        self._server = server
        self._known = redis.presence
        self._sim = redis

    def changes(self) -> AsyncGenerator[tuple[int, ...] | None]:
        subscription = _Subscription(self._server, current())
        self._sim.subscriptions.append(subscription)
        return subscription.items()

    async def online(
        self, bindings: Sequence[tuple[ports.Binding, tuple[int, ...]]]
    ) -> list[ports.Binding | bool | None]:  # fmt: skip
        results = await super().online(bindings)
        self._judge.entered("R5", sum(result is False for result in results))
        return results

    async def offline(self, bindings: Sequence[ports.Binding]) -> None:
        for binding in bindings:
            entry = self._known.get((NAMESPACE, binding.user))
            held = entry.bindings.get(binding.device) if entry is not None else None
            self._judge.entered("R5", held is not None and held != binding)
        await super().offline(bindings)

    async def lookup(self, users: Sequence[int]) -> dict[int, ports.UserPresence]:
        found = await super().lookup(users)
        dead = (
            binding
            for entry in found.values()
            for binding in entry.bindings
            if not self._judge.lives(binding.incarnation)
        )
        self._judge.entered("R4", any(True for _ in dead))
        return found


class SimNotifications(nats.MemoryNotifications):
    """At most once: a notification takes time, and is lost while NATS is away or the listener cannot reach it."""

    def __init__(self, broker: nats.MemoryNats, server: "Server") -> None:
        super().__init__(broker, NAMESPACE)
        self._server = server
        self._listening: dict[int, Process] = {}
        """The process that listens on each queue, by the id of the queue."""

    async def listen(self, incarnation: int) -> AsyncGenerator[Notification]:
        notifications = await super().listen(incarnation)
        _, queue = self._nats.listeners[-1]
        self._listening[id(queue)] = current()
        return notifications

    def _publish(self, to: str, notification: Notification) -> None:
        for subjects, queue in self._nats.listeners:
            if f"{NAMESPACE}.{to}" in subjects:
                process = self._listening[id(queue)]
                self._server.push(process, partial(_put, queue, encode_notification(notification)))


def _put(queue: "asyncio.Queue[bytes]", data: bytes) -> None:
    if not queue.full():
        queue.put_nowait(data)


class SimLog(nats.MemoryOfflineLog):
    """Reports to the judge what the log holds, and wakes fetches that wait for a record."""

    def __init__(self, broker: nats.MemoryNats, ack_wait_s: float, judge: Judge) -> None:
        super().__init__(broker, NAMESPACE, ack_wait_s=ack_wait_s)
        self.waiting_fetches: dict[int, list[Callable[[], object]]] = {}
        self._judge = judge

    async def publish(self, partition: int, data: bytes) -> int:
        position = await super().publish(partition, data)
        self._judge.logged(partition, position, decode_record(data).entries)
        for wake in self.waiting_fetches.pop(partition, ()):
            wake()
        return position

    async def acknowledge(self, partition: int, positions: Sequence[int]) -> None:
        self._judge.unlogged(partition, positions)
        await super().acknowledge(partition, positions)

    def take(self, partition: int, most: int) -> list[ports.LogMessage]:
        return self._take(self._partition(partition), most)


class SimQueues(database.MemoryQueues):
    """Reports to the judge which process claims, reads and marks a queue."""

    def __init__(self, database: database.MemoryDatabase, partitions: int, sql: Server, judge: Judge) -> None:
        super().__init__(database, partitions)
        self.on_claim: Callable[[int, int], None] = lambda device, session: None
        """Called with the device and the session number after a queue was claimed."""
        self.on_page: Callable[[int], None] = lambda device: None
        """Called with the device after a page with rows was read."""
        self._sql = sql
        self._judge = judge

    async def claim(self, device: int, owner: str, session: int, lease_s: float) -> int | None:
        found = self._database.devices.get(device)
        if found is not None:
            lease = found.lease
            others = lease.owner not in {"", owner} and lease.until > self._database.clock()
            self._judge.entered("R3", others)
        fence = await super().claim(device, owner, session, lease_s)
        if fence is not None:
            self._judge.queue_claimed(device, self._sql.caller, fence)
            self.on_claim(device, session)
        return fence

    async def page(
        self, user: int, device: int, fence: int, after: tuple[int, int], rows: int, size: int, lease_s: float
    ) -> ports.Page:
        page = await super().page(user, device, fence, after, rows, size, lease_s)
        self._judge.queue_used("read", device, self._sql.caller, fence)
        if page.rows:
            self.on_page(device)
        return page

    async def mark_read(self, device: int, fence: int, row_ids: Sequence[int]) -> None:
        await super().mark_read(device, fence, row_ids)
        self._judge.queue_used("marked", device, self._sql.caller, fence)
        self._judge.marked(device, row_ids)


class SimPartitions(database.MemoryPartitions):
    """Reports to the judge which fencing token writes a partition."""

    def __init__(self, database: database.MemoryDatabase, judge: Judge) -> None:
        super().__init__(database)
        self.on_stored: Callable[[int], None] = lambda device: None
        """Called with each device that has new rows."""
        self._judge = judge

    async def claim(self, partition: int, owner: str, lease_s: float) -> tuple[int, int] | None:
        claimed = await super().claim(partition, owner, lease_s)
        if claimed is not None:
            self._judge.partition_claimed(partition, claimed[0])
        return claimed

    async def write(
        self, partition: int, fence: int, through: int, records: Sequence[tuple[int, Sequence[Any]]], now: float
    ) -> ports.Written:
        before = {device: len(stored.queue) for device, stored in self._database.devices.items()}
        try:
            written = await super().write(partition, fence, through, records, now)
        except MeshimError:
            self._judge.entered("R15")
            raise
        for _, device in written.devices:
            if len(self._database.devices[device].queue) > before[device]:
                self.on_stored(device)
        self._judge.partition_written(partition, fence, written)
        return written


class Backends:
    """The three servers, and the ports through which processes call them."""

    def __init__(self, scheduler: Scheduler, judge: Judge, partitions: int, *, ack_wait_s: float) -> None:
        self.redis = Server(scheduler, "redis", (0.0001, 0.0005), 1.0)
        self.nats = Server(scheduler, "nats", (0.0002, 0.001), 2.0)
        self.sql = Server(scheduler, "sql", (0.0005, 0.004), 5.0)
        self.redis_data = SimRedis(self.redis.clock)
        self.broker = nats.MemoryNats(self.nats.clock)
        self.database = database.MemoryDatabase(self.sql.clock)
        self._leases = redis.MemoryLeases(self.redis_data, NAMESPACE)
        self._presence = SimPresence(self.redis_data, self.redis, judge)
        self.cache_data = redis.MemorySessionCache(self.redis_data, NAMESPACE)
        self._notifications = SimNotifications(self.broker, self.nats)
        self._log = SimLog(self.broker, ack_wait_s, judge)
        self.queue_data = SimQueues(self.database, partitions, self.sql, judge)
        self.partition_data = SimPartitions(self.database, judge)
        self.registry = accounts.MemoryAccounts(self.database)
        self.redis.on_failure = lambda what: judge.entered("R9", what == "lookup")
        self.nats.on_failure = lambda what: judge.entered("R7", what == "publish")
        self.sql.on_failure = lambda what: judge.entered("R8", what == "write")

    def leases(self) -> ports.Leases:
        return cast("ports.Leases", Remote(self.redis, self._leases))

    def presence(self) -> ports.Presence:
        return cast("ports.Presence", Remote(self.redis, self._presence, local=("changes",)))

    def cache(self) -> ports.SessionCache:
        return cast("ports.SessionCache", Remote(self.redis, self.cache_data))

    def notifications(self) -> ports.Notifications:
        return cast("ports.Notifications", Remote(self.nats, self._notifications, local=("listen",)))

    def log(self) -> ports.OfflineLog:
        return cast("ports.OfflineLog", _Log(self.nats, self._log))

    def queues(self) -> ports.Queues:
        return cast("ports.Queues", Remote(self.sql, self.queue_data))

    def partitions(self) -> ports.Partitions:
        return cast("ports.Partitions", Remote(self.sql, self.partition_data))

    def accounts(self) -> ports.Accounts:
        return cast("ports.Accounts", Remote(self.sql, self.registry))
