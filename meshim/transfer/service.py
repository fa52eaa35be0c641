"""A transfer as a process: options, bind, run, drain."""

import secrets
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec

from meshim.errors import UsageError
from meshim.runtime import counters
from meshim.runtime.mesh_link_options import mesh_link_options
from meshim.runtime.service import Service
from meshim.runtime.sockets import Context, KeyPair
from meshim.stores.backends import BackendConnections, lease_held
from meshim.stores.lease_keeper import LeaseKeeper
from meshim.stores.nats.durability import LogDurabilityGate
from meshim.stores.nats.offline_log import JetStreamOfflineLog
from meshim.stores.ports import Lease
from meshim.stores.preflight import Preflight
from meshim.stores.redis.presence import RedisPresence
from meshim.topology import Topology
from meshim.transfer import events as e
from meshim.transfer.allowlist import ConnectorAllowlist
from meshim.transfer.core import TransferCore
from meshim.transfer.options import TransferOptions
from meshim.transfer.shell import Backends, Shell
from meshim.wire.sizes import BUNDLE_OVERHEAD_BYTES


def options_of(topology: Topology) -> TransferOptions:
    """Return the options of every transfer of this topology."""
    timers, limits = topology.timers, topology.limits
    return TransferOptions(
        links=mesh_link_options(topology),
        partitions=limits.partitions,
        publishes=limits.publishes,
        pending=limits.link_queue,
        pending_bytes=limits.publishes * limits.bundle_bytes,
        record_bytes=limits.bundle_bytes,
        record_items=limits.bundle_items,
        presence_cache=limits.presence_cache,
        presence_cache_ttl_s=timers.presence_cache_ttl_s,
        presence_silence_s=timers.presence_silence_s,
    )


async def run(topology: Topology, name: str, data: Path) -> None:
    """Serve until SIGTERM; raises a MeshimError when it cannot start."""
    listener = next((transfer for transfer in topology.transfers if transfer.name == name), None)
    if listener is None:
        raise UsageError(f"There is no transfer called {name} in the topology: name one of its `transfers`.")
    timers = topology.timers
    incarnation = secrets.randbits(62) + 1
    keys = KeyPair.new() if topology.security.curve else None
    async with AsyncExitStack() as stack, Service("transfer", name, shutdown_s=timers.shutdown_s) as service:
        connections = BackendConnections(topology, service, stack)
        leases = connections.leases()
        backends = await _open(topology, connections, service)
        context = Context()
        stack.callback(context.close)
        core = TransferCore(incarnation, options_of(topology))
        shell = Shell(core, backends, service)
        allowlist = ConnectorAllowlist(leases)
        router = shell.router = context.router(
            listener.bind,
            keys=keys,
            domain=f"transfer-{name}",
            admit=allowlist.admit,
            frame_bytes=topology.limits.bundle_bytes + BUNDLE_OVERHEAD_BYTES,
            on_batch=lambda batch: shell.driver.receive(e.ConnectorsSent(batch, router.user_ids)),
        )
        endpoint = listener.advertise or router.endpoint
        lease = Lease("transfer", name, incarnation, endpoint, keys.public.decode() if keys else "")
        keeper = LeaseKeeper(leases, lease, timers, service.log, watch=("connector",), on_living=allowlist.living)

        def counted() -> dict[str, int]:
            return (
                msgspec.structs.asdict(core.statistics)
                | counters.prefixed("socket", router.statistics)
                | keeper.counters()
                | connections.counters()
            )

        async with lease_held(keeper, service):
            shell.start()
            service.start(counters.write_periodically(data, "transfer", name, service.log, counted))
            service.ready(endpoint)
            await service.stopping()
        # After the lease was given back: no connector links to this transfer meanwhile.
        await shell.stop(timers.shutdown_s * 0.6)
        router.close(linger_ms=200)


async def _open(topology: Topology, connections: BackendConnections, service: Service) -> Backends:
    """Open the backends.

    Raises BackendUnavailable when NATS is away, UsageError when settings violate the durability policy.
    """
    redis = connections.redis()
    await Preflight(topology, redis, service).check_when_possible(None)
    nats = await connections.nats()
    gate = LogDurabilityGate(nats, topology.durability, service.log)
    await gate.start()
    log = JetStreamOfflineLog(
        nats,
        topology.namespace,
        publish_timeout_s=topology.timers.publish_timeout_s,
        max_bytes=topology.limits.log_bytes,
        gate=gate,
    )
    return Backends(presence=RedisPresence(redis, topology.namespace), log=log)
