"""A client that costs little, so that a machine can carry many beside the mesh they measure.

It does what docs/protocol.md asks of one: greets, keeps to its window, takes frames in order and once, acknowledges,
recognises messages it had, sends again what is not settled in time, writes a `delivered` receipt for what was stored,
and says when it is alive.  It keeps everything in memory, and does not seal what it sends.

What an application does within one turn of the loop leaves in one frame.
"""

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import cache
from itertools import count
from typing import Any

import msgspec
import zmq

from scripts.harness.mesh.seed_database import Enrolled

GREET, WELCOME, DATA, ACK, PING, PONG, CLOSE, RESET, STORED = 1, 2, 3, 4, 5, 6, 7, 8, 10
SUBMIT, DELIVERY, OUTCOME = 1, 2, 3
DELIVERED, KEPT, REJECTED, BUSY = 1, 2, 3, 4
USER, DEVICE = 1, 2
TEXT, RECEIPT = 1, 3
VERSION = 1
WINDOW = 32
ITEMS = 128
"""In one frame."""
RESEND_S = 5.0
ACK_DELAY_S = 0.05
LOOK_S = 1.0

Key = tuple[int, ...]
Socket = zmq.Socket[bytes]

_pack = msgspec.msgpack.Encoder().encode
_unpack: Callable[[bytes], Any] = msgspec.msgpack.Decoder().decode


class LinkLost(Exception):
    """The connection ended, or the connector refused something: a benchmark that goes on would measure nothing."""


class Light:
    """One device on one connection."""

    __slots__ = (
        "_ack_alarm", "_after", "_arrived", "_early", "_flushing", "_following", "_heartbeat_s", "_ids", "_loop",
        "_number", "_number_acked", "_outgoing", "_reading", "_said_at", "_sent_at", "_taken", "_to_ack", "_told",
        "_unseen", "_watermarks", "caught_up", "closed", "doubled", "link", "lost", "me", "on_message", "on_settled",
        "pending", "resent", "socket", "welcomed", "window",
    )  # fmt: skip

    def __init__(self, context: "zmq.Context[Socket]", endpoint: str, server_key: bytes, me: Enrolled) -> None:
        """`server_key` is empty where links are plain."""
        self.me = me
        self.link = secrets.randbits(64)
        self.window = 1
        self.closed = False
        self.resent = self.doubled = 0
        """Messages that were submitted again, and that came again and were recognised."""
        self.on_message: Callable[[bytes, int], None] | None = None
        """Gets the body of every new message, and who sent it."""
        self.on_settled: Callable[[Key, int, int], None] | None = None
        """Gets destination, seq, and DELIVERED or KEPT: all copies are accounted for."""
        self.pending: dict[Key, deque[list[Any]]] = {}
        """Unsettled, by destination: [seq, what is submitted, when it was, accounted copies]."""
        self._loop = asyncio.get_running_loop()
        self._ids = count(secrets.randbits(62))
        self._following: dict[Key, int] = {}
        self._arrived: dict[Key, list[int]] = {}
        """By stream, the seqs of messages that earn a receipt."""
        self._after: dict[Key, dict[Key, int]] = {}
        """By destination, for each copy that was stored, where: live ones must not overtake it."""
        self._outgoing: deque[list[Any]] = deque()
        self._sent_at: dict[int, Any] = {}
        self._number = self._number_acked = self._taken = self._told = 0
        self._early: dict[int, Any] = {}
        self._watermarks: dict[Key, int] = {}
        self._unseen: dict[Key, set[int]] = {}
        self._to_ack = self._flushing = self._reading = False
        self._ack_alarm: asyncio.TimerHandle | None = None
        self._heartbeat_s = 10.0
        self._said_at = 0.0
        self.welcomed: asyncio.Future[None] = self._loop.create_future()
        self.caught_up: asyncio.Future[None] = self._loop.create_future()
        """Everything that was stored has been pushed: until then what is said to it is stored, too."""
        self.lost: LinkLost | None = None
        """Why it is closed, if nobody here closed it.  Told to the handler of exceptions of the loop, too."""
        self.socket = context.socket(zmq.DEALER)
        self.socket.set(zmq.LINGER, 100)
        self.socket.set(zmq.RECONNECT_IVL, -1)
        self.socket.set(zmq.SNDHWM, 0)
        self.socket.set(zmq.RCVHWM, 0)
        if server_key:
            public, secret = _keys()
            self.socket.set(zmq.CURVE_SERVERKEY, server_key)
            self.socket.set(zmq.CURVE_PUBLICKEY, public)
            self.socket.set(zmq.CURVE_SECRETKEY, secret)
        self.socket.connect(endpoint)
        self._loop.add_reader(self.socket.FD, self._readable)
        self._say([GREET, VERSION, me.token, me.epoch, self.link, WINDOW, "light"])
        self._loop.call_later(LOOK_S, self._look)

    # ---------------------------------------------------------------- sending

    def send(self, to: int, body: bytes) -> int:
        """Submit a text to a user; its seq."""
        return self._compose((USER, to, 0), TEXT, body)

    def _compose(self, to: Key, kind: int, body: bytes) -> int:
        seq = self._following.get(to, 1)
        self._following[to] = seq + 1
        waiting = self.pending.get(to)
        if waiting is None:
            waiting = self.pending[to] = deque()
        base = waiting[0][0] if waiting else seq
        me = self.me
        made, now = next(self._ids).to_bytes(16, "big"), int(time.time() * 1000)
        envelope = _pack((VERSION, made, me.user, me.user, me.epoch, to, seq, base, kind, 0, now, body))
        after = tuple((*copy, position) for copy, position in self._after.get(to, {}).items())
        entry = [seq, (SUBMIT, envelope, after), self._loop.time(), None]
        waiting.append(entry)
        self._outgoing.append(entry)
        self._touch()
        return seq

    def _hurry(self) -> None:
        """Somebody waits for the acknowledgement."""
        if self._ack_alarm is not None:
            self._ack_alarm.cancel()
            self._ack_alarm = None
        self._touch()

    def _touch(self) -> None:
        if not self._flushing:
            self._flushing = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """One frame for what waits; an acknowledgement alone when there is nothing to carry it."""
        self._flushing = False
        if self.closed or not self.welcomed.done():
            return
        outgoing = self._outgoing
        while outgoing and self._number - self._number_acked < self.window:
            items = [outgoing.popleft()[1] for _ in range(min(ITEMS, len(outgoing)))]
            self._number += 1
            frame = _pack((DATA, self.link, self._number, self._taken, (), items))
            self._sent_at[self._number] = [self._loop.time(), frame]
            self._to_ack, self._told = False, self._taken
            self._send(frame)
        if self._to_ack and self._ack_alarm is None:
            self._acknowledge()

    def _acknowledge(self) -> None:
        """Alone, when nothing was there to carry it."""
        self._ack_alarm = None
        if self._to_ack and not self.closed:
            self._to_ack, self._told = False, self._taken
            self._say([ACK, self.link, self._taken])

    def _say(self, frame: Sequence[Any]) -> None:
        self._send(_pack(frame))

    def _send(self, frame: bytes) -> None:
        self._said_at = self._loop.time()
        try:
            self.socket.send(frame, zmq.NOBLOCK)
        except zmq.Again:
            self._over("nothing can be sent")
            return
        if not self._reading:  # sending takes in the news of the descriptor
            self._reading = True
            self._loop.call_soon(self._readable)

    def _look(self) -> None:
        """Once a second: say that we are here, and send again what has not come through."""
        if self.closed:
            return
        now = self._loop.time()
        if now - self._said_at >= self._heartbeat_s:
            self._say([PING, self.link])
        for entry in self._sent_at.values():
            if now - entry[0] >= LOOK_S:
                entry[0] = now
                self._send(entry[1])
        for waiting in self.pending.values():
            for message in waiting:
                if now - message[2] < RESEND_S:
                    break
                message[2] = now
                self.resent += 1
                self._outgoing.append(message)
                self._touch()
        self._loop.call_later(LOOK_S, self._look)

    # ---------------------------------------------------------------- receiving

    def _readable(self) -> None:
        self._reading = False
        if self.closed:
            return
        receive = self.socket.recv
        try:
            while not self.closed:
                self._take(_unpack(receive(zmq.NOBLOCK)))
        except zmq.Again:
            pass
        self._write_receipts()

    def _take(self, frame: list[Any]) -> None:
        kind = frame[0]
        if kind == DATA:
            self._acknowledged(frame[3])
            number = frame[2]
            self._to_ack = True
            if number == self._taken + 1:
                self._taken = number
                self._items(frame[5])
                while self._early and (early := self._early.pop(self._taken + 1, None)) is not None:
                    self._taken += 1
                    self._items(early)
            elif number > self._taken:
                self._early[number] = frame[5]
            if number != self._taken or self._taken - self._told >= WINDOW // 2:
                self._hurry()
        elif kind == ACK:
            self._acknowledged(frame[2])
        elif kind == PING:
            self._say([PONG, self.link])
        elif kind == WELCOME:
            self.window = frame[6]
            self._heartbeat_s = frame[9] / 1000
            self.welcomed.set_result(None)
            self._touch()
        elif kind == STORED:
            if not frame[2] and not self.caught_up.done():
                self.caught_up.set_result(None)
        elif kind in (CLOSE, RESET):
            self._over(f"the connector says {frame[2:]}")

    def _over(self, why: str) -> None:
        if self.closed:
            return
        self._shut()
        self.lost = LinkLost(f"device {self.me.user}: {why}")
        if not self.welcomed.done():
            self.welcomed.set_exception(self.lost)
        else:
            self._loop.call_exception_handler({"message": str(self.lost), "exception": self.lost})

    def _acknowledged(self, number: int) -> None:
        if number > self._number_acked:
            for each in range(self._number_acked + 1, number + 1):
                del self._sent_at[each]
            self._number_acked = number
            if self._outgoing:
                self._touch()

    def _items(self, items: list[Any]) -> None:
        for item in items:
            if item[0] == DELIVERY:
                self._delivery(item)
                self._hurry()
            else:
                self._outcome(item)
        if self._ack_alarm is None and self._to_ack and not self._flushing:
            self._ack_alarm = self._loop.call_later(ACK_DELAY_S, self._acknowledge)

    def _write_receipts(self) -> None:
        """One for all messages of a stream that this turn brought out of the store."""
        for stream, seqs in self._arrived.items():
            user, device, epoch, *to = stream
            self._compose((DEVICE, user, device), RECEIPT, _pack((1, epoch, to, _ranges(seqs))))
        self._arrived.clear()

    def _delivery(self, item: list[Any]) -> None:
        _, _, user, device, epoch, to, seq, base, kind, _, _, body, *_ = _unpack(item[1])
        stream = (user, device, epoch, *to)
        if kind == TEXT and len(item) > 2 and item[2]:
            self._arrived.setdefault(stream, []).append(seq)
        watermark, unseen = self._watermarks.get(stream, 1), self._unseen.get(stream)
        if seq < watermark or (unseen and seq in unseen):
            self.doubled += 1
            return
        if seq == watermark and not unseen:
            self._watermarks[stream] = seq + 1
        else:
            unseen = self._unseen.setdefault(stream, set())
            unseen.add(seq)
            watermark = max(watermark, base)
            while watermark in unseen:
                unseen.remove(watermark)
                watermark += 1
            self._watermarks[stream] = watermark
        if kind == TEXT and self.on_message is not None:
            self.on_message(body, user)

    def _outcome(self, item: list[Any]) -> None:
        _, _, _, _, _, to, first, last, how, done, copies, position, *_ = item
        to = tuple(to)
        if how == KEPT:
            stored = self._after.setdefault(to, {})
            for copy in map(tuple, done):
                stored[copy] = max(position, stored.get(copy, 0))
        waiting = self.pending.get(to)
        if not waiting:
            return
        if how == REJECTED:
            self._over(f"a message was rejected: {item[12:]}")
            return
        if how == BUSY:
            return  # it is sent again in time
        for message in _between(waiting, first, last):
            if len(copies) > 1:
                accounted = message[3] = message[3] or set()
                accounted.update(map(tuple, done))
                if not all((u, d) in accounted or (u, 0) in accounted for u, d in copies):
                    continue
            waiting.remove(message)
            if self.on_settled is not None:
                self.on_settled(to, message[0], how)

    def close(self) -> None:
        if not self.closed:
            self._say([CLOSE, self.link, 14, "bye"])
            self._shut()

    def _shut(self) -> None:
        if not self.closed:
            self.closed = True
            self._loop.remove_reader(self.socket.FD)
            self.socket.close()


@cache
def _keys() -> tuple[bytes, bytes]:
    """One pair for everybody in this process: connectors take any, and making them is not what is measured."""
    return zmq.curve_keypair()


def _between(waiting: deque[list[Any]], first: int, last: int) -> list[list[Any]]:
    """Those messages, which are in order of their seq."""
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
