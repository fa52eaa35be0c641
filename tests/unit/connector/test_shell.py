"""The connector's shell and its transports: a frame leaves by the transport of its peer."""

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, cast

import pytest

from meshim.connector import events as e
from meshim.connector import router_transport
from meshim.connector import shell as shell_module
from meshim.connector.authenticator import Backends
from meshim.connector.core import ConnectorCore
from meshim.connector.router_transport import RouterTransport, guarding
from meshim.connector.shell import Shell
from meshim.connector.statistics import Statistics
from meshim.connector.transport import ClientTransport
from meshim.errors import BackendUnavailable
from meshim.runtime.send_result import SendResult
from meshim.runtime.service import Service
from meshim.runtime.sockets import Context, KeyPair
from meshim.stores.memory.accounts import MemoryAccounts
from meshim.stores.memory.database import MemoryDatabase, MemoryQueues
from meshim.stores.memory.nats import MemoryNats, MemoryNotifications
from meshim.stores.memory.redis import MemoryPresence, MemoryRedis, MemorySessionCache
from meshim.stores.ports import Lease
from meshim.topology import Topology
from tests.unit.connector.client_transport import RecordingTransport
from tests.unit.connector.world import HERE, options

DEADLINE_S = 10.0
TOPOLOGY = Topology(connectors=(), transfers=(), writers=(), rest=())


class Core:
    """Records events; an event of a client is answered with the actions of `answer`."""

    idle = True

    def __init__(self) -> None:
        self.events: list[e.Event] = []
        self.answer: list[e.Action] = []
        self.statistics = Statistics()

    def receive(self, event: e.Event, now: float) -> Sequence[e.Action]:
        self.events.append(event)
        actions, self.answer = self.answer, []
        return actions

    def tick(self, now: float) -> Sequence[e.Action]:
        return ()

    def next_deadline(self) -> float | None:
        return None

    def close(self, now: float) -> Sequence[e.Action]:
        return ()


class World:
    """A shell around a recording core, or another one."""

    def __init__(
        self, context: Context | None = None, core: ConnectorCore | None = None, mesh_keys: KeyPair | None = None
    ) -> None:
        self.core: Any = core if core is not None else Core()
        self.database, self.redis = MemoryDatabase(time.time), MemoryRedis(time.time)
        self.cache = MemorySessionCache(self.redis, "test")
        backends = Backends(
            presence=MemoryPresence(self.redis, "test"),
            cache=self.cache,
            accounts=MemoryAccounts(self.database),
            queues=MemoryQueues(self.database, 4),
            notifications=MemoryNotifications(MemoryNats(time.time), "test"),
        )
        service = Service("connector", "c1", shutdown_s=1.0)
        self.shell = Shell(
            cast("ConnectorCore", self.core), backends, cast("Context", context), mesh_keys, TOPOLOGY, service
        )

    def transport(self, tag: int) -> RecordingTransport:
        transport = RecordingTransport(tag, self.shell.clients_sent, self.shell.client_gone)
        self.shell.serve(transport)
        return transport

    def perform(self, *actions: e.Action) -> None:
        """Have the core answer an event with these actions."""
        self.core.answer = list(actions)
        self.shell.driver.receive(e.StopRequested())


async def test_a_frame_leaves_by_the_transport_of_its_peer() -> None:
    world = World()
    one, other = world.transport(0), world.transport(1)
    world.perform(e.SendClient(one.peer(7), b"a"), e.SendClient(other.peer(7), b"b"), e.ClosePeer(other.peer(7)))
    assert (one.sent, one.closed_peers) == ([(one.peer(7), b"a")], [])
    assert (other.sent, other.closed_peers) == ([(other.peer(7), b"b")], [other.peer(7)])


async def test_frames_and_departures_reach_the_core() -> None:
    world = World()
    transport = world.transport(1)
    transport.on_batch([(transport.peer(1), b"a"), (transport.peer(2), b"b")])
    transport.on_gone(transport.peer(1))
    assert world.core.events == [
        e.ClientsSent([(transport.peer(1), b"a"), (transport.peer(2), b"b")]),
        e.ClientGone(transport.peer(1)),
    ]


async def test_a_frame_that_finds_no_room_ends_the_connection() -> None:
    world = World()
    transport = world.transport(0)
    gone, full = transport.peer(1), transport.peer(2)
    transport.answers = {gone: SendResult.GONE, full: SendResult.FULL}
    world.perform(e.SendClient(gone, b"a"), e.SendClient(full, b"b"))
    assert world.core.events[1:] == [e.ClientGone(gone), e.ClientGone(full)]
    assert transport.closed_peers == [full]


class FullDealer:
    """A socket to a transfer without room."""

    def __init__(self) -> None:
        self.closed = 0

    def send(self, frame: bytes) -> bool:
        assert not self.closed, "nothing may follow the frame that is missing"
        return False

    def close(self, linger_ms: int = 0) -> None:
        self.closed += 1


async def test_a_bundle_that_finds_no_room_ends_the_link() -> None:
    world, dealer = World(), FullDealer()
    world.shell._dealers[901] = cast("Any", dealer)
    world.perform(e.SendTransfer(901, b"a"), e.SendTransfer(901, b"b"))
    assert world.core.events[1:] == [e.TransferLost(901)]
    assert dealer.closed == 1


async def test_what_comes_after_the_stop_moves_nothing() -> None:
    """The sockets to the transfers are closed, while clients still send and marks are still written."""
    world, dealer = World(), FullDealer()
    world.shell._dealers[901] = cast("Any", dealer)
    await world.shell.stop(DEADLINE_S)
    assert dealer.closed == 1
    world.perform(e.SendTransfer(901, b"late"))
    assert world.core.events == [e.StopRequested()]


async def test_all_transports_are_closed() -> None:
    world = World()
    transports = [world.transport(tag) for tag in (0, 1)]
    world.shell.close_transports(linger_ms=0)
    assert [transport.is_closed for transport in transports] == [True, True]


# ---------------------------------------------------------------- the secret of the mesh


async def test_the_secret_comes_from_the_database_and_is_cached() -> None:
    world = World()
    await world.shell._read_secret()
    assert world.core.events == [e.SecretRead(world.database.secret)]
    assert await world.cache.mesh_secret() == world.database.secret


async def test_while_the_database_is_away_the_cached_secret_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    await world.cache.put_mesh_secret(b"cached")
    monkeypatch.setattr(MemoryAccounts, "mesh_secret", _away)
    await world.shell._read_secret()
    assert world.core.events == [e.SecretRead(b"cached")]


async def test_while_redis_is_away_the_database_is_enough() -> None:
    world = World()
    world.redis.stop()
    await world.shell._read_secret()
    assert world.core.events == [e.SecretRead(world.database.secret)]


async def test_while_both_are_away_the_shell_tries_again(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World()
    world.redis.stop()
    monkeypatch.setattr(shell_module, "SECRET_RETRY_S", 0.0)
    with monkeypatch.context() as outage:
        outage.setattr(MemoryAccounts, "mesh_secret", _away)
        reading = asyncio.create_task(world.shell._read_secret())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not world.core.events
    await asyncio.wait_for(reading, DEADLINE_S)
    assert world.core.events == [e.SecretRead(world.database.secret)]


async def _away(accounts: MemoryAccounts) -> bytes:
    raise BackendUnavailable("stopped")


# ---------------------------------------------------------------- the ROUTER


@pytest.fixture
async def context() -> AsyncIterator[Context]:
    context = Context()
    yield context
    context.close()


async def until(condition: Any) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.001)


@pytest.mark.parametrize(
    ("endpoint", "key"),
    [
        ("tcp://127.0.0.1:1", ""),
        ("tcp://127.0.0.1:1", "short"),
        ("tcp://127.0.0.1:1", "\N{SNOWMAN}" * 40),
        ("tcp://127.0.0.1:nowhere", "k" * 40),
        ("", "k" * 40),
    ],
)
async def test_a_transfer_whose_lease_is_unusable_is_lost_counted_and_logged_once(
    context: Context, endpoint: str, key: str, capfd: pytest.CaptureFixture[str]
) -> None:
    world = World(context, mesh_keys=KeyPair.new())
    lease = Lease("transfer", "t1", 901, endpoint, key)
    world.shell.transfers_discovered("transfer", [lease])
    for _ in range(3):
        world.perform(e.ConnectTransfer(901))
    assert world.core.events.count(e.TransferLost(901)) == 3
    assert world.core.statistics.leases_unusable == 3
    assert capfd.readouterr().err.count("lease-of-a-transfer-unusable transfer=t1") == 1


def router_of(context: Context, world: World, core: ConnectorCore) -> RouterTransport:
    transport = RouterTransport(
        context, "tcp://127.0.0.1:0", keys=None, limits=TOPOLOGY.limits,
        is_authenticated=core.has_greeted, on_batch=world.shell.clients_sent, on_gone=world.shell.client_gone,
    )  # fmt: skip
    world.shell.serve(transport)
    return transport


async def test_a_router_and_another_transport_at_once(context: Context) -> None:
    core = ConnectorCore(HERE, "c1", 4, options(), lambda: 0)
    world = World(context, core)
    transport: ClientTransport = router_of(context, world, core)
    other = world.transport(1)
    got: list[bytes] = []
    dealer = context.dealer(
        transport.endpoint, server_key=None, keys=None, frame_bytes=65_536, on_batch=got.extend, on_lost=None
    )
    await until(lambda: dealer.send(b"garbage"))
    other.on_batch([(other.peer(1), b"garbage")])
    await until(lambda: got)
    assert got == [frame for _, frame in other.sent], "both got the same Close"
    assert other.closed_peers == [other.peer(1)]


async def test_a_router_ends_the_connection_of_a_peer_that_broke_the_protocol(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshim.runtime.sockets.router.CHECK_MEMORY_S", 0.02)
    monkeypatch.setattr("meshim.runtime.sockets.router.CHECK_S", 0.02)
    monkeypatch.setattr(
        router_transport, "guarding", lambda *arguments: guarding(*arguments)._replace(linger_s=0.1, handshake_s=0.0)
    )
    core = ConnectorCore(HERE, "c1", 4, options(), lambda: 0)
    world = World(context, core)
    transport = router_of(context, world, core)
    got: list[bytes] = []
    lost: list[int] = []
    dealer = context.dealer(
        transport.endpoint, server_key=None, keys=None, frame_bytes=65_536, on_batch=got.extend,
        on_lost=lambda: lost.append(len(got)),
    )  # fmt: skip
    await until(lambda: dealer.send(b"garbage"))
    await until(lambda: lost)
    assert lost == [1], "the Close came before the end"
    assert transport.statistics.cut == 1
