"""The outbox: the sender keeps a message until its outcome is final.

::

    unsent ──submitted──▶ under way ──outcomes──▶ sent / rejected ──receipts──▶ delivered, read
      ▲                      │
      └── no outcome in time, busy, or another connection ──┘   (same id, same bytes)

The sending client holds the last copy: whichever process of the mesh dies, the client submits every unsettled message
again.  Nothing is submitted before it is in the state file.

When a queue of the recipient is full, only the lowest refused message of the stream is submitted again after a while;
the others follow when there is news: one is settled, or was delivered to a device.
"""

import heapq
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import NamedTuple

from meshim.client.events import (
    RANK,
    AddToOutbox,
    Change,
    DropFromOutbox,
    PutStream,
    RecordReceipt,
    SettleMessage,
    Snapshot,
    StatusChanged,
    StreamDelayed,
)
from meshim.client.options import OutboxOptions
from meshim.client.statistics import Statistics
from meshim.errors import Code
from meshim.protocol.outcome import REJECTED, OutStream, OutStreamOptions
from meshim.protocol.ranges import Ranges
from meshim.wire.client import Outcome, Submit
from meshim.wire.envelope import HIDDEN, Destination, Envelope, Receipt, ReceiptKind, encode_envelope
from meshim.wire.outcome import OutcomeStatus

Key = tuple[Destination, int]
"""(destination, seq): the name of a message of this device."""


_STATES: dict[int, str] = {ReceiptKind.DELIVERED: "delivered", ReceiptKind.READ: "read"}
_OF_COPIES = (OutcomeStatus.DELIVERED, OutcomeStatus.STORED)


class _Message:
    """A message that is not settled."""

    __slots__ = ("busy_s", "delivered", "due", "envelope", "hidden", "persisted", "receipt", "resend_s")

    def __init__(
        self, envelope: bytes, kind: int, options: OutboxOptions, *, persisted: bool, receipt: str = ""
    ) -> None:
        self.envelope = envelope
        self.hidden = kind in HIDDEN
        """Nothing becomes of it after it is settled."""
        self.delivered = False
        """To a device of the recipient."""
        self.persisted = persisted
        self.receipt = receipt
        """`delivered` or `read` once a receipt has arrived."""
        self.resend_s = options.resend_s
        self.busy_s = options.busy_s
        self.due: float | None = None
        """When to submit it again; None while it waits to be submitted."""


class OutboxUpdate(NamedTuple):
    """The effects of an outcome or a receipt."""

    statuses: list[StatusChanged]
    changes: list[Change]
    base_updates: list[Destination]
    """Streams in which a base update has to follow now."""
    delayed: list[StreamDelayed]


class _Refused:
    """The messages of a stream that were refused because a queue is full."""

    __slots__ = ("sentence", "seqs", "wait_s")

    def __init__(self, wait_s: float, sentence: str) -> None:
        self.sentence = sentence
        self.seqs: set[int] = set()
        self.wait_s = wait_s
        """Until the lowest of them is submitted again."""


class Outbox:
    """The streams that one device sends."""

    def __init__(self, options: OutboxOptions, snapshot: Snapshot, statistics: Statistics) -> None:
        self._options = options
        self._statistics = statistics
        self._stream_options = OutStreamOptions()
        self._streams: dict[Destination, OutStream] = {}
        self._pending: dict[Key, _Message] = {}
        self._settled: OrderedDict[Key, str] = OrderedDict()
        """The state of the latest `settled_max` settled messages."""
        self._receipts: dict[tuple[Destination, str], Ranges] = {}
        """By stream and state: the messages of which this process has had a receipt."""
        self._unsent: OrderedDict[Key, None] = OrderedDict()
        self._refused: dict[Destination, _Refused] = {}
        self._due: list[tuple[float, int, Key]] = []
        """A heap of (time, tie-breaker, message) to submit again; entries of settled messages stay in it."""
        self._count = 0
        for stream in snapshot.streams:
            self._streams[stream.to] = OutStream(self._stream_options, stream.next_seq, stream.cookie)
        for message in snapshot.unsettled:
            self._stream(message.to).restore(message.seq, message.base)
            key = message.to, message.seq
            self._pending[key] = _Message(
                message.envelope, message.kind, options, persisted=True, receipt=message.receipt
            )
            self._unsent[key] = None
        for settled in snapshot.settled:
            self._settled[settled.to, settled.seq] = settled.state

    @property
    def unsettled(self) -> int:
        """How many messages are not settled."""
        return len(self._pending)

    def _stream(self, to: Destination) -> OutStream:
        stream = self._streams.get(to)
        if stream is None:
            stream = self._streams[to] = OutStream(self._stream_options)
        return stream

    def delayed(self, to: Destination) -> str:
        """Return why the mesh takes no messages of this stream for a while, in its words; empty when it does."""
        refused = self._refused.get(to)
        return "" if refused is None else refused.sentence

    def full(self, to: Destination) -> bool:
        """Whether this stream has too many unsettled messages to compose another one."""
        return self._stream(to).full

    def reserve(self, to: Destination) -> tuple[int, int]:
        """Return (seq, base) for the message that is composed next."""
        return self._stream(to).assign()

    def next(self, to: Destination) -> tuple[int, int]:
        """Return (seq, base) that the next message will have, for an ephemeral envelope, which uses up none."""
        stream = self._stream(to)
        return stream.next_seq, stream.base

    def add(self, envelope: Envelope) -> list[Change]:
        """Add a composed message; call `persisted` when the returned changes are in the state file."""
        data = encode_envelope(envelope)
        self._pending[envelope.to, envelope.seq] = _Message(data, envelope.kind, self._options, persisted=False)
        message = AddToOutbox(
            to=envelope.to,
            seq=envelope.seq,
            base=envelope.base,
            kind=envelope.kind,
            id=envelope.id,
            envelope=data,
        )
        return [message, self._put_stream(envelope.to)]

    def _put_stream(self, to: Destination) -> PutStream:
        stream = self._streams[to]
        return PutStream(to, stream.next_seq, stream.cookie)

    def persisted(self, keys: Iterable[Key]) -> None:
        """These messages are in the state file: `take` may submit them."""
        for key in keys:
            if (message := self._pending.get(key)) is not None:
                message.persisted = True
                self._unsent[key] = None

    # ---------------------------------------------------------------- submitting

    def take(self, room: int, now: float) -> list[Submit]:
        """Return the messages to submit now, at most `room`, in the order they were composed."""
        while self._due and self._due[0][0] <= now:
            due, _, key = heapq.heappop(self._due)
            message = self._pending.get(key)
            if message is not None and message.due == due:
                message.due = None
                self._unsent[key] = None
                self._statistics.resent += 1
        submits: list[Submit] = []
        while self._unsent and len(submits) < room:
            key, _ = self._unsent.popitem(last=False)
            message = self._pending[key]
            self._resend_at(key, message, now + message.resend_s)
            message.resend_s = min(2 * message.resend_s, self._options.resend_max_s)
            submits.append(Submit(message.envelope, self._streams[key[0]].cookie))
        return submits

    def _resend_at(self, key: Key, message: _Message, due: float) -> None:
        message.due = due
        self._count += 1
        heapq.heappush(self._due, (due, self._count, key))

    def disconnected(self) -> None:
        """Submit every unsettled message again over the next connection, in the order they were composed."""
        self._due.clear()
        for message in self._pending.values():
            if message.due is not None:
                message.due = None
                self._statistics.resent += 1
            message.resend_s = self._options.resend_s  # the next connector may be a faster one
        self._refused.clear()
        self._unsent = OrderedDict((key, None) for key, message in self._pending.items() if message.persisted)

    def next_deadline(self) -> float | None:
        """When `take` has something to submit again; None while it has not."""
        return self._due[0][0] if self._due else None

    # ---------------------------------------------------------------- outcomes and receipts

    def outcome(self, outcome: Outcome, now: float) -> OutboxUpdate:
        """Take in an outcome: what became of one message, or of several in a row."""
        update = OutboxUpdate([], [], [], [])
        stream = self._streams.get(outcome.to)
        if stream is None or outcome.last - outcome.first > self._options.settled_max:
            return update
        if outcome.status in _OF_COPIES and outcome.cookie != stream.cookie:
            stream.cookie = outcome.cookie
            update.changes.append(self._put_stream(outcome.to))
        for seq in range(outcome.first, outcome.last + 1):
            self._one_outcome((outcome.to, seq), outcome, stream, now, update)
        return update

    def _one_outcome(self, key: Key, outcome: Outcome, stream: OutStream, now: float, update: OutboxUpdate) -> None:
        message = self._pending.get(key)
        if message is None:
            if outcome.status == OutcomeStatus.DELIVERED:
                self._advance(key, "delivered", update)
            return
        if outcome.status == OutcomeStatus.BUSY:
            self._unsent.pop(key, None)
            if outcome.code == Code.QUEUE_FULL:
                self._queue_full(key, message, outcome.sentence, now, update)
                return
            self._resend_at(key, message, now + message.busy_s)
            message.busy_s = min(2 * message.busy_s, self._options.resend_s)
            return
        newly_delivered = outcome.status == OutcomeStatus.DELIVERED and not message.delivered
        message.delivered = message.delivered or newly_delivered
        rejected = outcome.status == OutcomeStatus.REJECTED
        if not rejected and not (outcome.final and outcome.status in _OF_COPIES):
            if newly_delivered and key[0] in self._refused:
                self._submit_refused(key[0], also_delivered=False)
            return
        del self._pending[key]
        self._unsent.pop(key, None)
        if key[0] in self._refused:
            self._submit_refused(key[0], also_delivered=True)
        if stream.settle(key[1], REJECTED if rejected else outcome.audience):
            update.base_updates.append(key[0])
        state = "rejected" if rejected else "delivered" if message.delivered else "sent"
        if message.hidden:
            update.statuses.append(StatusChanged(key[0], key[1], state, outcome.code, outcome.sentence, hidden=True))
            update.changes.append(DropFromOutbox(*key))
            return
        self._settled[key] = "pending"
        while len(self._settled) > self._options.settled_max:
            self._settled.popitem(last=False)
        if rejected:
            self._advance(key, state, update, outcome.code, outcome.sentence)
        else:
            self._advance(key, max(state, message.receipt, key=RANK.__getitem__), update)

    def _queue_full(self, key: Key, message: _Message, sentence: str, now: float, update: OutboxUpdate) -> None:
        """Let the message wait behind the lowest refused one of its stream, or submit it again later if it is that."""
        to, seq = key
        self._statistics.queue_full += 1
        refused = self._refused.get(to)
        if refused is None:
            refused = self._refused[to] = _Refused(self._options.resend_s, sentence)
            update.delayed.append(StreamDelayed(to, Code.QUEUE_FULL, sentence))
        refused.seqs.add(seq)
        if seq == min(refused.seqs):
            self._resend_at(key, message, now + refused.wait_s)
            refused.wait_s = min(2 * refused.wait_s, self._options.resend_max_s)
        else:
            message.due = None

    def _submit_refused(self, to: Destination, *, also_delivered: bool) -> None:
        """Submit the refused messages of a stream again: there is room, or a device of the recipient has connected.

        Of the latter only those profit that were delivered to no device yet.  Those that stay have a lower one before
        them that is under way, or due: so what waits here always has a message that will bring news.
        """
        refused = self._refused[to]
        for seq in sorted(refused.seqs):
            message = self._pending.get((to, seq))
            if message is not None and message.delivered and not also_delivered:
                continue
            refused.seqs.remove(seq)
            if message is not None:
                message.due = None
                self._unsent[to, seq] = None
        if not refused.seqs:
            del self._refused[to]

    def receipt(self, sender: int, receipt: Receipt) -> OutboxUpdate:
        """Take in a receipt; ignore it unless its sender is the recipient of the messages."""
        update = OutboxUpdate([], [], [], [])
        stream = self._streams.get(receipt.to)
        if receipt.to.id != sender or stream is None or receipt.kind not in _STATES:
            return update
        state = _STATES[receipt.kind]
        told = self._receipts.get((receipt.to, state))
        if told is None:  # it has room for every message that is known here, so that none of them is news twice
            told = self._receipts[receipt.to, state] = Ranges(most=self._options.settled_max)
        # A range may begin at 1: only what is new and still known here costs anything.
        lowest = max(1, stream.next_seq - self._options.settled_max - self._stream_options.in_flight)
        for first, last in receipt.ranges:
            for new_first, new_last in told.add(max(first, lowest), min(last, stream.next_seq - 1)):
                for seq in range(new_first, new_last + 1):
                    self._one_receipt((receipt.to, seq), state, update)
        return update

    def _one_receipt(self, key: Key, state: str, update: OutboxUpdate) -> None:
        message = self._pending.get(key)
        if message is None:
            self._advance(key, state, update)
        elif (
            RANK[state] > RANK[message.receipt] and not message.hidden
        ):  # the receipt arrived before the outcome of the message
            message.receipt = state
            update.changes.append(RecordReceipt(key[0], key[1], state))

    def _advance(self, key: Key, state: str, update: OutboxUpdate, code: int = 0, sentence: str = "") -> None:
        """Move a settled message forward; ignore a state that it has passed, and messages that are forgotten."""
        known = self._settled.get(key)
        if known is None or RANK[state] <= RANK[known]:
            return
        self._settled[key] = state
        update.statuses.append(StatusChanged(key[0], key[1], state, code, sentence))
        update.changes.append(SettleMessage(key[0], key[1], state, code, sentence))


NewId = Callable[[], bytes]
"""Makes the id of a message: 16 random bytes."""
