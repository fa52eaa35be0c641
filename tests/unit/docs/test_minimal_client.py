"""`examples/minimal_client.py` takes everything that section 13.4 of docs/protocol.md says a client has to take."""

import importlib.util
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meshim.runtime.crypto import format_token
from tests.unit.any_msgpack import DEEP, NOT_UTF_8, any_bytes
from tests.unit.docs.test_protocol_vectors import DEVICE, EPOCH, FROM_9, LINK, TOKEN, USER, encode, frames_of, vectors

EXAMPLE = Path(__file__).parents[3] / "examples" / "minimal_client.py"
FRAMES = {4: "Ack", 6: "Pong"}
WELCOME = [2, 1, LINK, 1, USER, DEVICE, 32, 65536, 262144, 10000, 25000, 2500, 0]


class Done(Exception):
    """Everything was read, and answered."""


class Wire:
    """A socket that has these frames to read, and its monitor."""

    def __init__(self, frames: list[bytes]) -> None:
        self.frames = frames
        self.sent: list[Any] = []

    def poll(self, timeout_ms: int) -> bool:
        return bool(self.frames)

    def recv(self) -> bytes:
        return self.frames.pop(0)

    def send(self, data: bytes, flags: int) -> None:
        self.sent.append(msgspec.msgpack.decode(data))


class Monitor:
    """Asked at the beginning of each turn of the client's loop."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    def poll(self, timeout_ms: int) -> bool:
        if not self._wire.frames:
            raise Done
        return False


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The example; its databases are closed afterwards."""
    opened: list[sqlite3.Connection] = []
    connect = sqlite3.connect

    def remember(path: str | Path, **options: Any) -> sqlite3.Connection:
        opened.append(connect(path, **options))
        return opened[-1]

    monkeypatch.setattr(sqlite3, "connect", remember)
    spec = importlib.util.spec_from_file_location("minimal_client", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    yield loaded
    for database in opened:
        database.close()


def client_of(module: Any) -> Any:
    """Return a client that is logged in, and asks REST for nothing."""
    client = module.Client("", "alice", "", ":memory:")
    client.me |= {"token": format_token(TOKEN), "user_id": USER, "device_id": DEVICE, "epoch": EPOCH}
    client.relations = lambda: True
    return client


@pytest.mark.parametrize(("sent", "answer"), vectors("accepted connector"))
def test_it_takes_what_is_unusual_and_right(module: Any, sent: str, answer: str) -> None:
    client = client_of(module)
    shown: list[str] = []
    client.emit = lambda event, **fields: shown.append(event)
    wire = Wire([encode(WELCOME), *frames_of(sent)])
    with pytest.raises(ConnectionError if answer == "ends the link" else Done):
        client.talk(wire, Monitor(wire), LINK)
    names = [FRAMES[kind] for kind, *_ in wire.sent[1:]]
    assert names == ([] if answer in ("ignored", "ends the link") else [answer])
    assert shown.count("message") == ("[2, FROM_9]" in sent)


@pytest.mark.parametrize(
    "added",
    ["8180 01", "a1ff", "c705ff3132333435", "91" * 990 + "90"],
    ids=["a map as a key", "no UTF-8", "no time", "arrays within arrays"],
)
@pytest.mark.parametrize("place", ["envelope", "destination"])
def test_an_envelope_with_elements_that_do_not_decode_is_acknowledged(module: Any, added: str, place: str) -> None:
    """Connectors do not look at what a later version may have added.  What comes next must not wait behind it."""
    client = client_of(module)
    plain, unknown = FROM_9(kind=77), bytes.fromhex(added)
    to = encode([1, USER, 0])
    hostile = {
        "envelope": b"\x9d" + plain[1:] + unknown,
        "destination": plain.replace(to, b"\x94" + to[1:] + unknown, 1),
    }[place]
    wire = Wire([encode(WELCOME), encode([3, LINK, 1, 0, [[2, hostile]]]), encode([5, LINK])])
    with pytest.raises(Done):
        client.talk(wire, Monitor(wire), LINK)
    assert {FRAMES[kind] for kind, *_ in wire.sent[1:]} == {"Ack", "Pong"}


@pytest.mark.parametrize(
    "plaintext", ["05", "90", "c0", "c1", "", "91c40178", "9101", "80", "91" * 990 + "90", "91" + "91" * 900 + "90"]
)
def test_a_sealed_body_without_a_text_is_shown_as_unreadable_and_once(module: Any, plaintext: str) -> None:
    """The friend who seals it has the key: it may be anything."""
    client = client_of(module)
    shown: list[Any] = []
    client.emit = lambda event, **fields: shown.append(fields["text"]) if event == "message" else None
    key, nonce = bytes(32), bytes(12)
    client.keys[9] = {1: key}
    fields = msgspec.msgpack.decode(FROM_9())
    authenticated = encode([*fields[:7], *fields[8:11]])
    sealed = nonce + AESGCM(key).encrypt(nonce, bytes.fromhex(plaintext), authenticated)
    wire = Wire([encode(WELCOME), encode([3, LINK, 1, 0, [[2, FROM_9(body=sealed)]]])])
    with pytest.raises(Done):
        client.talk(wire, Monitor(wire), LINK)
    assert shown == [None]
    assert not [key for key in client.disk if key[0] == "new"]


def _with_more(plain: bytes, more: bytes) -> bytes:
    """The envelope with an element, or what may be one, behind those that are known."""
    return b"\x9d" + plain[1:] + more


hostile_envelopes = (
    any_bytes.map(lambda more: _with_more(FROM_9(kind=77), more))
    | any_bytes.map(lambda body: FROM_9(kind=3, key=0, body=body))
    | any_bytes.map(lambda body: FROM_9(body=body))
    | st.sampled_from([_with_more(FROM_9(kind=77), more) for more in (DEEP, NOT_UTF_8)])
)
"""Of a friend: connectors check the fields that they know, and neither what follows them nor the body."""


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(hostile_envelopes, min_size=1, max_size=5))
def test_whatever_a_friend_sends_is_acknowledged(module: Any, envelopes: list[bytes]) -> None:
    client = client_of(module)
    client.emit = lambda event, **fields: None
    deliveries = [encode([3, LINK, number, 0, [[2, each]]]) for number, each in enumerate(envelopes, start=1)]
    wire = Wire([encode(WELCOME), *deliveries, encode([5, LINK])])
    with pytest.raises(Done):
        client.talk(wire, Monitor(wire), LINK)
    assert [6, LINK] in wire.sent
    assert [frame[2] for frame in wire.sent if frame[0] == 4][-1:] == [len(envelopes)]


def test_one_process_at_a_time_uses_a_state_file(module: Any, tmp_path: Path) -> None:
    """Two would give different messages one `seq`, and recipients show the first."""
    first = module.Disk(tmp_path / "state")
    second = sqlite3.connect(tmp_path / "state", timeout=0.0)
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        second.execute("SELECT * FROM disk")
    first.database.close()
    assert second.execute("SELECT * FROM disk").fetchall() == []
    second.close()
