"""What is asked of a mesh under measurement, and what it gave.

Everything is counted: what was confirmed, received, lost, doubled.  A message counts as confirmed when its sender has
been told that all copies are accounted for; so a rate is that of messages with their receipts.
"""

import asyncio
import functools
import sqlite3
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any, Self

import zmq

from scripts.harness.clients.minimal import DELIVERED, KEPT, Key, Light
from scripts.harness.clients.misbehaving import context
from scripts.harness.mesh.measured_mesh import Cost, Measured
from scripts.harness.mesh.seed_database import Enrolled

BODY_BYTES = 128
WINDOW = 16
AT_ONCE = 50
"""Connections being made."""
SETTLE_S = 10.0
OFFLINE_S = 120.0
KEPT_UP = 0.98
"""Of the rate that was asked for: below, messages waited for whoever sends them."""
_TIMER_S = 0.001
_STEP_S = 0.05

Told = Callable[[str, float], None]
"""Is told what is being done, and how much of it is done, from 0 to 1."""


class Worthless(Exception):
    """What was measured says nothing: something was lost, or a connection ended."""


class People:
    """Clients of a mesh, by the number of the person."""

    def __init__(self, mesh: Measured) -> None:
        self.lights: dict[int, Light] = {}
        self._mesh = mesh
        self._context = context()
        self._failures: list[str] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, what: self._failures.append(what["message"]))

    async def connect(
        self, numbers: Sequence[int], which: Callable[[int], int], told: Told, traffic: "Traffic | None" = None,
        *, caught_up: bool = False,
    ) -> None:  # fmt: skip
        """Connect them, some at once, each to the connector that `which` says.

        With `traffic` they listen from the start; with `caught_up` it is waited until nothing stored is before them.
        Raises Worthless when that takes somebody too long.
        """
        gate = asyncio.Semaphore(AT_ONCE)
        done = 0

        async def one(number: int) -> None:
            nonlocal done
            async with gate:
                endpoint, key = self._mesh.endpoints[which(number) % len(self._mesh.endpoints)]
                light = self.lights[number] = Light(self._context, endpoint, key, Enrolled.of(number))
                if traffic is not None:
                    traffic.listen(light)
                async with asyncio.timeout(60):
                    await (light.caught_up if caught_up else light.welcomed)
                done += 1
                told("connecting", done / len(numbers))

        try:
            await asyncio.gather(*map(one, numbers))
        except (TimeoutError, zmq.ZMQError) as error:
            raise Worthless(f"{done} of {len(numbers)} people could connect ({error!r})") from error

    @property
    def resent(self) -> int:
        """Messages that were submitted again, because nothing was heard of them in time."""
        return sum(light.resent for light in self.lights.values())

    @property
    def doubled(self) -> int:
        """Messages that came again, and were recognised."""
        return sum(light.doubled for light in self.lights.values())

    @property
    def failed(self) -> bool:
        """Whether a connection has ended."""
        return bool(self._failures)

    def check(self) -> None:
        """Raises Worthless when a connection has ended."""
        if self._failures:
            raise Worthless(f"{len(self._failures)} connections ended, the first because: {self._failures[0]}")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        """Close all connections.  Raises Worthless when one has ended before, unless that is known already."""
        for light in self.lights.values():
            light.close()
        await asyncio.sleep(_STEP_S)
        self._context.destroy(0)
        if kind is None:
            self.check()


class Traffic:
    """Messages between people, and what becomes of them."""

    def __init__(self, people: People, senders: Sequence[int], recipients: Sequence[int], confirms: int) -> None:
        """A message is confirmed when this (DELIVERED or KEPT) became of it.  Who is not connected receives nothing."""
        self.sent = self.confirmed = self.received = self.doubled = 0
        self.next: Callable[[int], None] | None = None
        """Called with a sender of whom something was confirmed."""
        self.latencies: list[float] | None = None
        """Seconds from when it was due to the call that hands it over, while it is a list."""
        self._people = people
        self._confirms = confirms
        self._under_way: dict[int, float] = {}
        for sender in senders:
            people.lights[sender].on_settled = functools.partial(self._settled, sender)
        for recipient in recipients:
            if recipient in people.lights:
                self.listen(people.lights[recipient])

    def listen(self, light: Light) -> None:
        """Count what comes to this one."""
        light.on_message = self._message

    def send(self, sender: int, to: int, due: float | None = None) -> None:
        """`due` is when it should have been sent, if that was earlier: its latency counts from then."""
        number = self.sent
        self.sent += 1
        self._under_way[number] = time.perf_counter() if due is None else due
        body = b"%016d" % number + b"x" * (BODY_BYTES - 16)
        self._people.lights[sender].send(Enrolled.of(to).user, body)

    def _message(self, body: bytes, _sender: int) -> None:
        since = self._under_way.pop(int(body[:16]), None)
        if since is None:
            self.doubled += 1
            return
        self.received += 1
        if self.latencies is not None:
            self.latencies.append(time.perf_counter() - since)

    def _settled(self, sender: int, _to: Key, _seq: int, how: int) -> None:
        if how == self._confirms:
            self.confirmed += 1
            if self.next is not None:
                self.next(sender)

    async def settle(self) -> None:
        """Wait for what is under way.  Raises Worthless when something does not come, or comes twice."""
        await _until(lambda: self._people.failed or self.confirmed == self.received == self.sent, SETTLE_S)
        self._people.check()
        if (self.confirmed, self.received, self.doubled) != (self.sent, self.sent, 0):
            raise Worthless(
                f"{self.sent} were sent, {self.confirmed} confirmed, {self.received} received, {self.doubled} doubled"
            )


class Soak:
    """Memory of the mesh while it works, looked at every few seconds."""

    def __init__(self, mesh: Measured, every_s: float) -> None:
        self.rss_kib: list[tuple[float, dict[str, int]]] = []
        """Seconds since it began, and KiB by process."""
        self._mesh = mesh
        self._every_s = every_s
        self._began = time.monotonic()
        self._next = 0.0

    def look(self) -> None:
        at = time.monotonic() - self._began
        if at >= self._next:
            self._next = at + self._every_s
            self.rss_kib.append((round(at, 1), self._mesh.usage().rss_kib))


def _across(senders: int) -> Callable[[int], int]:
    """Senders on all connectors in turns, those they write to on the next one: every message crosses a transfer."""
    return lambda number: number if number < senders else number - senders + 1


async def online(mesh: Measured, pairs: int, window: int, warm_s: float, seconds: float, told: Told) -> dict[str, Any]:
    """Pairs that talk one way as fast as receipts come back: `window` messages of each sender are unconfirmed."""
    async with People(mesh) as people:
        await people.connect(range(2 * pairs), _across(pairs), told, caught_up=True)
        traffic = Traffic(people, range(pairs), range(pairs, 2 * pairs), DELIVERED)
        traffic.next = lambda sender: traffic.send(sender, pairs + sender)
        for sender in range(pairs):
            for _ in range(window):
                traffic.next(sender)
        await _pass_time(warm_s, "warming up", told)
        since, before = mesh.usage(), traffic.confirmed
        await _pass_time(seconds, "measuring", told)
        cost = mesh.cost(since, traffic.confirmed - before)
        traffic.next = None
        await traffic.settle()
        return cost._asdict() | {"resent": people.resent}


async def paced(
    mesh: Measured, users: int, rate: float, warm_s: float, seconds: float, told: Told, soak: "Soak | None" = None
) -> dict[str, Any]:  # fmt: skip
    """So many messages a second, evenly spaced, half of the users to the other half in turns; how long each took."""
    pairs = users // 2
    async with People(mesh) as people:
        await people.connect(range(2 * pairs), _across(pairs), told, caught_up=True)
        traffic = Traffic(people, range(pairs), range(pairs, 2 * pairs), DELIVERED)
        await _feed(traffic, pairs, rate, warm_s, lambda done: told("warming up", done))
        since, before = mesh.usage(), traffic.confirmed
        traffic.latencies = [] if soak is None else None

        def look(done: float) -> None:
            told("measuring", done)
            if soak is not None:
                soak.look()

        await _feed(traffic, pairs, rate, seconds, look)
        cost = mesh.cost(since, traffic.confirmed - before)
        await traffic.settle()
        resent = people.resent
    if cost.rate < KEPT_UP * rate:
        raise Worthless(f"{cost.rate:,.0f} messages a second is what this machine does, {rate:,.0f} were asked for")
    return cost._asdict() | percentiles_ms(traffic.latencies or []) | {"resent": resent}


async def _feed(traffic: Traffic, pairs: int, rate: float, seconds: float, look: Callable[[float], None]) -> None:
    """Send evenly spaced; above a thousand a second what is due within a millisecond together.

    A loop's timers are no finer: it would turn in circles, and take from the mesh the processor that it needs.
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
        look(sent / count)
        await asyncio.sleep(max(step_s, began + sent / rate - time.perf_counter()))


async def offline(mesh: Measured, senders: int, window: int, away: int, messages: int, told: Told) -> dict[str, Any]:
    """Store messages for people who are away, until they are in the database; then all of these log in and collect."""
    absent = range(senders, senders + away)
    async with People(mesh) as people:
        await people.connect(range(senders), lambda number: number, told)
        traffic = Traffic(people, range(senders), absent, KEPT)
        steps = await _store(mesh, traffic, senders, window, absent, messages, told)
    async with People(mesh) as people:
        steps |= await _collect(mesh, traffic, people, absent, messages, told)
        return {name: cost._asdict() for name, cost in steps.items()} | {"came_again": people.doubled}


async def _store(
    mesh: Measured, traffic: Traffic, senders: int, window: int, absent: range, messages: int, told: Told
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
        lambda: traffic.confirmed == messages, OFFLINE_S, lambda: told("storing", traffic.confirmed / messages)
    ):
        raise Worthless(f"{traffic.confirmed} of {messages} messages were stored")
    stored = mesh.cost(since, messages)
    if not await _until(lambda: _rows(mesh) == messages, OFFLINE_S):
        raise Worthless(f"{_rows(mesh)} of {messages} messages are in the database")
    return {"stored": stored, "written": mesh.cost(since, messages)}


async def _collect(
    mesh: Measured, traffic: Traffic, people: People, absent: range, messages: int, told: Told
) -> dict[str, Cost]:
    since = mesh.usage()
    connecting = asyncio.ensure_future(people.connect(absent, lambda number: number, _untold, traffic))
    came = await _until(
        lambda: traffic.received == messages, OFFLINE_S, lambda: told("collecting", traffic.received / messages)
    )
    collected = mesh.cost(since, messages)
    await connecting
    if not came:
        raise Worthless(f"{traffic.received} of {messages} messages came, {traffic.doubled} twice")
    if not await _until(lambda: not _unread(mesh, absent), OFFLINE_S):
        raise Worthless(f"{_unread(mesh, absent)} of {messages} messages were collected, and not marked as read")
    return {"collected": collected, "marked": mesh.cost(since, messages)}


def _untold(_what: str, _done: float) -> None:
    """Nobody is told."""


def _rows(mesh: Measured) -> int:
    return _count(mesh, "true")


def _unread(mesh: Measured, people: range) -> int:
    """Of these people, not of those whom they sent receipts."""
    first, last = Enrolled.of(people[0]).user, Enrolled.of(people[-1]).user
    return _count(mesh, "has_read = 0 and to_device between ? and ?", first, last)


def _count(mesh: Measured, which: str, *values: int) -> int:
    query = f"select count(*) from im_offline where {which}"  # noqa: S608  # two conditions of ours
    with closing(sqlite3.connect(f"file:{mesh.data / 'meshim.db'}?mode=ro", uri=True)) as database:
        return int(database.execute(query, values).fetchone()[0])


async def idle(mesh: Measured, warm: int, connections: int, rest_s: float, told: Told) -> dict[str, Any]:
    """Connections that say nothing: how many are made in a second, and what each keeps in memory.

    So many others come and go first, so that what is loaded once is not counted.
    """
    async with People(mesh) as people:
        await people.connect(range(connections, connections + warm), lambda number: number, _untold)
    await asyncio.sleep(1.0)
    async with People(mesh) as people:
        since = mesh.usage()
        await people.connect(range(connections), lambda number: number, told)
        cost = mesh.cost(since, connections)
        await _pass_time(rest_s, "waiting", told)
        now = mesh.usage()
    by = {name: round((kib - since.rss_kib[name]) / connections, 2) for name, kib in now.rss_kib.items()}
    kib = round((sum(now.rss_kib.values()) - sum(since.rss_kib.values())) / connections, 2)
    return cost._asdict() | {"kib": kib, "kib_by": by}


async def _pass_time(seconds: float, what: str, told: Told) -> None:
    steps = max(1, round(seconds / _STEP_S))
    for step in range(steps):
        await asyncio.sleep(seconds / steps)
        told(what, (step + 1) / steps)


async def _until(condition: Callable[[], bool], within_s: float, look: Callable[[], None] = lambda: None) -> bool:
    """Wait for it; False when that takes too long."""
    until = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > until:
            return False
        look()
        await asyncio.sleep(_STEP_S / 10)
    look()
    return True


def percentiles_ms(latencies: Sequence[float]) -> dict[str, float]:
    """Median, 99th percentile and maximum of seconds, in milliseconds; nothing of nothing."""
    if not latencies:
        return {}
    ordered = sorted(latencies)
    shares = {"p50_ms": 0.5, "p99_ms": 0.99, "max_ms": 1.0}
    last = len(ordered) - 1
    return {name: round(1e3 * ordered[min(last, int(share * len(ordered)))], 3) for name, share in shares.items()}
