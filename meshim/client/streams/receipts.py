"""What one device knows of `delivered` and `read`, beside its own outbox, and the receipts that it owes.

A receipt goes from one user to another, like a message: to all devices of the user whose messages it is about, and to
the other devices of the user who sends it.  So there are two kinds of streams here:

    of a friend, to this user             which messages this user has read, on any device; receipts that are owed
    of another device of this user        which messages the recipient has, and which the recipient has read

What is known of a stream is kept as ranges of `seq`, one row of the state file for each stream.  A READ receipt is a
cursor: it names the whole range around the messages that were read, so a later receipt says what an earlier one said.
Receipts and base updates in a stream count as read: nothing in them is to be read, and they must not cut a range.

    read                                  owed at once
    delivered, was stored                 owed at once: it is news to the sending device
    delivered, came straight              owed after a delay: it is news to the sender's other devices, and `read`,
                                          or a receipt of another device of this user, mostly makes it needless

Receipts count in the limit of their stream like every message.  While the stream is full, and during the delay, they
are owed on disk, and what is owed meanwhile becomes one receipt.
"""

from collections.abc import Callable, Iterable
from itertools import takewhile
from math import inf

from meshim.chunks import chunks
from meshim.client.events import Change, PutReceipts, StreamProgressed
from meshim.client.statistics import Statistics
from meshim.protocol.ranges import Range, Ranges, united
from meshim.wire.envelope import Destination, DestinationType, Envelope, Receipt, ReceiptKind, Stream

AHEAD_MAX = 32
"""Streams of this user of which a friend sends receipts before this device has a copy.  More are counted and ignored:
a friend could name streams that do not exist."""

OWED_MAX = 4_096
"""Ranges of messages in one stream of which receipts are owed, while the stream that they go into is full."""

NOW = -inf
"""When a receipt is due that need not wait."""

_STATES = {ReceiptKind.DELIVERED: "delivered", ReceiptKind.READ: "read"}


class _Known:
    """One stream.  `owed` is by kind of receipt."""

    __slots__ = ("delivered", "held", "owed", "read")

    def __init__(self, row: PutReceipts | None = None) -> None:
        self.delivered = Ranges(row.delivered if row else ())
        self.read = Ranges(row.read if row else ())
        self.owed = {
            ReceiptKind.DELIVERED: Ranges(row.owed_delivered if row else (), OWED_MAX),
            ReceiptKind.READ: Ranges(row.owed_read if row else (), OWED_MAX),
        }
        self.held = any(self.owed.values())
        """Whether the row in the state file says that receipts are owed."""


class Receipts:
    """The streams of others that this device has or may get messages of."""

    def __init__(self, user: int, rows: Iterable[PutReceipts], ranges_max: int, statistics: Statistics) -> None:
        """`ranges_max` is how many ranges one receipt names at most."""
        self._user = user
        self._ranges_max = ranges_max
        self._statistics = statistics
        self._streams = {row.stream: _Known(row) for row in rows}
        self._due = {stream: None for stream, known in self._streams.items() if known.held}
        """Streams with receipts that are due, in the order in which that began; they may have to wait for room."""
        self._delayed: dict[Stream, float] = {}
        """Other streams with receipts that are owed, and when they are due: earlier ones come first."""
        self._changed: dict[Stream, None] = {}
        """Streams whose row of the state file is out of date."""

    @property
    def owed(self) -> int:
        """How many streams have receipts that are due, and wait for room."""
        return len(self._due)

    @property
    def delayed(self) -> int:
        """How many streams have receipts that are not due yet."""
        return len(self._delayed)

    def next_deadline(self) -> float | None:
        """When to call `take`, if nothing else happens; None for never."""
        return next(iter(self._delayed.values()), None)

    def state(self, stream: Stream, seq: int) -> str:
        """Return `read`, `delivered` or "", as far as receipts tell."""
        known = self._streams.get(stream)
        if known is None:
            return ""
        return "read" if seq in known.read else "delivered" if seq in known.delivered else ""

    def _known(self, stream: Stream) -> _Known:
        known = self._streams.get(stream)
        if known is None:
            known = self._streams[stream] = _Known()
        return known

    # ---------------------------------------------------------------- what receipts say

    def apply(self, envelope: Envelope, receipt: Receipt, has: Callable[[Stream], bool]) -> list[StreamProgressed]:
        """Take in a receipt about messages that this device did not send; return what is new.

        `has` tells whether this device has got a message of a stream.
        """
        own = envelope.user == self._user
        about, reader = (envelope.to.id, self._user) if own else (self._user, envelope.user)
        if receipt.to != Destination(DestinationType.USER, reader):
            return []  # nobody else's messages can be received or read
        stream = Stream(about, receipt.device, receipt.epoch, receipt.to)
        read = receipt.kind == ReceiptKind.READ
        if receipt.kind not in _STATES:
            return []
        if own and not read:  # a message that is on another device of this user need not be on this one
            self._told_elsewhere(stream, receipt.ranges)
            return []
        if not own and not has(stream) and self._too_many_ahead(stream, has):
            self._statistics.receipts_ignored += 1
            return []
        known = self._known(stream)
        ranges = known.read if read else known.delivered
        # No more than are kept: lower ones would be news again with each receipt, and a friend can send many of them.
        told = united(receipt.ranges)[-ranges.most :]
        new = [part for first, last in told for part in ranges.add(first, last)]
        if not new:
            return []
        self._changed[stream] = None
        if not read:  # a receipt that came late: those that are read do not go back to `delivered`
            new = [part for first, last in new for part in known.read.missing(first, last)]
        return [StreamProgressed(stream, _STATES[ReceiptKind(receipt.kind)], tuple(new))] if new else []

    def _told_elsewhere(self, stream: Stream, ranges: Iterable[Range]) -> None:
        if stream in self._due or stream in self._delayed:
            self._pay(stream, ReceiptKind.DELIVERED, Ranges(ranges, OWED_MAX))
            self._changed[stream] = None

    def _pay(self, stream: Stream, kind: ReceiptKind, told: Ranges) -> None:
        """These are owed no more."""
        known = self._streams[stream]
        left = (part for first, last in known.owed[kind] for part in told.missing(first, last))
        known.owed[kind] = Ranges(left, OWED_MAX)

    def _too_many_ahead(self, stream: Stream, has: Callable[[Stream], bool]) -> bool:
        if stream in self._streams:
            return False
        ahead = (each for each in self._streams if each.user == self._user and each.to == stream.to)
        return sum(not has(each) for each in ahead) >= AHEAD_MAX

    # ---------------------------------------------------------------- what is owed

    def hidden(self, stream: Stream, seq: int) -> None:
        """A receipt or base update of this stream has arrived: there is nothing to read in it."""
        if stream.user != self._user and self._known(stream).read.add(seq, seq):
            self._changed[stream] = None

    def owe_delivered(self, stream: Stream, seq: int, due: float = NOW) -> None:
        """A message has reached this device; the receipt is due then, or earlier with another one of its stream.

        `due` is NOW, or no earlier than in any call before.
        """
        known = self._known(stream)
        if seq in known.read:
            return
        if known.owed[ReceiptKind.DELIVERED].add(seq, seq) and due > NOW:
            known.held = True
            self._changed[stream] = None
        self._owe(stream, due)

    def owe_read(self, stream: Stream, seq: int) -> None:
        """The application has read a message; no receipt is owed when one has been sent, from any device."""
        if stream.user == self._user or not (known := self._known(stream)).read.add(seq, seq):
            return
        known.owed[ReceiptKind.READ].add(seq, seq)
        self._owe(stream, NOW)
        self._changed[stream] = None

    def _owe(self, stream: Stream, due: float) -> None:
        if due <= NOW:
            self._delayed.pop(stream, None)
            self._due[stream] = None
        elif stream not in self._due:
            self._delayed.setdefault(stream, due)

    def take(self, full: Callable[[Destination], bool], now: float) -> Iterable[tuple[Destination, Receipt]]:
        """Yield the receipts to compose now; those for a stream that is `full` stay owed."""
        for stream in list(takewhile(lambda each: self._delayed[each] <= now, self._delayed)):
            self._owe(stream, NOW)
        for stream in list(self._due):
            known, to = self._streams[stream], Destination(DestinationType.USER, stream.user)
            self._pay(stream, ReceiptKind.DELIVERED, known.read)  # `read` says it, or has said it
            for kind, owed in known.owed.items():
                named = self._named(known, kind, owed)
                for ranges in chunks(named, self._ranges_max) if owed else ():
                    if full(to):
                        break
                    yield to, Receipt(kind, stream.device, stream.epoch, stream.to, tuple(ranges))
                    self._pay(stream, kind, Ranges(ranges, self._ranges_max))
            owes = any(known.owed.values())
            if owes or known.held:
                self._changed[stream] = None
            known.held = owes
            if not owes:
                del self._due[stream]

    def _named(self, known: _Known, kind: ReceiptKind, owed: Ranges) -> list[Range]:
        if kind == ReceiptKind.DELIVERED:
            return list(owed)
        read = known.read
        return list(dict.fromkeys(read.around(first) if first in read else (first, last) for first, last in owed))

    def changes(self) -> list[Change]:
        """Return the rows of the state file that changed since the last call."""
        rows: list[Change] = []
        for stream in self._changed:
            known = self._streams[stream]
            rows.append(
                PutReceipts(
                    stream=stream,
                    delivered=tuple(known.delivered),
                    read=tuple(known.read),
                    owed_delivered=tuple(known.owed[ReceiptKind.DELIVERED]),
                    owed_read=tuple(known.owed[ReceiptKind.READ]),
                )
            )
        self._changed.clear()
        return rows
