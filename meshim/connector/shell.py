"""Performs what the core of a connector decides, and brings it the answers."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from meshim.connector import events as e
from meshim.connector.authenticator import Authenticator, Backends
from meshim.connector.core import ConnectorCore
from meshim.connector.transport import ClientTransport
from meshim.errors import BackendUnavailable, Fenced
from meshim.runtime.batches import Batches
from meshim.runtime.driver import Driver
from meshim.runtime.sent import Sent
from meshim.runtime.service import Service
from meshim.runtime.sockets import Context, Dealer, KeyPair
from meshim.runtime.timeouts import with_timeout
from meshim.stores.ports import Account, Binding, Lease
from meshim.topology import Topology
from meshim.wire.sizes import BUNDLE_OVERHEAD_BYTES

PAUSE_S = 0.01
"""Between questions for the same thing: when thousands connect at once each is one for many."""
SEEN_PAUSE_S = 1.0
"""Between notes of who is connected: they are looked at after weeks."""
MARK_PAUSE_S = 0.1
"""Between gatherings of rows to mark: what a device has can wait for what others do not have yet, and rows of many
devices that are marked together lie on the same pages."""
MARKS = 256
CACHED_SHARE = 0.25
"""Of `relation_ttl_s`: how old relations may be at a greeting.  The rest is how long a session goes on with them."""


class Shell:
    """Sockets and backends around a connector core."""

    def __init__(
        self, core: ConnectorCore, backends: Backends, context: Context, keys: KeyPair | None, topology: Topology,
        service: Service,
    ) -> None:  # fmt: skip
        self._transports: dict[int, ClientTransport] = {}
        """By tag."""
        self._core = core
        self._backends = backends
        self._context = context
        self._keys = keys
        self._timers = topology.timers
        self._limits = topology.limits
        self._service = service
        self._authenticator = Authenticator(backends, CACHED_SHARE * self._timers.relation_ttl_s, service)
        self._transfers: dict[int, Lease] = {}
        self._dealers: dict[int, Dealer] = {}
        self._read_slots = asyncio.Semaphore(2 * topology.limits.db_threads)
        # More: on SQLite what is under way together shares a transaction (adr/0011).
        self._write_slots = asyncio.Semaphore(8 * topology.limits.db_threads)
        self._greets: Batches[e.CheckGreet] = Batches(self._check_greets, 256, PAUSE_S)
        self._bindings: Batches[tuple[Binding, tuple[int, ...]]] = Batches(self._write_bindings, 256, PAUSE_S)
        self._renewals: Batches[e.Renewal] = Batches(self._renew_bindings, 8192)
        self._erased: Batches[Binding] = Batches(self._erase_bindings, 1024)
        self._peeks: Batches[tuple[int, int, int]] = Batches(self._peek, 512, PAUSE_S)
        self._marks: Batches[e.MarkRead | e.ReleaseQueue] = Batches(self._mark_and_release, MARKS, MARK_PAUSE_S)
        self._readings: Batches[int] = Batches(self._read_accounts, 64)
        self._seen: Batches[int] = Batches(self._note_seen, 1024, SEEN_PAUSE_S)
        start = service.start
        self._performers: dict[type[Any], Callable[[Any], None]] = {
            e.SendClient: self._send_client,
            e.ClosePeer: self._close_peer,
            e.SendTransfer: self._send_transfer,
            e.ConnectTransfer: self._connect_transfer,
            e.DisconnectTransfer: self._disconnect_transfer,
            e.CheckGreet: self._greets.add,
            e.WriteBindings: lambda action: self._add_all(self._bindings, action.bindings),
            e.RenewBindings: lambda action: self._add_all(self._renewals, action.renewals),
            e.EraseBindings: lambda action: self._add_all(self._erased, action.bindings),
            e.PeekQueues: lambda action: self._add_all(self._peeks, action.devices),
            e.ClaimQueue: lambda action: start(self._claim(action)),
            e.ReadPage: lambda action: start(self._read_page(action)),
            e.MarkRead: self._marks.add,
            e.ReleaseQueue: self._marks.add,
            e.ReadAccounts: lambda action: self._add_all(self._readings, action.users),
            e.TellKick: lambda action: start(self._tell(action)),
            e.NoteSeen: lambda action: self._add_all(self._seen, action.devices),
        }
        self.driver: Driver[e.Event, e.Action] = Driver(core, self._perform)

    def start(self, incarnation: int) -> None:
        self._service.watch(self.driver.failed)
        for batches in self._all_batches():
            self._service.start(batches.run())
        self._service.start(self._listen(incarnation))

    async def stop(self, within_s: float) -> None:
        """Send every client to another connector, and give back what it had not acknowledged."""
        loop = asyncio.get_running_loop()
        self.driver.receive(e.StopRequested())
        await self.driver.until(lambda: self._core.idle, within_s)
        deadline = loop.time() + within_s
        for batches in (self._renewals, self._bindings, self._erased):  # in this order one leads to the other
            await batches.join(deadline - loop.time())
        for action in self._core.farewell(loop.time()):
            self._perform(action)
        for dealer in list(self._dealers.values()):
            dealer.close(linger_ms=200)
        await self._marks.join(deadline - loop.time())

    def _all_batches(self) -> list[Batches[Any]]:
        return [
            self._greets, self._bindings, self._renewals, self._erased, self._peeks, self._marks, self._readings,
            self._seen,
        ]  # fmt: skip

    def _perform(self, action: e.Action) -> None:
        self._performers[type(action)](action)

    def _add_all(self, batches: Batches[Any], items: Sequence[Any]) -> None:
        for item in items:
            batches.add(item)

    # ---------------------------------------------------------------- clients

    def serve(self, transport: ClientTransport) -> None:
        """Send to the clients of this transport; several can be served at once.

        Make the transport with `on_batch=shell.clients_sent` and, where it has one, `on_gone=shell.client_gone`.
        """
        assert transport.tag not in self._transports, "each transport has a tag of its own"
        self._transports[transport.tag] = transport

    def clients_sent(self, batch: Sequence[tuple[bytes, bytes]]) -> None:
        self.driver.receive(e.ClientsSent(batch))

    def client_gone(self, peer: bytes) -> None:
        self.driver.receive(e.ClientGone(peer))

    def close_transports(self, linger_ms: int) -> None:
        """End the connections of all clients; queued frames have `linger_ms` to leave."""
        for transport in self._transports.values():
            transport.close(linger_ms)

    def _send_client(self, action: e.SendClient) -> None:
        peer = action.peer
        # FULL: the frame is dropped.  The window of the session sends data again after `link_resend_s`, and a client
        # that acknowledges nothing for `delivery_timeout_s` loses its session.  A Welcome or Close that is dropped
        # costs the client its own greeting timeout.  The transport counts such frames.
        if self._transports[peer[0]].send(peer, action.frame) is Sent.GONE:
            self.driver.receive(e.ClientGone(peer))

    def _close_peer(self, action: e.ClosePeer) -> None:
        self._transports[action.peer[0]].close_peer(action.peer)

    # ---------------------------------------------------------------- transfers

    def _send_transfer(self, action: e.SendTransfer) -> None:
        dealer = self._dealers.get(action.transfer)
        if dealer is not None:
            # A frame that finds no room is sent again by its window.
            dealer.send(action.frame)

    def _connect_transfer(self, action: e.ConnectTransfer) -> None:
        transfer = action.transfer
        lease = self._transfers.get(transfer)
        if lease is None:
            self.driver.receive(e.TransferLost(transfer))
            return
        self._disconnect_transfer(e.DisconnectTransfer(transfer))
        self._dealers[transfer] = self._context.dealer(
            lease.endpoint,
            server_key=lease.key.encode() if self._keys else None,
            keys=self._keys,
            frame_bytes=self._limits.bundle_bytes + BUNDLE_OVERHEAD_BYTES,
            on_batch=lambda batch: self.driver.receive(e.TransferSent(transfer, batch)),
            on_connected=lambda: self.driver.receive(e.TransferConnected(transfer)),
            on_lost=lambda: self.driver.receive(e.TransferLost(transfer)),
        )

    def _disconnect_transfer(self, action: e.DisconnectTransfer) -> None:
        if (dealer := self._dealers.pop(action.transfer, None)) is not None:
            dealer.close()

    def living(self, role: str, leases: Sequence[Lease]) -> None:
        """The transfers whose leases last."""
        self._transfers = {lease.incarnation: lease for lease in leases}
        self.driver.receive(e.TransfersLiving(tuple(self._transfers)))

    # ---------------------------------------------------------------- greetings and accounts

    async def _check_greets(self, greets: Sequence[e.CheckGreet]) -> None:
        for decision in await self._authenticator.check(greets):
            self.driver.receive(decision)

    async def _read_accounts(self, users: Sequence[int]) -> None:
        users, now = tuple(dict.fromkeys(users)), time.time()
        try:
            found = await with_timeout(self._backends.accounts.accounts(users, now), self._timers.delivery_timeout_s)
        except BackendUnavailable:
            self.driver.receive(e.AccountsUnreadable(users))
            return
        self.driver.receive(e.AccountsRead([found.get(user) or Account(user, (), (), now) for user in users]))
        await self._authenticator.cache(list(found.values()))

    # ---------------------------------------------------------------- presence

    async def _write_bindings(self, bindings: Sequence[tuple[Binding, tuple[int, ...]]]) -> None:
        try:
            results = await self._backends.presence.online(bindings)
        except BackendUnavailable:
            self.driver.receive(e.BindingsUnwritten([binding for binding, _ in bindings]))
            return
        self.driver.receive(
            e.BindingsWritten([(binding, result) for (binding, _), result in zip(bindings, results, strict=True)])
        )

    async def _renew_bindings(self, renewals: Sequence[e.Renewal]) -> None:
        unrevoked = await self._authenticator.unrevoked([renewal.token_hash for renewal in renewals])
        revoked = [renewal.binding for renewal in renewals if renewal.token_hash not in unrevoked]
        if revoked:
            self.driver.receive(e.TokensRevoked(revoked))
        for renewal in renewals:
            if renewal.token_hash in unrevoked:
                self._bindings.add((renewal.binding, renewal.devices))

    async def _erase_bindings(self, bindings: Sequence[Binding]) -> None:
        try:
            await self._backends.presence.offline(bindings)
        except BackendUnavailable:
            self._service.log.warning("bindings not erased", count=len(bindings))

    async def _tell(self, action: e.TellKick) -> None:
        try:
            await self._backends.notifications.tell(action.incarnation, action.kick)
        except BackendUnavailable:
            self._service.log.warning("kick not told", device=action.kick.device)

    async def _listen(self, incarnation: int) -> None:
        async for notification in await self._backends.notifications.listen(incarnation):
            self.driver.receive(e.NotificationReceived(notification))

    async def _note_seen(self, devices: Sequence[int]) -> None:
        try:
            await self._backends.accounts.seen(tuple(dict.fromkeys(devices)), time.time())
        except BackendUnavailable:
            self._service.log.warning("devices not noted as seen", count=len(devices))

    def lost(self) -> None:
        """Nobody finds us until the lease is held again."""
        self.driver.receive(e.PresenceLost())

    def disturbed(self) -> None:
        """Presence may have forgotten us, or be as it was once: register everybody again."""
        self._authenticator.invalidate()
        self.driver.receive(e.PresenceDisturbed())

    # ---------------------------------------------------------------- queues

    async def _peek(self, devices: Sequence[tuple[int, int, int]]) -> None:
        try:
            look = self._backends.queues.peek([(user, device) for user, device, _ in devices])
            through, waiting = await with_timeout(look, self._timers.delivery_timeout_s)
        except BackendUnavailable:
            self.driver.receive(e.QueuesUnreachable([(device, session) for _, device, session in devices]))
        else:
            self.driver.receive(e.QueuesPeeked(devices, through, waiting))

    async def _claim(self, action: e.ClaimQueue) -> None:
        owner = f"{action.session}"
        async with self._write_slots:
            work = self._backends.queues.claim(action.device, owner, action.session, self._timers.queue_lease_s)
            await self._answer(action, work, lambda fence: e.QueueClaimed(action.device, action.session, fence))

    async def _read_page(self, action: e.ReadPage) -> None:
        limits = self._limits
        async with self._read_slots:
            work = self._backends.queues.page(
                action.user, action.device, action.fence, action.after, limits.sync_page_rows, limits.sync_page_bytes,
                self._timers.queue_lease_s,
            )  # fmt: skip
            await self._answer(action, work, lambda page: e.PageRead(action.device, action.session, page))

    async def _answer(
        self, action: e.ClaimQueue | e.ReadPage, work: Awaitable[Any], event: Callable[[Any], e.Event]
    ) -> None:
        try:
            result = await with_timeout(work, self._timers.delivery_timeout_s)
        except Fenced:
            self.driver.receive(e.QueueFenced(action.device, action.session))
        except BackendUnavailable:
            self.driver.receive(e.QueuesUnreachable(((action.device, action.session),)))
        else:
            self.driver.receive(event(result))

    async def _mark_and_release(self, actions: Sequence[e.MarkRead | e.ReleaseQueue]) -> None:
        await asyncio.gather(*(self._mark_read(each) for each in actions if isinstance(each, e.MarkRead)))
        # Behind them: whoever claims next finds nothing unread that the device has.
        await asyncio.gather(*(self._release(each) for each in actions if isinstance(each, e.ReleaseQueue)))

    async def _mark_read(self, action: e.MarkRead) -> None:
        device, session, fence, row_ids = action
        try:
            async with self._write_slots:
                mark = self._backends.queues.mark_read(device, fence, row_ids)
                await with_timeout(mark, self._timers.delivery_timeout_s)
        except Fenced:
            self.driver.receive(e.RowsUnmarked(device, session, fence, fenced=True))
        except BackendUnavailable:
            self.driver.receive(e.RowsUnmarked(device, session, fence, fenced=False))
        else:
            self.driver.receive(e.RowsMarked(device, session, row_ids))

    async def _release(self, action: e.ReleaseQueue) -> None:
        try:
            async with self._write_slots:
                release = self._backends.queues.release(action.device, action.fence)
                await with_timeout(release, self._timers.delivery_timeout_s)
        except BackendUnavailable:
            self._service.log.warning("queue not released", device=action.device)
