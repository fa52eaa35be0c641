"""The rules of a client: one connection at a time to any connector, an outbox and an inbox.

::

    OFFLINE ──CONNECTED──▶ GREETING ──WELCOMED──▶ ONLINE
       ▲                       │                    │
       └──────────── DISCONNECTED ──────────────────┘    the shell connects again, with a new link epoch

DISCONNECTED is a lost connection, a close or reset from the connector, a connector that is silent, one that sends no
welcome within `greet_timeout_s`, or one that breaks the protocol.

A client that goes online submits every unsettled message, in order.  It acknowledges a frame of deliveries only when
their messages are in the state file: until then the connector keeps its copies.
"""

import enum
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec

from meshim.client import events as e
from meshim.client.identity import Identity
from meshim.client.options import ClientOptions, within_limits
from meshim.client.statistics import Statistics
from meshim.client.streams.deliveries import Deliveries
from meshim.client.streams.inbox import Inbox
from meshim.client.streams.outbox import NewId, Outbox, OutboxUpdate
from meshim.client.streams.receipts import Receipts
from meshim.client.streams.typing_state import TypingState
from meshim.errors import Code, PeerError
from meshim.protocol.link import Link
from meshim.protocol.timeouts import CLOSE_WAIT_MAX_S
from meshim.wire import client as wire
from meshim.wire.client import Changed, ConnectorItem, Delivery, Greet, Outcome, Stored, Submit, Welcome
from meshim.wire.envelope import WIRE_VERSION, Destination, Envelope, Kind, encode_content, encode_envelope
from meshim.wire.link import Close, Reset
from meshim.wire.outcome import OutcomeStatus
from meshim.wire.sizes import submit_size


class State(enum.Enum):
    OFFLINE = enum.auto()
    GREETING = enum.auto()
    ONLINE = enum.auto()


class Trigger(enum.Enum):
    CONNECTED = enum.auto()
    WELCOMED = enum.auto()
    DISCONNECTED = enum.auto()


_TRANSITIONS: dict[tuple[State, Trigger], State] = {
    (State.OFFLINE, Trigger.CONNECTED): State.GREETING,
    (State.GREETING, Trigger.WELCOMED): State.ONLINE,
    (State.ONLINE, Trigger.WELCOMED): State.ONLINE,  # a connector may repeat its welcome
    (State.GREETING, Trigger.DISCONNECTED): State.OFFLINE,
    (State.ONLINE, Trigger.DISCONNECTED): State.OFFLINE,
    (State.OFFLINE, Trigger.DISCONNECTED): State.OFFLINE,  # two reasons may end one connection
}


class _Pending(NamedTuple):
    """The steps to take once a Persist is on disk: acknowledge frames, submit messages, wake the application."""

    serial: int
    link: int
    number: int
    """The last frame of that link whose changes the Persist holds."""
    composed: Sequence[tuple[Destination, int]]
    available: bool


class ClientCore:
    """One device."""

    def __init__(
        self, identity: Identity, options: ClientOptions, snapshot: e.Snapshot, new_id: NewId,
        wall_ms: Callable[[], int], now: float,
    ) -> None:  # fmt: skip
        """`new_id` and `wall_ms` only fill fields of the envelopes that the core composes itself."""
        self._handlers: dict[type[Any], Callable[[Any, float], None]] = {
            e.Connected: self._connected,
            e.FramesReceived: self._frames_received,
            e.ConnectionLost: self._connection_lost,
            e.Composed: self._composed_by_application,
            e.MessagesRead: self._messages_read,
            e.UserTyped: self._user_typed,
            e.Persisted: self._persisted,
            e.UnsendableFound: self._unsendable_found,
        }
        self._frame_handlers: dict[type[Any], Callable[[Any, float], None]] = {
            Welcome: self._welcomed,
            Stored: self._stored,
            Changed: self._changed,
            Close: self._closed,
            Reset: self._reset,
        }
        """Frames that do not go to the link."""
        self.identity = identity
        self.state = State.OFFLINE
        self.statistics = Statistics()
        self.outbox = Outbox(options.outbox, snapshot, self.statistics)
        self.inbox = Inbox(options.ordering, snapshot, self.statistics, now)
        self.receipts = Receipts(identity.user, snapshot.receipts, options.receipt_ranges_max, self.statistics)
        self.typing = TypingState(options.typing_every_s, options.typing_shown_s)
        self._options = options
        self._new_id = new_id
        self._wall_ms = wall_ms
        self._link: Link[Submit, ConnectorItem] | None = None
        """None while OFFLINE."""
        self._greeted_at = 0.0
        self._actions: list[e.Action] = []
        self._changes: list[e.Change] = []
        self._deliveries = Deliveries(
            identity, options.delivered_delay_s, self.inbox, self.outbox, self.receipts, self.typing, self.statistics,
            self._changes, self._actions,
        )  # fmt: skip
        self._composed: list[tuple[Destination, int]] = []
        self._available = False
        self._pending: deque[_Pending] = deque()
        self._serial = 0

    # ---------------------------------------------------------------- the driver

    def receive(self, event: e.Event, now: float) -> Sequence[e.Action]:
        """Take in one event; returns what to do about it."""
        self._handlers[type(event)](event, now)
        return self._flush(now)

    def tick(self, now: float) -> Sequence[e.Action]:
        """Do what is due at this time; returns what to do about it."""
        self._actions.extend(self.typing.tick(now))
        if self._link is not None:
            if self.state is State.GREETING:
                if now - self._greeted_at >= self._options.greet_timeout_s:
                    self._disconnect(None, "the connector did not answer the greeting")
            elif self._link.failed(now):
                self._disconnect(None, "the connector does not answer")
            else:
                for frame in self._link.tick(now):
                    self._actions.append(e.SendFrame(wire.encode(frame)))
        released, available = self.inbox.tick(now, online=self.state is State.ONLINE)
        self._changes.extend(released)
        self._available = self._available or available
        return self._flush(now)

    def next_deadline(self) -> float | None:
        """When to call `tick`; None while nothing is due."""
        deadlines = [self.inbox.next_deadline(online=self.state is State.ONLINE), self.receipts.next_deadline()]
        if self._link is not None:
            if self.state is State.GREETING:
                deadlines.append(self._greeted_at + self._options.greet_timeout_s)
            else:
                deadlines += [self._link.next_deadline(), self.outbox.next_deadline()]
        deadlines.append(self.typing.next_deadline())
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def _flush(self, now: float) -> Sequence[e.Action]:
        self._compose_receipts(now)
        link = self._link
        if self._changes:
            self._serial += 1
            number = link.window.received_number if link is not None else 0
            epoch = link.epoch if link is not None else 0
            self._pending.append(_Pending(self._serial, epoch, number, tuple(self._composed), self._available))
            self._actions.append(e.Persist(self._serial, tuple(self._changes)))
            self._changes.clear()
            self._composed.clear()
            self._available = False
        elif link is not None and not self._pending and link.window.processed_number < link.window.received_number:
            link.window.processed(link.window.received_number)
        if link is not None and self.state is State.ONLINE:
            for submit in self.outbox.take(self._options.submits_queued_max - link.window.queued, now):
                link.push(submit)
            for frame in link.flush(now):
                self._actions.append(e.SendFrame(wire.encode(frame)))
        actions = self._actions.copy()
        self._actions.clear()
        return actions

    def _persisted(self, event: e.Persisted, now: float) -> None:
        while self._pending and self._pending[0].serial <= event.serial:
            done = self._pending.popleft()
            self.outbox.persisted(done.composed)
            link = self._link
            if link is not None and link.epoch == done.link and done.number > link.window.processed_number:
                link.window.processed(done.number)
            if done.available:
                self._actions.append(e.MessagesAvailable())

    # ---------------------------------------------------------------- the connection

    def _move(self, trigger: Trigger) -> bool:
        """Follow the table; False when the state stays the same."""
        before = self.state
        after = _TRANSITIONS.get((before, trigger))
        assert after is not None, f"{trigger.name} while {before.name}"
        self.state = after
        return after is not before

    def _connected(self, event: e.Connected, now: float) -> None:
        self._disconnect(None, "another connection was made")
        self._move(Trigger.CONNECTED)
        options = self._options.link
        self._link = Link(event.link, options, submit_size, now, manual_ack=True)
        self._greeted_at = now
        greet = Greet(
            version=WIRE_VERSION,
            token=event.token,
            epoch=self.identity.epoch,
            link=event.link,
            window=options.window.credit,
        )
        self._actions.append(e.SendFrame(wire.encode(greet)))

    def _connection_lost(self, event: e.ConnectionLost, now: float) -> None:
        self._disconnect(None, "the connection was lost")

    def _disconnect(self, code: Code | None, sentence: str, wait_s: float = 0.0) -> None:
        if self._move(Trigger.DISCONNECTED):
            self._link = None
            self.outbox.disconnected()
            self._actions.append(e.Disconnect(code, sentence, wait_s))

    def farewell(self, sentence: str = "closed") -> Sequence[e.Action]:
        """End the connection because the application quits, or reads nothing; returns the actions for that."""
        if self._link is not None:
            close = Close(self._link.epoch, Code.QUIT, "the client quits")
            self._actions.append(e.SendFrame(wire.encode(close)))
            self._disconnect(None, sentence)
        actions = self._actions.copy()
        self._actions.clear()
        return actions

    # ---------------------------------------------------------------- frames

    def _frames_received(self, event: e.FramesReceived, now: float) -> None:
        for data in event.batch:
            link = self._link
            if link is None:
                return
            try:
                frame = wire.decode_from_connector(data)
                # A connector that knows no link of ours closes link 0.
                if frame.link == link.epoch or (isinstance(frame, Close) and frame.link == 0):
                    if self.state is State.GREETING and not isinstance(frame, Welcome | Close | Reset):
                        raise PeerError(Code.NOT_GREETED, f"a {type(frame).__name__} came before the Welcome")
                    self._frame_handlers.get(type(frame), self._link_frame)(frame, now)
            except (msgspec.DecodeError, PeerError) as error:
                self._disconnect(None, f"the connector broke the protocol: {error}")

    def _welcomed(self, welcome: Welcome, now: float) -> None:
        if not self._move(Trigger.WELCOMED):
            return
        assert self._link is not None
        # A new link, with the limits of this connector: nothing was sent on the old one but the greeting.
        link = Link[Submit, ConnectorItem](
            self._link.epoch, within_limits(self._options.link, welcome), submit_size, now, manual_ack=True
        )
        link.window.credit = max(1, min(welcome.window, self._options.link.window.credit))
        self._link = link
        self.inbox.connected(now)
        self._actions.append(e.Online(welcome.body_bytes))

    def _stored(self, stored: Stored, now: float) -> None:
        self._actions.append(e.StoredDelayed(stored.delayed))

    def _changed(self, changed: Changed, now: float) -> None:
        self._actions.append(e.AccountChanged(changed.what))

    def _closed(self, close: Close, now: float) -> None:
        self._disconnect(_code(close.code), close.sentence, min(close.wait_ms / 1000, CLOSE_WAIT_MAX_S))

    def _reset(self, reset: Reset, now: float) -> None:
        self._disconnect(Code.UNKNOWN_EPOCH, "the connector does not know this link any more")

    def _link_frame(self, frame: Any, now: float) -> None:
        link = self._link
        assert link is not None
        for item in link.receive(frame, now)[0]:
            self._item(item, link, now)

    # ---------------------------------------------------------------- received items

    def _item(self, item: ConnectorItem, link: Link[Submit, ConnectorItem], now: float) -> None:
        if isinstance(item, Delivery):
            link.window.ack_at_once()  # the sender sees `delivered` when the connector has this acknowledgement
            available = self._deliveries.receive(item, now)
            self._available = self._available or available
        else:  # an outcome; its acknowledgement is not urgent
            self._update_outbox(self.outbox.outcome(item, now))

    def _update_outbox(self, update: OutboxUpdate) -> None:
        self._changes.extend(update.changes)
        self._actions.extend(update.statuses)
        self._actions.extend(update.delayed)
        for to in update.base_updates:
            self._compose(to, Kind.BASE, b"")

    # ---------------------------------------------------------------- sent messages

    def reserve(self, to: Destination) -> tuple[int, int]:
        """Return (seq, base) for the next message to a destination; the caller must compose its envelope with them."""
        return self.outbox.reserve(to)

    def _composed_by_application(self, event: e.Composed, now: float) -> None:
        for envelope in event.envelopes:
            self.typing.composed(envelope.to.id)
            self._add(envelope)

    def _user_typed(self, event: e.UserTyped, now: float) -> None:
        """Send it now or never: behind messages that wait for room it would come too late."""
        link, to = self._link, event.to
        room = link is not None and self.state is State.ONLINE and not link.window.queued
        if link is None or not room or not self.typing.may_send(to.id, now):
            self.statistics.typing_not_sent += 1
            return
        seq, base = self.outbox.next(to)
        made = self.identity.envelope(to, seq, base, Kind.TYPING, id=self._new_id(), sent_at=self._wall_ms())
        link.push(Submit(encode_envelope(made)))

    def _messages_read(self, event: e.MessagesRead, now: float) -> None:
        for stream, seq in event.messages:
            self.receipts.owe_read(stream, seq)

    def _compose_receipts(self, now: float) -> None:
        """One receipt for all messages of a stream in this event, and for those of earlier ones that had to wait."""
        for to, receipt in self.receipts.take(self.outbox.full, now):
            self._compose(to, Kind.RECEIPT, encode_content(receipt))
        self._changes.extend(self.receipts.changes())

    def _unsendable_found(self, event: e.UnsendableFound, now: float) -> None:
        for to, seq, sentence in event.messages:
            self.statistics.unsendable += 1
            rejected = Outcome(
                to=to, first=seq, last=seq, status=OutcomeStatus.REJECTED, code=Code.MALFORMED, sentence=sentence
            )
            self._update_outbox(self.outbox.outcome(rejected, now))

    @property
    def unsettled(self) -> int:
        """How many messages are not settled, receipts that are due included."""
        return self.outbox.unsettled + self.receipts.owed

    def _compose(self, to: Destination, kind: Kind, body: bytes) -> None:
        """Add an envelope of this core's own to the outbox; its body is not sealed."""
        seq, base = self.outbox.reserve(to)
        made = self.identity.envelope(to, seq, base, kind, id=self._new_id(), sent_at=self._wall_ms(), body=body)
        self._add(made)

    def _add(self, envelope: Envelope) -> None:
        self._changes.extend(self.outbox.add(envelope))
        self._composed.append((envelope.to, envelope.seq))


def _code(number: int) -> Code | None:
    """None for a code that this version does not know."""
    return Code(number) if number in Code.__members__.values() else None
