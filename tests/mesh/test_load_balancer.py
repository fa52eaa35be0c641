"""HAProxy, configured as docs/load-balancer.md says, in front of two connectors with one key."""

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from pathlib import Path

import msgspec
import pytest

from meshim.client import Client
from meshim.client.rest import Api
from meshim.deploy.embedded import free_port
from meshim.runtime.sockets import KeyPair, key_file
from meshim.topology import Listener, Security
from tests.mesh.harness import haproxy
from tests.mesh.harness.fault_injection import short_timers, stopped
from tests.mesh.harness.inspection import CounterRise
from tests.mesh.harness.library_client import client, receive_texts, send_and_wait
from tests.mesh.harness.raw_sockets import REFUSED_KEY, dealer, leases
from tests.mesh.harness.real_mesh import DEADLINE_S, PASSWORD, RealMesh, in_thread, running, until

BACK_S = 10.0
"""How long clients may take to come back.  It takes about a second, and four when a connector is stopped."""
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


async def some_device_goes_offline(devices: Sequence[Client], within_s: float) -> bool:
    tasks = [asyncio.ensure_future(device.offline()) for device in devices]
    done, waiting = await asyncio.wait(tasks, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
    for task in waiting:
        task.cancel()
    return bool(done)


class Talk:
    """Two users, who write to each other all the time between `begin` and `end`."""

    def __init__(self, first: Client, second: Client, names: tuple[str, ...]) -> None:
        self.devices = (first, second)
        self._directions = ((first, second, names[1]), (second, first, names[0]))
        """Writer, reader and the name of the reader."""
        self._over = asyncio.Event()
        self._texts: tuple[list[str], list[str]] = ([], [])
        """What each of the two wrote."""
        self._writing: list[asyncio.Task[None]] = []

    def begin(self) -> None:
        self._writing = [
            asyncio.create_task(self._write(texts, writer, peer))
            for texts, (writer, _, peer) in zip(self._texts, self._directions, strict=True)
        ]

    async def _write(self, texts: list[str], writer: Client, peer: str) -> None:
        while not self._over.is_set():
            await writer.send(peer, f"number {len(texts)}")
            texts.append(f"number {len(texts)}")
            await asyncio.sleep(0.01)

    async def go_on(self) -> None:
        """Wait until each of the two has written some more."""
        before = [len(texts) for texts in self._texts]
        await until(
            lambda: all(len(texts) > 30 + count for texts, count in zip(self._texts, before, strict=True)),
            "they do not write",
        )

    async def end(self) -> None:
        """Stop writing; each of the two has to see what the other one wrote: all of it, once, in order."""
        await self.go_on()
        self._over.set()
        await asyncio.gather(*self._writing)
        for texts, (_, reader, _) in zip(self._texts, self._directions, strict=True):
            assert await receive_texts(reader, len(texts)) == texts
        await self.exchange("nothing more")

    async def exchange(self, text: str) -> None:
        """Each of the two sends this, and the other one sees it next."""
        for writer, reader, peer in self._directions:
            await send_and_wait(writer, peer, text)
            assert await receive_texts(reader, 1) == [text]

    async def until_some_device_is_offline(self) -> None:
        assert await some_device_goes_offline(self.devices, within_s=BACK_S)

    async def until_online(self) -> None:
        async with asyncio.timeout(BACK_S):
            await asyncio.gather(*(device.online() for device in self.devices))


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
