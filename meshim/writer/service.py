"""A writer as a process: options, connect, run, give everything back."""

import asyncio
import dataclasses
import secrets
from contextlib import AsyncExitStack
from pathlib import Path

from meshim.errors import UsageError
from meshim.runtime import counters
from meshim.runtime.service import Service
from meshim.stores.backends import Connections, lease_held
from meshim.stores.lease_keeper import LeaseKeeper
from meshim.stores.nats.durability import LogDurabilityGate
from meshim.stores.nats.notifications import NatsNotifications
from meshim.stores.nats.offline_log import JetStreamOfflineLog
from meshim.stores.ports import Lease
from meshim.stores.redis.presence import RedisPresence
from meshim.stores.sql import upgrades
from meshim.stores.sql.accounts import SqlAccounts
from meshim.stores.sql.durability import DatabaseDurabilityGate
from meshim.stores.sql.partitions import SqlPartitions
from meshim.topology import Topology
from meshim.writer.core import WriterCore, WriterOptions
from meshim.writer.pipeline import PipelineOptions
from meshim.writer.shell import Backends, Retention, Shell
from meshim.writer.upkeep import UpkeepOptions

_OWNER_CHARACTERS_MOST = 64
"""Of the column that says who holds a partition."""


def options_of(topology: Topology, name: str, seed: int) -> WriterOptions:
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
        ),
        upkeep=UpkeepOptions(),
    )


async def run(topology: Topology, name: str, data: Path) -> None:
    """Serve until SIGTERM; raises a MeshimError when it cannot start."""
    if all(writer.name != name for writer in topology.writers):
        raise UsageError(f"there is no writer called {name} in the topology: name one of its `writers`")
    timers = topology.timers
    incarnation = secrets.randbits(62) + 1
    async with AsyncExitStack() as stack, Service("writer", name, shutdown_s=timers.shutdown_s) as service:
        await asyncio.to_thread(upgrades.check, topology.backends.sql)
        connections = Connections(topology, service, stack)
        backends = await _connected(topology, connections, service)
        core = WriterCore(options_of(topology, name, incarnation))
        shell = Shell(
            core,
            backends,
            f"{incarnation:016x}-{name}"[:_OWNER_CHARACTERS_MOST],
            timers.partition_lease_s,
            Retention(timers.read_retention_s, timers.device_idle_s),
            service,
        )
        keeper = LeaseKeeper(
            connections.leases(),
            Lease("writer", name, incarnation),
            timers,
            service.log,
            watch=("writer",),
            on_living=lambda _, leases: shell.see(leases),
        )
        async with lease_held(keeper, service):
            service.start(
                counters.write_periodically(
                    data, "writer", name, service.log,
                    lambda: dataclasses.asdict(core.statistics()) | keeper.counted() | connections.counted(),
                )
            )  # fmt: skip
            if await shell.until_ready():
                service.ready("-")
            await service.stopping()
            # With the lease, so that the others look for what is free when it is free.
            await shell.stop(timers.shutdown_s * 0.6)


async def _connected(topology: Topology, connections: Connections, service: Service) -> Backends:
    """The real ports.

    Raises BackendUnavailable when NATS or the database is away, UsageError when the topology does not trust them.
    """
    timers, namespace = topology.timers, topology.namespace
    nats, database = await connections.nats(), connections.database()
    log_gate = LogDurabilityGate(nats, topology.durability, service.log)  # dead letters go there
    database_gate = DatabaseDurabilityGate(topology.durability, service.log)
    await log_gate.start()
    await database_gate.start(database)
    log = JetStreamOfflineLog(
        nats,
        namespace,
        max_bytes=topology.limits.log_bytes,
        # What a writer that died had fetched comes again when its partition has been taken over.
        ack_wait_s=timers.partition_lease_s,
        gate=log_gate,
    )
    return Backends(
        log=log,
        partitions=SqlPartitions(database, database_gate),
        accounts=SqlAccounts(database),
        presence=RedisPresence(connections.redis(), namespace),
        notifications=NatsNotifications(nats, namespace, service.log),
    )
