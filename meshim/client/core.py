"""What a client decides: one connection at a time to any connector, an outbox and an inbox.

::

    OFFLINE ──Connected──▶ GREETING ──Welcome──▶ ONLINE
       ▲                       │                   │
       └── lost, closed, reset, silent, no welcome ┘    (the shell connects again, with a new link epoch)

Going online submits everything that is not settled, in order.  A frame with deliveries is acknowledged when what it
brought is in the state file, so that the connector gives up its copy only for one that is as safe.
"""

import enum
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import msgspec

from meshim.chunks import chunks
from meshim.client import events as e
from meshim.client.inbox import Inbox
from meshim.client.outbox import NewId, Outbox, OutboxOptions, Settled, ranges_of
from meshim.errors import Code, PeerError
from meshim.protocol.link import Link, LinkOptions
from meshim.protocol.ordering import OrderingOptions
from meshim.protocol.timeouts import GREET_TIMEOUT_S
from meshim.wire import client as wire
from meshim.wire.client import ConnectorItem, Delivery, Greet, Stored, Submit, Welcome
from meshim.wire.envelope import (
    EPHEMERAL_FROM,
    WIRE_VERSION,
    Destination,
    DestinationType,
    Envelope,
    Kind,
    Receipt,
    ReceiptKind,
    Stream,
    decode_envelope,
    decode_receipt,
    encode_content,
)
from meshim.wire.link import Close, Reset
from meshim.wire.sizes import FRAME_OVERHEAD_BYTES, submit_size


class ClientOptions(msgspec.Struct, frozen=True):
    """`greet_timeout_s` seconds; `submits` is how many may wait for room in the window.

    What a connector says of itself in its welcome goes before the link options where it is less.
    """

    link: LinkOptions
    outbox: OutboxOptions
    ordering: OrderingOptions
    greet_timeout_s: float = GREET_TIMEOUT_S
    submits: int = 256
    receipt_ranges: int = 64


class Identity(NamedTuple):
    """Who this device is, as login said, and the epoch of its state file."""

    user: int
    device: int
    epoch: int


class State(enum.Enum):
    OFFLINE = enum.auto()
    GREETING = enum.auto()
    ONLINE = enum.auto()


class _Unsaved(NamedTuple):
    """What waits for a Save: frames to acknowledge, messages to submit, whether the application gets something."""

    serial: int
    link: int
    number: int
    composed: Sequence[tuple[Destination, int]]
    grew: bool


class ClientCore:
    """One device."""

    def __init__(
        self, identity: Identity, options: ClientOptions, snapshot: e.Snapshot, new_id: NewId,
        wall_ms: Callable[[], int], now: float,
    ) -> None:  # fmt: skip
        """`new_id` and `wall_ms` only fill fields of the envelopes that the core composes itself."""
        self.identity = identity
        self.state = State.OFFLINE
        self.outbox = Outbox(identity.user, options.outbox, snapshot)
        self.inbox = Inbox(options.ordering, snapshot, now)
        self.unreadable = 0
        """Deliveries that did not decode."""
        self._options = options
        self._new_id = new_id
        self._wall_ms = wall_ms
        self._link: Link[Submit, ConnectorItem] | None = None
        self._greeted_at = 0.0
        self._actions: list[e.Action] = []
        self._changes: list[e.Change] = []
        self._composed: list[tuple[Destination, int]] = []
        self._grew = False
        self._owed: dict[tuple[int, Stream], list[int]] = {}
        self._unsaved: deque[_Unsaved] = deque()
        self._serial = 0
        self._handlers: dict[type[Any], Callable[[Any, float], None]] = {
            e.Connected: self._connected,
            e.FramesReceived: self._frames_received,
            e.ConnectionLost: lambda event, now: self._offline(None, "the connection was lost"),
            e.Composed: self._composed_by_application,
            e.MessagesRead: self._messages_read,
            e.Saved: self._saved,
        }

    # ---------------------------------------------------------------- the driver

    def receive(self, event: e.Event, now: float) -> Sequence[e.Action]:
        self._handlers[type(event)](event, now)
        return self._flush(now)

    def tick(self, now: float) -> Sequence[e.Action]:
        if self._link is not None:
            if self.state is State.GREETING:
                if now - self._greeted_at >= self._options.greet_timeout_s:
                    self._offline(None, "the connector did not answer the greeting")
            elif self._link.failed(now):
                self._offline(None, "the connector does not answer")
            else:
                for frame in self._link.tick(now):
                    self._actions.append(e.SendFrame(wire.encode(frame)))
        arrival = self.inbox.tick(now)
        self._changes.extend(arrival.changes)
        self._grew = self._grew or arrival.grew
        return self._flush(now)

    def next_deadline(self) -> float | None:
        deadlines = [self.inbox.next_deadline()]
        if self._link is not None:
            if self.state is State.GREETING:
                deadlines.append(self._greeted_at + self._options.greet_timeout_s)
            else:
                deadlines += [self._link.next_deadline(), self.outbox.next_deadline()]
        return min((deadline for deadline in deadlines if deadline is not None), default=None)

    def _flush(self, now: float) -> Sequence[e.Action]:
        self._compose_receipts()
        link = self._link
        if self._changes:
            self._serial += 1
            number = link.window.received_number if link is not None else 0
            epoch = link.epoch if link is not None else 0
            self._unsaved.append(_Unsaved(self._serial, epoch, number, tuple(self._composed), self._grew))
            self._actions.append(e.Save(self._serial, tuple(self._changes)))
            self._changes.clear()
            self._composed.clear()
            self._grew = False
        elif link is not None and not self._unsaved and link.window.processed_number < link.window.received_number:
            link.window.processed(link.window.received_number)
        if link is not None and self.state is State.ONLINE:
            for submit in self.outbox.take(self._options.submits - link.window.queued, now):
                link.push(submit)
            for frame in link.flush(now):
                self._actions.append(e.SendFrame(wire.encode(frame)))
        actions = self._actions.copy()
        self._actions.clear()
        return actions

    def _saved(self, event: e.Saved, now: float) -> None:
        while self._unsaved and self._unsaved[0].serial <= event.serial:
            unsaved = self._unsaved.popleft()
            self.outbox.saved(unsaved.composed)
            link = self._link
            if link is not None and link.epoch == unsaved.link and unsaved.number > link.window.processed_number:
                link.window.processed(unsaved.number)
            if unsaved.grew:
                self._actions.append(e.InboxGrew())

    # ---------------------------------------------------------------- the connection

    def _connected(self, event: e.Connected, now: float) -> None:
        if self._link is not None:
            self._offline(None, "another connection was made")
        options = self._options.link
        self._link = Link(event.link, options, submit_size, now, manual_ack=True)
        self._greeted_at = now
        self.state = State.GREETING
        greet = Greet(WIRE_VERSION, event.token, self.identity.epoch, event.link, options.window.credit)
        self._actions.append(e.SendFrame(wire.encode(greet)))

    def _offline(self, code: Code | None, sentence: str) -> None:
        if self._link is None:
            return
        self._link = None
        self.state = State.OFFLINE
        self.outbox.disconnected()
        self._actions.append(e.Disconnect(code, sentence))

    def farewell(self) -> Sequence[e.Action]:
        """End the connection politely."""
        if self._link is not None:
            close = Close(self._link.epoch, Code.SHUTTING_DOWN, "the client leaves")
            self._actions.append(e.SendFrame(wire.encode(close)))
            self._offline(None, "closed")
        actions = self._actions.copy()
        self._actions.clear()
        return actions

    def _frames_received(self, event: e.FramesReceived, now: float) -> None:
        for data in event.batch:
            link = self._link
            if link is None:
                return
            try:
                frame = wire.decode_from_connector(data)
                if frame.link != link.epoch and not (isinstance(frame, Close) and frame.link == 0):
                    continue
                if isinstance(frame, Welcome):
                    self._welcomed(frame, now)
                elif isinstance(frame, Stored):
                    self._actions.append(e.StoredDelayed(frame.delayed))
                elif isinstance(frame, Close):
                    self._offline(_code(frame.code), frame.sentence)
                elif isinstance(frame, Reset):
                    self._offline(Code.UNKNOWN_EPOCH, "the connector does not know this link any more")
                elif self.state is State.ONLINE:  # what overtook the welcome comes again
                    for item in link.receive(frame, now)[0]:
                        self._item(item, link, now)
            except (msgspec.DecodeError, PeerError) as error:
                self._offline(None, f"the connector broke the protocol: {error}")

    def _welcomed(self, welcome: Welcome, now: float) -> None:
        if self.state is not State.GREETING or self._link is None:
            return
        self.state = State.ONLINE
        link = Link[Submit, ConnectorItem](
            self._link.epoch, _agreed(self._options.link, welcome), submit_size, now, manual_ack=True
        )
        link.window.credit = max(1, min(welcome.window, self._options.link.window.credit))
        self._link = link  # nothing was said on it before
        self._actions.append(e.Online(welcome.body_bytes))

    # ---------------------------------------------------------------- what comes

    def _item(self, item: ConnectorItem, link: Link[Submit, ConnectorItem], now: float) -> None:
        if not isinstance(item, Delivery):  # nobody waits to hear that we heard
            if Identity(item.user, item.device, item.epoch) == self.identity:
                self._settled(self.outbox.outcome(item, now))
            return
        link.window.ack_at_once()  # it is what the sender will see as delivered
        try:
            envelope = decode_envelope(item.envelope)
        except msgspec.DecodeError:
            # A version of the future; a connector never forwards what does not decode today.
            self.unreadable += 1
            return
        if envelope.kind == Kind.RECEIPT:
            self._receipt(envelope)
        elif envelope.kind < EPHEMERAL_FROM and envelope.device != self.identity.device:
            arrival = self.inbox.receive(envelope, item.envelope, stored=item.stored, now=now)
            self._changes.extend(arrival.changes)
            self._grew = self._grew or arrival.grew
            if item.stored and envelope.user != self.identity.user and envelope.kind != Kind.BASE:
                self._owe(ReceiptKind.DELIVERED, envelope.stream, envelope.seq)

    def _receipt(self, envelope: Envelope) -> None:
        try:
            receipt = decode_receipt(envelope.body)
        except msgspec.DecodeError:
            self.unreadable += 1
            return
        if receipt.epoch == self.identity.epoch:
            self._settled(self.outbox.receipt(envelope.user, receipt))

    def _settled(self, settled: Settled) -> None:
        self._changes.extend(settled.changes)
        self._actions.extend(settled.progress)
        for to in settled.owing_base:
            self._compose(to, Kind.BASE, b"")

    # ---------------------------------------------------------------- what goes

    def reserve(self, to: Destination) -> tuple[int, int]:
        """(seq, base) for the next message to a destination; the envelope has to be composed with them."""
        return self.outbox.reserve(to)

    def _composed_by_application(self, event: e.Composed, now: float) -> None:
        for envelope in event.envelopes:
            self._add(envelope)

    def _messages_read(self, event: e.MessagesRead, now: float) -> None:
        for stream, seq in event.messages:
            if stream.user != self.identity.user:
                self._owe(ReceiptKind.READ, stream, seq)

    def _owe(self, kind: ReceiptKind, stream: Stream, seq: int) -> None:
        self._owed.setdefault((kind, stream), []).append(seq)

    def _compose_receipts(self) -> None:
        """One receipt for all messages of a stream that this turn brought."""
        for (kind, stream), numbers in self._owed.items():
            to = Destination(DestinationType.DEVICE, stream.user, stream.device)
            for ranges in chunks(ranges_of(numbers), self._options.receipt_ranges):
                receipt = Receipt(kind, stream.epoch, stream.to, tuple(ranges))
                self._compose(to, Kind.RECEIPT, encode_content(receipt))
        self._owed.clear()

    def _compose(self, to: Destination, kind: Kind, body: bytes) -> None:
        """An envelope of our own, not sealed."""
        seq, base = self.outbox.reserve(to)
        who = self.identity
        self._add(
            Envelope(
                WIRE_VERSION, self._new_id(), who.user, who.device, who.epoch, to, seq, base, kind, 0,
                self._wall_ms(), body,
            )
        )  # fmt: skip

    def _add(self, envelope: Envelope) -> None:
        self._changes.extend(self.outbox.add(envelope))
        self._composed.append((envelope.to, envelope.seq))


def _agreed(options: LinkOptions, welcome: Welcome) -> LinkOptions:
    """Link options within what the connector takes, and no slower than it listens."""
    replace = msgspec.structs.replace
    most = max(1, welcome.frame_bytes - FRAME_OVERHEAD_BYTES)
    window = replace(options.window, frame_bytes=min(options.window.frame_bytes, most))
    slower = min(1.0, welcome.heartbeat_ms / 1000 / options.heartbeat_s) or 1.0
    heartbeat_s, silence_s = options.heartbeat_s * slower, options.silence_s * slower
    return replace(options, window=window, heartbeat_s=heartbeat_s, silence_s=silence_s)


def _code(number: int) -> Code | None:
    return Code(number) if number in Code.__members__.values() else None
