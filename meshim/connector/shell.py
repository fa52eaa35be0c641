"""Performs the actions of the core and reports results as events."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from meshim.connector import events as e
from meshim.connector.authenticator import DATABASE_S, Authenticator, Backends, Held
from meshim.connector.core import ConnectorCore
from meshim.connector.transport import ClientTransport
from meshim.errors import BackendUnavailable, Fenced, UsageError
from meshim.runtime.batches import Batches
from meshim.runtime.driver import Driver
from meshim.runtime.send_result import SendResult
from meshim.runtime.service import Service
from meshim.runtime.sockets import Context, Dealer, KeyPair
from meshim.runtime.timeouts import with_timeout
from meshim.stores.ports import Account, Binding, Lease
from meshim.topology import Topology
from meshim.wire.sizes import BUNDLE_OVERHEAD_BYTES

PAUSE_S = 0.01
"""Minimum pause between two batches to the same backend, so that a connection storm is batched."""
LAST_SEEN_PAUSE_S = 1.0
"""The same for records of connected devices, which are read after weeks."""
MARK_PAUSE_S = 0.1
"""The same for rows to mark (adr/0026): marking can wait, and rows of many devices that are marked together lie on the
same pages of the database."""
MARKS = 256
"""Marks and releases in one batch."""
SECRET_RETRY_S = 0.5
"""Pause after the secret of the mesh could not be read."""
CACHED_SHARE = 0.25
"""Relations may be this share of `relation_ttl_s` old at a greeting; a session uses them for the remaining time."""


class Shell:
    """Transports, sockets and backends around a connector's core."""

    def __init__(
        self, core: ConnectorCore, backends: Backends, context: Context, mesh_keys: KeyPair | None, topology: Topology,
        service: Service,
    ) -> None:  # fmt: skip
        self._transports: dict[int, ClientTransport] = {}
        """By tag."""
        self._core = core
        self._backends = backends
        self._context = context
        self._mesh_keys = mesh_keys
        self._timers = topology.timers
        self._limits = topology.limits
        self._service = service
        self._authenticator = Authenticator(backends, CACHED_SHARE * self._timers.relation_ttl_s, service)
        self._transfers: dict[int, Lease] = {}
        self._dealers: dict[int, Dealer] = {}
        self._unusable: set[int] = set()
        """Living transfers whose lease names an endpoint or a key that no socket takes: each is logged once."""
        self._read_slots = asyncio.Semaphore(2 * topology.limits.db_threads)
        # More than reads: on SQLite, writes that are under way together share a commit (adr/0011).
        self._write_slots = asyncio.Semaphore(8 * topology.limits.db_threads)
        self._greets: Batches[e.CheckGreet] = Batches(self._greet_batch, 256, PAUSE_S)
        self._bindings: Batches[tuple[e.BindingRenewal, bool]] = Batches(self._write_batch, 256, PAUSE_S)
        """Each with whether it is the first of its session."""
        self._doubtful: Batches[tuple[e.BindingRenewal, Binding | bool | None]] = Batches(self._doubtful_batch, 256)
        self._renewals: Batches[e.BindingRenewal] = Batches(self._renew_batch, 8192)
        self._erased: Batches[Binding] = Batches(self._erase_batch, 1024)
        self._checks: Batches[tuple[int, int, int]] = Batches(self._check_batch, 512, PAUSE_S)
        self._marks: Batches[e.MarkRead | e.ReleaseQueue] = Batches(self._mark_batch, MARKS, MARK_PAUSE_S)
        self._account_reads: Batches[int] = Batches(self._account_batch, 64)
        self._last_seen: Batches[int] = Batches(self._last_seen_batch, 1024, LAST_SEEN_PAUSE_S)
        self._performers: dict[type[Any], Callable[[Any], None]] = {
            e.SendClient: self._send_client,
            e.ClosePeer: self._close_peer,
            e.SendTransfer: self._send_transfer,
            e.ConnectTransfer: self._connect_transfer,
            e.DisconnectTransfer: self._disconnect_transfer,
            e.CheckGreet: self._greets.add,
            e.WriteBindings: self._write_bindings,
            e.RenewBindings: self._renew_bindings,
            e.EraseBindings: self._erase_bindings,
            e.CheckQueues: self._check_queues,
            e.ClaimQueue: self._claim_queue,
            e.ReadPage: self._read_page,
            e.MarkRead: self._marks.add,
            e.ReleaseQueue: self._marks.add,
            e.ReadAccounts: self._read_accounts,
            e.SendKick: self._send_kick,
            e.RecordLastSeen: self._record_last_seen,
        }
        self.driver: Driver[e.Event, e.Action] = Driver(core, self._perform)

    def start(self, incarnation: int) -> None:
        """Start the batches, and listen to notifications for this incarnation."""
        self._service.watch(self.driver.failed)
        for batches in (
            self._greets, self._bindings, self._doubtful, self._renewals, self._erased, self._checks, self._marks,
            self._account_reads, self._last_seen,
        ):  # fmt: skip
            self._service.start(batches.run())
        self._service.start(self._listen(incarnation))
        self._service.start(self._read_secret())

    async def stop(self, within_s: float) -> None:
        """Send every client to another connector, and return the live copies that it had not acknowledged."""
        loop = asyncio.get_running_loop()
        self.driver.receive(e.StopRequested())
        await self.driver.until(lambda: self._core.idle, within_s)
        deadline = loop.time() + within_s
        # In this order: each adds to the next.
        for batches in (self._renewals, self._bindings, self._doubtful, self._erased):
            await batches.join(deadline - loop.time())
        for action in self._core.close(loop.time()):
            self._perform(action)
        # Before the sockets close: what clients still send, and the answers of backends, must move nothing any more.
        self.driver.stop()
        for dealer in self._dealers.values():
            dealer.close(linger_ms=200)
        await self._marks.join(deadline - loop.time())

    def _perform(self, action: e.Action) -> None:
        self._performers[type(action)](action)

    def _add_all(self, batches: Batches[Any], items: Sequence[Any]) -> None:
        for item in items:
            batches.add(item)

    # ---------------------------------------------------------------- clients

    def serve(self, transport: ClientTransport) -> None:
        """Send to the clients of this transport; several can be served at once.

        Make the transport with `on_batch=shell.clients_sent` and `on_gone=shell.client_gone`.
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
        transport = self._transports[peer[0]]
        result = transport.send(peer, action.frame)
        if result is SendResult.OK:
            return
        if result is SendResult.FULL:
            # The client reads too slowly for its window, or not at all.  The frame is missing from here on, so the
            # connection ends (adr/0030), without a Close, for which there is no room.  The transport counts it.
            transport.close_peer(peer)
        self.driver.receive(e.ClientGone(peer))

    def _close_peer(self, action: e.ClosePeer) -> None:
        self._transports[action.peer[0]].close_peer(action.peer, was_authenticated=action.had_session)

    # ---------------------------------------------------------------- transfers

    def _send_transfer(self, action: e.SendTransfer) -> None:
        dealer = self._dealers.get(action.transfer)
        if dealer is not None and not dealer.send(action.frame):
            # The connection is full or has ended, and with it the link: nothing may follow a frame that is missing.
            self._disconnect_transfer(e.DisconnectTransfer(action.transfer))
            self.driver.receive(e.TransferLost(action.transfer))

    def _connect_transfer(self, action: e.ConnectTransfer) -> None:
        transfer = action.transfer
        lease = self._transfers.get(transfer)
        if lease is None:
            self.driver.receive(e.TransferLost(transfer))
            return
        self._disconnect_transfer(e.DisconnectTransfer(transfer))
        try:
            self._dealers[transfer] = self._context.dealer(
                lease.endpoint,
                server_key=lease.key.encode() if self._mesh_keys else None,
                keys=self._mesh_keys,
                frame_bytes=self._limits.bundle_bytes + BUNDLE_OVERHEAD_BYTES,
                on_batch=lambda batch: self.driver.receive(e.TransferSent(transfer, batch)),
                on_connected=lambda: self.driver.receive(e.TransferConnected(transfer)),
                on_lost=lambda: self.driver.receive(e.TransferLost(transfer)),
            )
        except UsageError as error:  # the fault of that transfer, or of a foreign writer in Redis: the others go on
            self._core.statistics.leases_unusable += 1
            if transfer not in self._unusable:
                self._unusable.add(transfer)
                self._service.log.warning("lease of a transfer unusable", transfer=lease.name, reason=error)
            self.driver.receive(e.TransferLost(transfer))
        except BackendUnavailable as error:  # no descriptor is left: as when the transfer cannot be reached
            self._service.log.warning("transfer not reached", transfer=lease.name, reason=error.sentence)
            self.driver.receive(e.TransferLost(transfer))

    def _disconnect_transfer(self, action: e.DisconnectTransfer) -> None:
        if (dealer := self._dealers.pop(action.transfer, None)) is not None:
            dealer.close()

    def transfers_discovered(self, role: str, leases: Sequence[Lease]) -> None:
        """These transfers hold a lease now."""
        self._transfers = {lease.incarnation: lease for lease in leases}
        self._unusable &= self._transfers.keys()
        self.driver.receive(e.TransfersDiscovered(tuple(self._transfers)))

    # ---------------------------------------------------------------- greetings and accounts

    async def _greet_batch(self, greets: Sequence[e.CheckGreet]) -> None:
        for decision in await self._authenticator.check(greets):
            self.driver.receive(decision)

    def _read_accounts(self, action: e.ReadAccounts) -> None:
        self._add_all(self._account_reads, action.users)

    async def _account_batch(self, users: Sequence[int]) -> None:
        users, now = tuple(dict.fromkeys(users)), time.time()
        try:
            found = await with_timeout(self._backends.accounts.accounts(users, now), self._timers.delivery_timeout_s)
        except BackendUnavailable:
            self.driver.receive(e.AccountsReadFailed(users))
            return
        self.driver.receive(e.AccountsRead([found.get(user) or Account(user, (), (), now) for user in users]))
        await self._authenticator.cache(list(found.values()))

    def _record_last_seen(self, action: e.RecordLastSeen) -> None:
        self._add_all(self._last_seen, action.devices)

    async def _last_seen_batch(self, devices: Sequence[int]) -> None:
        try:
            await self._backends.accounts.seen(tuple(dict.fromkeys(devices)), time.time())
        except BackendUnavailable:
            self._service.log.warning("devices not recorded as seen", count=len(devices))

    async def _read_secret(self) -> None:
        """Read the secret of the mesh from the database, or from its copy in the cache while the database is away."""
        while True:
            secret: bytes | None
            try:
                secret = await with_timeout(self._backends.accounts.mesh_secret(), DATABASE_S)
                await self._cache_secret(secret)
            except BackendUnavailable:
                secret = await self._cached_secret()
            if secret is not None:
                self.driver.receive(e.SecretRead(secret))
                return
            self._service.log.warning("the secret of the mesh cannot be read")
            await asyncio.sleep(SECRET_RETRY_S)

    async def _cached_secret(self) -> bytes | None:
        try:
            return await self._backends.cache.mesh_secret()
        except BackendUnavailable:
            return None

    async def _cache_secret(self, secret: bytes) -> None:
        try:
            await self._backends.cache.put_mesh_secret(secret)
        except BackendUnavailable:
            self._service.log.warning("the secret of the mesh is not cached")

    # ---------------------------------------------------------------- presence

    def lease_lost(self) -> None:
        """Presence does not count our bindings until the lease is held again."""
        self.driver.receive(e.LeaseLost())

    def presence_recovered(self) -> None:
        """Presence may have forgotten our bindings, or be as it was some time ago: write all of them again."""
        self._authenticator.invalidate()
        self.driver.receive(e.PresenceRecovered())

    def _write_bindings(self, action: e.WriteBindings) -> None:
        self._add_all(self._bindings, [(renewal, True) for renewal in action.renewals])

    async def _write_batch(self, writes: Sequence[tuple[e.BindingRenewal, bool]]) -> None:
        try:
            results = await self._backends.presence.online([(each.binding, each.devices) for each, _ in writes])
        except BackendUnavailable:
            self.driver.receive(e.BindingsWriteFailed([each.binding for each, _ in writes]))
            return
        # After the write (authenticator.py).
        held = await self._authenticator.look_again([each.token_hash for each, is_new in writes if is_new])
        written = []
        for (renewal, is_new), result in zip(writes, results, strict=True):
            if is_new and held[renewal.token_hash] is Held.NOTHING:
                self._doubtful.add((renewal, result))
                continue
            written.append((renewal.binding, result))
            if is_new and held[renewal.token_hash] is Held.UNVERIFIED:
                self._renewals.add(renewal)
        if written:
            self.driver.receive(e.BindingsWritten(written))

    async def _doubtful_batch(self, writes: Sequence[tuple[e.BindingRenewal, Binding | bool | None]]) -> None:
        await self._unrevoked([renewal for renewal, _ in writes])
        self.driver.receive(e.BindingsWritten([(renewal.binding, result) for renewal, result in writes]))

    def _renew_bindings(self, action: e.RenewBindings) -> None:
        self._add_all(self._renewals, action.renewals)

    async def _renew_batch(self, renewals: Sequence[e.BindingRenewal]) -> None:
        for renewal in await self._unrevoked(renewals):
            self._bindings.add((renewal, False))

    async def _unrevoked(self, renewals: Sequence[e.BindingRenewal]) -> list[e.BindingRenewal]:
        """Those whose token is not revoked; the core is told of the others."""
        unrevoked = await self._authenticator.unrevoked([renewal.token_hash for renewal in renewals])
        revoked = [renewal.binding for renewal in renewals if renewal.token_hash not in unrevoked]
        if revoked:
            self.driver.receive(e.TokensRevoked(revoked))
        return [renewal for renewal in renewals if renewal.token_hash in unrevoked]

    def _erase_bindings(self, action: e.EraseBindings) -> None:
        self._add_all(self._erased, action.bindings)

    async def _erase_batch(self, bindings: Sequence[Binding]) -> None:
        try:
            await self._backends.presence.offline(bindings)
        except BackendUnavailable:
            self._service.log.warning("bindings not erased", count=len(bindings))

    # ---------------------------------------------------------------- notifications

    async def _listen(self, incarnation: int) -> None:
        async for notification in await self._backends.notifications.listen(incarnation):
            self.driver.receive(e.NotificationReceived(notification))

    def _send_kick(self, action: e.SendKick) -> None:
        self._service.start(self._kick(action))

    async def _kick(self, action: e.SendKick) -> None:
        try:
            await self._backends.notifications.tell(action.incarnation, action.kick)
        except BackendUnavailable:
            self._service.log.warning("kick not sent", device=action.kick.device)

    # ---------------------------------------------------------------- offline queues

    def _check_queues(self, action: e.CheckQueues) -> None:
        self._add_all(self._checks, action.devices)

    async def _check_batch(self, devices: Sequence[tuple[int, int, int]]) -> None:
        try:
            check = self._backends.queues.check([(user, device) for user, device, _ in devices])
            through, waiting = await with_timeout(check, self._timers.delivery_timeout_s)
        except BackendUnavailable:
            self.driver.receive(e.QueuesUnreachable([(device, session) for _, device, session in devices]))
        else:
            self.driver.receive(e.QueuesChecked(devices, through, waiting))

    def _claim_queue(self, action: e.ClaimQueue) -> None:
        self._service.start(self._claim(action))

    async def _claim(self, action: e.ClaimQueue) -> None:
        owner = f"{action.session}"
        async with self._write_slots:
            work = self._backends.queues.claim(action.device, owner, action.session, self._timers.queue_lease_s)
            await self._answer(action, work, lambda fence: e.QueueClaimed(action.device, action.session, fence))

    def _read_page(self, action: e.ReadPage) -> None:
        self._service.start(self._page(action))

    async def _page(self, action: e.ReadPage) -> None:
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

    async def _mark_batch(self, actions: Sequence[e.MarkRead | e.ReleaseQueue]) -> None:
        await asyncio.gather(*(self._mark_read(each) for each in actions if isinstance(each, e.MarkRead)))
        # After the marks: the connector that claims the queue next must not find rows unread that the device has.
        await asyncio.gather(*(self._release(each) for each in actions if isinstance(each, e.ReleaseQueue)))

    async def _mark_read(self, action: e.MarkRead) -> None:
        device, session, fence, row_ids = action
        try:
            async with self._write_slots:
                mark = self._backends.queues.mark_read(device, fence, row_ids)
                await with_timeout(mark, self._timers.delivery_timeout_s)
        except Fenced:
            self.driver.receive(e.RowMarkingFailed(device, session, fence, fenced=True))
        except BackendUnavailable:
            self.driver.receive(e.RowMarkingFailed(device, session, fence, fenced=False))
        else:
            self.driver.receive(e.RowsMarked(device, session, row_ids))

    async def _release(self, action: e.ReleaseQueue) -> None:
        try:
            async with self._write_slots:
                release = self._backends.queues.release(action.device, action.fence)
                await with_timeout(release, self._timers.delivery_timeout_s)
        except BackendUnavailable:
            self._service.log.warning("queue not released", device=action.device)
