"""The reader of the inbox: loops that are left, missing keys, and a client that closes meanwhile."""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import msgspec
import pytest

from meshim.client import inbox_reader as inbox_reader_module
from meshim.client.application.message import Message, OrderFlag
from meshim.client.events import AddToInbox, Release
from meshim.client.friends.contacts import Contacts
from meshim.client.inbox_reader import InboxReader
from meshim.client.state import StateFile
from meshim.client.statistics import Statistics
from meshim.client.streams.receipts import Receipts
from meshim.errors import ApiError, BackendUnavailable, ClientClosed, UsageError
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
    decode_text,
    encode_content,
    encode_envelope,
)
from tests.virtual_time import run

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
        self.in_rest: dict[tuple[int, int], bytes] = {(PEER, 1): KEY}
        """What REST knows: (user, version) to key."""
        self.known: dict[tuple[int, int], bytes] = {}
        self.errors: list[Exception] = []
        self.fetched: list[tuple[float, int]] = []
        """Each (time, user)."""

    def key(self, user: int, version: int) -> bytes | None:
        return self.known.get((user, version))

    async def fetch_keys(self, user: int) -> None:
        self.fetched.append((asyncio.get_running_loop().time(), user))
        self.requested.set()
        if self.errors:
            raise self.errors.pop(0)
        await self.may_answer.wait()
        self.learn(user)

    def learn(self, user: int) -> None:
        """Know the keys that REST has."""
        self.known.update({of: key for of, key in self.in_rest.items() if of[0] == user})
        self.on_new_keys(user)

    def name_of(self, user: int) -> str:
        return f"u{user}"


def answering(key: bytes | None = KEY, *errors: Exception) -> SlowContacts:
    """Contacts that raise these errors, then answer at once."""
    contacts = SlowContacts()
    contacts.in_rest = {} if key is None else {(PEER, 1): key}
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
    contacts.in_rest.clear()  # as after a request on a closed connection
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


# ---------------------------------------------------------------- keys that do not exist, and keys that come late


OTHER, OTHER_DEVICE = Stream(3, 30, 0, TO_ME), Stream(PEER, 21, 0, TO_ME)
INVENTED = 77
"""A version of a key that REST does not have."""


def put(state: StateFile, stream: Stream, seq: int, text: str, version: int = 1) -> None:
    data = envelope(seq, text, user=stream.user, device=stream.device, key=version)
    state.apply([AddToInbox(stream, seq, data, False), Release(stream, seq, 0)])


async def read_all(reader: InboxReader, count: int) -> list[str]:
    """The texts of this many messages; `?` where there is a problem."""
    found: list[str] = []
    async with asyncio.timeout(1_000.0):
        async for message in reader.messages():
            found.append(message.text or "?")
            if len(found) == count:
                break
    return found


@pytest.fixture
def empty(state: StateFile) -> StateFile:
    state.handled((1, 2))
    return state


def knowing(*users: int) -> SlowContacts:
    """Contacts of these users, with key 1 of each known; REST answers."""
    contacts = answering()
    contacts.known = {(user, 1): KEY for user in users}
    contacts.in_rest = dict(contacts.known)
    return contacts


def test_invented_key_versions_are_asked_for_once(empty: StateFile) -> None:
    """A11: 408 messages had led to 409 requests, and the messages of others waited for each."""
    contacts = knowing(PEER, 3)

    async def main() -> None:
        reader = inbox_reader(empty, contacts)
        for seq in range(1, 301):
            put(empty, STREAM, seq, "x", INVENTED + seq)
        put(empty, OTHER, 1, "hello")
        assert sorted(await read_all(reader, 301)) == ["?"] * 300 + ["hello"]
        assert contacts.fetched == [(0.0, PEER)]
        # A message that comes later may have a new key: it is asked for, but not at once.
        for seq in range(301, 304):
            put(empty, STREAM, seq, "x", INVENTED)
        assert await read_all(reader, 3) == ["?"] * 3
        assert [at for at, _ in contacts.fetched] == [0.0, 60.0]

    run(main)


def test_while_rest_is_away_only_the_stream_with_the_unknown_key_waits(empty: StateFile) -> None:
    """There is no order between streams, not even of one friend; within a stream it is a promise."""
    contacts = knowing(PEER, 3)

    async def main() -> None:
        contacts.errors = [BackendUnavailable("away")] * 20
        reader = inbox_reader(empty, contacts)
        put(empty, STREAM, 1, "first", 2)
        put(empty, STREAM, 2, "second")
        put(empty, OTHER, 1, "of another friend")
        put(empty, OTHER_DEVICE, 1, "of another device")
        for seq in range(3, 200):
            put(empty, STREAM, seq, f"number {seq}")
        put(empty, OTHER, 2, "behind a page")
        assert await read_all(reader, 3) == ["of another friend", "of another device", "behind a page"]
        assert len(empty.received(0, 999)) == 199 + 1, "all of the stream, and the one being handled"
        contacts.in_rest[PEER, 2] = KEY
        expected = ["first", "second", *(f"number {seq}" for seq in range(3, 200))]
        assert await read_all(reader, 199) == expected
        assert 20 < len(contacts.fetched) < 25

    run(main)


def test_a_key_that_is_learned_otherwise_ends_the_wait(empty: StateFile) -> None:
    contacts = knowing(PEER)

    async def main() -> None:
        contacts.may_answer.clear()
        reader = inbox_reader(empty, contacts)
        put(empty, STREAM, 1, "first", 2)
        put(empty, STREAM, 2, "second")
        reading = asyncio.create_task(read_all(reader, 2))
        await contacts.requested.wait()
        contacts.in_rest[PEER, 2] = KEY
        contacts.learn(PEER)
        assert await reading == ["first", "second"]
        reader.fail(ClientClosed("closed"))

    run(main)


def test_messages_that_waited_come_before_later_ones_of_their_stream(empty: StateFile) -> None:
    """Also when the key arrives while the application handles a message of the same page."""
    contacts = knowing(PEER, 3)

    async def main() -> None:
        contacts.may_answer.clear()
        reader = inbox_reader(empty, contacts)
        put(empty, STREAM, 1, "first", 2)
        put(empty, OTHER, 1, "other")
        put(empty, STREAM, 2, "second")
        found = []
        async for message in reader.messages():
            found.append(message.text)
            if len(found) == 1:
                contacts.in_rest[PEER, 2] = KEY
                contacts.learn(PEER)
            if len(found) == 3:
                break
        assert found == ["other", "first", "second"]
        reader.fail(ClientClosed("closed"))

    run(main)


def test_a_request_for_keys_waits_as_long_as_rest_says(empty: StateFile) -> None:
    contacts = knowing(PEER)

    async def main() -> None:
        contacts.errors = [ApiError(503, "busy", "Later.", 30.0), ApiError(429, "slow_down", "Later.", 20.0)]
        contacts.in_rest[PEER, 2] = KEY
        put(empty, STREAM, 1, "first", 2)
        assert await read_all(inbox_reader(empty, contacts), 1) == ["first"]
        times = [at for at, _ in contacts.fetched]
        assert times[1] - times[0] >= 30.0
        assert times[2] - times[1] >= 20.0

    run(main)


# ---------------------------------------------------------------- messages that cannot be shown


@pytest.mark.parametrize("broken", ["envelope", "name"])
async def test_a_message_that_raises_is_given_once_with_its_problem(
    state: StateFile, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """H7: an exception would come again with the same message, first of all, for ever."""
    state.handled((1,))
    contacts = knowing(PEER)
    if broken == "envelope":
        state.apply([AddToInbox(STREAM, 3, b"\xc1", False), Release(STREAM, 3, 0)])
    else:
        state.apply([AddToInbox(STREAM, 3, envelope(3, "three"), False), Release(STREAM, 3, 0)])

        def raising(data: bytes) -> Text:
            text = decode_text(data)
            if text.text == "three":
                raise OverflowError("a value that nobody thought of")
            return text

        monkeypatch.setattr(inbox_reader_module, "decode_text", raising)
    put(state, STREAM, 4, "four")
    reader = inbox_reader(state, contacts)
    found = []
    async for message in reader.messages():
        found.append(message)
        if len(found) == 3:
            break
    two, three, four = found
    assert (two.text, four.text, three.text, three.sender, three.seq) == ("two", "four", "", "u2", 3)
    assert three.problem.startswith("the message cannot be opened: ")
    assert three.sent_at == datetime(1970, 1, 1, tzinfo=UTC)
    assert reader._statistics.inbox_failures == 1
    assert [row.seq for row in state.received(0, 9)] == [4], "handled: it does not come again"


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
