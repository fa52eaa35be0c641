"""The core of a connector.

A connector sits between clients and transfers.  It takes envelopes from a client, authorizes and stamps them
(authorization.py), and routes each to the transfer of its conversation (submissions.py, transfer_links.py).  It first
pushes the client's offline queue (offline_sync.py), then live messages (session.py), and it sends the outcome of each
copy (the connector of the sender adds them up: outcomes.py):

    the device acknowledged it               Outcome DELIVERED, to the sender's connector
    not connected, syncing, full, gone       Return, to a transfer, which stores the copy
    rejected (not friends, too large, ...)   Outcome REJECTED, to the client that submitted it

Where to look:

    session.py `Session.deliver`             decides whether a live copy is pushed, deferred, or stored instead
    sessions.py `Sessions.return_copy`       returns it to a transfer, to be stored
    sessions.py `Sessions.cut`, `.refuse`    end a session, or a connection without one, with a Close
    core.py `_protocol_error`                ends the connection of a client that breaks the protocol
    handshake.py `_refuse`                   refuses a greeting

A connector promises nothing itself: the client that submitted a message keeps it until its copies are accounted for.

The offline queue of a device is checked after each presence write, on a wake-up, and in a jittered sweep every 30 s, so
that one lost signal only adds delay.  While presence is away no wake-up comes, and every queue is checked each
`queue_poll_s`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from meshim.connector import events as e
from meshim.connector.handshake import LAST_SEEN_S, LEAVING, Handshake
from meshim.connector.options import ConnectorOptions
from meshim.connector.outcomes import Outcomes
from meshim.connector.queues import Queues
from meshim.connector.session import DeliverResult, Session, State, Trigger
from meshim.connector.sessions import Sessions
from meshim.connector.statistics import Statistics
from meshim.connector.submissions import Submissions
from meshim.connector.transfer_links import TransferLinks
from meshim.errors import Code, PeerError
from meshim.protocol.flush_queue import TICK_S
from meshim.protocol.outcome import outcomes_of
from meshim.stores.ports import Binding
from meshim.wire import client as wire
from meshim.wire.client import Change, Greet
from meshim.wire.envelope import EPHEMERAL_FROM
from meshim.wire.link import Close, Data, Pong, Reset
from meshim.wire.mesh import Deliver
from meshim.wire.notification import AccountChanged, Kick, WakeUp
from meshim.wire.outcome import CopyOutcome, OutcomeStatus

_RELATIONS, _DEVICES = int(Change.RELATIONS), int(Change.DEVICES)
_FRIENDSHIP = int(Change.RELATIONS | Change.KEYS)


class ConnectorCore:
    """Sessions, the links to transfers, and the messages that pass between them."""

    def __init__(
        self, incarnation: int, name: str, partitions: int, options: ConnectorOptions, wall_ms: Callable[[], int]
    ) -> None:
        """`wall_ms` is the wall clock that the Welcome tells the client; the core decides nothing by it."""
        self.statistics = Statistics()
        self._incarnation = incarnation
        self._options = options
        self._actions: list[e.Action] = []
        self._ticked_at = 0.0
        self._poll_queues_at: float | None = None
        """When to check every queue, while no wake-up can come; None while presence is there."""
        self._links = TransferLinks(
            incarnation, name, options.transfers, options.reconnect_s, self.statistics, self._actions.append
        )  # fmt: skip
        self._sessions = Sessions(options, self.statistics, self._links, self._actions)
        self._handshake = Handshake(incarnation, options, self.statistics, self._sessions, self._actions, wall_ms)
        self._queues = Queues(partitions, self.statistics, self._sessions, self._actions)
        self._outcomes = Outcomes(self.statistics, self._sessions)
        self._submissions = Submissions(
            incarnation, options, self.statistics, self._sessions, self._outcomes, self._links, self._actions
        )  # fmt: skip
        self._handlers: dict[type[Any], Callable[[Any, float], None]] = {
            e.ClientsSent: self._clients_sent,
            e.ClientGone: self._client_gone,
            e.TransferSent: self._transfer_sent,
            e.TransfersDiscovered: self._links.discovered,
            e.TransferConnected: self._links.connected,
            e.TransferLost: self._links.lost,
            e.GreetAccepted: self._handshake.accepted,
            e.GreetRefused: self._handshake.refused,
            e.BindingsWritten: self._handshake.bindings_written,
            e.BindingsWriteFailed: self._handshake.bindings_write_failed,
            e.TokensRevoked: self._handshake.tokens_revoked,
            e.QueuesChecked: self._queues.checked,
            e.QueueClaimed: self._queues.claimed,
            e.PageRead: self._queues.page_read,
            e.RowsMarked: self._queues.marked,
            e.RowMarkingFailed: self._queues.unmarked,
            e.QueueFenced: self._queues.fenced,
            e.QueuesUnreachable: self._queues.unreachable,
            e.NotificationReceived: self._notification_received,
            e.AccountsRead: self._accounts_read,
            e.AccountsReadFailed: self._accounts_read_failed,
            e.SecretRead: self._secret_read,
            e.LeaseLost: self._lease_lost,
            e.PresenceRecovered: self._presence_recovered,
            e.StopRequested: self._stop_requested,
        }

    # ---------------------------------------------------------------- the driver

    def receive(self, event: e.Event, now: float) -> Sequence[e.Action]:
        self._handlers[type(event)](event, now)
        return self._flush(now)

    def tick(self, now: float) -> Sequence[e.Action]:
        if len(self._sessions) and now < self._ticked_at + TICK_S:
            return self._flush(now)  # only outcomes that were coalesced are due
        self._ticked_at = now
        self._links.tick(now)
        for session in self._sessions.due(now):
            self._tick_session(session, now)
        if self._poll_queues_at is not None and now >= self._poll_queues_at:
            self._poll_queues_at = now + self._options.queue_poll_s
            for session in self._sessions.all():
                self._sessions.check_queue(session)
        return self._flush(now)

    def next_deadline(self) -> float | None:
        if not len(self._sessions):
            return self._links.next_deadline()
        return min(self._ticked_at + TICK_S, self._links.flush_at)

    @property
    def ready(self) -> bool:
        """Whether the link to a transfer is open, and the secret of the mesh is known."""
        return self._links.open > 0 and self._outcomes.secret != b""

    def has_greeted(self, peer: bytes) -> bool:
        """Whether the peer has a session, or its token is being verified.  A transport may close other connections."""
        return self._sessions.has(peer) or self._handshake.is_pending(peer)

    @property
    def idle(self) -> bool:
        """Whether there are no sessions, and transfers have acknowledged everything that was sent to them."""
        return not len(self._sessions) and self._links.idle

    def close(self, now: float) -> Sequence[e.Action]:
        """The last actions, when the core is `idle` or the time for that is over: a Close on each link."""
        self._links.close()
        return self._flush(now)

    def _flush(self, now: float) -> Sequence[e.Action]:
        self._sessions.flush(now)
        self._links.flush(now)
        actions = self._actions.copy()
        self._actions.clear()
        return actions

    def _tick_session(self, session: Session, now: float) -> None:
        link, sync = session.link, session.sync
        if link.failed(now):
            self._sessions.cut(session, Code.UNRESPONSIVE, "nothing was heard or acknowledged for too long")
            return
        if session.state is not State.BINDING:
            for frame in link.tick(now):
                self._sessions.send_frame(session.peer, frame)
        owes_ack = session.token_bucket.due <= now and session.acknowledge_charged(now)
        if owes_ack:
            self._sessions.mark(session)
        if session.deferred:
            self._sessions.return_copies(session, session.expire_deferred(now), absent=False)
        if sync.due(now):
            self._sessions.check_queue(session)
        if now >= session.account_due:
            session.account_due = now + self._handshake.account_period_s(session)
            self._actions.append(e.ReadAccounts((session.login.user,)))
        if now >= session.binding_due:
            # The connector that took over the binding sends one kick; if that was lost, presence says so here (R5).  By
            # a period of its own: presence forgets bindings that are not written, however often relations are read.
            session.binding_due = now + self._handshake.account_period_s(session)
            # While presence is away nothing is written: all bindings are written again when it is back.
            if self._poll_queues_at is None:
                self._actions.append(e.RenewBindings((session.binding_renewal,)))
        if session.changed:
            self._sessions.send_changed(session, now)
        if now >= session.last_seen_due:
            session.last_seen_due = now + LAST_SEEN_S
            self._actions.append(e.RecordLastSeen((session.login.device,)))
        # An acknowledgement changes the deadline of the link when this tick ends: ask again at the next.
        session.due = 0.0 if owes_ack else session.next_deadline()

    # ---------------------------------------------------------------- from clients

    def _clients_sent(self, event: e.ClientsSent, now: float) -> None:
        for peer, data in event.batch:
            session = self._sessions.of_peer(peer)
            try:
                if len(data) > self._options.frame_bytes:
                    sentence = f"the frame has {len(data)} bytes, {self._options.frame_bytes} are allowed"
                    raise PeerError(Code.TOO_LARGE, sentence)
                frame = wire.decode_from_client(data)
                if isinstance(frame, Greet):
                    self._handshake.greet(peer, frame, now)
                elif session is None or frame.link != session.link.epoch:
                    if session is not None:
                        session.unnumbered.charge(now)
                    self._unknown_link(peer, frame)
                elif session.state is not State.BINDING:
                    self._session_frame(session, frame, now)
                elif isinstance(frame, Close | Reset):
                    self._sessions.close(session)
                else:
                    self.statistics.early += 1
                    session.unnumbered.charge(now)
            except msgspec.DecodeError as error:
                self._protocol_error(peer, session, PeerError(Code.MALFORMED, f"the frame does not decode: {error}"))
            except PeerError as error:
                self._protocol_error(peer, session, error)

    def _unknown_link(self, peer: bytes, frame: wire.ClientFrame) -> None:
        """A frame of no session: queued for an earlier incarnation of this connector (R13), or early."""
        ends = isinstance(frame, Close | Reset)
        if self._handshake.is_pending(peer):
            if ends:
                self._handshake.forget(peer)
                self._sessions.close_peer(peer)
            else:
                self.statistics.early += 1
        elif not ends:
            self.statistics.unknown_links += 1
            self._sessions.send_frame(peer, Reset(frame.link))

    def _protocol_error(self, peer: bytes, session: Session | None, error: PeerError) -> None:
        """The client broke the protocol: end its connection, with a Close that gives the reason."""
        self.statistics.malformed += 1
        self._handshake.forget(peer)
        if session is not None:
            self._sessions.cut(session, error.code, error.sentence)
        else:
            self._sessions.refuse(peer, 0, error.code, error.sentence)

    def _session_frame(self, session: Session, frame: wire.ClientFrame, now: float) -> None:
        if isinstance(frame, Pong):
            # An idle session sends nothing else.  Its deadlines move away, so that it need not be ticked any sooner.
            session.unnumbered.charge(now)
            session.link.receive(frame, now)
            return
        session.due = 0.0
        if isinstance(frame, Data) and len(frame.items) > self._options.frame_items:
            sentence = f"the frame has {len(frame.items)} items, {self._options.frame_items} are allowed"
            raise PeerError(Code.TOO_LARGE, sentence)
        items, acknowledged = session.link.receive(frame, now)
        self._sessions.mark(session)
        if isinstance(frame, Data):
            session.charge(items)
            self.statistics.rate_limited += not session.acknowledge_charged(now)
        elif not acknowledged:
            session.unnumbered.charge(now)
        if acknowledged:
            self._acknowledged(session, acknowledged)
        if items:
            self.statistics.submitted += len(items)
            for submit in items:
                self._submissions.submit(session, submit)
        if session.link.closed_by is not None:
            self._sessions.close(session)

    def _client_gone(self, event: e.ClientGone, now: float) -> None:
        self._handshake.forget(event.peer)
        if (session := self._sessions.of_peer(event.peer)) is not None:
            self._sessions.close(session)

    def _acknowledged(self, session: Session, items: list[wire.ConnectorItem]) -> None:
        """The device has these: send outcomes for live copies, mark rows."""
        delivers, rows = session.acknowledged(items)
        if delivers:
            self.statistics.delivered += len(delivers)
            done = ((session.login.user, session.login.device),)
            durable = [(deliver.stamp, done) for deliver in delivers if deliver.stamp.kind < EPHEMERAL_FROM]
            for outcome in outcomes_of(durable, OutcomeStatus.DELIVERED):
                self._send_outcome(outcome)
        if rows:
            self.statistics.synced += len(rows)
            self._actions.extend(session.sync.acknowledged(rows))
        self._queues.read_on(session)
        if session.overflowed and not session.unacked:
            self.statistics.overflowed += 1
            session.overflowed = False
            session.move(Trigger.OVERFLOWED)
            self._sessions.check_queue(session)

    def _send_outcome(self, outcome: CopyOutcome) -> None:
        if outcome.origin == self._incarnation:
            self._outcomes.receive(outcome)
        elif not self._links.send_outcome(outcome):
            self.statistics.outcomes_lost += 1

    # ---------------------------------------------------------------- from transfers

    def _transfer_sent(self, event: e.TransferSent, now: float) -> None:
        for item in self._links.receive(event.transfer, event.batch, now):
            if isinstance(item, CopyOutcome):
                self._outcomes.receive(item)
            else:
                self._deliver(item, now)

    def _deliver(self, deliver: Deliver, now: float) -> None:
        options = self._options
        for device, number in deliver.bindings:
            session = self._sessions.of_device(device)
            if session is None:
                # Its binding is not erased in presence yet, or this was under way before.
                self.statistics.not_connected += 1
                binding = Binding(user=deliver.user, device=device, incarnation=self._incarnation, session=number)
                self._actions.append(e.EraseBindings((binding,)))
                self._sessions.return_copy(deliver, (device,), absent=True)
                continue
            result = session.deliver(deliver, now, options.defer_s, options.session_queue, options.session_bytes)
            if result is DeliverResult.PUSHED:
                self._sessions.mark(session)
            elif result is DeliverResult.DEFERRED:
                self.statistics.deferred += 1
                self._sessions.check_queue(session)
            elif result is DeliverResult.STORE:
                self._sessions.return_copy(deliver, (device,), absent=False)

    # ---------------------------------------------------------------- from the stores

    def _notification_received(self, event: e.NotificationReceived, now: float) -> None:
        notification = event.notification
        if isinstance(notification, WakeUp):
            for _, device in notification.devices:
                if (session := self._sessions.of_device(device)) is not None:
                    self.statistics.woken += 1
                    self._sessions.check_queue(session)
        elif isinstance(notification, Kick):
            session = self._sessions.of_device(notification.device)
            if session is not None and session.binding.session <= notification.session:
                self.statistics.replaced += notification.code == Code.REPLACED
                self._sessions.cut(session, notification.code, notification.sentence)
        elif isinstance(notification, AccountChanged):
            self._account_changed(notification, now)

    def _account_changed(self, notification: AccountChanged, now: float) -> None:
        """Tell the devices; where friends or devices changed, once they have been read: then they hold here too."""
        users: dict[int, None] = {}
        only_relations = notification.what == _RELATIONS
        for session in self._sessions.of_users(notification.users):
            session.changed |= notification.what
            if only_relations:
                self._sessions.send_changed(session, now)
            else:
                users[session.login.user] = None
        if users:
            self._actions.append(e.ReadAccounts(tuple(users)))

    def _accounts_read(self, event: e.AccountsRead, now: float) -> None:
        accounts = {account.user: account for account in event.accounts}
        for session in self._sessions.of_users(accounts):
            account = accounts[session.login.user]
            before, friends = session.devices, session.friends
            session.update_account(account)
            # The notification may have been lost.
            if session.friends != friends:
                session.changed |= _FRIENDSHIP
            if set(session.devices) != set(before):
                session.changed |= _DEVICES
            self._sessions.send_changed(session, now)
            session.account_due = now + self._handshake.account_period_s(session)
            if not set(before).issuperset(session.devices):
                # REST may not have reached presence when it registered the new device.
                self._actions.append(e.RenewBindings((session.binding_renewal,)))
            self._submissions.authorize_deferred(session, known=True)

    def _accounts_read_failed(self, event: e.AccountsReadFailed, now: float) -> None:
        for session in self._sessions.of_users(event.users):
            self._sessions.send_changed(session, now)
            self._submissions.authorize_deferred(session, known=False)

    def _secret_read(self, event: e.SecretRead, now: float) -> None:
        self._outcomes.secret = event.secret

    def _lease_lost(self, event: e.LeaseLost, now: float) -> None:
        """R9: messages for the devices here are stored, and no writer knows which connector to wake up."""
        self._poll_queues_at = now

    def _presence_recovered(self, event: e.PresenceRecovered, now: float) -> None:
        """Write all bindings again, also those that are being written; each answer checks a queue.

        Presence may have forgotten which session took over from which (R14): only a token that is not revoked counts.
        """
        self._poll_queues_at = None
        self._actions.append(e.RenewBindings([session.binding_renewal for session in self._sessions.all()]))

    def _stop_requested(self, event: e.StopRequested, now: float) -> None:
        self._handshake.shutting_down = True
        for session in self._sessions.all():
            self._sessions.cut(session, Code.SHUTTING_DOWN, LEAVING)
