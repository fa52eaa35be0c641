"""What an application reads, when it stops in the middle and when the client is closed under it."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshim.client.events import PutIn, Release
from meshim.client.message import Message
from meshim.client.people import People
from meshim.client.reading import Reading
from meshim.client.state import StateFile
from meshim.errors import ClientClosed
from meshim.runtime.crypto import seal
from meshim.wire.envelope import (
    WIRE_VERSION,
    Destination,
    Envelope,
    Kind,
    Stream,
    Text,
    To,
    associated_data,
    encode_content,
    encode_envelope,
)

KEY = bytes(32)
ME, PEER = 1, 2
TO_ME = Destination(To.USER, ME)
STREAM = Stream(PEER, 20, 0, TO_ME)


class SlowPeople(People):
    """Answers when it may; the constructor of the real one wants a REST service."""

    def __init__(self) -> None:
        self.me = ME
        self.asked = asyncio.Event()
        self.may_answer = asyncio.Event()
        self.key: bytes | None = KEY

    async def key_of(self, user: int, version: int) -> bytes | None:
        self.asked.set()
        await self.may_answer.wait()
        return self.key

    def name_of(self, user: int) -> str:
        return f"u{user}"


async def no_receipt(stream: Stream, seq: int) -> None:
    """Nobody is told."""


def envelope(seq: int, text: str) -> bytes:
    draft = Envelope(WIRE_VERSION, bytes(16), PEER, 20, 0, TO_ME, seq, 1, Kind.TEXT, 1, 0, b"")
    body = seal(KEY, encode_content(Text(text)), associated_data(draft))
    return encode_envelope(
        Envelope(WIRE_VERSION, bytes(16), PEER, 20, 0, TO_ME, seq, 1, Kind.TEXT, 1, 0, body)
    )  # fmt: skip


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


def test_a_state_file_that_was_closed_says_so(tmp_path: Path) -> None:
    state = StateFile(tmp_path / "me.db")
    state.close()
    with pytest.raises(ClientClosed):
        state.put_peers([], [])
