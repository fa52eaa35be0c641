"""Performs the actions of the core and reports results as events."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from meshim.errors import BackendUnavailable
from meshim.runtime.batches import Batches
from meshim.runtime.driver import Driver
from meshim.runtime.service import Service
from meshim.runtime.sockets import Router, SendResult
from meshim.stores.ports import OfflineLog, Presence
from meshim.transfer import events as e
from meshim.transfer.core import TransferCore

_LOOK_UP_USERS = 1024
"""In one command to Redis."""


class Backends(NamedTuple):
    """The ports of a transfer."""

    presence: Presence
    log: OfflineLog


class Shell:
    """The socket and the backends around a transfer core.  Set `router` before the first event."""

    def __init__(self, core: TransferCore, backends: Backends, service: Service) -> None:
        self._performers: dict[type[Any], Callable[[Any], None]] = {
            e.SendConnector: self._send_connector,
            e.ReportImpersonation: self._report_impersonation,
            e.ReadPresence: self._read_presence,
            e.Publish: self._publish,
        }
        self.router: Router | None = None
        self._core = core
        self._backends = backends
        self._service = service
        self._look_ups: Batches[int] = Batches(self._look_up, _LOOK_UP_USERS)
        self.driver: Driver[e.Event, e.Action] = Driver(core, self._perform)

    def start(self) -> None:
        """Begin to look up and to follow presence."""
        self._service.watch(self.driver.failed)
        self._service.start(self._look_ups.run())
        self._service.start(self._follow_presence())

    async def stop(self, within_s: float) -> None:
        """Close the links, and finish the messages in hand; senders resend those that take longer than `within_s`."""
        self.driver.receive(e.StopRequested())
        await self.driver.until(lambda: self._core.idle, within_s)
        self.driver.stop()  # the socket closes next: an answer of Redis or NATS that comes late must send nothing

    def _perform(self, action: e.Action) -> None:
        self._performers[type(action)](action)

    # ---------------------------------------------------------------- connectors

    def _send_connector(self, action: e.SendConnector) -> None:
        assert self.router is not None
        # FULL: the link ends, too.  The connector learns it by Reset, or by silence.
        if self.router.send(action.peer, action.frame) is not SendResult.OK:
            self.driver.receive(e.ConnectorGone(action.peer))

    def _report_impersonation(self, action: e.ReportImpersonation) -> None:
        self._service.log.warning("hello of a foreign incarnation refused", named=action.named, of_key=action.of_key)

    # ---------------------------------------------------------------- presence

    def _read_presence(self, action: e.ReadPresence) -> None:
        for user in action.users:
            self._look_ups.add(user)

    async def _look_up(self, users: Sequence[int]) -> None:
        try:
            found = await self._backends.presence.lookup(users)
        except BackendUnavailable:
            self.driver.receive(e.PresenceReadFailed(users))
        else:
            self.driver.receive(e.PresenceRead(users, found))

    async def _follow_presence(self) -> None:
        async for users in self._backends.presence.changes():
            self.driver.receive(e.PresenceChanged(users))

    # ---------------------------------------------------------------- the log

    def _publish(self, action: e.Publish) -> None:
        self._service.start(self._publish_record(action))

    async def _publish_record(self, action: e.Publish) -> None:
        try:
            position = await self._backends.log.publish(action.partition, action.data)
        except BackendUnavailable as error:
            self._service.log.warning("not published", partition=action.partition, reason=error.sentence)
            self.driver.receive(e.PublishFailed(action.record))
        else:
            self.driver.receive(e.Published(action.record, position))
