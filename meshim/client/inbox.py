"""The inbox: every message once, in order, and only what is safe is acknowledged.

    text, file, unknown kinds     ordered by (stream, seq), given to the application when saved
    base                          ordered likewise, and dropped: it only carries `base`
    receipt                       applied to the outbox; a receipt that came twice changes nothing
    ephemeral                     shown if somebody looks, and forgotten

A message that had been stored earns a `delivered` receipt from us: nobody in the mesh waits for it any more.
"""

from collections.abc import Iterable
from typing import NamedTuple

from meshim.client.events import Change, Drop, PutIn, PutOrder, Release, Snapshot
from meshim.protocol.ordering import OrderingOptions, Released, StreamOrder
from meshim.wire.envelope import Envelope, Kind, Stream, decode_envelope


class Arrival(NamedTuple):
    """What a delivery led to."""

    changes: list[Change]
    grew: bool
    """The application has something to read."""


class Inbox:
    """All streams that reach one device."""

    def __init__(self, options: OrderingOptions, snapshot: Snapshot, now: float) -> None:
        self._options = options
        self._orders: dict[Stream, StreamOrder[int]] = {}
        self._gaps: set[Stream] = set()
        self.duplicates = 0
        self.gaps_released = 0
        self._restored: list[Change] = []
        """What was held back, and is not with the options of today."""
        for order in snapshot.orders:
            self._orders[order.stream] = StreamOrder(options, order.watermark, order.holes)
        for held in snapshot.held:
            envelope = decode_envelope(held.envelope)
            order_of = self._order(held.stream)
            released = order_of.receive(held.seq, min(envelope.base, order_of.watermark), envelope.kind, now)
            if released:
                self._restored += self._arrived([], held.stream, order_of, released).changes
            self._note_gap(held.stream, order_of)

    def _order(self, stream: Stream) -> StreamOrder[int]:
        order = self._orders.get(stream)
        if order is None:
            order = self._orders[stream] = StreamOrder(self._options)
        return order

    def receive(self, envelope: Envelope, data: bytes, *, stored: bool, now: float) -> Arrival:
        """Take in a durable envelope that is not a receipt."""
        stream = envelope.stream
        order = self._order(stream)
        released = order.receive(envelope.seq, envelope.base, envelope.kind, now)
        if released is None:
            self.duplicates += 1
            return Arrival([], grew=False)
        return self._arrived([PutIn(stream, envelope.seq, data, stored)], stream, order, released)

    def _arrived(
        self, changes: list[Change], stream: Stream, order: StreamOrder[int], released: Iterable[Released[int]]
    ) -> Arrival:
        grew = False
        for seq, kind, flag in released:
            if kind == Kind.BASE:
                changes.append(Drop(stream, seq))
            else:
                changes.append(Release(stream, seq, flag))
                grew = True
        changes.append(PutOrder(stream, order.watermark, tuple(order.holes)))
        self._note_gap(stream, order)
        return Arrival(changes, grew)

    def _note_gap(self, stream: Stream, order: StreamOrder[int]) -> None:
        if order.next_deadline() is None:
            self._gaps.discard(stream)
        else:
            self._gaps.add(stream)

    def tick(self, now: float) -> Arrival:
        """Give up gaps that are open for too long."""
        changes, self._restored = self._restored, []
        grew = bool(changes)
        for stream in list(self._gaps):
            order = self._orders[stream]
            if released := order.tick(now):
                self.gaps_released += 1
                arrival = self._arrived([], stream, order, released)
                changes.extend(arrival.changes)
                grew = grew or arrival.grew
        return Arrival(changes, grew)

    def next_deadline(self) -> float | None:
        if self._restored:
            return 0.0
        deadlines = (self._orders[stream].next_deadline() for stream in self._gaps)
        return min((deadline for deadline in deadlines if deadline is not None), default=None)
