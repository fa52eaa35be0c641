"""A client with little CPU and memory, so that one machine can run thousands beside the mesh that they measure.

It implements what docs/protocol.md requires: greeting, window, frames in order and once, acknowledgements,
deduplication, resend of unsettled messages, `delivered` receipts for stored messages, and answers to heartbeats.  All
its state is in memory, and it does not encrypt bodies.

Messages that are sent within one turn of the event loop share a frame.
"""

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import count
from typing import Any

import msgspec

from meshim.stores.ports import Lease
from scripts.harness.clients.connections import Dialer
from scripts.harness.mesh.seed_database import SeededUser

GREET, WELCOME, DATA, ACK, PING, PONG, CLOSE, RESET, STORED_STATE = 1, 2, 3, 4, 5, 6, 7, 8, 10
SUBMIT, DELIVERY, OUTCOME = 1, 2, 3
DELIVERED, STORED, REJECTED, BUSY = 1, 2, 3, 4
USER = 1
QUIT = 16
TEXT, RECEIPT = 1, 3
VERSION = 1
WINDOW = 32
ITEMS_MAX = 128
"""Items in one frame, at most."""
RESEND_S = 5.0
ACK_DELAY_S = 0.05
TICK_S = 1.0

Destination = tuple[int, ...]

_pack = msgspec.msgpack.Encoder().encode
_unpack: Callable[[bytes], Any] = msgspec.msgpack.Decoder().decode


class LinkLost(Exception):
    """The connection ended, or the connector rejected a message.  A benchmark that went on would measure nothing."""


class MinimalClient:
    """One device on one connection."""

    __slots__ = (
        "_ack_due",
        "_ack_timer",
        "_connection",
        "_cookies",
        "_flushing",
        "_ids",
        "_loop",
        "_next_seq",
        "_number",
        "_number_acked",
        "_outgoing",
        "_receipts_due",
        "_received",
        "_received_acked",
        "_seen_above",
        "_watermarks",
        "caught_up",
        "closed",
        "doubled",
        "error",
        "link",
        "me",
        "on_message",
        "on_settled",
        "pending",
        "resent",
        "welcomed",
        "window",
    )  # fmt: skip

    def __init__(self, dialer: Dialer, connector: Lease, me: SeededUser) -> None:
        self.me = me
        self.link = secrets.randbits(53)
        self.window = 1
        self.closed = False
        self.resent = self.doubled = 0
        """Messages that this client submitted again, and duplicates that it received and recognised."""
        self.on_message: Callable[[bytes, int], None] | None = None
        """Called with the body of every new message and the user id of its sender."""
        self.on_settled: Callable[[Destination, int, int], None] | None = None
        """Called with destination, seq and DELIVERED or STORED when the outcome of a message is final."""
        self.pending: dict[Destination, deque[list[Any]]] = {}
        """Unsettled messages by destination: [seq, envelope, time of submission, destination]."""
        self._loop = asyncio.get_running_loop()
        self._ids = count(secrets.randbits(62))
        self._next_seq: dict[Destination, int] = {}
        self._receipts_due: dict[Destination, list[int]] = {}
        """By stream, the seqs that the next receipt names."""
        self._cookies: dict[Destination, bytes] = {}
        """By destination, that of the latest outcome: live copies must not overtake stored ones."""
        self._outgoing: deque[list[Any]] = deque()
        self._number = self._number_acked = self._received = self._received_acked = 0
        self._watermarks: dict[Destination, int] = {}
        self._seen_above: dict[Destination, set[int]] = {}
        self._ack_due = self._flushing = False
        self._ack_timer: asyncio.TimerHandle | None = None
        self.welcomed: asyncio.Future[None] = self._loop.create_future()
        self.caught_up: asyncio.Future[None] = self._loop.create_future()
        """Done when the offline queue is empty.  Until then new messages to this device are stored, too."""
        self.error: LinkLost | None = None
        """Why the connection ended, unless `close` ended it.  The exception handler of the loop gets it, too."""
        self._connection = dialer.connect(connector, self)
        self._send_frame([GREET, VERSION, me.token, me.epoch, self.link, WINDOW])
        self._loop.call_later(TICK_S, self._tick)

    # ---------------------------------------------------------------- sending

    def send(self, to: int, body: bytes) -> int:
        """Submit a text to a user; return its seq."""
        return self._compose((USER, to, 0), TEXT, body)

    def _compose(self, to: Destination, kind: int, body: bytes) -> int:
        seq = self._next_seq.get(to, 1)
        self._next_seq[to] = seq + 1
        waiting = self.pending.get(to)
        if waiting is None:
            waiting = self.pending[to] = deque()
        base = waiting[0][0] if waiting else seq
        me = self.me
        envelope_id, now = next(self._ids).to_bytes(16, "big"), int(time.time() * 1000)
        envelope = _pack((VERSION, envelope_id, me.user, me.user, me.epoch, to, seq, base, kind, 0, now, body))
        entry = [seq, envelope, self._loop.time(), to]
        waiting.append(entry)
        self._outgoing.append(entry)
        self._schedule_flush()
        return seq

    def _acknowledge_now(self) -> None:
        """Acknowledge in this turn of the loop: the peer waits for it."""
        if self._ack_timer is not None:
            self._ack_timer.cancel()
            self._ack_timer = None
        self._schedule_flush()

    def _schedule_flush(self) -> None:
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Send what is queued, up to the window; send an acknowledgement alone when no data frame carries it."""
        self._flushing = False
        if self.closed or not self.welcomed.done():
            return
        outgoing = self._outgoing
        while outgoing and self._number - self._number_acked < self.window:
            items = [self._submit(outgoing.popleft()) for _ in range(min(ITEMS_MAX, len(outgoing)))]
            self._number += 1
            self._ack_due, self._received_acked = False, self._received
            self._send_frame((DATA, self.link, self._number, self._received, items))
        if self._ack_due and self._ack_timer is None:
            self._acknowledge()

    def _submit(self, message: list[Any]) -> tuple[int, bytes, bytes]:
        return SUBMIT, message[1], self._cookies.get(message[3], b"")

    def _acknowledge(self) -> None:
        """Send the acknowledgement as a frame of its own."""
        self._ack_timer = None
        if self._ack_due and not self.closed:
            self._ack_due, self._received_acked = False, self._received
            self._send_frame([ACK, self.link, self._received])

    def _send_frame(self, frame: Sequence[Any]) -> None:
        if not self._connection.send(_pack(frame)):
            self.lost("nothing can be sent")

    def _tick(self) -> None:
        """Every second: submit again what was not settled in time."""
        if self.closed:
            return
        now = self._loop.time()
        for waiting in self.pending.values():
            for message in waiting:
                if now - message[2] < RESEND_S:
                    break
                message[2] = now
                self.resent += 1
                self._outgoing.append(message)
                self._schedule_flush()
        self._loop.call_later(TICK_S, self._tick)

    # ---------------------------------------------------------------- receiving

    def received(self, data: bytes) -> None:
        """Take a frame (of `Receiver`, as the next two)."""
        frame = _unpack(data)
        kind = frame[0]
        if kind == DATA:
            self._acknowledged(frame[3])
            number = frame[2]
            self._ack_due = True
            if number != self._received + 1:
                self.lost(f"frame {number} came where {self._received + 1} was expected")
                return
            self._received = number
            self._items(frame[4])
            if self._received - self._received_acked >= WINDOW // 2:
                self._acknowledge_now()
        elif kind == ACK:
            self._acknowledged(frame[2])
        elif kind == PING:
            self._send_frame([PONG, self.link])
        elif kind == WELCOME:
            self.window = frame[6]
            self.welcomed.set_result(None)
            self._schedule_flush()
        elif kind == STORED_STATE:
            if not frame[2] and not self.caught_up.done():
                self.caught_up.set_result(None)
        elif kind in (CLOSE, RESET):
            self.lost(f"the connector says {frame[2:]}")

    def lost(self, why: str) -> None:
        """The connection ended, or has to."""
        if self.closed:
            return
        self._release()
        self.error = LinkLost(f"device {self.me.user}: {why}")
        if not self.welcomed.done():
            self.welcomed.set_exception(self.error)
        else:
            self._loop.call_exception_handler({"message": str(self.error), "exception": self.error})

    def _acknowledged(self, number: int) -> None:
        if number > self._number_acked:
            self._number_acked = number
            if self._outgoing:
                self._schedule_flush()

    def _items(self, items: list[Any]) -> None:
        for item in items:
            if item[0] == DELIVERY:
                self._delivery(item)
                self._acknowledge_now()
            else:
                self._outcome(item)
        if self._ack_timer is None and self._ack_due and not self._flushing:
            self._ack_timer = self._loop.call_later(ACK_DELAY_S, self._acknowledge)

    def received_all(self) -> None:
        """Send one receipt for each stream, for all stored messages that this turn delivered."""
        for stream, seqs in self._receipts_due.items():
            user, device, epoch, *to = stream
            self._compose((USER, user, 0), RECEIPT, _pack((1, device, epoch, to, _ranges(seqs))))
        self._receipts_due.clear()

    def _delivery(self, item: list[Any]) -> None:
        _, _, user, device, epoch, to, seq, base, kind, _, _, body, *_ = _unpack(item[1])
        stream = (user, device, epoch, *to)
        if kind == TEXT and len(item) > 2 and item[2]:
            self._receipts_due.setdefault(stream, []).append(seq)
        watermark, above = self._watermarks.get(stream, 1), self._seen_above.get(stream)
        if seq < watermark or (above and seq in above):
            self.doubled += 1
            return
        if seq == watermark and not above:
            self._watermarks[stream] = seq + 1
        else:
            above = self._seen_above.setdefault(stream, set())
            above.add(seq)
            watermark = max(watermark, base)
            while watermark in above:
                above.remove(watermark)
                watermark += 1
            self._watermarks[stream] = watermark
        if kind == TEXT and self.on_message is not None:
            self.on_message(body, user)

    def _outcome(self, item: list[Any]) -> None:
        _, to, first, last, status, final, _, cookie, *why = item
        to = tuple(to)
        if status in (DELIVERED, STORED):
            self._cookies[to] = cookie
        waiting = self.pending.get(to)
        if not waiting:
            return
        if status == REJECTED:
            self.lost(f"a message was rejected: {why}")
            return
        if not final:
            return  # after BUSY the resend timer submits it again
        for message in _between(waiting, first, last):
            waiting.remove(message)
            if self.on_settled is not None:
                self.on_settled(to, message[0], status)

    def close(self) -> None:
        """Say goodbye and close the connection."""
        if not self.closed:
            self._send_frame([CLOSE, self.link, QUIT, ""])
            self._release()

    def _release(self) -> None:
        if not self.closed:
            self.closed = True
            self._connection.close()


def _between(waiting: deque[list[Any]], first: int, last: int) -> list[list[Any]]:
    """Return the messages with a seq from first to last; `waiting` is sorted by seq."""
    found = []
    for message in waiting:
        if message[0] > last:
            break
        if message[0] >= first:
            found.append(message)
    return found


def _ranges(seqs: list[int]) -> list[tuple[int, int]]:
    ranges: list[tuple[int, int]] = []
    for seq in sorted(seqs):
        if ranges and ranges[-1][1] == seq - 1:
            ranges[-1] = (ranges[-1][0], seq)
        else:
            ranges.append((seq, seq))
    return ranges
