"""HAProxy, configured as docs/load-balancer.md says, in front of two connectors with one key."""

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import msgspec
import pytest

from meshim.client.rest import Api
from meshim.deploy.embedded import free_port
from meshim.runtime.sockets import KeyPair, key_file
from meshim.topology import Listener, Security
from tests.mesh.harness import haproxy
from tests.mesh.harness.fault_injection import short_timers, stopped
from tests.mesh.harness.inspection import CounterRise
from tests.mesh.harness.library_client import client
from tests.mesh.harness.raw_sockets import REFUSED_KEY, dealer, leases
from tests.mesh.harness.real_mesh import DEADLINE_S, PASSWORD, RealMesh, in_thread, running
from tests.mesh.harness.talk import Talk, some_device_goes_offline

IDLE_TIMEOUT_S = 2
"""Of HAProxy, in the test of idle connections."""


class Balanced:
    """A mesh whose connectors advertise the address of HAProxy, which does not run yet."""

    def __init__(self, mesh: RealMesh, port: int, connectors: dict[str, int], keys: KeyPair) -> None:
        self.mesh = mesh
        self.port = port
        self.connectors = connectors
        self.keys = keys
        self.endpoint = f"tcp://127.0.0.1:{port}"


@contextmanager
def balanced_mesh(folder: Path, client_heartbeat_s: float = 10.0) -> Iterator[Balanced]:
    key_file.create(folder / "connector.key")
    port, connectors = free_port(), {"c1": free_port(), "c2": free_port()}
    topology = msgspec.structs.replace(
        short_timers(client_heartbeat_s=client_heartbeat_s),
        connectors=tuple(
            Listener(name, f"tcp://127.0.0.1:{own}", f"tcp://127.0.0.1:{port}") for name, own in connectors.items()
        ),
        security=Security(connector_key_file=str(folder / "connector.key")),
    )
    with running(folder, topology) as mesh:
        yield Balanced(mesh, port, connectors, key_file.load(folder / "connector.key"))


@pytest.fixture(scope="module")
def balanced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Balanced]:
    with balanced_mesh(tmp_path_factory.mktemp("balanced")) as balanced:
        yield balanced


@pytest.fixture
def haproxy_runs(balanced: Balanced, tmp_path: Path) -> Iterator[None]:
    with haproxy.running(tmp_path, haproxy.documented(balanced.port, balanced.connectors), balanced.port):
        yield


@asynccontextmanager
async def connected(balanced: Balanced) -> AsyncIterator[Talk]:
    """alice and bob, each on another connector at first."""
    names = await balanced.mesh.register_users("alice", "bob")
    greeted = {name: CounterRise(balanced.mesh, "greeted", [name]) for name in balanced.connectors}
    async with client(balanced.mesh, names[0]) as alice:
        await asyncio.wait_for(alice.online(), DEADLINE_S)
        async with client(balanced.mesh, names[1]) as bob:
            await asyncio.wait_for(bob.online(), DEADLINE_S)
            for rise in greeted.values():
                await rise.wait()
            assert alice.connector == bob.connector == balanced.endpoint
            yield Talk(alice, bob, names)


@pytest.mark.usefixtures("haproxy_runs")
async def test_nothing_is_lost_while_connectors_are_killed_and_ended(balanced: Balanced) -> None:
    mesh = balanced.mesh
    async with connected(balanced) as talk:
        talk.begin()
        for name, end in (("c1", signal.SIGKILL), ("c2", signal.SIGTERM)):
            await talk.go_on()
            pid = mesh.signal(name, end)
            await talk.until_some_device_is_offline()
            await talk.until_online()
            await mesh.restarted(name, pid)
        await talk.end()


async def test_nothing_is_lost_while_the_load_balancer_is_restarted(balanced: Balanced, tmp_path: Path) -> None:
    configuration = haproxy.documented(balanced.port, balanced.connectors)
    with ExitStack() as stack:
        stack.enter_context(haproxy.running(tmp_path, configuration, balanced.port))
        async with connected(balanced) as talk:
            talk.begin()
            await talk.go_on()
            stack.close()
            await talk.until_some_device_is_offline()
            stack.enter_context(haproxy.running(tmp_path, configuration, balanced.port))
            await talk.until_online()
            await talk.end()


@pytest.mark.usefixtures("haproxy_runs")
async def test_idle_clients_of_a_stopped_connector_come_back_before_they_notice(balanced: Balanced) -> None:
    """The check of HAProxy marks the connector down, which cuts its connections; clients would wait for 25 s."""
    async with connected(balanced) as talk:
        with stopped(balanced.mesh, "c1"):
            await talk.until_some_device_is_offline()
            await talk.until_online()
            await talk.exchange("after")


async def test_idle_connections_outlive_the_timeouts_of_the_load_balancer(tmp_path: Path) -> None:
    with balanced_mesh(tmp_path, client_heartbeat_s=IDLE_TIMEOUT_S / 4) as balanced:
        short = haproxy.documented(balanced.port, balanced.connectors, f"{IDLE_TIMEOUT_S}s")
        with haproxy.running(tmp_path, short, balanced.port):
            async with connected(balanced) as talk:
                await talk.exchange("before")
                cut = await some_device_goes_offline(talk.devices, within_s=2.5 * IDLE_TIMEOUT_S)
                assert not cut, "HAProxy has cut an idle connection"
                await talk.exchange("after")


# ---------------------------------------------------------------- keys


async def test_rest_lists_the_address_once_as_long_as_a_connector_lives(balanced: Balanced) -> None:
    mesh = balanced.mesh
    (name,) = await mesh.register_users("alice")
    async with Api(mesh.api) as api:
        await api.login(name, PASSWORD)
        [entry] = await api.connectors()
        assert (entry.name, entry.endpoint, entry.key) == ("c1,c2", balanced.endpoint, balanced.keys.public.decode())
        with stopped(mesh, "c1"):
            async with asyncio.timeout(DEADLINE_S):
                while (await api.connectors())[0].name != "c2":
                    await asyncio.sleep(0.1)
            [entry] = await api.connectors()
            assert (entry.endpoint, entry.key) == (balanced.endpoint, balanced.keys.public.decode())


async def test_the_shared_key_opens_no_mesh_link(balanced: Balanced) -> None:
    mesh_keys = {lease.mesh_key for lease in await leases(balanced.mesh, "connector")}
    assert len(mesh_keys) == 2, "each incarnation has its own"
    assert balanced.keys.public.decode() not in mesh_keys
    for lease in await leases(balanced.mesh, "transfer"):
        with dealer(lease.endpoint, lease.key.encode(), keys=balanced.keys) as (_, wait_ended):
            assert await in_thread(wait_ended) == REFUSED_KEY
