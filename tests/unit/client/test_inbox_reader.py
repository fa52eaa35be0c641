"""The reader of the inbox: loops that are left, missing keys, and a client that closes meanwhile."""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import msgspec
import pytest

from meshim.client.application.message import Message, OrderFlag
from meshim.client.events import AddToInbox, Release
from meshim.client.friends.contacts import Contacts
from meshim.client.inbox_reader import InboxReader
from meshim.client.state import StateFile
from meshim.client.statistics import Statistics
from meshim.client.streams.receipts import Receipts
from meshim.errors import ApiError, BackendUnavailable, ClientClosed, MeshimError, UsageError
from meshim.runtime.crypto import seal
from meshim.wire.envelope import (
    WIRE_VERSION,
    Destination,
    DestinationType,
    Envelope,
    Kind,
    Stream,
    Text,
    associated_data,
    encode_content,
    encode_envelope,
)

KEY = bytes(32)
ME, PEER = 1, 2
TO_ME = Destination(DestinationType.USER, ME)
STREAM = Stream(PEER, 20, 0, TO_ME)


class SlowContacts(Contacts):
    """Contacts whose answers the test delays; the real ones need a REST service."""

    def __init__(self) -> None:
        self.me = ME
        self.requested = asyncio.Event()
        self.may_answer = asyncio.Event()
        self.key: bytes | None = KEY
        self.errors: list[MeshimError] = []

    async def key_of(self, user: int, version: int) -> bytes | None:
        self.requested.set()
        if self.errors:
            raise self.errors.pop(0)
        await self.may_answer.wait()
        return self.key

    def name_of(self, user: int) -> str:
        return f"u{user}"


def answering(key: bytes | None = KEY, *errors: MeshimError) -> SlowContacts:
    """Contacts that raise these errors, then answer at once."""
    contacts = SlowContacts()
    contacts.key = key
    contacts.errors = list(errors)
    contacts.may_answer.set()
    return contacts


def inbox_reader(state: StateFile, contacts: Contacts) -> InboxReader:
    return InboxReader(state, asyncio.Lock(), contacts, Receipts(1, (), 64, Statistics()), no_receipt, Statistics())


async def no_receipt(stream: Stream, seq: int) -> None:
    """Send nothing."""


def envelope(seq: int, text: str, **changes: Any) -> bytes:
    draft = Envelope(WIRE_VERSION, bytes(16), PEER, 20, 0, TO_ME, seq, 1, Kind.TEXT, 1, 0, b"")
    draft = msgspec.structs.replace(draft, **changes)
    body = seal(KEY, encode_content(Text(text)), associated_data(draft))
    return encode_envelope(msgspec.structs.replace(draft, body=body))


@pytest.fixture
def state(tmp_path: Path) -> Iterator[StateFile]:
    """A state file with two messages for the application."""
    state = StateFile(tmp_path / "me.db")
    for seq, text in ((1, "one"), (2, "two")):
        state.apply([AddToInbox(STREAM, seq, envelope(seq, text), False), Release(STREAM, seq, 0)])
    yield state
    state.close()


async def read_one(reader: InboxReader) -> Message:
    return await anext(reader.messages())


async def test_a_cancelled_loop_leaves_its_message_for_the_next_loop(state: StateFile) -> None:
    contacts = SlowContacts()
    reader = inbox_reader(state, contacts)
    cancelled = asyncio.create_task(read_one(reader))
    await contacts.requested.wait()
    cancelled.cancel()
    await asyncio.wait([cancelled])

    contacts.may_answer.set()
    assert (await read_one(reader)).text == "one"
    assert (await read_one(reader)).text == "two"


async def test_a_message_without_its_key_is_not_given_while_the_client_closes(state: StateFile) -> None:
    contacts = SlowContacts()
    reader = inbox_reader(state, contacts)
    task = asyncio.create_task(read_one(reader))
    await contacts.requested.wait()
    reader.fail(ClientClosed("closed"))
    contacts.key = None  # as after a request on a closed connection
    contacts.may_answer.set()
    with pytest.raises(ClientClosed):
        await task
    assert [row.seq for row in state.received(0, 9)] == [1, 2]


async def test_a_message_waits_for_its_key_while_rest_is_unavailable(state: StateFile) -> None:
    """Given without its text, it would be lost."""
    reader = inbox_reader(state, answering(KEY, BackendUnavailable("away")))
    message = await read_one(reader)
    assert (message.text, message.problem) == ("one", "")


async def test_a_loop_that_waits_for_a_key_ends_with_the_client(state: StateFile) -> None:
    contacts = answering(KEY, *[BackendUnavailable("away")] * 99)
    reader = inbox_reader(state, contacts)
    task = asyncio.create_task(read_one(reader))
    await contacts.requested.wait()
    await asyncio.sleep(0)
    reader.fail(ClientClosed("closed"))
    with pytest.raises(ClientClosed):
        await asyncio.wait_for(task, 0.1)


async def test_a_refused_request_for_a_key_keeps_the_message(state: StateFile) -> None:
    contacts = answering(KEY, ApiError(401, "bad_credentials", "The password is wrong."))
    reader = inbox_reader(state, contacts)
    with pytest.raises(ApiError, match="password is wrong"):
        await read_one(reader)
    assert (await read_one(reader)).text == "one"


@pytest.mark.parametrize(
    ("key", "problem"),
    [(None, "the key of this message, version 1, is not to be had"), (bytes(31) + b"x", "cannot be opened")],
)
async def test_a_message_that_cannot_be_opened_is_given_with_the_problem(
    state: StateFile, key: bytes | None, problem: str
) -> None:
    message = await read_one(inbox_reader(state, answering(key)))
    assert (message.sender, message.text) == ("u2", "")
    assert problem in message.problem


async def test_every_time_on_the_wire_is_a_datetime(state: StateFile) -> None:
    state.handled((1, 2))
    for seq, sent_at in ((3, 0), (4, 253_402_300_799_999)):
        state.apply([AddToInbox(STREAM, seq, envelope(seq, "x", sent_at=sent_at), False), Release(STREAM, seq, 0)])
    reader = inbox_reader(state, answering())
    times = [(await read_one(reader)).sent_at for _ in range(2)]
    assert times[0] == datetime(1970, 1, 1, tzinfo=UTC)
    assert times[1].year == 9999
    for hours in (-24, 14):
        assert times[1].astimezone(timezone(timedelta(hours=hours, minutes=1 if hours < 0 else 0))).year >= 9999


async def test_unknown_kinds_are_skipped_and_counted(state: StateFile) -> None:
    state.handled((1,))
    state.apply([AddToInbox(STREAM, 3, envelope(3, "x", kind=99), False), Release(STREAM, 3, 0)])
    state.apply([AddToInbox(STREAM, 4, envelope(4, "four"), True), Release(STREAM, 4, 2)])
    reader = inbox_reader(state, answering())
    assert (await read_one(reader)).text == "two"
    last = await read_one(reader)
    assert (last.text, last.stored, last.order, last.own) == ("four", True, OrderFlag.LATE, False)
    assert reader._statistics.skipped == 1
    assert [row.seq for row in state.received(0, 9)] == [4]


async def test_a_message_marked_as_read_is_deleted(state: StateFile) -> None:
    reader = inbox_reader(state, answering())
    message = await read_one(reader)
    assert [row.seq for row in state.received(0, 9)] == [1, 2]
    await message.mark_read()
    assert [row.seq for row in state.received(0, 9)] == [2]


async def test_only_the_latest_loop_gets_messages(state: StateFile) -> None:
    reader = inbox_reader(state, answering())
    earlier, later = reader.messages(), reader.messages()
    assert (await anext(earlier)).text == "one"
    assert (await anext(later)).text == "two"
    with pytest.raises(UsageError, match="one at a time"):
        await anext(earlier)

    waiting = asyncio.create_task(read_one(reader))
    while not reader._available._waiters:
        await asyncio.sleep(0)
    last = asyncio.create_task(read_one(reader))
    with pytest.raises(UsageError, match="one at a time"):
        await asyncio.wait_for(waiting, 1.0)
    state.apply([AddToInbox(STREAM, 3, envelope(3, "three"), False), Release(STREAM, 3, 0)])
    reader.notify()
    assert (await asyncio.wait_for(last, 1.0)).text == "three"


def test_a_closed_state_file_raises_client_closed(tmp_path: Path) -> None:
    state = StateFile(tmp_path / "me.db")
    state.close()
    with pytest.raises(ClientClosed):
        state.put_peers([], [])
