"""The REST application over memory ports or real backends, which a test can make unavailable."""

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from io import StringIO
from typing import Any, cast

import httpx
from litestar import Litestar

from meshim import topology
from meshim.client.rest import Api
from meshim.errors import BackendUnavailable, StorageFailed
from meshim.rest.app import build
from meshim.rest.backends import Backends, Clock
from meshim.rest.passwords import Passwords
from meshim.runtime.crypto import MasterKey
from meshim.runtime.log import Log
from meshim.stores.memory.accounts import MemoryAccounts
from meshim.stores.memory.database import MemoryDatabase
from meshim.stores.ports import Accounts, Leases, Notifications, Presence, SessionCache
from meshim.stores.sql import migrate
from meshim.stores.sql.accounts import SqlAccounts
from meshim.stores.sql.database import Database
from meshim.topology import Limits, Topology
from meshim.wire import rest
from meshim.wire.notification import Notification
from tests.contract.redis.backends import Backend, open_backend

PASSWORD = "correct horse"


class Switch:
    """A port that can be turned off: then every call raises, as if its backend were unavailable."""

    def __init__(self, port: object, name: str) -> None:
        self.off = False
        self._port = port
        self._name = name

    def __getattr__(self, method: str) -> Callable[..., Awaitable[Any]]:
        async def call(*args: Any, **kwargs: Any) -> Any:
            if self.off:
                raise BackendUnavailable(f"{self._name} is away.")
            return await getattr(self._port, method)(*args, **kwargs)

        return call


class RecordedNotifications:
    """Records each notification with the incarnation that it went to, or None for all."""

    def __init__(self) -> None:
        self.notifications: list[tuple[int | None, Notification]] = []

    async def tell(self, incarnation: int, notification: Notification) -> None:
        self.notifications.append((incarnation, notification))

    async def tell_all(self, notification: Notification) -> None:
        self.notifications.append((None, notification))

    def listen(self, incarnation: int) -> AsyncIterator[Notification]:
        raise AssertionError("the service never listens")


class World:
    """`app` is the application; `sql`, `redis` and `nats` switch its backends."""

    def __init__(self, accounts: Accounts, backend: Backend, log: StringIO) -> None:
        self.accounts = accounts
        self.cache = backend.session_cache()
        self.presence = backend.presence()
        self.leases = backend.leases()
        self.recorded = RecordedNotifications()
        self.log = log
        self.master = MasterKey(bytes(32))
        self.sql = Switch(accounts, "The database")
        self.redis = [Switch(port, "Redis") for port in (self.cache, self.presence, self.leases)]
        self.nats = Switch(self.recorded, "NATS")
        self.not_stored = ""
        """Why NATS stores nothing."""
        self.storing_asked = 0
        """How often NATS was asked whether it stores."""
        self.topology = small()
        self.passwords = Passwords()
        self.app = self.build()

    async def stores(self) -> None:
        """Whether NATS stores."""
        self.storing_asked += 1
        if self.not_stored:
            raise StorageFailed(self.not_stored)

    def build(self, master: MasterKey | None = None, clock: Clock = time.time) -> Litestar:
        """Another process of the service on the same backends."""
        cache, presence, leases = self.redis

        async def nats() -> None:
            await cast("Notifications", self.nats).tell(0, cast("Any", None))

        backends = Backends(
            accounts=cast("Accounts", self.sql),
            leases=cast("Leases", leases),
            presence=cast("Presence", presence),
            cache=cast("SessionCache", cache),
            notifications=cast("Notifications", self.nats),
            probes={"sql": self.sql.ping, "redis": leases.run_id, "nats": nats},
            storing={"sql": self.sql.check_writable, "nats": self.stores},
        )
        return build(
            backends=backends,
            passwords=self.passwords,
            master=master or self.master,
            topology=self.topology,
            log=Log("rest", "r1", self.log),
            clock=clock,
        )

    def turn(self, *, sql: bool = True, redis: bool = True, nats: bool = True) -> None:
        """Choose which backends answer from now on."""
        self.sql.off = not sql
        self.nats.off = not nats
        for switch in self.redis:
            switch.off = not redis

    def api(self, token: str | None = None, app: Litestar | None = None) -> Api:
        return Api("http://localhost", token=token, transport=self.transport(app=app))

    def raw(self, address: str = "127.0.0.1") -> httpx.AsyncClient:
        return httpx.AsyncClient(base_url="http://localhost", transport=self.transport(address))

    def transport(self, address: str = "127.0.0.1", app: Litestar | None = None) -> httpx.ASGITransport:
        return httpx.ASGITransport(
            app=cast("Any", app or self.app), client=(address, 50000), raise_app_exceptions=False
        )


def small() -> Topology:
    """The default topology, with limits that a test can reach."""
    default = topology.default()
    return Topology(
        connectors=default.connectors,
        transfers=default.transfers,
        writers=default.writers,
        rest=default.rest,
        limits=Limits(devices_per_user=3, relations_per_user=3),
    )


@asynccontextmanager
async def world_of(
    kind: str, sql_url: Callable[[], str], redis_url: Callable[[], str], namespace: str
) -> AsyncIterator[World]:
    """`kind` is `memory`, or the kind of a database; only then the URLs are used."""
    async with AsyncExitStack() as stack:
        backend = await stack.enter_async_context(
            open_backend("memory" if kind == "memory" else "redis", redis_url, namespace)
        )
        accounts: Accounts
        if kind == "memory":
            accounts = MemoryAccounts(MemoryDatabase())
        else:
            url = sql_url()
            migrate.upgrade(url)
            database = Database(url, 2)
            stack.push_async_callback(database.close)
            accounts = SqlAccounts(database)
        world = World(accounts, backend, StringIO())
        set_clock = getattr(backend, "set_clock", None)
        if set_clock is not None:
            set_clock(time.time())
        stack.callback(world.passwords.close)
        yield world


# ---------------------------------------------------------------- users


async def new_user(world: World, name: str) -> Api:
    """Register a user, and log in for REST alone."""
    api = world.api()
    await api.register(name, PASSWORD)
    await api.login(name, PASSWORD)
    return api


async def befriend(world: World, alice: Api, bob: Api, name: str = "bob") -> rest.Relation:
    """Make friends of alice and a user of this name."""
    await alice.request(name)
    relation = await bob.accept("alice")
    world.recorded.notifications.clear()
    return relation
