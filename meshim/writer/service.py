"""A writer as a process: options, bind, run, drain."""

import secrets
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec

from meshim.errors import UsageError
from meshim.runtime import counters
from meshim.runtime.service import Service
from meshim.stores.backends import BackendConnections, lease_held
from meshim.stores.lease_keeper import LeaseKeeper
from meshim.stores.nats.durability import LogDurabilityGate
from meshim.stores.nats.offline_log import JetStreamOfflineLog
from meshim.stores.ports import Lease
from meshim.stores.preflight import Preflight
from meshim.stores.redis.presence import RedisPresence
from meshim.stores.sql.accounts import SqlAccounts
from meshim.stores.sql.durability import DatabaseDurabilityGate
from meshim.stores.sql.mesh_record import SqlMeshRecord
from meshim.stores.sql.partitions import SqlPartitions
from meshim.topology import Topology
from meshim.writer.core import WriterCore
from meshim.writer.options import MaintenanceOptions, PipelineOptions, QuotaOptions, Retention, WriterOptions
from meshim.writer.shell import Backends, Shell

OWNER_CHARACTERS_MAX = 64
"""Of the column that names the owner of a partition."""


def options_of(topology: Topology, name: str, seed: int) -> WriterOptions:
    """Return the options of this writer; `seed` should differ from writer to writer and from start to start."""
    timers, limits = topology.timers, topology.limits
    return WriterOptions(
        name=name,
        seed=seed,
        partitions=limits.partitions,
        partition_lease_s=timers.partition_lease_s,
        pipeline=PipelineOptions(
            records=limits.writer_records,
            batch_bytes=2 * limits.bundle_bytes,
            extend_s=timers.partition_lease_s / 3,
            quota=QuotaOptions(rows=limits.queue_rows, bytes=limits.queue_bytes),
        ),
        maintenance=MaintenanceOptions(),
    )


async def run(topology: Topology, name: str, data: Path) -> None:
    """Serve until SIGTERM; raises a MeshimError when it cannot start."""
    if all(writer.name != name for writer in topology.writers):
        raise UsageError(f"There is no writer called {name} in the topology: name one of its `writers`.")
    timers = topology.timers
    incarnation = secrets.randbits(62) + 1
    async with AsyncExitStack() as stack, Service("writer", name, shutdown_s=timers.shutdown_s) as service:
        connections = BackendConnections(topology, service, stack)
        backends = await _open(topology, connections, service)
        core = WriterCore(options_of(topology, name, incarnation))
        shell = Shell(
            core,
            backends,
            owner=f"{incarnation:016x}-{name}"[:OWNER_CHARACTERS_MAX],
            lease_s=timers.partition_lease_s,
            retention=Retention(read_s=timers.read_retention_s, device_idle_s=timers.device_idle_s),
            service=service,
        )
        lease = Lease("writer", name, incarnation)
        keeper = LeaseKeeper(
            connections.leases(), lease, timers, service.log, watch=("writer",), on_living=shell.living
        )  # fmt: skip

        def counted() -> dict[str, int]:
            return msgspec.structs.asdict(core.statistics) | keeper.counters() | connections.counters()

        async with lease_held(keeper, service):
            service.start(counters.write_periodically(data, "writer", name, service.log, counted))
            if await shell.until_ready():
                service.ready("-")
            await service.stopping()
            # With the lease: once it is gone the others rebalance, and then they shall find the partitions free.
            await shell.stop(timers.shutdown_s * 0.6)


async def _open(topology: Topology, connections: BackendConnections, service: Service) -> Backends:
    """Open the backends.

    Raises BackendUnavailable when one of them is away, UsageError when topology, database and Redis are not of one
    mesh, or when settings violate the durability policy.
    """
    timers, namespace = topology.timers, topology.namespace
    redis, database = connections.redis(), connections.database()
    record = await Preflight(topology, redis, service).check(SqlMeshRecord(database))
    nats = await connections.nats()
    log_gate = LogDurabilityGate(nats, topology.durability, service.log)  # for dead letters
    database_gate = DatabaseDurabilityGate(topology.durability, service.log)
    await log_gate.start()
    await database_gate.start(database)
    log = JetStreamOfflineLog(
        nats,
        namespace,
        max_bytes=topology.limits.log_bytes,
        mesh_id=record.mesh_id,
        # So that the log redelivers what a dead writer had fetched when its partition is taken over.
        ack_wait_s=timers.partition_lease_s,
        gate=log_gate,
    )
    return Backends(
        log=log,
        partitions=SqlPartitions(database, database_gate),
        accounts=SqlAccounts(database),
        presence=RedisPresence(redis, namespace),
        notifications=connections.notifications(nats),
    )
