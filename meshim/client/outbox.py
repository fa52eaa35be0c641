"""The outbox: a message is ours until every copy of it is accounted for.

::

    unsent ──submitted──▶ under way ──outcomes──▶ sent / rejected ──receipts──▶ delivered, read
      ▲                      │
      └── no outcome in time, busy, or another connection ──┘   (same id, same bytes)

The sending client is the last custodian: whatever dies in the mesh, it submits again what is not settled.
"""

import heapq
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import msgspec

from meshim.client.events import Change, NoteReceipt, Progress, PutOut, PutStream, SettleOut, Snapshot
from meshim.protocol.outcome import DeliveryStatus, OutStream, OutStreamOptions
from meshim.protocol.timeouts import CLIENT_RESEND_S
from meshim.wire.client import Submit
from meshim.wire.envelope import Destination, Envelope, Receipt, ReceiptKind, encode_envelope
from meshim.wire.outcome import Outcome, OutcomeStatus

Key = tuple[Destination, int]
"""(to, seq): a message of ours."""

STATES = ("", "pending", "sent", "delivered", "read")
"""In the order a message goes through them; `rejected` ends it."""
_rank = STATES.index


class OutboxOptions(msgspec.Struct, frozen=True):
    """Seconds; waits double, up to `longest_s`, and up to `resend_s` when the mesh said that it was busy.

    `tracked` is how many settled messages receipts are still matched with.
    """

    resend_s: float = CLIENT_RESEND_S
    busy_s: float = 0.5
    longest_s: float = 15.0
    tracked: int = 10_000


class _Message:
    __slots__ = ("busy_s", "due", "envelope", "progress", "receipt", "resend_s", "saved")

    def __init__(self, envelope: bytes, options: OutboxOptions, *, saved: bool, receipt: str = "") -> None:
        self.envelope = envelope
        self.progress = DeliveryStatus()
        self.saved = saved
        self.receipt = receipt
        self.resend_s = options.resend_s
        self.busy_s = options.busy_s
        self.due: float | None = None
        """When to submit it again; None while it waits to be submitted."""


class Settled(NamedTuple):
    """What taking in an outcome or a receipt led to."""

    progress: list[Progress]
    changes: list[Change]
    owing_base: list[Destination]
    """Streams in which a base update has to follow now."""


class Outbox:
    """All streams of one device."""

    def __init__(self, user: int, options: OutboxOptions, snapshot: Snapshot) -> None:
        self._user = user
        self._options = options
        self._stream_options = OutStreamOptions()
        self._streams: dict[Destination, OutStream] = {}
        self._pending: dict[Key, _Message] = {}
        self._settled: OrderedDict[Key, str] = OrderedDict()
        self._unsent: OrderedDict[Key, None] = OrderedDict()
        self._due: list[tuple[float, int, Key]] = []
        self._count = 0
        self.resent = 0
        for stream in snapshot.streams:
            self._streams[stream.to] = OutStream(self._stream_options, stream.next_seq, stream.after)
        for out in snapshot.unsettled:
            self._stream(out.to).restore(out.seq, out.base)
            self._pending[out.to, out.seq] = _Message(out.envelope, options, saved=True, receipt=out.receipt)
            self._unsent[out.to, out.seq] = None
        for settled in snapshot.settled:
            self._settled[settled.to, settled.seq] = settled.state

    @property
    def unsettled(self) -> int:
        return len(self._pending)

    def _stream(self, to: Destination) -> OutStream:
        stream = self._streams.get(to)
        if stream is None:
            stream = self._streams[to] = OutStream(self._stream_options)
        return stream

    def full(self, to: Destination) -> bool:
        """Whether too much is unsettled in this stream to compose more."""
        return self._stream(to).full

    def reserve(self, to: Destination) -> tuple[int, int]:
        """(seq, base) for a message that is composed next."""
        return self._stream(to).assign()

    def add(self, envelope: Envelope) -> list[Change]:
        """A composed message; it may be submitted once these changes are saved."""
        data = encode_envelope(envelope)
        key = (envelope.to, envelope.seq)
        self._pending[key] = _Message(data, self._options, saved=False)
        out = PutOut(envelope.to, envelope.seq, envelope.base, envelope.kind, envelope.id, data)
        return [out, self._saved_stream(envelope.to)]

    def _saved_stream(self, to: Destination) -> PutStream:
        stream = self._streams[to]
        return PutStream(to, stream.next_seq, stream.after)

    def saved(self, keys: Iterable[Key]) -> None:
        """These are in the state file: they may leave."""
        for key in keys:
            if (message := self._pending.get(key)) is not None:
                message.saved = True
                self._unsent[key] = None

    # ---- submitting

    def take(self, room: int, now: float) -> list[Submit]:
        """What to submit now, at most `room` of them."""
        while self._due and self._due[0][0] <= now:
            due, _, key = heapq.heappop(self._due)
            message = self._pending.get(key)
            if message is not None and message.due == due:
                message.due = None
                self._unsent[key] = None
                self.resent += 1
        submits: list[Submit] = []
        while self._unsent and len(submits) < room:
            key, _ = self._unsent.popitem(last=False)
            message = self._pending[key]
            self._wait(key, message, now + message.resend_s)
            message.resend_s = min(2 * message.resend_s, self._options.longest_s)
            submits.append(Submit(message.envelope, self._streams[key[0]].after))
        return submits

    def _wait(self, key: Key, message: _Message, due: float) -> None:
        message.due = due
        self._count += 1
        heapq.heappush(self._due, (due, self._count, key))

    def disconnected(self) -> None:
        """Whatever was under way has to be submitted again, in the order it was composed."""
        self._due.clear()
        for message in self._pending.values():
            if message.due is not None:
                message.due = None
                self.resent += 1
            message.resend_s = self._options.resend_s  # whoever was slow is somebody else now
        self._unsent = OrderedDict((key, None) for key, message in self._pending.items() if message.saved)

    def next_deadline(self) -> float | None:
        return self._due[0][0] if self._due else None

    # ---- outcomes and receipts

    def outcome(self, outcome: Outcome, now: float) -> Settled:
        """Take in what became of some copies."""
        result = Settled([], [], [])
        stream = self._streams.get(outcome.to)
        if stream is None or outcome.last - outcome.first > self._options.tracked:
            return result
        if outcome.status == OutcomeStatus.STORED:
            for copy in outcome.done:
                stream.stored(copy, outcome.position)
            result.changes.append(self._saved_stream(outcome.to))
        for seq in range(outcome.first, outcome.last + 1):
            self._one_outcome((outcome.to, seq), outcome, stream, now, result)
        return result

    def _one_outcome(self, key: Key, outcome: Outcome, stream: OutStream, now: float, result: Settled) -> None:
        message = self._pending.get(key)
        if message is None:
            if outcome.status == OutcomeStatus.DELIVERED and any(user != self._user for user, _ in outcome.done):
                self._advance(key, "delivered", result)
            return
        if outcome.status == OutcomeStatus.BUSY:
            self._unsent.pop(key, None)
            self._wait(key, message, now + message.busy_s)
            message.busy_s = min(2 * message.busy_s, self._options.resend_s)
            return
        progress = message.progress
        if not progress.add(outcome, self._user) or not progress.settled:
            return
        del self._pending[key]
        self._unsent.pop(key, None)
        if stream.settle(key[1], progress):
            result.owing_base.append(key[0])
        self._settled[key] = "pending"
        while len(self._settled) > self._options.tracked:
            self._settled.popitem(last=False)
        if progress.state == DeliveryStatus.REJECTED:
            self._advance(key, "rejected", result, progress.code, progress.sentence)
        else:
            self._advance(key, max("delivered" if progress.delivered else "sent", message.receipt, key=_rank), result)

    def receipt(self, sender: int, receipt: Receipt) -> Settled:
        """Take in a receipt of a recipient's device; one from anybody else changes nothing."""
        result = Settled([], [], [])
        if receipt.to.id != sender:
            return result
        state = "read" if receipt.kind == ReceiptKind.READ else "delivered"
        budget = self._options.tracked
        for first, last in receipt.ranges:
            budget -= max(0, last - first + 1)  # a range that runs backwards must not buy room for a long one
            if budget < 0:
                break
            for seq in range(first, last + 1):
                self._one_receipt((receipt.to, seq), state, result)
        return result

    def _one_receipt(self, key: Key, state: str, result: Settled) -> None:
        message = self._pending.get(key)
        if message is None:
            self._advance(key, state, result)
        elif _rank(state) > _rank(message.receipt):
            # It outran the outcome of the message.
            message.receipt = state
            result.changes.append(NoteReceipt(key[0], key[1], state))

    def _advance(self, key: Key, state: str, result: Settled, code: int = 0, sentence: str = "") -> None:
        """Progress is only ever forward."""
        known = self._settled.get(key)
        if known is None or known == "rejected":
            return
        if state != "rejected" and _rank(state) <= _rank(known):
            return
        self._settled[key] = state
        result.progress.append(Progress(key[0], key[1], state, code, sentence))
        result.changes.append(SettleOut(key[0], key[1], state, code, sentence))


def ranges_of(numbers: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """Inclusive ranges that cover exactly these numbers."""
    ranges: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if ranges and number <= ranges[-1][1] + 1:
            ranges[-1] = (ranges[-1][0], max(number, ranges[-1][1]))
        else:
            ranges.append((number, number))
    return tuple(ranges)


NewId = Callable[[], bytes]
"""Makes the id of a message: 16 random bytes."""
