"""`examples/minimal_client.py` takes everything that section 13.4 of docs/protocol.md says a client has to take."""

import importlib.util
import sqlite3
from pathlib import Path
from typing import Any

import msgspec
import pytest

from meshim.runtime.crypto import format_token
from tests.unit.docs.test_protocol_vectors import DEVICE, EPOCH, LINK, TOKEN, USER, encode, frames_of, vectors

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
def module() -> Any:
    spec = importlib.util.spec_from_file_location("minimal_client", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.mark.parametrize(("sent", "answer"), vectors("accepted connector"))
def test_it_takes_what_is_unusual_and_right(module: Any, sent: str, answer: str) -> None:
    client = module.Client("", "alice", "", ":memory:")
    client.me |= {"token": format_token(TOKEN), "user_id": USER, "device_id": DEVICE, "epoch": EPOCH}
    client.relations = lambda: True
    shown: list[str] = []
    client.emit = lambda event, **fields: shown.append(event)
    wire = Wire([encode(WELCOME), *frames_of(sent)])
    with pytest.raises(ConnectionError if answer == "ends the link" else Done):
        client.talk(wire, Monitor(wire), LINK)
    names = [FRAMES[kind] for kind, *_ in wire.sent[1:]]
    assert names == ([] if answer in ("ignored", "ends the link") else [answer])
    assert shown.count("message") == ("[2, FROM_9]" in sent)


def test_one_process_at_a_time_uses_a_state_file(module: Any, tmp_path: Path) -> None:
    """Two would give different messages one `seq`, and recipients show the first."""
    first = module.Disk(tmp_path / "state")
    second = sqlite3.connect(tmp_path / "state", timeout=0.0)
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        second.execute("SELECT * FROM disk")
    first.database.close()
    assert second.execute("SELECT * FROM disk").fetchall() == []
    second.close()
