"""The load that `bench.py` puts on a measured mesh.

Every message is counted: confirmed, received, lost, duplicated.  A message is confirmed when its sender has the outcome
of all copies; a rate is therefore that of messages with their receipts.
"""

import asyncio
import functools
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any, Self

import zmq

from scripts.harness.clients.connections import Dialer
from scripts.harness.clients.minimal import DELIVERED, STORED, Destination, LinkLost, MinimalClient
from scripts.harness.mesh.measured_mesh import Cost, MeasuredMesh
from scripts.harness.mesh.seed_database import SeededUser

BODY_BYTES = 128
WINDOW = 16
CONNECTING_MAX = 50
"""Connections in the making at a time."""
SETTLE_S = 10.0
OFFLINE_S = 120.0
RATE_SHARE_MIN = 0.98
"""A measurement below this share of the requested rate is invalid: the sending process was the bottleneck."""
_TIMER_S = 0.001
_STEP_S = 0.05

ReportProgress = Callable[[str, float], None]
"""Called with the current step and the share of it that is done, 0 to 1."""


class InvalidMeasurement(Exception):
    """The figures mean nothing: a message was lost or came twice, a connection ended, or the rate was not reached."""


class BenchClients:
    """Minimal clients on a mesh, by the number of the seeded user (from 0)."""

    def __init__(self, mesh: MeasuredMesh) -> None:
        self.by_number: dict[int, MinimalClient] = {}
        self._mesh = mesh
        self._dialer = Dialer(mesh.transport)
        self._failures: list[str] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, context: self._failures.append(context["message"]))

    async def connect(
        self, numbers: Sequence[int], connector_of: Callable[[int], int], progress: ReportProgress,
        traffic: "Traffic | None" = None, *, caught_up: bool = False,
    ) -> None:  # fmt: skip
        """Connect these users, at most `CONNECTING_MAX` at a time, each to the connector with the index `connector_of`.

        `traffic` counts their messages from the start.  With `caught_up`, wait until their offline queues are empty.
        Raises InvalidMeasurement when a connection takes longer than 60 s.
        """
        gate = asyncio.Semaphore(CONNECTING_MAX)
        done = 0

        async def one(number: int) -> None:
            nonlocal done
            async with gate:
                connector = self._mesh.connectors[connector_of(number) % len(self._mesh.connectors)]
                client = self.by_number[number] = MinimalClient(self._dialer, connector, SeededUser.of(number))
                if traffic is not None:
                    traffic.listen(client)
                async with asyncio.timeout(60):
                    await (client.caught_up if caught_up else client.welcomed)
                done += 1
                progress("connecting", done / len(numbers))

        try:
            await asyncio.gather(*map(one, numbers))
        except (TimeoutError, zmq.ZMQError, LinkLost) as error:
            raise InvalidMeasurement(f"{done} of {len(numbers)} users could connect ({error!r})") from error

    @property
    def resent(self) -> int:
        """Messages that were submitted again because their outcome was late."""
        return sum(client.resent for client in self.by_number.values())

    @property
    def doubled(self) -> int:
        """Messages that arrived more than once and were recognised."""
        return sum(client.doubled for client in self.by_number.values())

    @property
    def failed(self) -> bool:
        """Whether a connection has ended."""
        return bool(self._failures)

    def check(self) -> None:
        """Raise InvalidMeasurement when a connection has ended."""
        if self._failures:
            raise InvalidMeasurement(f"{len(self._failures)} connections ended, the first because: {self._failures[0]}")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        """Close all connections.  Raises InvalidMeasurement when one had ended before, unless in an error."""
        for client in self.by_number.values():
            client.close()
        await asyncio.sleep(_STEP_S)
        self._dialer.close()
        if kind is None:
            self.check()


class Traffic:
    """Messages between users, and their outcomes."""

    def __init__(self, clients: BenchClients, senders: Sequence[int], recipients: Sequence[int], confirms: int) -> None:
        """`confirms` is the outcome that confirms a message: DELIVERED or STORED."""
        self.sent = self.confirmed = self.received = self.doubled = 0
        self.next: Callable[[int], None] | None = None
        """Called with the sender of each confirmed message."""
        self.latencies: list[float] | None = None
        """Seconds from the due time of a message to the recipient's callback; nothing is recorded while it is None."""
        self._clients = clients
        self._confirms = confirms
        self._in_flight: dict[int, float] = {}
        for sender in senders:
            clients.by_number[sender].on_settled = functools.partial(self._settled, sender)
        for recipient in recipients:
            if recipient in clients.by_number:
                self.listen(clients.by_number[recipient])

    def listen(self, client: MinimalClient) -> None:
        """Count the messages that this client receives."""
        client.on_message = self._message

    def send(self, sender: int, to: int, due: float | None = None) -> None:
        """Send a message.  Its latency counts from `due`, the time at which it should have been sent, or from now."""
        number = self.sent
        self.sent += 1
        self._in_flight[number] = time.perf_counter() if due is None else due
        body = b"%016d" % number + b"x" * (BODY_BYTES - 16)
        self._clients.by_number[sender].send(SeededUser.of(to).user, body)

    def _message(self, body: bytes, _sender: int) -> None:
        since = self._in_flight.pop(int(body[:16]), None)
        if since is None:
            self.doubled += 1
            return
        self.received += 1
        if self.latencies is not None:
            self.latencies.append(time.perf_counter() - since)

    def _settled(self, sender: int, _to: Destination, _seq: int, status: int) -> None:
        if status == self._confirms:
            self.confirmed += 1
            if self.next is not None:
                self.next(sender)

    async def settle(self) -> None:
        """Wait for all messages in flight.  Raises InvalidMeasurement when one is lost or comes twice."""
        await _until(lambda: self._clients.failed or self.confirmed == self.received == self.sent, SETTLE_S)
        self._clients.check()
        if (self.confirmed, self.received, self.doubled) != (self.sent, self.sent, 0):
            raise InvalidMeasurement(
                f"{self.sent} were sent, {self.confirmed} confirmed, {self.received} received, {self.doubled} doubled"
            )


class MemorySampler:
    """Samples the memory of a mesh under load, every `every_s` seconds."""

    def __init__(self, mesh: MeasuredMesh, every_s: float) -> None:
        self.rss_kib: list[tuple[float, dict[str, int]]] = []
        """Seconds since the start, and KiB by process."""
        self._mesh = mesh
        self._every_s = every_s
        self._began = time.monotonic()
        self._next = 0.0

    def sample(self) -> None:
        """Take a sample if one is due."""
        at = time.monotonic() - self._began
        if at >= self._next:
            self._next = at + self._every_s
            self.rss_kib.append((round(at, 1), self._mesh.usage().rss_kib))


def _across(senders: int) -> Callable[[int], int]:
    """Return a function from user to connector; recipients are on the one after their sender's: messages cross both."""
    return lambda number: number if number < senders else number - senders + 1


async def online(
    mesh: MeasuredMesh, pairs: int, window: int, warm_up_s: float, seconds: float, progress: ReportProgress
) -> dict[str, Any]:
    """Every sender keeps `window` messages unconfirmed to its recipient, for `seconds` after the warm-up."""
    async with BenchClients(mesh) as clients:
        await clients.connect(range(2 * pairs), _across(pairs), progress, caught_up=True)
        traffic = Traffic(clients, range(pairs), range(pairs, 2 * pairs), DELIVERED)
        traffic.next = lambda sender: traffic.send(sender, pairs + sender)
        for sender in range(pairs):
            for _ in range(window):
                traffic.next(sender)
        await _pass_time(warm_up_s, "warming up", progress)
        since, before = mesh.usage(), traffic.confirmed
        await _pass_time(seconds, "measuring", progress)
        cost = mesh.cost(since, traffic.confirmed - before)
        traffic.next = None
        await traffic.settle()
        return cost._asdict() | {"resent": clients.resent}


async def paced(
    mesh: MeasuredMesh, users: int, rate: float, warm_up_s: float, seconds: float, progress: ReportProgress,
    sampler: MemorySampler | None = None,
) -> dict[str, Any]:  # fmt: skip
    """Half of the users send to the other half, in turns, `rate` messages a second evenly spaced."""
    pairs = users // 2
    async with BenchClients(mesh) as clients:
        await clients.connect(range(2 * pairs), _across(pairs), progress, caught_up=True)
        traffic = Traffic(clients, range(pairs), range(pairs, 2 * pairs), DELIVERED)
        await _feed(traffic, pairs, rate, warm_up_s, lambda done: progress("warming up", done))
        since, before = mesh.usage(), traffic.confirmed
        traffic.latencies = [] if sampler is None else None

        def on_step(done: float) -> None:
            progress("measuring", done)
            if sampler is not None:
                sampler.sample()

        await _feed(traffic, pairs, rate, seconds, on_step)
        cost = mesh.cost(since, traffic.confirmed - before)
        await traffic.settle()
        resent = clients.resent
    if cost.rate < RATE_SHARE_MIN * rate:
        raise InvalidMeasurement(
            f"{cost.rate:,.0f} messages a second is what this machine does, {rate:,.0f} were asked for"
        )
    return cost._asdict() | percentiles_ms(traffic.latencies or []) | {"resent": resent}


async def _feed(traffic: Traffic, pairs: int, rate: float, seconds: float, on_step: Callable[[float], None]) -> None:
    """Send at an even pace; above 1,000 a second, all messages of a millisecond go out together.

    The timers of an event loop are no finer: shorter pauses would make it spin and take CPU from the mesh.
    """
    began, sent, count = time.perf_counter(), 0, int(rate * seconds)
    step_s = 0.0 if rate <= 1 / _TIMER_S else _TIMER_S
    while sent < count:
        passed = time.perf_counter() - began
        if step_s:
            passed -= passed % step_s
        due = min(int(passed * rate) + 1, count)
        for number in range(sent, due):
            wanted = number / rate
            traffic.send(number % pairs, pairs + number % pairs, began + wanted + (-wanted % step_s if step_s else 0.0))
        sent = due
        on_step(sent / count)
        await asyncio.sleep(max(step_s, began + sent / rate - time.perf_counter()))


async def offline(
    mesh: MeasuredMesh, senders: int, window: int, away: int, messages: int, progress: ReportProgress
) -> dict[str, Any]:
    """Send messages to offline users until all are in the database; then all of these users log in and collect."""
    absent = range(senders, senders + away)
    async with BenchClients(mesh) as clients:
        await clients.connect(range(senders), lambda number: number, progress)
        traffic = Traffic(clients, range(senders), absent, STORED)
        steps = await _store(mesh, traffic, senders, window, absent, messages, progress)
    async with BenchClients(mesh) as clients:
        steps |= await _collect(mesh, traffic, clients, absent, messages, progress)
        return {name: cost._asdict() for name, cost in steps.items()} | {"came_again": clients.doubled}


async def _store(
    mesh: MeasuredMesh,
    traffic: Traffic,
    senders: int,
    window: int,
    absent: range,
    messages: int,
    progress: ReportProgress,
) -> dict[str, Cost]:
    def store(sender: int) -> None:
        if traffic.sent < messages:
            traffic.send(sender, absent[traffic.sent % len(absent)])

    traffic.next = store
    since = mesh.usage()
    for sender in range(senders):
        for _ in range(window):
            store(sender)
    if not await _until(
        lambda: traffic.confirmed == messages, OFFLINE_S, lambda: progress("storing", traffic.confirmed / messages)
    ):
        raise InvalidMeasurement(f"{traffic.confirmed} of {messages} messages were stored")
    stored = mesh.cost(since, messages)
    if not await _until(lambda: _rows(mesh) == messages, OFFLINE_S):
        raise InvalidMeasurement(f"{_rows(mesh)} of {messages} messages are in the database")
    return {"stored": stored, "written": mesh.cost(since, messages)}


async def _collect(
    mesh: MeasuredMesh, traffic: Traffic, clients: BenchClients, absent: range, messages: int, progress: ReportProgress
) -> dict[str, Cost]:
    since = mesh.usage()
    connecting = asyncio.ensure_future(clients.connect(absent, lambda number: number, _no_progress, traffic))
    came = await _until(
        lambda: traffic.received == messages, OFFLINE_S, lambda: progress("collecting", traffic.received / messages)
    )
    collected = mesh.cost(since, messages)
    await connecting
    if not came:
        raise InvalidMeasurement(f"{traffic.received} of {messages} messages came, {traffic.doubled} twice")
    if not await _until(lambda: not _unread(mesh, absent), OFFLINE_S):
        raise InvalidMeasurement(
            f"{_unread(mesh, absent)} of {messages} messages were collected, and not marked as read"
        )
    return {"collected": collected, "marked": mesh.cost(since, messages)}


def _no_progress(_what: str, _done: float) -> None:
    """Report no progress."""


def _rows(mesh: MeasuredMesh) -> int:
    return _count(mesh, "true")


def _unread(mesh: MeasuredMesh, users: range) -> int:
    """Count the unread rows of these users; receipts that they sent to others do not count."""
    first, last = SeededUser.of(users[0]).user, SeededUser.of(users[-1]).user
    return _count(mesh, "has_read = 0 and to_device between ? and ?", first, last)


def _count(mesh: MeasuredMesh, condition: str, *values: int) -> int:
    query = f"select count(*) from im_offline where {condition}"  # noqa: S608  # two conditions of ours
    with closing(sqlite3.connect(f"file:{mesh.data / 'meshim.db'}?mode=ro", uri=True)) as database:
        return int(database.execute(query, values).fetchone()[0])


async def idle(
    mesh: MeasuredMesh, warm_up: int, connections: int, idle_s: float, progress: ReportProgress
) -> dict[str, Any]:
    """Open connections and leave them idle: connects a second, and memory of each.

    `warm_up` others connect and leave first, so that memory that is allocated once does not count.
    """
    async with BenchClients(mesh) as clients:
        await clients.connect(range(connections, connections + warm_up), lambda number: number, _no_progress)
    await asyncio.sleep(1.0)
    async with BenchClients(mesh) as clients:
        since = mesh.usage()
        await clients.connect(range(connections), lambda number: number, progress)
        cost = mesh.cost(since, connections)
        await _pass_time(idle_s, "waiting", progress)
        now = mesh.usage()
    by = {name: round((kib - since.rss_kib[name]) / connections, 2) for name, kib in now.rss_kib.items()}
    kib = round((sum(now.rss_kib.values()) - sum(since.rss_kib.values())) / connections, 2)
    return cost._asdict() | {"kib": kib, "kib_by": by}


async def _pass_time(seconds: float, what: str, progress: ReportProgress) -> None:
    steps = max(1, round(seconds / _STEP_S))
    for step in range(steps):
        await asyncio.sleep(seconds / steps)
        progress(what, (step + 1) / steps)


async def _until(condition: Callable[[], bool], within_s: float, on_step: Callable[[], None] = lambda: None) -> bool:
    """Wait for a condition; return False after `within_s` seconds."""
    until = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > until:
            return False
        on_step()
        await asyncio.sleep(_STEP_S / 10)
    on_step()
    return True


def percentiles_ms(latencies: Sequence[float]) -> dict[str, float]:
    """Return median, 99th percentile and maximum, in milliseconds, of latencies in seconds; {} of an empty sequence."""
    if not latencies:
        return {}
    ordered = sorted(latencies)
    shares = {"p50_ms": 0.5, "p99_ms": 0.99, "max_ms": 1.0}
    last = len(ordered) - 1
    return {name: round(1e3 * ordered[min(last, int(share * len(ordered)))], 3) for name, share in shares.items()}
