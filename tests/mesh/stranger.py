"""A client written from docs/protocol.md and docs/rest.md alone: nothing of meshim is imported here.

Blocking, and without a disk: what a real client keeps in its state file stands in attributes.
"""

import copy
import os
import secrets
import time
from base64 import b64decode, urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import msgspec
import zmq
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

GREET, WELCOME, DATA, ACK, PING, PONG, CLOSE, RESET, STORED = 1, 2, 3, 4, 5, 6, 7, 8, 10
SUBMIT, DELIVERY, OUTCOME = 1, 2, 3
DELIVERED_NOW, KEPT, REJECTED, BUSY = 1, 2, 3, 4
USER, DEVICE = 1, 2
TEXT, RECEIPT, BASE = 1, 3, 4
RECEIVED, READ = 1, 2
WINDOW = 32
BUSY_S = 0.5
DEADLINE_S = 20.0

pack: Callable[[Any], bytes] = msgspec.msgpack.encode
unpack: Callable[[bytes], Any] = msgspec.msgpack.decode

_context = zmq.Context()


class Stranger:
    """One device."""

    def __init__(self, api: str, name: str, password: str) -> None:
        self.api = api
        self.epoch = secrets.randbits(64)
        answer = httpx.post(
            f"{api}/v1/login",
            json={"name": name, "password": password, "device": "foreign", "epoch": f"{self.epoch:016x}"},
        ).json()
        self.token = urlsafe_b64decode(answer["token"] + "=")
        self.user, self.device = answer["user_id"], answer["device_id"]
        self.connectors = answer["connectors"]
        self.users = {relation["peer"]["name"]: relation["peer"]["user_id"] for relation in answer["relations"]}
        self.keys = {
            relation["peer"]["user_id"]: {key["version"]: b64decode(key["key"]) for key in relation["keys"]}
            for relation in answer["relations"]
        }
        # the outbox: by (destination, seq)
        self.next_seq: dict[tuple[int, ...], int] = {}
        self.after: dict[tuple[int, ...], dict[tuple[int, int], int]] = {}
        self.pending: dict[tuple[tuple[int, ...], int], bytes] = {}
        self.accounted: dict[tuple[tuple[int, ...], int], set[tuple[int, int]]] = {}
        self.states: dict[tuple[tuple[int, ...], int], set[str]] = {}
        self.codes: dict[tuple[tuple[int, ...], int], int] = {}
        self.busy: dict[tuple[tuple[int, ...], int], float] = {}
        """What the mesh could not take, and when to submit it again."""
        # the inbox: by (user, device, epoch, destination)
        self.watermark: dict[tuple[Any, ...], int] = {}
        self.held: dict[tuple[Any, ...], dict[int, list[Any]]] = {}
        self.shown: list[tuple[int, str, bool]] = []
        """(sender, text, whether it had been stored)"""
        self.duplicates = 0
        self.frames: list[Any] = []
        """Everything that came on this connection."""

    # ---------------------------------------------------------------- the link

    def find_connectors(self) -> None:
        """Ask REST where the connectors are now."""
        authorization = f"Bearer {urlsafe_b64encode(self.token).decode().rstrip('=')}"
        answer = httpx.get(f"{self.api}/v1/connectors", headers={"Authorization": authorization})
        self.connectors = answer.json()["connectors"]

    def again(self) -> "Stranger":
        """The same device, outbox and inbox for a connection beside this one."""
        return copy.copy(self)

    def connect(
        self, *, on: str = "", token: bytes | None = None, version: int = 1, wait: bool = True,
        acknowledges: bool = True, ahead: Sequence[bytes] = (),
    ) -> None:  # fmt: skip
        """Connect to the connector of this name, or to any; `ahead` are frames that come before the greeting."""
        deadline = time.monotonic() + DEADLINE_S
        while not (there := [each for each in self.connectors if on in ("", each["name"])]):
            assert time.monotonic() < deadline, f"the connector {on} does not come back"
            time.sleep(0.05)  # REST lists it again when it has its lease again
            self.find_connectors()
        connector = secrets.choice(there)
        self.socket = _context.socket(zmq.DEALER)
        self.socket.set(zmq.IMMEDIATE, 1)
        self.socket.set(zmq.LINGER, 0)
        if connector["key"]:
            public, secret = zmq.curve_keypair()
            self.socket.set(zmq.CURVE_SERVERKEY, connector["key"].encode())
            self.socket.set(zmq.CURVE_PUBLICKEY, public)
            self.socket.set(zmq.CURVE_SECRETKEY, secret)
        self.socket.connect(connector["endpoint"])
        self.link = secrets.randbits(64)
        self.acknowledges = acknowledges
        self.frames = []
        self.sent_number = self.sent_acknowledged = 0
        self.taken = 0
        self.early: dict[int, list[Any]] = {}
        self.welcome: Any = None
        for frame in ahead:
            self.socket.send(frame)
        self.send(GREET, version, self.token if token is None else token, self.epoch, self.link, WINDOW)
        if wait:
            self.until(lambda: self.welcome is not None)
            for (to, _), envelope in list(self.pending.items()):
                self.submit(envelope, to)

    def disconnect(self) -> None:
        self.send(CLOSE, self.link, 14, "bye")
        self.socket.close(200)

    def vanish(self) -> None:
        """End the connection without a word."""
        self.socket.close(0)

    def acknowledge(self) -> None:
        """Say what was taken so far."""
        self.send(ACK, self.link, self.taken, sorted(self.early))

    def send(self, kind: int, *fields: Any) -> None:
        self.socket.send(pack([kind, *fields]))

    def submit(self, envelope: bytes, to: tuple[int, ...]) -> None:
        """One item to a frame; nothing is resent here, since a test on loopback loses nothing."""
        self.until(lambda: self.sent_number - self.sent_acknowledged < self.welcome[6])
        self.sent_number += 1
        item = [SUBMIT, envelope, [(u, d, position) for (u, d), position in self.after.get(to, {}).items()]]
        taken, early = (self.taken, sorted(self.early)) if self.acknowledges else (0, [])
        self.send(DATA, self.link, self.sent_number, taken, early, [item])

    def until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline, f"nothing but {self.frames}"
            for key in [key for key, at in self.busy.items() if at <= time.monotonic()]:
                del self.busy[key]
                if key in self.pending:
                    self.submit(self.pending[key], key[0])
            if self.socket.poll(100):
                self.received(unpack(self.socket.recv()))

    def received(self, frame: Any) -> None:
        self.frames.append(frame)
        kind, *fields = frame
        if kind == WELCOME:
            self.welcome = frame
        elif kind == DATA:
            link, number, acknowledged, _, items = fields[:5]
            assert link == self.link
            self.sent_acknowledged = max(self.sent_acknowledged, acknowledged)
            if self.taken < number < self.taken + WINDOW:
                self.early[number] = items
            while self.taken + 1 in self.early:
                self.taken += 1
                for item in self.early.pop(self.taken):
                    self.outcome(*item[1:]) if item[0] == OUTCOME else self.delivery(*item[1:])
            if self.acknowledges:
                self.acknowledge()
        elif kind == ACK:
            self.sent_acknowledged = max(self.sent_acknowledged, fields[1])

    def came(self, kind: int) -> list[Any]:
        return [frame for frame in self.frames if frame[0] == kind]

    # ---------------------------------------------------------------- the outbox

    def text(self, peer: int, text: str) -> tuple[tuple[int, ...], int]:
        version, key = max(self.keys.get(peer, {0: bytes(32)}).items())
        return self.make((USER, peer, 0), TEXT, pack([text]), version, key)

    def make(
        self, to: tuple[int, ...], kind: int, content: bytes, version: int = 0, key: bytes = b"", **other: int
    ) -> tuple[tuple[int, ...], int]:
        seq = self.next_seq.get(to, 1)
        self.next_seq[to] = seq + 1
        base = min((number for where, number in self.pending if where == to), default=seq)
        made, sent_at = secrets.token_bytes(16), int(time.time() * 1000)
        user = other.get("user", self.user)
        if version:
            data = pack([1, made, user, self.device, self.epoch, to, seq, kind, version, sent_at])
            nonce = os.urandom(12)
            content = nonce + AESGCM(key).encrypt(nonce, content, data)
        envelope = pack([1, made, user, self.device, self.epoch, to, seq, base, kind, version, sent_at, content])
        self.pending[to, seq] = envelope
        self.states[to, seq] = set()
        self.submit(envelope, to)
        return to, seq

    def outcome(
        self, _: int, user: int, device: int, epoch: int, to: list[int], first: int, last: int, status: int,
        done: list[Any], copies: list[Any], position: int, code: int, *more: Any,
    ) -> None:  # fmt: skip
        assert (user, device, epoch) == (self.user, self.device, self.epoch)
        for seq in range(first, last + 1):
            key = (tuple(to), seq)
            accounted = self.accounted.setdefault(key, set())
            if status in (DELIVERED_NOW, KEPT):
                accounted |= {(u, d) for u, d in done}
                if copies and all((u, d) in accounted or (u, 0) in accounted for u, d in copies):
                    self.states[key].add("sent")
                    self.pending.pop(key, None)
            if status == DELIVERED_NOW and any(u != self.user for u, _ in done):
                self.states[key].add("delivered")
            if status == KEPT:
                for u, d in done:
                    after = self.after.setdefault(tuple(to), {})
                    after[u, d] = max(position, after.get((u, d), 0))
            if status == BUSY:
                self.busy[key] = time.monotonic() + BUSY_S
            if status == REJECTED:
                self.states[key].add("rejected")
                self.codes[key] = code
                self.pending.pop(key, None)

    # ---------------------------------------------------------------- the inbox

    def delivery(self, envelope: bytes, stored: bool = False, *more: Any) -> None:
        fields = unpack(envelope)
        _, _, user, device, epoch, to, seq, base, kind = fields[:9]
        if kind == RECEIPT:
            what, of_epoch, of_to, ranges = unpack(fields[11])[:4]
            if of_epoch == self.epoch and of_to[1] == user:
                for first, last in ranges:
                    for number in range(first, last + 1):
                        self.states[tuple(of_to), number].add("read" if what == READ else "delivered")
            return
        if stored and kind != BASE:  # a duplicate too: what it arrived by first may never have been told
            self.receipt(RECEIVED, user, device, epoch, to, seq)
        stream = (user, device, epoch, *to)
        watermark, held = self.watermark.get(stream, 1), self.held.setdefault(stream, {})
        if seq < watermark or seq in held:  # (no holes here: nothing is given up in this test)
            self.duplicates += 1
            return
        held[seq] = [fields, stored]
        ready = sorted(number for number in held if number < base)
        watermark = max(watermark, base)
        while watermark in held:
            ready.append(watermark)
            watermark += 1
        self.watermark[stream] = watermark
        for number in ready:
            self.show(*held.pop(number))

    def show(self, fields: list[Any], stored: bool) -> None:
        version, made, user, device, epoch, to, seq, _, kind, key, sent_at, body = fields[:12]
        if kind == TEXT:
            peer = to[1] if user == self.user else user
            data = pack([version, made, user, device, epoch, to, seq, kind, key, sent_at])
            plain = AESGCM(self.keys[peer][key]).decrypt(body[:12], body[12:], data)
            self.shown.append((user, unpack(plain)[0], stored))

    def receipt(self, what: int, user: int, device: int, epoch: int, to: list[int], seq: int) -> None:
        self.make((DEVICE, user, device), RECEIPT, pack([what, epoch, to, [[seq, seq]]]))
