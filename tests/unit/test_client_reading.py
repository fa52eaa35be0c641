"""What an application reads, when it stops in the middle and when the client is closed under it."""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from meshim.client.events import PutIn, Release
from meshim.client.message import Message, OrderFlag
from meshim.client.people import People
from meshim.client.reading import Reading
from meshim.client.state import StateFile
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


class SlowPeople(People):
    """Answers when it may; the constructor of the real one wants a REST service."""

    def __init__(self) -> None:
        self.me = ME
        self.asked = asyncio.Event()
        self.may_answer = asyncio.Event()
        self.key: bytes | None = KEY
        self.troubles: list[MeshimError] = []

    async def key_of(self, user: int, version: int) -> bytes | None:
        self.asked.set()
        if self.troubles:
            raise self.troubles.pop(0)
        await self.may_answer.wait()
        return self.key

    def name_of(self, user: int) -> str:
        return f"u{user}"


def answering(key: bytes | None = KEY, *troubles: MeshimError) -> SlowPeople:
    """At once, but for these troubles first."""
    people = SlowPeople()
    people.key = key
    people.troubles = list(troubles)
    people.may_answer.set()
    return people


async def no_receipt(stream: Stream, seq: int) -> None:
    """Nobody is told."""


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
        state.apply([PutIn(STREAM, seq, envelope(seq, text), False), Release(STREAM, seq, 0)])
    yield state
    state.close()


async def read_one(reading: Reading) -> Message:
    return await anext(reading.messages())


async def test_a_message_that_was_not_given_yet_is_given_by_the_next_loop(state: StateFile) -> None:
    people = SlowPeople()
    reading = Reading(state, asyncio.Lock(), people, no_receipt)
    impatient = asyncio.create_task(read_one(reading))
    await people.asked.wait()
    impatient.cancel()
    await asyncio.wait([impatient])

    people.may_answer.set()
    assert (await read_one(reading)).text == "one"
    assert (await read_one(reading)).text == "two"


async def test_a_message_that_could_not_be_opened_in_time_is_not_given_while_closing(state: StateFile) -> None:
    people = SlowPeople()
    reading = Reading(state, asyncio.Lock(), people, no_receipt)
    reader = asyncio.create_task(read_one(reading))
    await people.asked.wait()
    reading.fail(ClientClosed("closed"))
    people.key = None  # what a REST service says whose connection was closed
    people.may_answer.set()
    with pytest.raises(ClientClosed):
        await reader
    assert [row.seq for row in state.received(0, 9)] == [1, 2]


async def test_a_message_whose_key_is_missing_waits_for_the_service(state: StateFile) -> None:
    """It could be opened a moment later: handed out unread it would be lost."""
    reading = Reading(state, asyncio.Lock(), answering(KEY, BackendUnavailable("away")), no_receipt)
    message = await read_one(reading)
    assert (message.text, message.problem) == ("one", "")


async def test_a_reader_who_waits_for_the_service_is_told_of_the_end_at_once(state: StateFile) -> None:
    people = answering(KEY, *[BackendUnavailable("away")] * 99)
    reading = Reading(state, asyncio.Lock(), people, no_receipt)
    reader = asyncio.create_task(read_one(reading))
    await people.asked.wait()
    await asyncio.sleep(0)
    reading.fail(ClientClosed("closed"))
    with pytest.raises(ClientClosed):
        await asyncio.wait_for(reader, 0.1)


async def test_a_message_whose_key_may_not_be_asked_for_is_kept(state: StateFile) -> None:
    people = answering(KEY, ApiError(401, "bad_credentials", "The password is wrong."))
    reading = Reading(state, asyncio.Lock(), people, no_receipt)
    with pytest.raises(ApiError, match="password is wrong"):
        await read_one(reading)
    assert (await read_one(reading)).text == "one"


@pytest.mark.parametrize(
    ("key", "problem"),
    [(None, "the key of this message, version 1, is not to be had"), (bytes(31) + b"x", "cannot be opened")],
)
async def test_what_can_never_be_opened_is_handed_out_with_the_reason(
    state: StateFile, key: bytes | None, problem: str
) -> None:
    message = await read_one(Reading(state, asyncio.Lock(), answering(key), no_receipt))
    assert (message.sender, message.text) == ("u2", "")
    assert problem in message.problem


async def test_every_clock_that_a_sender_may_have_can_be_shown(state: StateFile) -> None:
    state.handled((1, 2))
    for seq, sent_at in ((3, 0), (4, 253_402_300_799_999)):
        state.apply([PutIn(STREAM, seq, envelope(seq, "x", sent_at=sent_at), False), Release(STREAM, seq, 0)])
    reading = Reading(state, asyncio.Lock(), answering(), no_receipt)
    times = [(await read_one(reading)).sent_at for _ in range(2)]
    assert times[0] == datetime(1970, 1, 1, tzinfo=UTC)
    assert times[1].year == 9999


async def test_kinds_of_the_future_are_passed_over_and_counted(state: StateFile) -> None:
    state.handled((1,))
    state.apply([PutIn(STREAM, 3, envelope(3, "x", kind=99), False), Release(STREAM, 3, 0)])
    state.apply([PutIn(STREAM, 4, envelope(4, "four"), True), Release(STREAM, 4, 2)])
    reading = Reading(state, asyncio.Lock(), answering(), no_receipt)
    assert (await read_one(reading)).text == "two"
    last = await read_one(reading)
    assert (last.text, last.stored, last.place, last.own) == ("four", True, OrderFlag.LATE, False)
    assert reading.skipped == 1
    assert [row.seq for row in state.received(0, 9)] == [4]


async def test_a_message_that_was_marked_as_done_is_not_given_again(state: StateFile) -> None:
    reading = Reading(state, asyncio.Lock(), answering(), no_receipt)
    message = await read_one(reading)
    assert [row.seq for row in state.received(0, 9)] == [1, 2]
    await message.mark_read()
    assert [row.seq for row in state.received(0, 9)] == [2]


async def test_two_loops_at_once_are_not_given_the_same_messages(state: StateFile) -> None:
    reading = Reading(state, asyncio.Lock(), answering(), no_receipt)
    earlier, later = reading.messages(), reading.messages()
    assert (await anext(earlier)).text == "one"
    assert (await anext(later)).text == "two"
    with pytest.raises(UsageError, match="one at a time"):
        await anext(earlier)

    waiting = asyncio.create_task(read_one(reading))
    while not reading._more._waiters:
        await asyncio.sleep(0)
    last = asyncio.create_task(read_one(reading))
    with pytest.raises(UsageError, match="one at a time"):
        await asyncio.wait_for(waiting, 1.0)
    state.apply([PutIn(STREAM, 3, envelope(3, "three"), False), Release(STREAM, 3, 0)])
    reading.grew()
    assert (await asyncio.wait_for(last, 1.0)).text == "three"


def test_a_state_file_that_was_closed_says_so(tmp_path: Path) -> None:
    state = StateFile(tmp_path / "me.db")
    state.close()
    with pytest.raises(ClientClosed):
        state.put_peers([], [])
