"""nginx and HAProxy with TLS, configured as docs/websocket.md says, in front of two connectors and REST."""

import asyncio
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import msgspec
import pytest

from meshim.client.rest import Api
from meshim.deploy.embedded import free_port
from meshim.topology import ConnectorListener, WebSocketListener
from tests.certificates import Certificate, make_certificate
from tests.mesh.harness import haproxy, nginx
from tests.mesh.harness.fault_injection import short_timers
from tests.mesh.harness.inspection import CounterRise
from tests.mesh.harness.library_client import client
from tests.mesh.harness.real_mesh import DEADLINE_S, PASSWORD, RealMesh, running
from tests.mesh.harness.talk import Talk, some_device_goes_offline

IDLE_TIMEOUT_S = 2
"""Of the proxy, in the tests of idle connections."""
DEFAULT_TIMEOUT_S = 60
"""Of nginx (proxy_read_timeout)."""


class Proxied:
    """A mesh whose connectors advertise the address of a proxy, which does not run yet."""

    def __init__(self, tls: Certificate, mesh: RealMesh, port: int, connectors: dict[str, int]) -> None:
        self._tls = tls
        self.mesh = mesh
        self.connectors = connectors
        self.port = port
        self.through = mesh.over("websocket")
        self.through.api = f"https://127.0.0.1:{port}"
        self._rest = urlsplit(mesh.api).port or 0

    def nginx(self, folder: Path, timeout: str | None = "60s") -> AbstractContextManager[None]:
        configuration = nginx.documented(folder, self._tls, self.port, self.connectors, self._rest, timeout)
        return nginx.running(folder, configuration, self.port)

    def haproxy(self, folder: Path, timeout: str = "60s") -> AbstractContextManager[None]:
        configuration = haproxy.documented_websocket(self._tls, self.port, self.connectors, self._rest, timeout)
        return haproxy.running(folder, configuration, self.port)


@contextmanager
def proxied_mesh(tls: Certificate, folder: Path, client_heartbeat_s: float = 10.0) -> Iterator[Proxied]:
    port, connectors = free_port(), {"c1": free_port(), "c2": free_port()}
    topology = msgspec.structs.replace(
        short_timers(client_heartbeat_s=client_heartbeat_s),
        connectors=tuple(
            ConnectorListener(
                name, websocket=WebSocketListener(f"ws://127.0.0.1:{own}", f"wss://127.0.0.1:{port}/ws")
            )
            for name, own in connectors.items()
        ),
    )  # fmt: skip
    with running(folder, topology) as mesh:
        yield Proxied(tls, mesh, port, connectors)


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Certificate]:
    """The certificate of every proxy here; clients trust it.  (The library loads what it trusts once in a process.)"""
    made = make_certificate(tmp_path_factory.mktemp("tls"))
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("SSL_CERT_FILE", str(made.certificate))
        yield made


@pytest.fixture(scope="module")
def proxied(tls: Certificate, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxied]:
    with proxied_mesh(tls, tmp_path_factory.mktemp("proxied")) as proxied:
        yield proxied


@asynccontextmanager
async def connected(proxied: Proxied) -> AsyncIterator[Talk]:
    """alice and bob, each on another connector at first; also REST goes through the proxy."""
    names = await proxied.mesh.register_users("alice", "bob")
    greeted = {name: CounterRise(proxied.mesh, "greeted", [name]) for name in proxied.connectors}
    async with client(proxied.through, names[0]) as alice:
        await asyncio.wait_for(alice.online(), DEADLINE_S)
        async with client(proxied.through, names[1]) as bob:
            await asyncio.wait_for(bob.online(), DEADLINE_S)
            for rise in greeted.values():
                await rise.wait()
            assert alice.connector == bob.connector == f"wss://127.0.0.1:{proxied.port}/ws"
            yield Talk(alice, bob, names)


@pytest.mark.parametrize("proxy", ["nginx", "nginx with its default timeouts", "haproxy"])
async def test_nothing_is_lost_while_connectors_are_killed_and_ended(
    proxied: Proxied, tmp_path: Path, proxy: str
) -> None:  # fmt: skip
    if proxy == "haproxy":
        runs = proxied.haproxy(tmp_path)
    else:
        runs = proxied.nginx(tmp_path, "60s" if proxy == "nginx" else None)
    mesh = proxied.mesh
    with runs:
        async with connected(proxied) as talk:
            talk.begin()
            for name, end in (("c1", signal.SIGKILL), ("c2", signal.SIGTERM)):
                await talk.go_on()
                pid = mesh.signal(name, end)
                await talk.until_some_device_is_offline()
                await talk.until_online()
                await mesh.restarted(name, pid)
            await talk.end()


# ---------------------------------------------------------------- idle connections


@pytest.mark.parametrize("proxy", ["nginx", "haproxy"])
@pytest.mark.parametrize("is_shorter", [True, False], ids=["a shorter heartbeat", "a longer heartbeat"])
async def test_idle_connections_live_by_heartbeats(
    tls: Certificate, tmp_path: Path, proxy: str, is_shorter: bool
) -> None:  # fmt: skip
    heartbeat_s = IDLE_TIMEOUT_S / 4 if is_shorter else 4.0 * IDLE_TIMEOUT_S
    with proxied_mesh(tls, tmp_path, heartbeat_s) as proxied:
        timeout = f"{IDLE_TIMEOUT_S}s"
        runs = proxied.nginx(tmp_path, timeout) if proxy == "nginx" else proxied.haproxy(tmp_path, timeout)
        with runs:
            async with connected(proxied) as talk:
                await talk.exchange("before")
                cut = await some_device_goes_offline(talk.devices, within_s=2.5 * IDLE_TIMEOUT_S)
                assert cut is not is_shorter
                await talk.until_online()
                await talk.exchange("after")


async def test_idle_connections_outlive_the_default_timeouts_of_nginx(proxied: Proxied, tmp_path: Path) -> None:
    """With the default heartbeat.  It takes as long as it takes."""
    with proxied.nginx(tmp_path, None):
        async with connected(proxied) as talk:
            await talk.exchange("before")
            cut = await some_device_goes_offline(talk.devices, within_s=DEFAULT_TIMEOUT_S + 5)
            assert not cut
            await talk.exchange("after")


# ---------------------------------------------------------------- REST


async def test_rest_by_the_same_name_and_no_import_from_outside(proxied: Proxied, tmp_path: Path) -> None:
    (name,) = await proxied.mesh.register_users("carol")
    for runs in (proxied.nginx(tmp_path), proxied.haproxy(tmp_path)):
        with runs:
            async with Api(proxied.through.api) as api:
                await api.login(name, PASSWORD)
                entries = await api.connectors()
            assert {entry.url for entry in entries} == {f"wss://127.0.0.1:{proxied.port}/ws"}
            async with httpx.AsyncClient(base_url=proxied.through.api) as http:
                refused = await http.post("/v1/import", json={"users": [{"name": "mallory", "password": PASSWORD}]})
                assert refused.status_code == 403, refused.text
                assert (await http.get("/ws")).status_code == 426
                assert (await http.get("/")).status_code == 404
