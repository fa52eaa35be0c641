"""A connector as a process: options, bind, run, drain."""

import secrets
import time
from contextlib import AsyncExitStack
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from meshim.addresses import is_loopback
from meshim.connector.authenticator import Backends
from meshim.connector.core import ConnectorCore
from meshim.connector.offline_sync import OfflineSyncOptions
from meshim.connector.options import ConnectorOptions
from meshim.connector.router_transport import RouterTransport
from meshim.connector.shell import CACHED_SHARE, Shell
from meshim.connector.websocket_transport import WebSocketTransport
from meshim.errors import UsageError
from meshim.protocol.link import LinkOptions
from meshim.protocol.window import WindowOptions
from meshim.runtime import counters
from meshim.runtime.log import Log
from meshim.runtime.mesh_link_options import mesh_link_options
from meshim.runtime.service import Service
from meshim.runtime.sockets import Context, KeyPair, key_file
from meshim.runtime.websocket import listen
from meshim.stores.backends import BackendConnections, lease_held
from meshim.stores.lease_keeper import LeaseKeeper
from meshim.stores.ports import Lease
from meshim.stores.preflight import Preflight
from meshim.stores.redis.presence import UNSEEN_S, RedisPresence
from meshim.stores.redis.session_cache import RedisSessionCache
from meshim.stores.sql.accounts import SqlAccounts
from meshim.stores.sql.mesh_record import SqlMeshRecord
from meshim.stores.sql.queues import SqlQueues
from meshim.topology import Security, Topology, WebSocketListener
from meshim.wire.sizes import FRAME_OVERHEAD_BYTES

LINK_WITHIN_S = 3.0
"""How long a start waits for a transfer before it reports ready; then it serves without one."""
LINGER_MS = 200
"""For the last frames of the transports when the process ends."""
FRAME_ITEMS = 64
"""Items that the connector puts in one frame."""


def options_of(topology: Topology) -> ConnectorOptions:
    """The options of the core."""
    timers, limits = topology.timers, topology.limits
    clients = WindowOptions(
        credit=limits.client_window,
        # Room for live messages, a page, and outcomes.
        queue=4 * limits.session_queue + limits.sync_page_rows,
        frame_items=FRAME_ITEMS,
        # One body of the largest size, so that a slow client can acknowledge each frame in time.
        frame_bytes=min(limits.frame_bytes - FRAME_OVERHEAD_BYTES, limits.body_bytes),
        give_up_s=timers.delivery_timeout_s,
    )
    return ConnectorOptions(
        clients=LinkOptions(
            window=clients,
            heartbeat_s=timers.client_heartbeat_s,
            silence_s=timers.client_silence_s,
            ack_delay_s=timers.ack_delay_s,
        ),
        transfers=mesh_link_options(topology),
        sync=OfflineSyncOptions(retry_s=timers.lease_renew_s, sweep_s=timers.sweep_s),
        body_bytes=limits.body_bytes,
        frame_bytes=limits.frame_bytes,
        sessions=limits.sessions,
        session_queue=limits.session_queue,
        session_bytes=4 * limits.sync_page_bytes,
        session_rate=limits.session_rate,
        greetings_per_s=limits.greetings_per_s,
        silence_max_s=timers.client_silence_max_s,
        defer_s=timers.delivery_timeout_s,
        relation_ttl_s=(1 - CACHED_SHARE) * timers.relation_ttl_s,
        queue_poll_s=timers.lease_ttl_s,
    )


async def run(topology: Topology, name: str, data: Path) -> None:
    """Serve until SIGTERM; raises a MeshimError when it cannot start."""
    listener = next((connector for connector in topology.connectors if connector.name == name), None)
    if listener is None:
        raise UsageError(f"There is no connector called {name} in the topology: name one of its `connectors`.")
    timers, limits = topology.timers, topology.limits
    incarnation = secrets.randbits(62) + 1
    client_keys = _client_keys(topology.security)
    # Of this incarnation alone: a transfer admits it for as long as the lease names it.
    mesh_keys = KeyPair.new() if topology.security.curve else None
    async with AsyncExitStack() as stack, Service("connector", name, shutdown_s=timers.shutdown_s) as service:
        connections = BackendConnections(topology, service, stack)
        backends = await _backends(topology, connections, service)
        context = Context()
        stack.callback(context.close)
        core = ConnectorCore(
            incarnation, name, limits.partitions, options_of(topology), lambda: int(time.time() * 1000)
        )
        shell = Shell(core, backends, context, mesh_keys, topology, service)
        transport = RouterTransport(
            context, listener.bind, keys=client_keys, limits=limits,
            is_authenticated=core.has_greeted, on_batch=shell.clients_sent, on_gone=shell.client_gone,
            transports=1 if listener.websocket is None else 2,
        )  # fmt: skip
        shell.serve(transport)
        endpoint, url = listener.advertise or transport.endpoint, ""
        websocket = _websocket(topology, listener.websocket, core, shell, service.log)
        if websocket is not None and listener.websocket is not None:
            shell.serve(websocket)
            await websocket.start()
            url = listener.websocket.advertise or websocket.endpoint
        lease = Lease(
            "connector", name, incarnation, endpoint,
            key=client_keys.public.decode() if client_keys else "",
            mesh_key=mesh_keys.public.decode() if mesh_keys else "",
            url=url,
        )  # fmt: skip
        keeper = LeaseKeeper(
            connections.leases(), lease, timers, service.log,
            watch=("transfer",), on_living=shell.transfers_discovered,
            on_lost=shell.lease_lost, on_recovered=shell.presence_recovered,
        )  # fmt: skip
        async with lease_held(keeper, service):
            shell.start(incarnation)
            service.start(
                counters.write_periodically(
                    data, "connector", name, service.log,
                    lambda: (
                        msgspec.structs.asdict(core.statistics)
                        | counters.prefixed("socket", transport.statistics)
                        | (counters.prefixed("websocket", websocket.statistics) if websocket is not None else {})
                        | keeper.counters()
                        | connections.counters()
                    ),
                )
            )  # fmt: skip
            await shell.driver.until(lambda: core.ready, LINK_WITHIN_S)
            service.ready(endpoint)
            await service.stopping()
        # After the lease was given up, so that no new client or transfer connects meanwhile.
        await shell.stop(timers.shutdown_s * 0.6)
        shell.close_transports(linger_ms=LINGER_MS)
        if websocket is not None:
            await websocket.wait_closed()


def _websocket(
    topology: Topology, listener: WebSocketListener | None, core: ConnectorCore, shell: Shell, log: Log
) -> WebSocketTransport | None:
    """The transport of a listener.  Raises UsageError when its address or a file of its TLS is of no use."""
    if listener is None:
        return None
    parts = urlsplit(listener.bind)
    if parts.scheme == "ws" and not is_loopback(parts.hostname or ""):
        log.warning("plain websocket off loopback", address=listener.bind, advice="put a TLS proxy in front")
    return WebSocketTransport(
        listen(listener.bind, listener.tls_certificate_file, listener.tls_key_file),
        origins=topology.security.origins,
        limits=topology.limits,
        is_authenticated=core.has_greeted,
        on_batch=shell.clients_sent,
        on_gone=shell.client_gone,
        transports=2,
    )


def _client_keys(security: Security) -> KeyPair | None:
    """The keys that clients see; None without CURVE.  Raises UsageError when the file of shared keys is wrong."""
    if not security.curve:
        return None
    return KeyPair.new() if security.connector_key_file is None else key_file.load(Path(security.connector_key_file))


async def _backends(topology: Topology, connections: BackendConnections, service: Service) -> Backends:
    """Open the backends.

    Raises BackendUnavailable when NATS is away, UsageError when topology, database and Redis are not of one mesh.
    """
    redis, database = connections.redis(), connections.database()
    await Preflight(topology, redis, service).check_when_possible(SqlMeshRecord(database))
    nats = await connections.nats()
    namespace, limits, timers = topology.namespace, topology.limits, topology.timers
    return Backends(
        presence=RedisPresence(redis, namespace, unseen_s=max(UNSEEN_S, int(4 * timers.relation_ttl_s))),
        cache=RedisSessionCache(redis, namespace),
        accounts=SqlAccounts(database),
        queues=SqlQueues(database, limits.partitions),
        notifications=connections.notifications(nats),
    )
