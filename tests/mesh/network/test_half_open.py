"""H12: the network between a device and its connector swallows packets, both ways or one way, and tells neither end.

The connection of bob goes through proxies that hold back what they are told to.  alice is connected directly.
"""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from urllib.parse import urlsplit

import msgspec
import pytest

from meshim.client import Client
from meshim.client.rest import Api
from meshim.wire.rest import Connector
from tests.mesh.harness.fault_injection import short_timers
from tests.mesh.harness.half_open_proxy import HalfOpenProxy
from tests.mesh.harness.library_client import client, expect_nothing_more, receive_texts
from tests.mesh.harness.real_mesh import DEADLINE_S, PASSWORD, RealMesh, running

TOPOLOGY = short_timers(client_heartbeat_s=1.0, client_silence_s=3.0)
DELIVERY_S = TOPOLOGY.timers.delivery_timeout_s
SILENCE_S = TOPOLOGY.timers.client_silence_s
BUSY_S = 2.0
"""For the rest of the way, on a busy machine: it takes some milliseconds."""

DIRECTIONS = {"both ways": (True, True), "from the client": (True, False), "from the connector": (False, True)}


@pytest.fixture(scope="module")
def started_mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealMesh]:
    with running(tmp_path_factory.mktemp("mesh"), TOPOLOGY) as started:
        yield started


@pytest.fixture(params=["zeromq", "websocket"])
def mesh(request: pytest.FixtureRequest, started_mesh: RealMesh) -> RealMesh:
    """By either transport alice and bob connect."""
    return started_mesh.over(request.param)


class Network:
    """The proxies in front of all connectors, made as they are asked for."""

    def __init__(self, proxies: AsyncExitStack) -> None:
        self._entered = proxies
        self._proxies: dict[str, HalfOpenProxy] = {}

    def lead_through(self, device: Client) -> None:
        """Let a device connect through the proxies alone; call it before it connects."""
        ask = device._shell._session.connectors

        async def proxied(fresh: bool) -> list[Connector]:
            return [await self._proxied(connector) for connector in await ask(fresh)]

        device._shell.connection._connectors = proxied

    async def _proxied(self, connector: Connector) -> Connector:
        changed = {"endpoint": await self._through(connector.endpoint), "url": await self._through(connector.url)}
        return msgspec.structs.replace(connector, **changed)

    async def _through(self, address: str) -> str:
        where = urlsplit(address)
        assert where.hostname is not None
        assert where.port is not None
        if address not in self._proxies:
            proxy = HalfOpenProxy(where.hostname, where.port)
            self._proxies[address] = await self._entered.enter_async_context(proxy)
        return address.replace(f":{where.port}", f":{self._proxies[address].port}")

    def swallow(self, from_client: bool, from_server: bool) -> None:
        for proxy in self._proxies.values():
            proxy.swallow(from_client=from_client, from_server=from_server)

    def pass_on(self) -> None:
        for proxy in self._proxies.values():
            proxy.pass_on()


@asynccontextmanager
async def alice_and_bob(mesh: RealMesh) -> AsyncIterator[tuple[Client, Client, tuple[str, ...], Network]]:
    names = await mesh.register_users("alice", "bob")
    async with AsyncExitStack() as proxies, client(mesh, names[0]) as alice:
        network = Network(proxies)
        async with client(mesh, names[1]) as bob:
            network.lead_through(bob)
            await asyncio.wait_for(asyncio.gather(alice.online(), bob.online()), DEADLINE_S)
            yield alice, bob, names, network


async def until_presence(mesh: RealMesh, names: tuple[str, ...], *, online: bool, within_s: float) -> None:
    """Wait until alice is told that bob is there, or is not."""
    async with Api(mesh.api) as api, asyncio.timeout(within_s):
        await api.login(names[0], PASSWORD)
        while [friend.online for friend in await api.presence()] != [online]:
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("direction", DIRECTIONS)
async def test_h12_half_open_while_both_write(mesh: RealMesh, direction: str) -> None:
    async with alice_and_bob(mesh) as (alice, bob, names, network):
        await expect_nothing_more(bob, alice, names[1])
        network.swallow(*DIRECTIONS[direction])
        began = time.monotonic()
        to_bob = [await alice.send(names[1], f"to bob {number}") for number in range(10)]
        to_alice = [await bob.send(names[0], f"to alice {number}") for number in range(10)]
        async with asyncio.timeout(DEADLINE_S):
            await asyncio.gather(*(outgoing.wait_sent() for outgoing in to_bob))
        assert time.monotonic() - began < DELIVERY_S + BUSY_S
        await until_presence(mesh, names, online=False, within_s=SILENCE_S + BUSY_S)
        assert all(outgoing.state == "pending" for outgoing in to_alice), "no outcome can come back"
        network.pass_on()
        assert await receive_texts(bob, 10) == [f"to bob {number}" for number in range(10)]
        assert await receive_texts(alice, 10) == [f"to alice {number}" for number in range(10)]
        async with asyncio.timeout(DEADLINE_S):
            await asyncio.gather(*(outgoing.wait_delivered() for outgoing in (*to_bob, *to_alice)))
        await until_presence(mesh, names, online=True, within_s=DEADLINE_S)
        await expect_nothing_more(bob, alice, names[1])
        await expect_nothing_more(alice, bob, names[0])


@pytest.mark.parametrize("direction", DIRECTIONS)
async def test_h12_half_open_while_nobody_writes(mesh: RealMesh, direction: str) -> None:
    """Silence alone tells: the connector pings, and no frame comes back."""
    async with alice_and_bob(mesh) as (alice, bob, names, network):
        await until_presence(mesh, names, online=True, within_s=DEADLINE_S)
        network.swallow(*DIRECTIONS[direction])
        await until_presence(mesh, names, online=False, within_s=SILENCE_S + BUSY_S)
        outgoing = await alice.send(names[1], "stored")
        await asyncio.wait_for(outgoing.wait_sent(), DELIVERY_S + BUSY_S)
        network.pass_on()
        assert await receive_texts(bob, 1) == ["stored"]
        await until_presence(mesh, names, online=True, within_s=DEADLINE_S)
        await expect_nothing_more(bob, alice, names[1])
