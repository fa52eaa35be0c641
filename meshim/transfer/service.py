"""A transfer as a process: options, bind, run, drain."""

import asyncio
import secrets
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec

from meshim.errors import BackendUnavailable, UsageError
from meshim.runtime import counters
from meshim.runtime.batches import Batches
from meshim.runtime.driver import Driver
from meshim.runtime.mesh_links import mesh_links
from meshim.runtime.service import Service
from meshim.runtime.sockets import Context, KeyPair, Router, Sent
from meshim.stores.backends import Connections, lease_held
from meshim.stores.lease_keeper import LeaseKeeper
from meshim.stores.nats.durability import LogDurabilityGate
from meshim.stores.nats.offline_log import JetStreamOfflineLog
from meshim.stores.ports import Lease, Leases, OfflineLog, Presence
from meshim.stores.redis.presence import RedisPresence
from meshim.topology import Topology
from meshim.transfer import events as e
from meshim.transfer.core import TransferCore, TransferOptions
from meshim.wire.sizes import BUNDLE_OVERHEAD_BYTES


def options_of(topology: Topology) -> TransferOptions:
    timers, limits = topology.timers, topology.limits
    return TransferOptions(
        links=mesh_links(topology),
        partitions=limits.partitions,
        publishes=limits.publishes,
        waiting=limits.link_queue,
        waiting_bytes=limits.publishes * limits.bundle_bytes,
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
        raise UsageError(f"there is no transfer called {name} in the topology: name one of its `transfers`")
    timers, limits = topology.timers, topology.limits
    incarnation = secrets.randbits(62) + 1
    keys = KeyPair.new() if topology.security.curve else None
    async with AsyncExitStack() as stack, Service("transfer", name, shutdown_s=timers.shutdown_s) as service:
        connections = Connections(topology, service, stack)
        redis, leases, nats = connections.redis(), connections.leases(), await connections.nats()
        gate = LogDurabilityGate(nats, topology.durability, service.log)
        await gate.start()
        context = Context()
        stack.callback(context.close)
        core = TransferCore(incarnation, options_of(topology))
        shell = Shell(
            core,
            RedisPresence(redis, topology.namespace),
            JetStreamOfflineLog(
                nats,
                topology.namespace,
                publish_timeout_s=timers.publish_timeout_s,
                max_bytes=limits.log_bytes,
                gate=gate,
            ),
            service,
        )
        allowlist = ConnectorAllowlist(leases)
        router = context.router(
            listener.bind,
            keys=keys,
            domain=f"transfer-{name}",
            admit=allowlist.admit,
            frame_bytes=limits.bundle_bytes + BUNDLE_OVERHEAD_BYTES,
            on_batch=lambda batch: shell.driver.receive(e.ConnectorsSent(batch)),
        )
        shell.router = router
        endpoint = listener.advertise or router.endpoint
        lease = Lease("transfer", name, incarnation, endpoint, keys.public.decode() if keys else "")
        keeper = LeaseKeeper(leases, lease, timers, service.log, watch=("connector",), on_living=allowlist.living)
        async with lease_held(keeper, service):
            shell.start()
            service.start(
                counters.write_periodically(
                    data, "transfer", name, service.log,
                    lambda: _counted(core, router) | keeper.counted() | connections.counted(),
                )
            )  # fmt: skip
            service.ready(endpoint)
            await service.stopping()
        # Without the lease, so that nobody new comes meanwhile.
        await shell.stop(timers.shutdown_s * 0.6)
        router.close(linger_ms=200)


def _counted(core: TransferCore, router: Router) -> dict[str, int]:
    sockets = {f"socket_{name}": count for name, count in router.statistics()._asdict().items()}
    return msgspec.structs.asdict(core.statistics) | sockets


class ConnectorAllowlist:
    """Lets the connectors in whose leases live: their CURVE keys stand there."""

    def __init__(self, leases: Leases) -> None:
        self._leases = leases
        self._keys: frozenset[bytes] = frozenset()

    def living(self, role: str, leases: Sequence[Lease]) -> None:
        self._keys = frozenset(lease.key.encode() for lease in leases)

    async def admit(self, key: bytes) -> bool | None:
        """Whether a living connector has this key; None when nobody can tell now."""
        if key in self._keys:
            return True
        try:
            self.living("connector", await self._leases.living("connector"))
        except BackendUnavailable:
            return None
        return key in self._keys


class Shell:
    """Performs what the core decides."""

    def __init__(self, core: TransferCore, presence: Presence, log: OfflineLog, service: Service) -> None:
        self.router: Router | None = None
        self._core = core
        self._presence = presence
        self._log = log
        self._service = service
        self._look_ups: Batches[int] = Batches(self._look_up, 1024)
        self._performers: dict[type[e.Action], Callable[..., None]] = {
            e.SendConnector: self._send,
            e.ReadPresence: self._read_presence,
            e.Publish: lambda action: service.start(self._publish(action)),
        }
        self.driver: Driver[e.Event, e.Action] = Driver(core, self._perform)

    def start(self) -> None:
        self._service.watch(self.driver.failed)
        self._service.start(self._look_ups.run())
        self._service.start(self._follow_presence())

    async def stop(self, within_s: float) -> None:
        """Tell connectors to go elsewhere, and see through what was taken from them."""
        loop = asyncio.get_running_loop()
        for action in self._core.stop(loop.time()):
            self._perform(action)
        await self.driver.until(lambda: self._core.idle, within_s)

    def _perform(self, action: e.Action) -> None:
        self._performers[type(action)](action)

    def _send(self, action: e.SendConnector) -> None:
        assert self.router is not None
        if self.router.send(action.peer, action.frame) is Sent.GONE:
            self.driver.receive(e.ConnectorGone(action.peer))

    def _read_presence(self, action: e.ReadPresence) -> None:
        for user in action.users:
            self._look_ups.add(user)

    async def _look_up(self, users: Sequence[int]) -> None:
        try:
            found = await self._presence.lookup(users)
        except BackendUnavailable:
            self.driver.receive(e.PresenceUnreadable(users))
        else:
            self.driver.receive(e.PresenceRead(users, found))

    async def _publish(self, action: e.Publish) -> None:
        try:
            position = await self._log.publish(action.partition, action.data)
        except BackendUnavailable as error:
            self._service.log.warning("not published", partition=action.partition, reason=error.sentence)
            self.driver.receive(e.Unpublished(action.record))
        else:
            self.driver.receive(e.Published(action.record, position))

    async def _follow_presence(self) -> None:
        async for users in self._presence.changes():
            self.driver.receive(e.PresenceChanged(users))
