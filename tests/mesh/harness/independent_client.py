"""A client written from docs/protocol.md and docs/rest.md alone: nothing of meshim is imported here.

Its calls block, so that tests run them in a thread (`real_mesh.in_thread`).  It has no state file: what a real client
keeps there stands in attributes.
"""

import copy
import os
import secrets
import time
from base64 import b64decode, urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from typing import Any, cast

import httpx
import msgspec
import zmq
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect
from websockets.typing import Subprotocol

GREET, WELCOME, DATA, ACK, PING, PONG, CLOSE, RESET, STORED = 1, 2, 3, 4, 5, 6, 7, 8, 10
SUBMIT, DELIVERY, OUTCOME = 1, 2, 3
DELIVERED, STORED_COPIES, REJECTED, BUSY = 1, 2, 3, 4
USER = 1
QUIT = 16
TEXT, RECEIPT, BASE = 1, 3, 4
RECEIVED, READ = 1, 2
WINDOW = 32
BUSY_S = 0.5
"""Pause before a message that the mesh answered with BUSY is submitted again."""
_DEADLINE_S = 20.0
DEVICE_NAME = "independent"

pack: Callable[[Any], bytes] = msgspec.msgpack.encode
unpack: Callable[[bytes], Any] = msgspec.msgpack.decode

_context = zmq.Context()


def _dealer(connector: Any) -> Any:
    socket = _context.socket(zmq.DEALER)
    socket.set(zmq.IMMEDIATE, 1)
    socket.set(zmq.LINGER, 0)
    if connector["key"]:
        public, secret = zmq.curve_keypair()
        socket.set(zmq.CURVE_SERVERKEY, connector["key"].encode())
        socket.set(zmq.CURVE_PUBLICKEY, public)
        socket.set(zmq.CURVE_SECRETKEY, secret)
    socket.connect(connector["endpoint"])
    return socket


class WebSocket:
    """A WebSocket with the methods of a DEALER: after its end nothing arrives, and what is sent is dropped."""

    def __init__(self, url: str) -> None:
        self._open = ExitStack()
        self._connection = self._open.enter_context(
            connect(url, subprotocols=[Subprotocol("meshim.1")], compression=None, proxy=None)
        )
        self._read: list[bytes] = []

    def send(self, frame: bytes) -> None:
        with suppress(ConnectionClosed):
            self._connection.send(frame)

    def poll(self, timeout_ms: int) -> bool:
        try:
            if not self._read:
                self._read.append(cast("bytes", self._connection.recv(timeout_ms / 1_000)))
        except TimeoutError:
            return False
        except ConnectionClosed:
            time.sleep(timeout_ms / 1_000)
            return False
        return True

    def recv(self) -> bytes:
        return self._read.pop()

    def close(self, linger_ms: int) -> None:
        """End the connection: with the handshake of WebSocket, or at once."""
        if linger_ms:
            self._open.close()
        else:
            self._connection.close_socket()


class IndependentClient:
    """One device: logs in when it is made, connects when `connect` is called."""

    def __init__(self, api: str, name: str, password: str, transport: str = "zeromq") -> None:
        self.api = api
        self.transport = transport
        self.epoch = secrets.randbits(53)
        answer = httpx.post(
            f"{api}/v1/login",
            json={"name": name, "password": password, "device": DEVICE_NAME, "epoch": self.epoch, "takeover": True},
        ).json()
        self.token = urlsafe_b64decode(answer["token"] + "=")
        self.user, self.device = answer["user_id"], answer["device_id"]
        self.connectors = answer["connectors"]
        self.users = {relation["peer"]["name"]: relation["peer"]["user_id"] for relation in answer["relations"]}
        self.keys = {
            relation["peer"]["user_id"]: {key["version"]: b64decode(key["key"]) for key in relation["keys"]}
            for relation in answer["relations"]
        }
        # The outbox: by (destination, seq).
        self.next_seq: dict[tuple[int, ...], int] = {}
        self.cookies: dict[tuple[int, ...], bytes] = {}
        self.pending: dict[tuple[tuple[int, ...], int], bytes] = {}
        self.states: dict[tuple[tuple[int, ...], int], set[str]] = {}
        self.codes: dict[tuple[tuple[int, ...], int], int] = {}
        self.busy: dict[tuple[tuple[int, ...], int], float] = {}
        """When to submit each message again that the mesh answered with BUSY."""
        # The inbox: by (user, device, epoch, destination).
        self.watermark: dict[tuple[Any, ...], int] = {}
        self.held_back: dict[tuple[Any, ...], dict[int, list[Any]]] = {}
        self.shown: list[tuple[int, str, bool]] = []
        """The messages that the application saw: (sender, text, whether the mesh had stored it)."""
        self.told: dict[tuple[int, ...], dict[str, list[list[int]]]] = {}
        """What receipts said of messages of other devices: ranges by (user, device, epoch) and state."""
        self.duplicates = 0
        self.frames: list[Any] = []
        """All frames that arrived on this connection."""

    # ---------------------------------------------------------------- the link

    def refresh_connectors(self) -> None:
        """Ask REST for the living connectors."""
        authorization = f"Bearer {urlsafe_b64encode(self.token).decode().rstrip('=')}"
        answer = httpx.get(f"{self.api}/v1/connectors", headers={"Authorization": authorization})
        self.connectors = answer.json()["connectors"]

    def second_connection(self) -> "IndependentClient":
        """The same device, outbox and inbox, for a connection beside this one."""
        return copy.copy(self)

    def connect(
        self, *, on: str = "", token: bytes | None = None, version: int = 1, wait: bool = True,
        acknowledges: bool = True, before_greeting: Sequence[bytes] = (),
    ) -> None:  # fmt: skip
        """Connect to the connector of this name, or to any; the frames `before_greeting` are sent first.

        With `wait`, return after the WELCOME, with all pending messages submitted again.
        """
        deadline = time.monotonic() + _DEADLINE_S
        while not (living := [each for each in self.connectors if on in ("", each["name"])]):
            assert time.monotonic() < deadline, f"the connector {on} does not come back"
            time.sleep(0.05)  # REST lists a connector once it has its lease
            self.refresh_connectors()
        connector = secrets.choice(living)
        self.socket: Any = WebSocket(connector["url"]) if self.transport == "websocket" else _dealer(connector)
        self.link = secrets.randbits(53)
        self.acknowledges = acknowledges
        self.frames = []
        self.sent_number = self.sent_acknowledged = 0
        self.received_number = 0
        self.welcome: Any = None
        for frame in before_greeting:
            self.socket.send(frame)
        self.send(GREET, version, self.token if token is None else token, self.epoch, self.link, WINDOW)
        if wait:
            self.until(lambda: self.welcome is not None)
            for (to, _), envelope in list(self.pending.items()):
                self.submit(envelope, to)

    def disconnect(self) -> None:
        """Say goodbye with a CLOSE, and end the connection."""
        self.send(CLOSE, self.link, QUIT)
        self.socket.close(200)

    def abort(self) -> None:
        """End the connection without a CLOSE."""
        self.socket.close(0)

    def acknowledge(self) -> None:
        """Acknowledge every frame received so far."""
        self.send(ACK, self.link, self.received_number)

    def send(self, kind: int, *fields: Any) -> None:
        self.socket.send(pack([kind, *fields]))

    def submit(self, envelope: bytes, to: tuple[int, ...]) -> None:
        """Send one item in one frame.  There is no retransmission: a connection over loopback loses nothing."""
        self.until(lambda: self.sent_number - self.sent_acknowledged < self.welcome[6])
        self.sent_number += 1
        item = [SUBMIT, envelope, self.cookies.get(to, b"")]
        received = self.received_number if self.acknowledges else 0
        self.send(DATA, self.link, self.sent_number, received, [item])

    def until(self, condition: Callable[[], object]) -> None:
        """Read frames until the condition holds; AssertionError after `_DEADLINE_S`."""
        deadline = time.monotonic() + _DEADLINE_S
        while not condition():
            assert time.monotonic() < deadline, f"only these frames arrived: {self.frames}"
            for key in [key for key, at in self.busy.items() if at <= time.monotonic()]:
                del self.busy[key]
                if key in self.pending:
                    self.submit(self.pending[key], key[0])
            if self.socket.poll(100):
                self.on_frame(unpack(self.socket.recv()))

    def on_frame(self, frame: Any) -> None:
        self.frames.append(frame)
        kind, *fields = frame
        if kind == WELCOME:
            self.welcome = frame
        elif kind == DATA:
            link, number, acknowledged, items = fields[:4]
            assert link == self.link
            self.sent_acknowledged = max(self.sent_acknowledged, acknowledged)
            assert number == self.received_number + 1
            self.received_number += 1
            for item in items:
                self.on_outcome(*item[1:]) if item[0] == OUTCOME else self.on_delivery(*item[1:])
            if self.acknowledges:
                self.acknowledge()
        elif kind == ACK:
            self.sent_acknowledged = max(self.sent_acknowledged, fields[1])
        elif kind == PING:
            self.send(PONG, self.link)

    def frames_of(self, kind: int) -> list[Any]:
        """The frames of this kind that arrived on this connection."""
        return [frame for frame in self.frames if frame[0] == kind]

    # ---------------------------------------------------------------- the outbox

    def send_text(self, peer: int, text: str) -> tuple[tuple[int, ...], int]:
        version, key = max(self.keys.get(peer, {0: bytes(32)}).items())
        return self.send_envelope((USER, peer, 0), TEXT, pack([text]), version, key)

    def send_envelope(
        self, to: tuple[int, ...], kind: int, content: bytes, version: int = 0, key: bytes = b"", **other: int
    ) -> tuple[tuple[int, ...], int]:
        """Make the next envelope of a stream and submit it; return its (destination, seq)."""
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

    def on_outcome(
        self, to: list[int], first: int, last: int, status: int, final: bool, audience: int, cookie: bytes, code: int,
        *more: Any,
    ) -> None:  # fmt: skip
        if status in (DELIVERED, STORED_COPIES):
            self.cookies[tuple(to)] = cookie
        for seq in range(first, last + 1):
            key = (tuple(to), seq)
            if final:
                self.states[key].add("sent")
                self.pending.pop(key, None)
            if status == DELIVERED:
                self.states[key].add("delivered")
            if status == BUSY:
                self.busy[key] = time.monotonic() + BUSY_S
            if status == REJECTED:
                self.states[key].add("rejected")
                self.codes[key] = code
                self.pending.pop(key, None)

    # ---------------------------------------------------------------- the inbox

    def on_delivery(self, envelope: bytes, stored: bool = False, *more: Any) -> None:
        fields = unpack(envelope)
        _, _, user, device, epoch, to, seq, base, kind = fields[:9]
        if kind == RECEIPT:
            self.on_receipt(user, to, *unpack(fields[11])[:5])
        if stored and kind not in (BASE, RECEIPT) and user != self.user:
            # A duplicate as well: the sender may never have had the first receipt.
            self.send_receipt(RECEIVED, user, device, epoch, to, seq)
        stream = (user, device, epoch, *to)
        watermark, held_back = self.watermark.get(stream, 1), self.held_back.setdefault(stream, {})
        if seq < watermark or seq in held_back:  # (there are no released gaps: these tests give none up)
            self.duplicates += 1
            return
        held_back[seq] = [fields, stored]
        ready = sorted(number for number in held_back if number < base)
        watermark = max(watermark, base)
        while watermark in held_back:
            ready.append(watermark)
            watermark += 1
        self.watermark[stream] = watermark
        for number in ready:
            self.show(*held_back.pop(number))

    def on_receipt(
        self, sender: int, to: list[int], what: int, device: int, epoch: int, of: list[int], ranges: Any
    ) -> None:
        """Apply a receipt, at once: to messages of this device, of its siblings, or of friends."""
        state = "read" if what == READ else "delivered"
        if sender == self.user:
            self.told.setdefault((to[1], device, epoch), {}).setdefault(state, []).extend(ranges)
        elif of[1] != sender:
            return
        elif (device, epoch) == (self.device, self.epoch):
            for seq in (seq for first, last in ranges for seq in range(first, last + 1)):
                if (tuple(of), seq) in self.states:
                    self.states[tuple(of), seq].add(state)
        else:
            self.told.setdefault((self.user, device, epoch), {}).setdefault(state, []).extend(ranges)

    def show(self, fields: list[Any], stored: bool) -> None:
        version, made, user, device, epoch, to, seq, _, kind, key, sent_at, body = fields[:12]
        if kind == TEXT:
            peer = to[1] if user == self.user else user
            data = pack([version, made, user, device, epoch, to, seq, kind, key, sent_at])
            plain = AESGCM(self.keys[peer][key]).decrypt(body[:12], body[12:], data)
            self.shown.append((user, unpack(plain)[0], stored))

    def send_receipt(self, what: int, user: int, device: int, epoch: int, to: list[int], seq: int) -> None:
        self.send_envelope((USER, user, 0), RECEIPT, pack([what, device, epoch, to, [[seq, seq]]]))
