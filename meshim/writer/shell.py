"""Performs what the core decides: each action a task, each answer an event."""

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

_FETCH_WAIT_S = 1.0
"""How long a fetch waits for the first message; leaving takes that long at most."""


class Backends(NamedTuple):
    """The ports of a writer."""

    log: OfflineLog
    partitions: Partitions
    accounts: Accounts
    presence: Presence
    notifications: Notifications


class Retention(NamedTuple):
    """How long, in seconds, rows are kept after they were read, and devices after they were last seen."""

    read_s: float
    device_idle_s: float


class Shell:
    """Turns a core against its backends."""

    def __init__(
        self,
        core: WriterCore,
        backends: Backends,
        owner: str,
        lease_s: float,
        retention: Retention,
        service: Service,
    ) -> None:
        """`owner` names this incarnation in the claims of partitions."""
        self._core = core
        self._log, self._partitions, self._accounts, self._presence, self._notifications = backends
        self._owner = owner
        self._lease_s = lease_s
        self._retention = retention
        self._service = service
        self._ready = asyncio.Event()
        self._stopped = asyncio.Event()
        self._failing: set[str] = set()
        self._performers: dict[type[e.Action], Callable[[Any], Awaitable[e.Event]]] = {
            e.Claim: self._claim,
            e.Release: self._release,
            e.Ensure: self._ensure,
            e.Fetch: self._fetch,
            e.Read: self._read,
            e.Write: self._write,
            e.LookUp: self._look_up,
            e.Tell: self._tell,
            e.Acknowledge: self._acknowledge,
            e.PublishDeadLetter: self._dead_letter,
            e.Extend: self._extend,
            e.Purge: self._purge,
            e.DropIdleDevices: self._drop_idle_devices,
        }
        self._driver: Driver[e.Event, e.Action] = Driver(core, self._start)
        service.watch(self._driver.failed)

    def see(self, writers: Sequence[Lease]) -> None:
        """Take in which writers live."""
        self._receive(e.WritersSeen(tuple(lease.name for lease in writers)))

    async def until_ready(self) -> bool:
        """Wait until partitions were looked for and their logs exist; False when it is told to stop before."""
        ready = asyncio.ensure_future(self._ready.wait())
        stopping = asyncio.ensure_future(self._service.stopping())
        try:
            await asyncio.wait([ready, stopping], return_when=asyncio.FIRST_COMPLETED)
        finally:
            ready.cancel()
            stopping.cancel()
        return self._ready.is_set()

    async def stop(self, within_s: float) -> None:
        """Finish what is under way and give the partitions back; what takes longer is left to others."""
        self._receive(e.StopRequested())
        try:
            async with asyncio.timeout(within_s):
                await self._stopped.wait()
        except TimeoutError:
            self._service.log.warning("not everything was given back", limit_s=within_s)
        self._driver.stop()
        statistics = self._core.statistics()
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
        what = type(action).__name__
        event: e.Event
        try:
            event = await self._performers[type(action)](action)
        except Fenced as error:
            assert isinstance(action, e.Write)
            self._service.log.warning("fenced off", partition=action.partition, reason=error.sentence)
            event = e.FencedOff(action.partition)
        except BackendUnavailable as error:
            if what not in self._failing:  # once for an outage, not once for each attempt
                self._failing.add(what)
                self._service.log.warning("failing", action=what, reason=error.sentence)
            event = e.Failed(action)
        else:
            if what in self._failing:
                self._failing.remove(what)
                self._service.log.info("working again", action=what)
        self._receive(event)

    # ---- partitions

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

    # ---- the log

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

    async def _dead_letter(self, action: e.PublishDeadLetter) -> e.Event:
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

    # ---- connectors

    async def _look_up(self, action: e.LookUp) -> e.Event:
        return e.PresenceSeen(action.partition, await self._presence.lookup(action.users))

    async def _tell(self, action: e.Tell) -> e.Event:
        devices = missed = 0
        for incarnation, wake_up in action.wake_ups:
            try:
                await self._notifications.tell(incarnation, wake_up)
                devices += len(wake_up.devices)
            except BackendUnavailable:
                missed += 1
        return e.Told(action.partition, devices, missed)

    # ---- upkeep

    async def _purge(self, action: e.Purge) -> e.Event:
        return e.Purged(await self._partitions.purge(time.time() - self._retention.read_s, action.most))

    async def _drop_idle_devices(self, action: e.DropIdleDevices) -> e.Event:
        before = time.time() - self._retention.device_idle_s
        return e.IdleDevicesDropped(await self._accounts.drop_idle_devices(before, action.most))
