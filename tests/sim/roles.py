"""Connectors, transfers and writers as simulated processes: the real shells and lease keepers around the real cores.

Each `_serve` here does what `service.py` of the role does, on the network and the servers of the simulation.
"""

import asyncio
import io
import socket
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, cast

from meshim.connector import authenticator as connector_authenticator
from meshim.connector import core as connector_core
from meshim.connector import service as connector_service
from meshim.connector import shell as connector_shell
from meshim.connector.router_transport import RouterTransport
from meshim.connector.transport import OnBatch
from meshim.connector.websocket_transport import WebSocketTransport
from meshim.errors import MeshimError
from meshim.runtime import sockets
from meshim.runtime.log import Log
from meshim.runtime.service import Service
from meshim.runtime.websocket import Listening, WebSocketStatistics
from meshim.stores.backends import lease_held
from meshim.stores.lease_keeper import LeaseKeeper
from meshim.stores.ports import Lease
from meshim.topology import Topology
from meshim.transfer import core as transfer_core
from meshim.transfer import events as transfer_events
from meshim.transfer import service as transfer_service
from meshim.transfer import shell as transfer_shell
from meshim.writer import core as writer_core
from meshim.writer import options as writer_options
from meshim.writer import service as writer_service
from meshim.writer import shell as writer_shell
from tests.sim.network import Network
from tests.sim.scheduler import Process, Scheduler
from tests.sim.servers import Backends
from tests.sim.sockets import Context
from tests.sim.streams import Port

Core = connector_core.ConnectorCore | transfer_core.TransferCore | writer_core.WriterCore


class SimService:
    """As `meshim.runtime.service.Service`, in a simulated process."""

    def __init__(self, process: Process, role: str, stream: io.StringIO) -> None:
        self.log = Log(role, process.name, stream, lambda: process.time())
        self._process = process
        self._stopping = asyncio.Event()

    def start(self, work: Coroutine[Any, Any, None], name: str | None = None) -> None:
        self.watch(asyncio.create_task(work))

    def watch(self, future: "asyncio.Future[None]") -> None:
        future.add_done_callback(self._on_done)

    def _on_done(self, future: "asyncio.Future[None]") -> None:
        if future.cancelled() or (error := future.exception()) is None:
            return
        if not isinstance(error, MeshimError):
            self._process.fail(error)
        self._process.kill()  # as a real process, which logs the error and exits

    def stop(self) -> None:
        self._stopping.set()

    async def stopping(self) -> None:
        await self._stopping.wait()


class Role:
    """One name in the topology and its current process, which a supervisor restarts `respawn_s` after its end."""

    def __init__(
        self, scheduler: Scheduler, network: Network, backends: Backends, topology: Topology, name: str
    ) -> None:
        self.name = name
        self.process: Process | None = None
        self.core: Core | None = None
        self.incarnation = 0
        self.cores: list[Core] = []
        """The cores of all processes that this role had."""
        self.websockets: list[WebSocketStatistics] = []
        """The counters of the WebSocket servers of all its processes."""
        self.respawn_s = 0.5
        self.on_recovered: Callable[[], None] = lambda: None
        self.on_kill: Callable[[Role], None] = lambda role: None
        """Called before the process is killed."""
        self.scheduler = scheduler
        self.network = network
        self.backends = backends
        self.topology = topology
        self._service: SimService | None = None
        self._log = io.StringIO()

    kind = ""

    def start(self) -> None:
        """Start a process; when it ends it is started again after `respawn_s`."""
        scheduler = self.scheduler
        self.incarnation = scheduler.random.getrandbits(62) + 1
        process = Process(scheduler, self.name, rate=scheduler.random.uniform(0.995, 1.005))
        process.wall_s = scheduler.random.uniform(-2.0, 2.0)
        self.process = process

        def ended() -> None:
            self.network.died(process)
            self.core = None
            scheduler.after(self.respawn_s, self.start)

        process.on_end = ended
        process.run(self._main)

    def kill(self) -> None:
        """kill -9."""
        if self.process is not None and self.process.alive:
            self.on_kill(self)
            self.process.kill()

    def terminate(self) -> None:
        """SIGTERM, and SIGKILL after `shutdown_s`."""
        process = self.process
        assert process is not None
        if self._service is not None and process.running:
            process.loop.call_soon(self._service.stop)
        self.scheduler.after(self.topology.timers.shutdown_s, process.kill)

    async def _main(self) -> None:
        assert self.process is not None
        self._service = SimService(self.process, self.kind, self._log)
        context = Context(self.network, self.process)
        try:
            await self._serve(cast("Service", self._service), cast("sockets.Context", context))
        except MeshimError as error:
            self._service.log.warning("ended", reason=error.sentence)  # the supervisor starts it again

    async def _serve(self, service: Service, context: sockets.Context) -> None:
        raise NotImplementedError

    def _keep(self, core: Core) -> None:
        self.core = core
        self.cores.append(core)

    def _endpoint(self) -> str:
        return f"sim://{self.name}/{self.incarnation}"

    def log(self) -> str:
        """The log of all processes that this role had."""
        return self._log.getvalue()


class Connector(Role):
    kind = "connector"
    on_frames: Callable[[connector_core.ConnectorCore, Sequence[tuple[bytes, bytes]]], None] = staticmethod(
        lambda core, batch: None
    )
    """Called with the frames of clients, before the core takes them."""

    async def _serve(self, service: Service, context: sockets.Context) -> None:
        backends, topology, process = self.backends, self.topology, self.process
        assert process is not None
        timers = topology.timers
        ports = connector_authenticator.Backends(
            backends.presence(), backends.cache(), backends.accounts(), backends.queues(), backends.notifications()
        )
        core = connector_core.ConnectorCore(
            self.incarnation, self.name, topology.limits.partitions, connector_service.options_of(topology),
            lambda: int(process.wall() * 1000),
        )  # fmt: skip
        shell = connector_shell.Shell(core, ports, context, None, topology, service)

        def taken(batch: Sequence[tuple[bytes, bytes]]) -> None:
            self.on_frames(core, batch)
            shell.clients_sent(batch)

        transport = RouterTransport(
            context, self._endpoint(), keys=None, limits=topology.limits,
            is_authenticated=core.has_greeted, on_batch=taken, on_gone=shell.client_gone, transports=2,
        )  # fmt: skip
        shell.serve(transport)
        websocket = self._websocket(core, shell, taken)
        shell.serve(websocket)
        await websocket.start()

        def disturbed() -> None:
            self.on_recovered()
            shell.presence_recovered()

        lease = Lease(self.kind, self.name, self.incarnation, self._endpoint(), url=websocket.endpoint)
        keeper = LeaseKeeper(
            backends.leases(), lease, timers, service.log,
            watch=("transfer",), on_living=shell.transfers_discovered, on_lost=shell.lease_lost,
            on_recovered=disturbed,
        )  # fmt: skip
        self._keep(core)
        async with lease_held(keeper, service):
            shell.start(self.incarnation)
            await service.stopping()
        await shell.stop(timers.shutdown_s * 0.6)
        shell.close_transports(linger_ms=200)
        await websocket.wait_closed()

    def _websocket(
        self, core: connector_core.ConnectorCore, shell: connector_shell.Shell, taken: OnBatch
    ) -> WebSocketTransport:  # fmt: skip
        assert self.process is not None
        host = f"{self.name}.{self.incarnation}"
        port = cast("socket.socket", Port(self.network, self.process, host))
        transport = WebSocketTransport(
            Listening(port, f"ws://{host}/", None), origins=(), limits=self.topology.limits,
            is_authenticated=core.has_greeted, on_batch=taken, on_gone=shell.client_gone, transports=2,
        )  # fmt: skip
        self.websockets.append(transport.statistics)
        return transport


class Transfer(Role):
    kind = "transfer"

    async def _serve(self, service: Service, context: sockets.Context) -> None:
        backends, topology = self.backends, self.topology
        timers = topology.timers
        core = transfer_core.TransferCore(self.incarnation, transfer_service.options_of(topology))
        shell = transfer_shell.Shell(core, transfer_shell.Backends(backends.presence(), backends.log()), service)
        router = shell.router = context.router(
            self._endpoint(), keys=None, domain=self.name, admit=None, frame_bytes=0,
            on_batch=lambda batch: shell.driver.receive(transfer_events.ConnectorsSent(batch)),
        )  # fmt: skip
        lease = Lease(self.kind, self.name, self.incarnation, self._endpoint())
        keeper = LeaseKeeper(backends.leases(), lease, timers, service.log, watch=("connector",))
        self._keep(core)
        async with lease_held(keeper, service):
            shell.start()
            await service.stopping()
        await shell.stop(timers.shutdown_s * 0.6)
        router.close(linger_ms=200)


class Writer(Role):
    kind = "writer"

    async def _serve(self, service: Service, context: sockets.Context) -> None:
        backends, topology = self.backends, self.topology
        timers = topology.timers
        core = writer_core.WriterCore(writer_service.options_of(topology, self.name, self.incarnation))
        shell = writer_shell.Shell(
            core,
            writer_shell.Backends(
                backends.log(),
                backends.partitions(),
                backends.accounts(),
                backends.presence(),
                backends.notifications(),
            ),
            owner=f"{self.incarnation:016x}",
            lease_s=timers.partition_lease_s,
            retention=writer_options.Retention(timers.read_retention_s, timers.device_idle_s),
            service=service,
        )
        keeper = LeaseKeeper(
            backends.leases(), Lease(self.kind, self.name, self.incarnation), timers, service.log,
            watch=("writer",), on_living=shell.living,
        )  # fmt: skip
        self._keep(core)
        async with lease_held(keeper, service):
            if await shell.until_ready():
                await service.stopping()
            await shell.stop(timers.shutdown_s * 0.6)
