"""What a connector decides.

A connector sits between clients and transfers.  From a client it takes envelopes, checks that the
session may send them (authorization.py), stamps them and routes them to the transfer of the conversation (mesh.py);
towards a client it syncs what is stored (offline_sync.py), then pushes what is live (session.py), and says
what became of each copy:

    the device acknowledged it              Outcome DELIVERED, to the sender's connector
    not connected, syncing, full, gone     Return, to a transfer, which stores it
    refused (not friends, too large, …)     Outcome REJECTED, to the client that submitted it

It promises nothing itself: whoever submits keeps the message until its copies are accounted for.

The queue of a device is looked at after every presence write, after a wake-up, and in a jittered sweep, so that
no single lost signal leaves anybody waiting; and often while presence is away, when no wake-up can come.
"""

from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from meshim.connector import events as e
from meshim.connector.authorization import Rejection, authorize, busy, rejected
from meshim.connector.handshake import LEAVING, SEEN_S, Handshake
from meshim.connector.options import ConnectorOptions
from meshim.connector.queues import Queues
from meshim.connector.session import DeliverResult, Session, State
from meshim.connector.sessions import Sessions
from meshim.connector.statistics import Statistics
from meshim.connector.transfer_links import TransferLinks
from meshim.errors import Code, PeerError
from meshim.protocol.flush_queue import TICK_S
from meshim.protocol.outcome import outcomes_of
from meshim.stores.ports import Binding
from meshim.wire import client as wire
from meshim.wire.client import Greet, Submit
from meshim.wire.envelope import EPHEMERAL_FROM
from meshim.wire.link import Close, Data, Reset
from meshim.wire.mesh import Deliver, Route, Stamp
from meshim.wire.notification import AccountChanged, Kick, WakeUp
from meshim.wire.outcome import Outcome, OutcomeStatus


class ConnectorCore:
    """Sessions, the links to transfers, and what passes between them."""

    def __init__(
        self, incarnation: int, name: str, partitions: int, options: ConnectorOptions, wall_ms: Callable[[], int]
    ) -> None:
        """`wall_ms` only fills the clock in the welcome; nothing is decided by it."""
        self.statistics = Statistics()
        self._incarnation = incarnation
        self._options = options
        self._actions: list[e.Action] = []
        self._ticked = 0.0
        self._poll_queues_at: float | None = None
        """When to look at every queue, while nobody can wake-up us."""
        self._links = TransferLinks(
            incarnation, name, options.transfers, options.reconnect_s, self.statistics, self._actions.append
        )  # fmt: skip
        self._sessions = Sessions(options, self.statistics, self._links, self._actions)
        self._handshake = Handshake(incarnation, options, self.statistics, self._sessions, self._actions, wall_ms)
        self._queues = Queues(partitions, self.statistics, self._sessions, self._actions)
        self._handlers: dict[type[Any], Callable[[Any, float], None]] = {
            e.ClientsSent: self._clients_sent,
            e.ClientGone: self._client_gone,
            e.TransferSent: self._transfer_sent,
            e.TransfersLiving: lambda event, now: self._links.living(event.transfers),
            e.TransferConnected: lambda event, now: self._links.connected(event.transfer, now),
            e.TransferLost: lambda event, now: self._links.lost(event.transfer, now),
            e.GreetAccepted: self._handshake.accepted,
            e.GreetRefused: lambda event, now: self._handshake.refused(event),
            e.BindingsWritten: lambda event, now: self._handshake.bindings_written(event),
            e.BindingsUnwritten: self._handshake.bindings_unwritten,
            e.TokensRevoked: lambda event, now: self._handshake.tokens_revoked(event),
            e.QueuesPeeked: self._queues.peeked,
            e.QueueClaimed: self._queues.claimed,
            e.PageRead: self._queues.page_read,
            e.RowsMarked: self._queues.marked,
            e.RowsUnmarked: self._queues.unmarked,
            e.QueueFenced: self._queues.fenced,
            e.QueuesUnreachable: self._queues.unreachable,
            e.NotificationReceived: self._notification_received,
            e.AccountsRead: self._accounts_read,
            e.AccountsUnreadable: self._accounts_unreadable,
            e.PresenceLost: self._presence_lost,
            e.PresenceDisturbed: self._presence_disturbed,
            e.StopRequested: self._stop_requested,
        }

    # ---------------------------------------------------------------- the driver

    def receive(self, event: e.Event, now: float) -> Sequence[e.Action]:
        self._handlers[type(event)](event, now)
        return self._flush(now)

    def tick(self, now: float) -> Sequence[e.Action]:
        if len(self._sessions) and now < self._ticked + TICK_S:
            return self._flush(now)  # something that has waited for others leaves, no more
        self._ticked = now
        self._links.tick(now)
        for session in self._sessions.due(now):
            self._tick_session(session, now)
        if self._poll_queues_at is not None and now >= self._poll_queues_at:
            self._poll_queues_at = now + self._options.queue_poll_s
            for session in self._sessions.all():
                self._sessions.look(session)
        return self._flush(now)

    def next_deadline(self) -> float | None:
        if not len(self._sessions):
            return self._links.next_deadline()
        return min(self._ticked + TICK_S, self._links.flush_at)

    @property
    def ready(self) -> bool:
        """Whether a transfer is at hand."""
        return self._links.open > 0

    def has_greeted(self, peer: bytes) -> bool:
        """Whether the peer has a session, or its token is being checked.  A transport may close other connections."""
        return self._sessions.has(peer) or self._handshake.waiting(peer)

    @property
    def idle(self) -> bool:
        """Nothing that was taken from a client or is owed to a transfer is still here."""
        return not len(self._sessions) and self._links.idle

    def farewell(self, now: float) -> Sequence[e.Action]:
        """The last frames, once nothing is under way any more or time is up."""
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
        if link.window.unacknowledged or link.window.owes_ack:
            resent = link.window.resent
            for frame in link.tick(now):
                self._sessions.say(session.peer, frame)
            self.statistics.resent += link.window.resent - resent
        paid = session.token_bucket.due <= now and session.pay(now)
        if paid:
            self._sessions.mark(session)
        if session.deferred:
            self._sessions.give_back_all(session, session.expire_deferred(now), absent=False)
        if sync.due(now):
            self._sessions.look(session)
        if now >= session.account_due:
            session.account_due = now + self._handshake.account_period_s(session)
            self._actions.append(e.ReadAccounts((session.login.user,)))
        if now >= session.binding_due:
            # Whoever took the binding tells us once; if that was lost, presence says so (R5).  By a rhythm of its own:
            # what presence is not told of for long it forgets, however often relations are read.
            session.binding_due = now + self._handshake.account_period_s(session)
            # While presence is away there is nothing to write: all are written again when it is back.
            if self._poll_queues_at is None:
                self._actions.append(e.RenewBindings((session.renewal,)))
        if now >= session.seen_due:
            session.seen_due = now + SEEN_S
            self._actions.append(e.NoteSeen((session.login.device,)))
        # What was paid is acknowledged when this turn ends, or waits for a frame from then on: look again.
        session.due = 0.0 if paid else session.next_deadline()

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
                    self._handshake.greet(peer, frame)
                elif session is None or frame.link != session.link.epoch:
                    self._unknown_link(peer, frame)
                elif session.state is not State.BINDING:
                    self._frame(session, frame, now)
                elif isinstance(frame, Close | Reset):
                    self._sessions.close(session)
                else:
                    self.statistics.early += 1
            except msgspec.DecodeError as error:
                self._misbehaved(peer, session, PeerError(Code.MALFORMED, f"the frame does not decode: {error}"))
            except PeerError as error:
                self._misbehaved(peer, session, error)

    def _unknown_link(self, peer: bytes, frame: wire.ClientFrame) -> None:
        """A frame of no session: R13, queued for an earlier incarnation of this connector; or ahead of the greeting."""
        over = isinstance(frame, Close | Reset)
        if self._handshake.waiting(peer):
            if over:
                self._handshake.forget(peer)
                self._sessions.close_peer(peer)
            else:
                self.statistics.early += 1
        elif not over:
            self.statistics.unknown_links += 1
            self._sessions.say(peer, Reset(frame.link))

    def _misbehaved(self, peer: bytes, session: Session | None, error: PeerError) -> None:
        self.statistics.malformed += 1
        self._handshake.forget(peer)
        if session is not None:
            self._sessions.cut(session, error.code, error.sentence)
        else:
            self._sessions.refuse_peer(peer, 0, error.code, error.sentence)

    def _frame(self, session: Session, frame: wire.ClientFrame, now: float) -> None:
        before = session.link.window.received_number
        if isinstance(frame, Data):
            self.statistics.deduplicated += frame.number <= before
            if len(frame.items) > self._options.frame_items:
                sentence = f"the frame has {len(frame.items)} items, {self._options.frame_items} are allowed"
                raise PeerError(Code.TOO_LARGE, sentence)
        items, taken = session.link.receive(frame, now)
        self._sessions.mark(session)
        if session.link.window.received_number > before:
            session.charge(items)
            self.statistics.slowed += not session.pay(now)
        if taken:
            self._taken(session, taken)
        if items:
            self.statistics.submitted += len(items)
            for submit in items:
                self._submit(session, submit)
        if session.link.closed_by is not None:
            self._sessions.close(session)

    def _client_gone(self, event: e.ClientGone, now: float) -> None:
        self._handshake.forget(event.peer)
        if (session := self._sessions.of_peer(event.peer)) is not None:
            self._sessions.close(session)

    def _submit(self, session: Session, submit: Submit) -> None:
        decision = authorize(session, submit, self._incarnation, self._options.body_bytes)
        if isinstance(decision, Stamp):
            self._route(session, decision, submit)
        elif decision.code is Code.NOT_FRIENDS:
            self._defer_authorization(session, submit, decision)
        else:
            self._refuse(session, decision)

    def _route(self, session: Session, stamp: Stamp, submit: Submit) -> None:
        if not self._links.send(Route(stamp, submit.envelope)):
            self.statistics.busy += 1
            self._sessions.tell(session, busy(stamp))

    def _defer_authorization(self, session: Session, submit: Submit, refusal: Rejection) -> None:
        """They may be friends since we last looked, and a rejection is final: look again first."""
        if len(session.unauthorized) >= self._options.unauthorized:
            self._refuse(session, _not_now(refusal))
            return
        session.unauthorized.append(submit)
        if len(session.unauthorized) == 1:
            self._actions.append(e.ReadAccounts((session.login.user,)))

    def _refuse(self, session: Session, refusal: Rejection) -> None:
        if refusal.code is Code.BUSY:
            self.statistics.busy += 1
        else:
            self.statistics.rejected += 1
        self._sessions.tell(session, rejected(refusal))

    def _taken(self, session: Session, items: list[wire.ConnectorItem]) -> None:
        """The device acknowledged these: the sender is told, or the rows are marked."""
        delivers, rows = session.taken(items)
        if delivers:
            self.statistics.delivered += len(delivers)
            done = ((session.login.user, session.login.device),)
            durable = [(deliver.stamp, done) for deliver in delivers if deliver.stamp.kind < EPHEMERAL_FROM]
            for outcome in outcomes_of(durable, OutcomeStatus.DELIVERED):
                self._route_outcome(outcome)
        if rows:
            self.statistics.synced += len(rows)
            self._actions.extend(session.sync.acknowledged(rows))
        self._queues.go_on(session)
        if session.overflowed and not session.unacked:
            self.statistics.overflowed += 1
            session.overflowed = False
            session.state = State.SYNCING
            self._sessions.look(session)

    def _route_outcome(self, outcome: Outcome) -> None:
        if outcome.origin == self._incarnation:
            self._outcome(outcome)
        elif not self._links.tell(outcome):
            self.statistics.outcomes_lost += 1

    # ---------------------------------------------------------------- from transfers

    def _transfer_sent(self, event: e.TransferSent, now: float) -> None:
        for item in self._links.receive(event.transfer, event.batch, now):
            if isinstance(item, Outcome):
                self._outcome(item)
            else:
                self._deliver(item, now)

    def _outcome(self, outcome: Outcome) -> None:
        session = self._sessions.of_device(outcome.device)
        if session is None or session.login.epoch != outcome.epoch or session.state is State.BINDING:
            self.statistics.outcomes_lost += 1
        else:
            self._sessions.tell(session, outcome)

    def _deliver(self, deliver: Deliver, now: float) -> None:
        options = self._options
        for device, number in deliver.bindings:
            session = self._sessions.of_device(device)
            if session is None:
                # Its binding was not erased, or this was under way before.
                self.statistics.not_connected += 1
                self._actions.append(e.EraseBindings((Binding(deliver.user, device, self._incarnation, number),)))
                self._sessions.give_back(deliver, (device,), absent=True)
                continue
            result = session.deliver(deliver, now, options.defer_s, options.session_queue, options.session_bytes)
            if result is DeliverResult.PUSHED:
                self._sessions.mark(session)
            elif result is DeliverResult.DEFERRED:
                self.statistics.deferred += 1
                self._sessions.look(session)
            else:
                self._sessions.give_back(deliver, (device,), absent=False)

    # ---------------------------------------------------------------- from the stores

    def _notification_received(self, event: e.NotificationReceived, now: float) -> None:
        notification = event.notification
        if isinstance(notification, WakeUp):
            for _, device in notification.devices:
                if (session := self._sessions.of_device(device)) is not None:
                    self.statistics.woken += 1
                    self._sessions.look(session)
        elif isinstance(notification, Kick):
            session = self._sessions.of_device(notification.device)
            if session is not None and session.binding.session <= notification.session:
                self.statistics.replaced += notification.code == Code.REPLACED
                self._sessions.cut(session, notification.code, notification.sentence)
        elif isinstance(notification, AccountChanged):
            users = dict.fromkeys(session.login.user for session in self._sessions.of_users(notification.users))
            if users:
                self._actions.append(e.ReadAccounts(tuple(users)))

    def _accounts_read(self, event: e.AccountsRead, now: float) -> None:
        accounts = {account.user: account for account in event.accounts}
        for session in self._sessions.of_users(accounts):
            account = accounts[session.login.user]
            before = session.devices
            session.refresh(account)
            session.account_due = now + self._handshake.account_period_s(session)
            if not set(before).issuperset(session.devices):
                # Whoever registered the device may not have reached presence.
                self._actions.append(e.RenewBindings((session.renewal,)))
            self._authorize_deferred(session, known=True)

    def _accounts_unreadable(self, event: e.AccountsUnreadable, now: float) -> None:
        for session in self._sessions.of_users(event.users):
            self._authorize_deferred(session, known=False)

    def _authorize_deferred(self, session: Session, *, known: bool) -> None:
        waiting, session.unauthorized = session.unauthorized, []
        for submit in waiting:
            decision = authorize(session, submit, self._incarnation, self._options.body_bytes)
            if isinstance(decision, Rejection):
                self._refuse(session, decision if known else _not_now(decision))
            else:
                self._route(session, decision, submit)

    def _presence_lost(self, event: e.PresenceLost, now: float) -> None:
        """R9: what is said to people here is stored, and no writer finds out whom to wake-up."""
        self._poll_queues_at = now

    def _presence_disturbed(self, event: e.PresenceDisturbed, now: float) -> None:
        """Register everybody again, who is being bound too; each answer looks at a queue.

        Presence may not know any more who took over from whom (R14): only whose token still stands.
        """
        self._poll_queues_at = None
        self._actions.append(e.RenewBindings([session.renewal for session in self._sessions.all()]))

    def _stop_requested(self, event: e.StopRequested, now: float) -> None:
        self._handshake.closed = True
        for session in self._sessions.all():
            self._sessions.cut(session, Code.SHUTTING_DOWN, LEAVING)


def _not_now(refusal: Rejection) -> Rejection:
    """Whether they are friends cannot be told now."""
    return refusal._replace(code=Code.BUSY, sentence="relations cannot be read now: send it again")
