"""Redis, NATS and the database: the stores in memory, behind a network, on servers that fail as real ones do.

Acknowledged means kept.  A call that raised may have happened or not: the request was lost, or only its answer, or
the server was stopped and does it later, when nobody waits for it any more.
"""

import asyncio
import copy
import enum
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from functools import partial
from typing import Any, cast

from meshim.errors import BackendUnavailable, MeshimError
from meshim.stores import ports
from meshim.stores.memory import accounts, database, nats, redis
from meshim.wire.notification import Notification, encode_notification
from meshim.wire.offline_log import decode_record
from tests.sim.judge import Judge
from tests.sim.world import WALL_S, Process, World, current, settle

NAMESPACE = "sim"
RECONNECT_S = 0.2
"""How long subscribers take to come back to a server that was away."""


class ServerState(enum.Enum):
    UP = enum.auto()
    AWAY = enum.auto()
    """It refuses connections."""
    STALLED = enum.auto()
    """It is stopped: what it is asked it does when it goes on."""


class Server:
    """One server.  `wall_s` is by how much its clock is wrong."""

    def __init__(self, world: World, name: str, delay_s: tuple[float, float], timeout_s: float) -> None:
        """`delay_s` is the least and the most that one way takes; callers wait for `timeout_s`."""
        self.world = world
        self.name = name
        self.state = ServerState.UP
        self.wall_s = 0.0
        self.loss = 0.0
        """Share of requests, and of answers, that get lost."""
        self.slow = 0.0
        """Share of requests that take up to `timeout_s` / 4, as when a disk is busy."""
        self.unreachable: set[str] = set()
        """Names of processes that are cut off from it."""
        self.asking: Process | None = None
        """Who it is working for."""
        self.on_failure: Callable[[str], None] = lambda what: None
        """Gets the names of calls that failed because it was away."""
        self._delay_s = delay_s
        self._patience_s = timeout_s
        self._waiting: list[Callable[[], None]] = []
        self._up_since = -RECONNECT_S

    def clock(self) -> float:
        """Seconds since 1970."""
        return WALL_S + self.world.now + self.wall_s

    def resume(self) -> None:
        """Answer (again)."""
        if self.state is ServerState.AWAY:
            self._up_since = self.world.now
        self.state = ServerState.UP
        waiting, self._waiting = self._waiting, []
        for work in waiting:
            work()

    async def call(self, what: str, work: Callable[[], Any]) -> Any:
        """What `work` returns; raises what it raises, and BackendUnavailable."""
        process = current()
        loop = process.loop
        answer = loop.create_future()
        self.world.after(self._travel(), lambda: self._arrived(process, what, work, answer))
        timeouts = loop.call_later(self._patience_s, self._give_up, what, answer)
        try:
            return await answer
        finally:
            timeouts.cancel()

    def tell(self, process: Process, hear: Callable[[], None]) -> None:
        """Push something to a subscriber, who hears it unless the way is cut, or it has just begun to connect again."""

        def arrive() -> None:
            connected = self.state is ServerState.UP and self.world.now - self._up_since >= RECONNECT_S
            if process.alive and connected and process.name not in self.unreachable:
                hear()

        self.world.after(self._travel(), arrive)

    def _travel(self) -> float:
        return self.world.random.uniform(*self._delay_s)

    def _lost(self) -> bool:
        return self.loss > 0 and self.world.random.random() < self.loss

    def _give_up(self, what: str, answer: Any) -> None:
        if not answer.done():
            self.on_failure(what)
            answer.set_exception(BackendUnavailable(f"{self.name} does not answer"))

    def _arrived(self, process: Process, what: str, work: Callable[[], Any], answer: Any) -> None:
        if self.state is ServerState.STALLED:
            self._waiting.append(lambda: self._arrived(process, what, work, answer))
        elif self.state is ServerState.AWAY:
            self.world.after(self._travel(), lambda: self._give_up(what, answer))
        elif process.name not in self.unreachable and not self._lost():
            slow = self.slow > 0 and self.world.random.random() < self.slow
            wait_s = self.world.random.uniform(0.0, self._patience_s / 4) if slow else 0.0
            self.world.after(wait_s, lambda: self._work(process, work, answer))

    def _work(self, process: Process, work: Callable[[], Any], answer: Any) -> None:
        if self.state is ServerState.STALLED:
            self._waiting.append(lambda: self._work(process, work, answer))
            return
        if self.state is ServerState.AWAY:
            return  # it was killed before it came to that
        self.asking = process
        result: Any = None
        failure: MeshimError | None = None
        try:
            result = work()
        except MeshimError as error:
            failure = error
        except Exception as error:  # noqa: BLE001  # not swallowed: it ends the simulation
            process.fail(error)
        finally:
            self.asking = None
        if not self._lost():
            self.world.after(self._travel(), lambda: _answer(process, answer, result, failure))


def _answer(process: Process, answer: Any, result: Any, failure: MeshimError | None) -> None:
    if not process.alive or answer.done():
        return
    if failure is not None:
        answer.set_exception(failure)
    else:
        answer.set_result(result)


def at_once(work: Coroutine[Any, Any, Any]) -> Any:
    """The result of a coroutine that waits for nothing."""
    try:
        work.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("a store in memory waits for something")


class _Remote:
    """A port on a server: each call travels there, happens as a whole, and travels back."""

    def __init__(self, server: Server, port: object, *, near: Sequence[str] = ()) -> None:
        """Calls in `near` do not travel: subscriptions."""
        self._server = server
        self._port = port
        self._near = near

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._port, name)
        if name in self._near:
            return method
        server = self._server

        async def call(*arguments: Any, **named: Any) -> Any:
            return await server.call(name, lambda: at_once(method(*arguments, **named)))

        return call


class _Log(_Remote):
    """The log; who fetches and finds nothing is told when there is something."""

    async def fetch(self, partition: int, most: int, wait_s: float) -> list[ports.LogMessage]:
        found = await self._fetch(partition, most)
        if found or wait_s <= 0:
            return found
        loop = current().loop
        stored = loop.create_future()
        log = cast("SimLog", self._port)
        log.followers.setdefault(partition, []).append(lambda: settle(stored, None))
        timeouts = loop.call_later(wait_s, settle, stored, None)
        await stored
        timeouts.cancel()
        return await self._fetch(partition, most)

    async def _fetch(self, partition: int, most: int) -> list[ports.LogMessage]:
        fetch = cast("SimLog", self._port).take
        return cast("list[ports.LogMessage]", await self._server.call("fetch", lambda: fetch(partition, most)))


class SimRedis(redis.MemoryRedis):
    """Can come back with what it knew a while ago."""

    _KEPT = ("leases", "presence", "logins", "accounts", "last_session")

    def dump(self) -> dict[str, Any]:
        """What it holds now."""
        held = {name: getattr(self, name) for name in self._KEPT}
        return {
            name: copy.deepcopy(value._held) if isinstance(value, redis.Expiring) else copy.deepcopy(value)
            for name, value in held.items()
        }

    def restore(self, dump: dict[str, Any]) -> None:
        """Another run, which has read an old dump."""
        self.start(wiped=True)
        for name, value in dump.items():
            held = getattr(self, name)
            if isinstance(held, redis.Expiring):
                held._held = copy.deepcopy(value)
            else:
                setattr(self, name, copy.deepcopy(value))


class SimPresence(redis.MemoryPresence):
    """Tells the judge which races were met."""

    def __init__(self, redis: SimRedis, judge: Judge) -> None:
        super().__init__(redis, NAMESPACE)
        self._judge = judge
        self._known = redis.presence

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
    """At most once: a notice takes its time, and is lost where NATS or its way to the listener is not there."""

    def __init__(self, broker: nats.MemoryNats, server: "Server") -> None:
        super().__init__(broker, NAMESPACE)
        self._server = server
        self._listening: dict[int, Process] = {}
        """Who has made which queue, by its identity."""

    async def listen(self, incarnation: int) -> AsyncGenerator[Notification]:
        notifications = await super().listen(incarnation)
        _, heard = self._nats.listeners[-1]
        self._listening[id(heard)] = current()
        return notifications

    def _publish(self, to: str, notification: Notification) -> None:
        for subjects, heard in self._nats.listeners:
            if f"{NAMESPACE}.{to}" in subjects:
                process = self._listening[id(heard)]
                self._server.tell(process, partial(_hear, heard, encode_notification(notification)))


def _hear(heard: "asyncio.Queue[bytes]", data: bytes) -> None:
    if not heard.full():
        heard.put_nowait(data)


class SimLog(nats.MemoryOfflineLog):
    """Tells the judge what is in the log, and who follows a partition that there is something."""

    def __init__(self, broker: nats.MemoryNats, ack_wait_s: float, judge: Judge) -> None:
        super().__init__(broker, NAMESPACE, ack_wait_s=ack_wait_s)
        self.followers: dict[int, list[Callable[[], object]]] = {}
        self._judge = judge

    async def publish(self, partition: int, data: bytes) -> int:
        position = await super().publish(partition, data)
        self._judge.logged(partition, position, decode_record(data).entries)
        for follower in self.followers.pop(partition, ()):
            follower()
        return position

    async def acknowledge(self, partition: int, positions: Sequence[int]) -> None:
        self._judge.unlogged(partition, positions)
        await super().acknowledge(partition, positions)

    def take(self, partition: int, most: int) -> list[ports.LogMessage]:
        return self._take(self._partition(partition), most)


class SimQueues(database.MemoryQueues):
    """Tells the judge who syncs."""

    def __init__(self, database: database.MemoryDatabase, partitions: int, sql: Server, judge: Judge) -> None:
        super().__init__(database, partitions)
        self.on_claim: Callable[[int, int], None] = lambda device, session: None
        """Gets the device and the session number of who has leased a queue."""
        self.on_page: Callable[[int], None] = lambda device: None
        """Gets the device whose queue was read, and something was in it."""
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
            self._judge.queue_claimed(device, self._sql.asking, fence)
            self.on_claim(device, session)
        return fence

    async def page(
        self, user: int, device: int, fence: int, after: tuple[int, int], rows: int, size: int, lease_s: float
    ) -> ports.Page:
        page = await super().page(user, device, fence, after, rows, size, lease_s)
        self._judge.queue_used("read", device, self._sql.asking, fence)
        if page.rows:
            self.on_page(device)
        return page

    async def mark_read(self, device: int, fence: int, row_ids: Sequence[int]) -> None:
        await super().mark_read(device, fence, row_ids)
        self._judge.queue_used("marked", device, self._sql.asking, fence)
        self._judge.marked(device, row_ids)


class SimPartitions(database.MemoryPartitions):
    """Tells the judge who writes."""

    def __init__(self, database: database.MemoryDatabase, judge: Judge) -> None:
        super().__init__(database)
        self.on_stored: Callable[[int], None] = lambda device: None
        """Gets devices that have new rows."""
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
    """The three servers, and their ports as a process sees them."""

    def __init__(self, world: World, judge: Judge, partitions: int, *, ack_wait_s: float) -> None:
        self.redis = Server(world, "redis", (0.0001, 0.0005), 1.0)
        self.nats = Server(world, "nats", (0.0002, 0.001), 2.0)
        self.sql = Server(world, "sql", (0.0005, 0.004), 5.0)
        self.redis_data = SimRedis(self.redis.clock)
        self.broker = nats.MemoryNats(self.nats.clock)
        self.database = database.MemoryDatabase(self.sql.clock)
        self._leases = redis.MemoryLeases(self.redis_data, NAMESPACE)
        self._presence = SimPresence(self.redis_data, judge)
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
        return cast("ports.Leases", _Remote(self.redis, self._leases))

    def presence(self) -> ports.Presence:
        return cast("ports.Presence", _Remote(self.redis, self._presence, near=("changes",)))

    def cache(self) -> ports.SessionCache:
        return cast("ports.SessionCache", _Remote(self.redis, self.cache_data))

    def notifications(self) -> ports.Notifications:
        return cast("ports.Notifications", _Remote(self.nats, self._notifications, near=("listen",)))

    def log(self) -> ports.OfflineLog:
        return cast("ports.OfflineLog", _Log(self.nats, self._log))

    def queues(self) -> ports.Queues:
        return cast("ports.Queues", _Remote(self.sql, self.queue_data))

    def partitions(self) -> ports.Partitions:
        return cast("ports.Partitions", _Remote(self.sql, self.partition_data))

    def accounts(self) -> ports.Accounts:
        return cast("ports.Accounts", _Remote(self.sql, self.registry))
