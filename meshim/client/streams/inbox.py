"""The inbox: every message once, in the order of its stream; nothing is acknowledged before it is in the state file.

    text, file, unknown kinds     ordered by (stream, seq), released to the application
    base, receipt                 ordered likewise, then dropped: the core has applied a receipt when it arrived
    ephemeral                     not here: they have no order

The core answers a stored message with a `delivered` receipt: the mesh has settled it already, as `sent`, and reports
no outcome when a device takes it.
"""

from collections.abc import Iterable
from typing import NamedTuple

from meshim.client.events import AddToInbox, Change, DropFromInbox, PutOrder, Release, Snapshot
from meshim.client.statistics import Statistics
from meshim.protocol.ordering import Flag, OrderingOptions, Released, StreamOrder
from meshim.wire.envelope import HIDDEN, Envelope, Stream, decode_envelope


class InboxUpdate(NamedTuple):
    """The effects of a delivery or a timeout."""

    changes: list[Change]
    available: bool
    """Whether the changes release messages to the application."""


class Inbox:
    """The streams that one device receives."""

    def __init__(self, options: OrderingOptions, snapshot: Snapshot, statistics: Statistics, now: float) -> None:
        self._options = options
        self._statistics = statistics
        self._orders: dict[Stream, StreamOrder[int]] = {}
        self._gaps: set[Stream] = set()
        """Streams in which messages wait for a missing one."""
        self._flags: dict[Stream, int] = {}
        """By stream: AFTER_GAP while a message that was not shown stands between a gap and the next one."""
        self._restored: list[Change] = []
        """Releases of messages that waited before the restart, and need not with the options of now."""
        for order in snapshot.orders:
            self._orders[order.stream] = StreamOrder(options, order.watermark, order.holes)
            if order.flag:
                self._flags[order.stream] = order.flag
        for early in snapshot.early:
            envelope = decode_envelope(early.envelope)
            order_of = self._order(early.stream)
            released = order_of.receive(early.seq, min(envelope.base, order_of.watermark), envelope.kind, now)
            if released:
                self._restored += self._released([], early.stream, order_of, released).changes
            self._note_gap(early.stream, order_of)

    def _order(self, stream: Stream) -> StreamOrder[int]:
        order = self._orders.get(stream)
        if order is None:
            order = self._orders[stream] = StreamOrder(self._options)
        return order

    def receive(self, envelope: Envelope, data: bytes, *, stored: bool, now: float) -> InboxUpdate:
        """Take in a durable envelope; `data` is its encoding."""
        stream = envelope.stream
        order = self._order(stream)
        released = order.receive(envelope.seq, envelope.base, envelope.kind, now)
        if released is None:
            self._statistics.deduplicated += 1
            return InboxUpdate([], available=False)
        passes = envelope.kind in HIDDEN and released[:1] == [(envelope.seq, envelope.kind, Flag.IN_ORDER)]
        if passes:  # at once: it leaves no trace but the order
            return self._released([], stream, order, released[1:])
        return self._released([AddToInbox(stream, envelope.seq, data, stored)], stream, order, released)

    def has(self, stream: Stream) -> bool:
        """Return whether this device has got a message of this stream."""
        return stream in self._orders

    def has_message(self, stream: Stream, seq: int) -> bool:
        """Return whether this device has got the message, or has given it up."""
        order = self._orders.get(stream)
        return order is not None and (seq < order.watermark or seq in order.early)

    def _released(
        self, changes: list[Change], stream: Stream, order: StreamOrder[int], released: Iterable[Released[int]]
    ) -> InboxUpdate:
        available = False
        for seq, kind, flag in released:
            if kind in HIDDEN:
                if flag == Flag.AFTER_GAP:
                    self._flags[stream] = flag
                changes.append(DropFromInbox(stream, seq, flag))
            else:
                changes.append(Release(stream, seq, flag or self._flags.pop(stream, 0)))
                available = True
        changes.append(PutOrder(stream, order.watermark, tuple(order.holes), self._flags.get(stream, 0)))
        self._note_gap(stream, order)
        return InboxUpdate(changes, available)

    def _note_gap(self, stream: Stream, order: StreamOrder[int]) -> None:
        if order.next_deadline() is None:
            self._gaps.discard(stream)
        else:
            self._gaps.add(stream)

    def connected(self, now: float) -> None:
        """A link begins, which may bring what is missing."""
        for stream in self._gaps:
            self._orders[stream].restart_clocks(now)

    def tick(self, now: float, *, online: bool = True) -> InboxUpdate:
        """Release the messages behind gaps that are open for `gap_release_s` or longer.

        Not while the client is offline: it cannot get what is missing.
        """
        changes, self._restored = self._restored, []
        available = bool(changes)
        for stream in list(self._gaps) if online else ():
            order = self._orders[stream]
            if released := order.tick(now):
                self._statistics.gaps_released += 1
                update = self._released([], stream, order, released)
                changes.extend(update.changes)
                available = available or update.available
        return InboxUpdate(changes, available)

    def next_deadline(self, *, online: bool = True) -> float | None:
        """When `tick` has something to release; None while no message waits."""
        if self._restored:
            return 0.0
        if not online:
            return None
        deadlines = (self._orders[stream].next_deadline() for stream in self._gaps)
        return min((deadline for deadline in deadlines if deadline is not None), default=None)
