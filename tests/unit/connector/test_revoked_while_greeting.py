"""A logout or a takeover while a greeting is under way, in every order of their calls to the backends.

Both run with the real code of both roles.  Each call to a backend waits at a gate, and a schedule says which side's
next call is made.  In every order the revoked token has no session in the end: the logout has kicked it, or the
connector has seen that the token is gone.
"""

import asyncio
import io
import itertools
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterator
from contextlib import AsyncExitStack
from typing import Any, cast

import pytest

from meshim.connector import events as e
from meshim.connector.authenticator import Backends
from meshim.connector.core import ConnectorCore
from meshim.connector.shell import Shell
from meshim.errors import BackendUnavailable
from meshim.rest.backends import Backends as RestBackends
from meshim.rest.change_notifier import ChangeNotifier
from meshim.rest.sessions import Sessions
from meshim.rest.tokens import Tokens
from meshim.runtime.crypto import hash_token
from meshim.runtime.log import Log
from meshim.runtime.service import Service
from meshim.stores.memory.accounts import MemoryAccounts
from meshim.stores.memory.database import MemoryDatabase, MemoryQueues
from meshim.stores.memory.redis import MemoryPresence, MemoryRedis, MemorySessionCache
from meshim.stores.ports import Account, Login
from meshim.topology import Topology
from meshim.wire.client import Greet, Welcome, decode_from_connector, encode
from meshim.wire.envelope import WIRE_VERSION
from meshim.wire.link import Close
from meshim.wire.notification import Notification
from tests.unit.connector.client_transport import RecordingTransport
from tests.unit.connector.world import HERE, options

TOKEN, TAKER = b"t" * 32, b"n" * 32
EPOCH = 7
TOPOLOGY = Topology(connectors=(), transfers=(), writers=(), rest=())
GREETING, OTHER = "greeting", "other"
SETTLED = 25
"""Turns of the loop after which a side waits at its next gate, or is done."""


class Gates:
    """The calls of both sides that wait, by side; `passed` has every call that was made, in order."""

    def __init__(self) -> None:
        self.waiting: dict[str, deque[tuple[str, asyncio.Future[None]]]] = {GREETING: deque(), OTHER: deque()}
        self.passed: list[tuple[str, str]] = []

    async def wait(self, side: str, what: str) -> None:
        future = asyncio.get_running_loop().create_future()
        self.waiting[side].append((what, future))
        await future
        self.passed.append((side, what))

    async def release(self, side: str) -> bool:
        """Let the next call of this side through, or of the other one when this side has none; False without any."""
        for _ in range(SETTLED):
            await asyncio.sleep(0)
        queue = self.waiting[side] or self.waiting[OTHER if side == GREETING else GREETING]
        if not queue:
            return False
        queue.popleft()[1].set_result(None)
        for _ in range(SETTLED):
            await asyncio.sleep(0)
        return True


class Gated:
    """A port whose calls wait at a gate of their side."""

    def __init__(self, port: object, gates: Gates, side: str) -> None:
        self._port = port
        self._gates = gates
        self._side = side

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._port, name)

        async def call(*arguments: Any) -> Any:
            await self._gates.wait(self._side, name)
            return await method(*arguments)

        return call


class Told:
    """Notifications that reach the connector when they are sent."""

    def __init__(self, receive: Callable[[Notification], None]) -> None:
        self._receive = receive

    async def tell(self, incarnation: int, notification: Notification) -> None:
        assert incarnation == HERE
        self._receive(notification)

    async def tell_all(self, notification: Notification) -> None:
        """No account matters here."""


class World:
    """One device with a token, a connector, and a REST service that share the backends."""

    def __init__(self) -> None:
        self.gates = Gates()
        database, redis = MemoryDatabase(time.time), MemoryRedis(time.time)
        self.accounts = MemoryAccounts(database)
        self.cache, self.presence = MemorySessionCache(redis, "test"), MemoryPresence(redis, "test")
        self.core = ConnectorCore(HERE, "c1", 4, options(), lambda: 0)
        ports = [Gated(each, self.gates, GREETING) for each in (self.presence, self.cache, self.accounts)]
        presence, cache, accounts = (cast("Any", port) for port in ports)
        self.shell = Shell(
            self.core, Backends(presence, cache, accounts, MemoryQueues(database, 4), cast("Any", None)),
            cast("Any", None), None, TOPOLOGY, Service("connector", "c1", shutdown_s=1.0),
        )  # fmt: skip
        self.transport = RecordingTransport(0, self.shell.clients_sent, self.shell.client_gone)
        self.shell.serve(self.transport)
        told = Told(lambda each: self.shell.driver.receive(e.NotificationReceived(each)))
        backends = RestBackends(
            accounts=cast("Any", Gated(self.accounts, self.gates, OTHER)),
            leases=cast("Any", None),
            presence=cast("Any", Gated(self.presence, self.gates, OTHER)),
            cache=cast("Any", Gated(self.cache, self.gates, OTHER)),
            notifications=cast("Any", Gated(told, self.gates, OTHER)),
            probes={},
            storing={},
        )
        log = Log("rest", "r1", io.StringIO())
        notifier = ChangeNotifier(backends, time.time, log)
        self.tokens = Tokens(backends, notifier, 10)
        self.sessions = Sessions(
            backends=backends, notifier=notifier, friends=cast("Any", None), passwords=cast("Any", None),
            topology=TOPOLOGY, clock=time.time, log=log,
        )  # fmt: skip
        self.user = 0

    async def log_in(self, *, cached: bool) -> None:
        self.user = (await self.accounts.register("bob", "hash")).user_id
        now = time.time()
        device, _ = await self.accounts.log_in(self.user, "phone", EPOCH, hash_token(TOKEN), now + 60, now, 10)
        if cached:
            await self.cache.put_login(hash_token(TOKEN), Login(self.user, device.device_id, EPOCH, now + 60))
            await self.cache.put_accounts([Account(self.user, (device.device_id,), (), now)])

    def greet(self) -> None:
        greet = Greet(version=WIRE_VERSION, link=5, token=TOKEN, epoch=EPOCH, window=8, silence_ms=0)
        self.transport.on_batch([(self.transport.peer(1), encode(greet))])

    async def log_out(self) -> None:
        await self.sessions.logout(hash_token(TOKEN))

    async def take_over(self) -> None:
        now = time.time()
        await self.tokens.issue(self.user, "phone", EPOCH + 1, hash_token(TAKER), now + 60, now, takeover=True)

    @property
    def frames(self) -> list[Any]:
        return [decode_from_connector(frame) for _, frame in self.transport.sent]

    async def play(self, schedule: Iterator[str], revoke: Callable[["World"], Coroutine[Any, Any, None]]) -> None:
        """Greet and revoke, with the calls in the order of `schedule`, until neither has a call to make."""
        shell = self.shell
        async with AsyncExitStack() as stack:
            for batches in (shell._greets, shell._bindings, shell._doubtful, shell._renewals, shell._erased):
                task = asyncio.create_task(batches.run())
                stack.callback(task.cancel)
            self.greet()
            revoking = asyncio.create_task(revoke(self))
            while await self.gates.release(next(schedule, GREETING)):
                pass
            await revoking


def schedules(length: int) -> Iterator[tuple[str, ...]]:
    """All orders in which two sides take turns, by the first `length` calls."""
    return itertools.product((GREETING, OTHER), repeat=length)


@pytest.fixture(autouse=True)
def _no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("meshim.connector.shell.PAUSE_S", 0.0)


@pytest.mark.parametrize("cached", [True, False], ids=["cached", "not-cached"])
@pytest.mark.parametrize("revoke", [World.log_out, World.take_over], ids=["logout", "takeover"])
async def test_a_revoked_token_has_no_session_in_the_end(
    cached: bool, revoke: Callable[[World], Coroutine[Any, Any, None]]
) -> None:
    welcomed = refused = 0
    for schedule in schedules(9):
        world = World()
        await world.log_in(cached=cached)
        await world.play(iter(schedule), revoke)
        passed = world.gates.passed
        assert world.core.statistics.sessions == 0, passed
        assert await world.presence.lookup([world.user]) == {}, passed
        frames = world.frames
        assert isinstance(frames[-1], Close), passed
        was_welcomed = any(isinstance(frame, Welcome) for frame in frames)
        # The last thing that a logout does before it is done is to read presence.
        if was_welcomed and (GREETING, "online") in passed:
            assert passed.index((GREETING, "online")) < passed.index((OTHER, "lookup")), passed
        welcomed += was_welcomed
        refused += not was_welcomed
    assert welcomed
    assert refused


async def test_a_token_that_is_verified_in_the_cache_costs_no_query_at_its_second_look() -> None:
    world = World()
    await world.log_in(cached=True)
    await world.play(iter(()), _nothing)
    assert isinstance(world.frames[-1], Welcome)
    assert [what for _, what in world.gates.passed if what in ("unrevoked", "logins_by_token")] == []


async def test_a_token_that_is_not_in_the_cache_is_welcomed_once_the_database_has_confirmed_it() -> None:
    world = World()
    await world.log_in(cached=False)
    await world.play(iter(()), _nothing)
    assert isinstance(world.frames[-1], Welcome)
    assert (GREETING, "unrevoked") in world.gates.passed
    assert world.core.statistics.sessions == 1


async def test_while_redis_does_not_answer_the_second_look_the_session_is_welcomed_and_checked_after(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """R8, R9: a database that hangs must not delay a Welcome that Redis let through."""
    world = World()
    await world.log_in(cached=True)
    logins, asked = world.cache.logins, itertools.count()

    async def second_fails(hashes: Any) -> Any:
        if next(asked):
            raise BackendUnavailable("Redis is away.")
        return await logins(hashes)

    async def revoked(hashes: Any) -> set[bytes]:
        assert isinstance(world.frames[-1], Welcome)
        return set()

    monkeypatch.setattr(world.cache, "logins", second_fails)
    monkeypatch.setattr(world.accounts, "unrevoked", revoked)
    await world.play(iter(()), _nothing)
    assert isinstance(world.frames[-1], Close)
    assert world.core.statistics.sessions == 0


async def _nothing(world: World) -> None:
    """Revoke nothing."""
