"""Performs the actions of the core, each in a task, and reports results as events."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

from meshim.errors import BackendUnavailable, Fenced
from meshim.runtime.driver import Driver
from meshim.runtime.service import Service
from meshim.stores.ports import Accounts, Lease, Notifications, OfflineLog, Partitions, Presence
from meshim.writer import events as e
from meshim.writer.core import WriterCore
from meshim.writer.options import Retention

_FETCH_WAIT_S = 1.0
"""How long a fetch waits for the first message; so a stop waits that long at most for a fetch in flight."""


class Backends(NamedTuple):
    """The ports of a writer."""

    log: OfflineLog
    partitions: Partitions
    accounts: Accounts
    presence: Presence
    notifications: Notifications


class Shell:
    """The backends around a writer core."""

    def __init__(
        self,
        core: WriterCore,
        backends: Backends,
        owner: str,
        lease_s: float,
        retention: Retention,
        service: Service,
    ) -> None:
        """`owner` names this incarnation in the claims of partitions, `lease_s` is how long a claim lasts."""
        self._performers: dict[type[e.Action], Callable[[Any], Awaitable[e.Event]]] = {
            e.Claim: self._claim,
            e.Release: self._release,
            e.Ensure: self._ensure,
            e.Fetch: self._fetch,
            e.Read: self._read,
            e.Write: self._write,
            e.ReadPresence: self._read_presence,
            e.SendWakeUps: self._send_wake_ups,
            e.Acknowledge: self._acknowledge,
            e.PublishDeadLetter: self._publish_dead_letter,
            e.Extend: self._extend,
            e.CountQueues: self._count_queues,
            e.AnnounceFull: self._announce_full,
            e.Purge: self._purge,
            e.DropIdleDevices: self._drop_idle_devices,
        }
        self._core = core
        self._log, self._partitions, self._accounts, self._presence, self._notifications = backends
        self._owner = owner
        self._lease_s = lease_s
        self._retention = retention
        self._service = service
        self._ready = asyncio.Event()
        self._stopped = asyncio.Event()
        self._failing: set[str] = set()
        """Names of actions whose last attempt failed: an outage is logged once."""
        self._driver: Driver[e.Event, e.Action] = Driver(core, self._start)
        service.watch(self._driver.failed)

    def living(self, role: str, writers: Sequence[Lease]) -> None:
        """Take in which writers hold a lease."""
        self._receive(e.WritersLiving(tuple(lease.name for lease in writers)))

    async def until_ready(self) -> bool:
        """Wait for one round of claims and the logs of the partitions it owns; False when it has to stop before."""
        ready = asyncio.ensure_future(self._ready.wait())
        stopping = asyncio.ensure_future(self._service.stopping())
        try:
            await asyncio.wait([ready, stopping], return_when=asyncio.FIRST_COMPLETED)
        finally:
            ready.cancel()
            stopping.cancel()
        return self._ready.is_set()

    async def stop(self, within_s: float) -> None:
        """Write what was fetched and give the partitions back; after `within_s` the next owners do the rest."""
        self._receive(e.StopRequested())
        try:
            async with asyncio.timeout(within_s):
                await self._stopped.wait()
        except TimeoutError:
            self._service.log.warning("not everything was given back", limit_s=within_s)
        self._driver.stop()
        statistics = self._core.statistics
        self._service.log.info("written", records=statistics.records, entries=statistics.entries)

    # ---------------------------------------------------------------- the driver

    def _receive(self, event: e.Event) -> None:
        self._driver.receive(event)
        if self._core.ready:
            self._ready.set()
        if self._core.stopped:
            self._stopped.set()

    def _start(self, action: e.Action) -> None:
        self._service.start(self._perform(action))

    async def _perform(self, action: e.Action) -> None:
        name = type(action).__name__
        event: e.Event
        try:
            event = await self._performers[type(action)](action)
        except Fenced as error:
            assert isinstance(action, e.Write)
            self._service.log.warning("fenced off", partition=action.partition, reason=error.sentence)
            event = e.FencedOff(action.partition)
        except BackendUnavailable as error:
            if name not in self._failing:
                self._failing.add(name)
                self._service.log.warning("failing", action=name, reason=error.sentence)
            event = e.Failed(action)
        else:
            if name in self._failing:
                self._failing.remove(name)
                self._service.log.info("working again", action=name)
        self._receive(event)

    # ---------------------------------------------------------------- partitions

    async def _claim(self, action: e.Claim) -> e.Event:
        claim = await self._partitions.claim(action.partition, self._owner, self._lease_s)
        return e.ClaimDenied(action.partition) if claim is None else e.Claimed(action.partition, *claim)

    async def _release(self, action: e.Release) -> e.Event:
        await self._partitions.release(action.partition, action.fence)
        return e.Released(action.partition)

    async def _write(self, action: e.Write) -> e.Event:
        written = await self._partitions.write(
            action.partition, action.fence, action.through, action.records, time.time()
        )
        return e.BatchWritten(action.partition, written)

    # ---------------------------------------------------------------- the log

    async def _ensure(self, action: e.Ensure) -> e.Event:
        await self._log.ensure(action.partition, action.first)
        return e.LogEnsured(action.partition)

    async def _fetch(self, action: e.Fetch) -> e.Event:
        messages = await self._log.fetch(action.partition, action.most, _FETCH_WAIT_S)
        return e.MessagesFetched(action.partition, tuple(messages))

    async def _read(self, action: e.Read) -> e.Event:
        found = await asyncio.gather(*(self._log.read(action.partition, position) for position in action.positions))
        return e.MessagesRead(action.partition, tuple(zip(action.positions, found, strict=True)))

    async def _acknowledge(self, action: e.Acknowledge) -> e.Event:
        await self._log.acknowledge(action.partition, action.positions)
        return e.Acknowledged(action.partition)

    async def _publish_dead_letter(self, action: e.PublishDeadLetter) -> e.Event:
        await self._log.dead_letter(action.partition, action.position, action.reason, action.data)
        self._service.log.error(
            "dead-lettered",
            partition=action.partition,
            position=action.position,
            reason=action.reason,
            bytes=len(action.data),
        )
        return e.DeadLetterPublished(action.partition)

    async def _extend(self, action: e.Extend) -> e.Event:
        await self._log.extend(action.partition, action.positions)
        return e.Extended(action.partition)

    # ---------------------------------------------------------------- connectors

    async def _read_presence(self, action: e.ReadPresence) -> e.Event:
        return e.PresenceRead(action.partition, await self._presence.lookup(action.users))

    async def _send_wake_ups(self, action: e.SendWakeUps) -> e.Event:
        devices = lost = 0
        for incarnation, wake_up in action.wake_ups:
            try:
                await self._notifications.tell(incarnation, wake_up)
                devices += len(wake_up.devices)
            except BackendUnavailable:
                lost += 1
        return e.WakeUpsSent(action.partition, devices, lost)

    # ---------------------------------------------------------------- quotas

    async def _count_queues(self, action: e.CountQueues) -> e.Event:
        return e.QueuesCounted(action.partition, await self._partitions.usage(action.queues, action.rows_max))

    async def _announce_full(self, action: e.AnnounceFull) -> e.Event:
        for user, full in action.users:
            await self._presence.announce_full(user, full, action.ttl_s)
        return e.FullAnnounced(action.partition)

    # ---------------------------------------------------------------- maintenance

    async def _purge(self, action: e.Purge) -> e.Event:
        return e.Purged(await self._partitions.purge(time.time() - self._retention.read_s, action.most))

    async def _drop_idle_devices(self, action: e.DropIdleDevices) -> e.Event:
        before = time.time() - self._retention.device_idle_s
        return e.IdleDevicesDropped(await self._accounts.drop_idle_devices(before, action.most))
