"""Opening a state file: a device with a new id, and messages that no connector would take."""

import asyncio
import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meshim.client import Client
from meshim.client.events import AddToInbox, AddToOutbox, Change, PutOrder, PutReceipts, PutStream
from meshim.client.identity import Identity
from meshim.client.recovery import Recovered, recover
from meshim.client.session import Credentials, Session
from meshim.client.state import StateFile
from meshim.client.wall_clock import SENT_AT_MS_MAX, wall_ms
from meshim.errors import BackendUnavailable, Code, Refused, UsageError
from meshim.runtime.crypto import open_sealed, seal
from meshim.wire import rest
from meshim.wire.envelope import (
    WIRE_VERSION,
    Destination,
    DestinationType,
    Envelope,
    Kind,
    Stream,
    associated_data,
    decode_envelope,
    encode_envelope,
)
from tests.unit.any_msgpack import DEEP, NOT_UTF_8
from tests.unit.client.rest_service import PASSWORD, PEER, RestService

BOB, CAROL = Destination(DestinationType.USER, 2), Destination(DestinationType.USER, 3)
KEY = b"k" * 32


@pytest.fixture
def service() -> RestService:
    service = RestService().at(time.time())
    service.relations = (rest.Relation(PEER, "friends", (rest.ContentKey(1, KEY),)),)
    return service


@pytest.fixture
def state(tmp_path: Path) -> Iterator[StateFile]:
    state = StateFile(tmp_path / "alice.db")
    yield state
    state.close()


async def recovered(service: RestService, state: StateFile, device: int) -> Recovered:
    session = Session(service.api(), state, Credentials("alice", PASSWORD, "phone"))
    await session.open()
    return await recover(session, state, Identity(1, device, state.epoch))


def text(state: StateFile, seq: int, key: bytes = KEY, version: int = 1, **changes: int) -> Envelope:
    draft = Envelope(WIRE_VERSION, bytes(16), 1, 10, state.epoch, BOB, seq, 1, Kind.TEXT, version, 7, b"")
    draft = msgspec.structs.replace(draft, **changes)
    return msgspec.structs.replace(draft, body=seal(key, b"hello", associated_data(draft)))


def put(state: StateFile, to: Destination, seq: int, envelope: bytes, kind: int = Kind.TEXT) -> None:
    state.apply([AddToOutbox(to, seq, 1, kind, bytes(16), envelope), PutStream(to, seq + 1, b"cookie")])


# ---------------------------------------------------------------- a device with a new id


async def test_the_outbox_of_a_dropped_device_is_reassigned_and_sealed_again(
    service: RestService, state: StateFile
) -> None:
    message = text(state, 3)
    receipt = Envelope(WIRE_VERSION, bytes(16), 1, 10, state.epoch, CAROL, 1, 1, Kind.RECEIPT, 0, 7, b"receipt")
    for envelope in (message, receipt):
        put(state, envelope.to, envelope.seq, encode_envelope(envelope), envelope.kind)
    assert (await recovered(service, state, 10)).snapshot == state.load()
    assert [stream.cookie for stream in state.load().streams] == [b"cookie", b"cookie"]
    for _ in range(2):
        snapshot, unsendable = await recovered(service, state, 11)
        assert (snapshot, unsendable.messages) == (state.load(), [])
        new_text, new_receipt = (decode_envelope(out.envelope) for out in snapshot.unsettled)
        assert (new_text.device, new_text.id, new_text.seq, new_text.base) == (11, message.id, 3, 1)
        assert open_sealed(KEY, new_text.body, associated_data(new_text)) == b"hello"
        assert (new_receipt.device, new_receipt.body) == (11, b"receipt")
        assert [stream.cookie for stream in snapshot.streams] == [b"", b""]


async def test_a_key_that_the_file_lacks_is_asked_for(service: RestService, state: StateFile) -> None:
    """C12e: it was a KeyError at each start."""
    await recovered(service, state, 10)  # logs in, with the first key
    newer = rest.ContentKey(2, b"n" * 32)
    service.relations = (rest.Relation(PEER, "friends", (rest.ContentKey(1, KEY), newer)),)
    put(state, BOB, 1, encode_envelope(text(state, 1, newer.key, 2)))
    service.away = True
    with pytest.raises(BackendUnavailable):
        await recovered(service, state, 11)
    service.away = False
    snapshot, unsendable = await recovered(service, state, 11)
    assert decode_envelope(snapshot.unsettled[0].envelope).device == 11
    assert unsendable.messages == []


# ---------------------------------------------------------------- messages that no connector would take


async def test_messages_that_cannot_be_sent_are_found(service: RestService, state: StateFile) -> None:
    put(state, BOB, 1, encode_envelope(text(state, 1, sent_at=-1)))  # by a clock before 1970
    put(state, BOB, 2, b"\xc1")
    put(state, BOB, 3, encode_envelope(text(state, 3, version=9)))
    put(state, BOB, 4, encode_envelope(text(state, 4, key=b"x" * 32)))
    put(state, BOB, 5, encode_envelope(text(state, 5)))
    assert [seq for _, seq, _ in (await recovered(service, state, 10)).unsendable.messages] == [1, 2]
    damaged, lost = "the message in the state file is damaged", "the key of the message is lost"
    assert (await recovered(service, state, 11)).unsendable.messages == [
        (BOB, 1, damaged), (BOB, 2, damaged), (BOB, 3, lost), (BOB, 4, lost),
    ]  # fmt: skip


def opened(service: RestService, path: Path) -> Client:
    client = Client("http://localhost", "alice", PASSWORD, device="phone", state=path)
    client._api = service.api()
    return client


async def test_a_message_that_cannot_be_sent_is_rejected_and_stops_nothing(
    service: RestService, tmp_path: Path
) -> None:
    """F4: it ended every link on which it was submitted, and the next start with a traceback."""
    path = tmp_path / "alice.db"
    async with opened(service, path):
        pass
    with closing(StateFile(path)) as state:
        put(state, BOB, 1, encode_envelope(text(state, 1, sent_at=-1)))
        put(state, BOB, 2, encode_envelope(text(state, 2)))
    async with opened(service, path) as client:
        assert client.statistics.unsendable == 1
        assert (await client.send("bob", "later")).seq == 3
    with closing(StateFile(path)) as state:
        snapshot = state.load()
    assert [message.seq for message in snapshot.unsettled] == [2, 3]
    (rejected,) = snapshot.settled
    assert (rejected.seq, rejected.state, rejected.code) == (1, "rejected", Code.MALFORMED)
    assert rejected.sentence == "the message in the state file is damaged"


@pytest.mark.parametrize("statement", ["UPDATE outbox SET destination = x'c1'", "UPDATE inbox SET envelope = x'c1'"])
async def test_a_damaged_file_is_one_sentence(service: RestService, tmp_path: Path, statement: str) -> None:
    path = tmp_path / "alice.db"
    async with opened(service, path) as client:
        await client.send("bob", "hello")
    with closing(StateFile(path)) as state:
        state.apply([AddToInbox(Stream(2, 20, 7, Destination(DestinationType.USER, 1)), 2, b"x", False)])
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(statement)
    with pytest.raises(UsageError, match=r"The state file .* is damaged"):
        await opened(service, path).__aenter__()


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(-1.5, 0), (0.0, 0), (1e9, 1_000_000_000_000), (300_000_000_000.0, SENT_AT_MS_MAX), (-1e12, 0)],
)
async def test_a_wrong_clock_stops_no_message(
    service: RestService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, expected: int
) -> None:
    async with opened(service, tmp_path / "alice.db") as client:
        monkeypatch.setattr(time, "time", lambda: seconds)
        assert wall_ms() == client._shell.core._wall_ms() == expected
        await client.send("bob", "hello")
        monkeypatch.undo()
        message = (await asyncio.to_thread(client._shell._state.load)).unsettled[0]
        assert decode_envelope(message.envelope).sent_at == expected


# ---------------------------------------------------------------- anything in the file

_COLUMNS = {
    "meta": ["value"],
    "peer": ["name", "state"],
    "content_key": ["version", "key"],
    "stream": ["destination", "next_seq", "cookie"],
    "outbox": ["destination", "seq", "base", "kind", "id", "envelope", "receipt", "state", "sentence"],
    "seen": ["stream", "watermark", "holes", "flag"],
    "receipt": ["stream", "delivered", "owed_read"],
    "inbox": ["stream", "seq", "envelope"],
}


@given(
    place=st.sampled_from([(table, column) for table, columns in _COLUMNS.items() for column in columns]),
    value=st.one_of(
        st.binary(max_size=20),
        st.integers(-(2**62), 2**62),
        st.text(max_size=5),
        st.sampled_from([b"\x90", b"\x94\x01\x02\x00" + DEEP, b"\x81\xa3new" + DEEP, b"\x91" + NOT_UTF_8]),
    ),
)
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_in_the_file_it_opens_or_says_so(
    service: RestService, tmp_path: Path, place: tuple[str, str], value: bytes | int | str
) -> None:
    """Damage may cost what is damaged; it never ends the application with anything but a sentence."""
    path = tmp_path / "alice.db"
    whole = tmp_path / "whole.db"
    if not whole.exists():
        asyncio.run(_make(service, whole))
    shutil.copyfile(whole, path)
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(f"UPDATE {place[0]} SET {place[1]} = ?", (value,))
    asyncio.run(_open(service, path))


async def _make(service: RestService, path: Path) -> None:
    stream = Stream(2, 20, 7, Destination(DestinationType.USER, 1))
    async with opened(service, path) as client:
        await client.send("bob", "hello")
    with closing(StateFile(path)) as state:
        received = encode_envelope(text(state, 2, user=2, device=20))
        changes: list[Change] = [
            AddToInbox(stream, 2, received, False), PutOrder(stream, 1, ((1, 1),)),
            PutReceipts(stream, ((1, 1),), (), (), ()),
        ]  # fmt: skip
        state.apply(changes)
    with closing(sqlite3.connect(path)) as database:
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")


async def _open(service: RestService, path: Path) -> None:
    try:
        async with opened(service, path):
            pass
    except (UsageError, Refused):
        pass
