"""The cases of the Autobahn suite that a server of binary messages can be asked, by their numbers (adr/0035).

The suite runs on Python 2 alone.  These tests send what its cases send, to a server that echoes, and ask for what
they expect; where a case sends text, a binary message is sent in its place.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import NamedTuple

import pytest

from tests.unit.runtime.raw_websocket import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Frame,
    RawWebSocket,
    frame,
)
from tests.unit.runtime.websocket_world import World, worlds

MESSAGE_BYTES = 16 << 20
HELLO = b"Hello, world!"
BYTES = b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff"
NOT_UTF8 = b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5\xed\xa0\x80\x65\x64\x69\x74\x65\x64"
NORMAL = frame(CLOSE, b"\x03\xe8")

AT_ONCE, BY_FRAME, BY_BYTE = "at once", "by frame", "by byte"


class Echoing(World):
    """Sends each message back."""

    def __init__(self) -> None:
        super().__init__(
            message_bytes=MESSAGE_BYTES, write_bytes=2 * MESSAGE_BYTES, is_authenticated=lambda peer: True,
            unauthenticated_frames=1 << 30, unauthenticated_bytes=1 << 40,
        )  # fmt: skip
        self.server._on_batch = self._echo

    def _echo(self, batch: list[tuple[bytes, bytes]]) -> None:
        self.batches.append(batch)
        for peer, message in batch:
            self.server.send(peer, message)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with worlds(Echoing) as make:
        yield await make()


async def send(raw: RawWebSocket, frames: list[bytes], how: str) -> None:
    if how == AT_ONCE:
        raw.send(b"".join(frames))
        return
    for each in frames if how == BY_FRAME else [bytes((byte,)) for byte in b"".join(frames)]:
        raw.send(each)
        await asyncio.sleep(0)  # the server, in the same event loop, reads it


async def close(raw: RawWebSocket) -> None:
    """A clean close with the normal code."""
    raw.send(NORMAL)
    assert await raw.receive() == Frame(CLOSE, b"\x03\xe8")
    assert await raw.ended() == b""


class Case(NamedTuple):
    number: str
    sent: list[bytes]
    answer: list[Frame] = []
    """All that comes before the Close."""
    how: str = AT_ONCE


def ping(payload: bytes = b"") -> bytes:
    return frame(PING, payload)


def part(payload: bytes, opcode: int = CONTINUATION) -> bytes:
    """A fragment that is not the last one."""
    return frame(opcode, payload, fin=False)


def last(payload: bytes) -> bytes:
    return frame(CONTINUATION, payload)


def echo(payload: bytes) -> Frame:
    return Frame(BINARY, payload)


def pong(payload: bytes = b"") -> Frame:
    return Frame(PONG, payload)


TEN = [b"payload-%d" % number for number in range(10)]
FIVE = [b"fragment%d" % number for number in range(1, 6)]
TWO = b"fragment1fragment2"
FRAGMENTED_WITH_PINGS = [
    part(FIVE[0], BINARY), part(FIVE[1]), ping(b"pongme 1!"), part(FIVE[2]), part(FIVE[3]), ping(b"pongme 2!"),
    last(FIVE[4]),
]  # fmt: skip
ITS_ANSWER = [pong(b"pongme 1!"), pong(b"pongme 2!"), echo(b"".join(FIVE))]
WITH_A_PING = [part(b"fragment1", BINARY), ping(b"ping payload"), last(b"fragment2")]
TWO_PARTS = [part(b"fragment1", BINARY), last(b"fragment2")]

GOOD = [
    *(
        Case(f"1.2.{number}", [frame(BINARY, b"\xfe" * size)], [echo(b"\xfe" * size)])
        for number, size in enumerate((0, 125, 126, 127, 128, 65_535, 65_536), 1)
    ),
    Case("2.1", [ping()], [pong()]),
    Case("2.2", [ping(HELLO)], [pong(HELLO)]),
    Case("2.3", [ping(BYTES)], [pong(BYTES)]),
    Case("2.4", [ping(b"\xfe" * 125)], [pong(b"\xfe" * 125)]),
    Case("2.6", [ping(b"\xfe" * 125)], [pong(b"\xfe" * 125)], BY_BYTE),
    Case("2.7", [frame(PONG)]),
    Case("2.8", [frame(PONG, b"unsolicited pong payload")]),
    Case("2.9", [frame(PONG, b"unsolicited pong payload"), ping(HELLO)], [pong(HELLO)]),
    Case("2.10", [ping(each) for each in TEN], [pong(each) for each in TEN]),
    Case("2.11", [ping(each) for each in TEN], [pong(each) for each in TEN], BY_BYTE),
    *(Case(number, TWO_PARTS, [echo(TWO)], how)
      for number, how in (("5.3", AT_ONCE), ("5.4", BY_FRAME), ("5.5", BY_BYTE))),
    *(Case(number, WITH_A_PING, [pong(b"ping payload"), echo(TWO)], how)
      for number, how in (("5.6", AT_ONCE), ("5.7", BY_FRAME), ("5.8", BY_BYTE))),
    Case("5.19", FRAGMENTED_WITH_PINGS, ITS_ANSWER),
    Case("5.20", FRAGMENTED_WITH_PINGS, ITS_ANSWER, BY_FRAME),
    Case("7.1.1", [frame(BINARY, HELLO)], [echo(HELLO)]),
]  # fmt: skip


@pytest.mark.parametrize("case", GOOD, ids=lambda case: case.number)
async def test_good_frames_are_answered(world: World, case: Case) -> None:
    async with await world.open() as raw:
        await send(raw, case.sent, case.how)
        received = [await raw.receive() for _ in case.answer]
        assert sorted(received) == sorted(case.answer), "in the order of each kind"
        for opcode in (BINARY, PONG):
            assert [f for f in received if f.opcode == opcode] == [f for f in case.answer if f.opcode == opcode]
        await close(raw)
    assert world.counted == {}


BAD = [
    Case("2.5", [ping(b"\xfe" * 126)]),
    Case("3.1", [frame(TEXT, HELLO, rsv=1)]),
    *(
        Case(f"3.{rsv}", [frame(BINARY, HELLO), frame(BINARY, HELLO, rsv=rsv), ping()], [echo(HELLO)], how)
        for rsv, how in ((2, AT_ONCE), (3, BY_FRAME), (4, BY_BYTE))
    ),
    Case("3.5", [frame(BINARY, BYTES, rsv=5)]),
    Case("3.6", [frame(PING, HELLO, rsv=6)]),
    Case("3.7", [frame(CLOSE, rsv=7)]),
    Case("4.1.1", [frame(3)]),
    Case("4.1.2", [frame(4, b"reserved opcode payload")]),
    Case("4.1.3", [frame(BINARY, HELLO), frame(5), ping()], [echo(HELLO)]),
    Case("4.1.4", [frame(BINARY, HELLO), frame(6, HELLO), ping()], [echo(HELLO)]),
    Case("4.1.5", [frame(BINARY, HELLO), frame(7, HELLO), ping()], [echo(HELLO)], BY_BYTE),
    Case("4.2.1", [frame(11)]),
    Case("4.2.2", [frame(12, b"reserved opcode payload")]),
    Case("4.2.3", [frame(BINARY, HELLO), frame(13), ping()], [echo(HELLO)]),
    Case("4.2.4", [frame(BINARY, HELLO), frame(14, HELLO), ping()], [echo(HELLO)]),
    Case("4.2.5", [frame(BINARY, HELLO), frame(15, HELLO), ping()], [echo(HELLO)], BY_BYTE),
    Case("5.1", [part(b"fragment1", PING), last(b"fragment2")]),
    Case("5.2", [part(b"fragment1", PONG), last(b"fragment2")]),
    *(
        Case(f"5.{number}", [frame(CONTINUATION, b"nothing to continue", fin=fin), frame(BINARY, HELLO)], [], how)
        for number, fin, how in (
            (9, True, AT_ONCE), (10, True, BY_FRAME), (11, True, BY_BYTE),
            (12, False, AT_ONCE), (13, False, BY_FRAME), (14, False, BY_BYTE),
        )
    ),
    Case("5.15", [*TWO_PARTS, part(b"fragment3"), frame(BINARY, b"fragment4")], [echo(TWO)]),
    Case("5.16", [part(b"fragment1"), part(b"fragment2", BINARY), last(b"fragment3")] * 2),
    Case("5.17", [last(b"fragment1"), part(b"fragment2", BINARY), last(b"fragment3")] * 2),
    Case("5.18", [part(b"fragment1", BINARY), frame(BINARY, b"fragment2")]),
    Case("7.3.2", [frame(CLOSE, b"a")]),
    Case("7.3.6", [frame(CLOSE, b"\x03\xe8" + b"*" * 124)]),
    *(
        Case(f"7.9.{number}", [frame(CLOSE, code.to_bytes(2, "big"))])
        for number, code in enumerate((0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999), 1)
    ),
    Case("7.13.1", [frame(CLOSE, (5_000).to_bytes(2, "big"))]),
    Case("7.13.2", [frame(CLOSE, (65_535).to_bytes(2, "big"))]),
]  # fmt: skip


@pytest.mark.parametrize("case", BAD, ids=lambda case: case.number)
async def test_bad_frames_fail_the_connection_at_once(world: World, case: Case) -> None:
    async with await world.open() as raw:
        await send(raw, case.sent, case.how)
        got = await raw.receive()
        if case.answer and got.opcode != CLOSE:  # the suite allows that the echo does not leave any more
            assert [got] == case.answer
            got = await raw.receive()
        assert got.code == 1002
        assert await raw.ended() == b"", "no pong"
    assert [message for _, message in world.messages] == [frame.payload for frame in case.answer]
    assert world.counted.keys() - {"gone"} == {"malformed"}


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(frame(TEXT, payload), id=number)
        for number, payload in (
            ("1.1.1", b""), ("1.1.2", b"*" * 125), ("1.1.7", b"*" * 65_536), ("6.1.1", b""), ("6.3.1", NOT_UTF8),
            ("6.22.1", b"\xef\xbf\xbe"),
        )
    ] + [
        pytest.param(part(b"", TEXT) + last(b""), id="6.1.2"),
        pytest.param(part(NOT_UTF8[:12], TEXT) + part(NOT_UTF8[12:14]), id="6.4.1"),
    ],
)  # fmt: skip
async def test_text_is_refused_whatever_it_says(world: World, sent: bytes) -> None:
    async with await world.open() as raw:
        raw.send(sent)
        assert (await raw.receive()).code == 1003
        assert await raw.ended() == b""
    assert world.counted == {"text": 1}


# ---------------------------------------------------------------- 7, the end


@pytest.mark.parametrize(
    ("after", "messages"),
    [
        pytest.param([frame(CLOSE)], 0, id="7.1.2"),
        pytest.param([ping()], 0, id="7.1.3"),
        pytest.param([frame(BINARY, HELLO)], 0, id="7.1.4"),
        pytest.param([], 0, id="7.3.3"),
    ],
)
async def test_nothing_is_read_after_a_close(world: World, after: list[bytes], messages: int) -> None:
    async with await world.open() as raw:
        raw.send(NORMAL + b"".join(after))
        assert await raw.receive() == Frame(CLOSE, b"\x03\xe8")
        assert await raw.ended() == b""
    assert len(world.messages) == messages
    assert world.counted == {}


async def test_7_1_5_a_close_between_fragments(world: World) -> None:
    """The suite would have it answered with 1000: the library takes it for an error.  The connection ends anyway."""
    async with await world.open() as raw:
        raw.send(part(b"fragment1", BINARY) + NORMAL + last(b"fragment2"))
        assert (await raw.receive()).code == 1002
        assert await raw.ended() == b""
    assert world.messages == []
    assert world.counted == {"malformed": 1}


async def test_7_1_6_a_close_behind_a_large_message(world: World) -> None:
    """The suite leaves open what is echoed; the messages before the Close have to be taken."""
    large = bytes(256 << 10)
    async with await world.open() as raw:
        raw.send(frame(BINARY, large) + frame(BINARY, HELLO) + NORMAL + ping())
        while (got := await raw.receive()).opcode != CLOSE:
            assert got.opcode == BINARY
        assert got.code == 1000
        assert await raw.ended() == b""
    assert [message for _, message in world.messages] == [large, HELLO]


@pytest.mark.parametrize(
    ("sent", "echoed"),
    [
        pytest.param(b"", b"", id="7.3.1"),
        pytest.param(b"\x03\xe8Hello World!", None, id="7.3.4"),
        pytest.param(b"\x03\xe8" + b"*" * 123, None, id="7.3.5"),
        *(
            pytest.param(code.to_bytes(2, "big"), None, id=f"7.7.{number}")
            for number, code in enumerate(
                (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999), 1
            )
        ),
    ],
)
async def test_a_good_close_is_echoed(world: World, sent: bytes, echoed: bytes | None) -> None:
    async with await world.open() as raw:
        raw.send(frame(CLOSE, sent))
        assert (await raw.receive()).payload == (sent if echoed is None else echoed)
        assert await raw.ended() == b""
    assert world.counted == {}


async def test_7_5_1_a_reason_that_is_not_utf_8(world: World) -> None:
    async with await world.open() as raw:
        raw.send(frame(CLOSE, b"\x03\xe8" + NOT_UTF8))
        assert (await raw.receive()).code == 1007
        assert await raw.ended() == b""
    assert world.counted == {"malformed": 1}


# ---------------------------------------------------------------- 9 and 10, sizes


async def expect_echo(raw: RawWebSocket, message: bytes) -> None:
    assert await raw.receive() == Frame(BINARY, message)
    await close(raw)


@pytest.mark.parametrize(
    "kib",
    [pytest.param(kib, id=f"9.2.{number}") for number, kib in enumerate((64, 256, 1_024, 4_096, 8_192, 16_384), 1)],
)
async def test_large_messages(world: World, kib: int) -> None:
    message = b"\x00\xfe\x23\xfa" * (kib << 8)
    async with await world.open() as raw:
        raw.send(frame(BINARY, message))
        await expect_echo(raw, message)


def fragments(message: bytes, size: int) -> list[bytes]:
    parts = [message[at : at + size] for at in range(0, len(message), size)]
    opcodes = [BINARY] + [CONTINUATION] * (len(parts) - 1)
    return [
        frame(opcode, part, fin=at == len(parts) - 1)
        for at, (opcode, part) in enumerate(zip(opcodes, parts, strict=True))
    ]


@pytest.mark.parametrize(
    "size",
    [
        pytest.param(size, id=f"9.4.{number}")
        for number, size in enumerate((64, 256, 1 << 10, 4 << 10, 16 << 10, 64 << 10, 256 << 10, 1 << 20, 4 << 20), 1)
    ],
)
async def test_large_messages_in_fragments(world: World, size: int) -> None:
    """Of 4 MiB.  More than 1,024 fragments are refused, and many small ones sooner, where the suite would have them
    echoed: 9.4.1 to 9.4.3."""
    message = b"\xfe" * (4 << 20)
    async with await world.open() as raw:
        raw.send(b"".join(fragments(message, size)))
        if size < 4 << 10:
            assert (await raw.receive()).code == (4009 if size < 1 << 10 else 1009)
            assert await raw.ended() == b""
            assert world.counted == {"cut" if size < 1 << 10 else "too_large": 1}
        else:
            await expect_echo(raw, message)


@pytest.mark.parametrize(
    "size", [pytest.param(size, id=f"9.6.{number}") for number, size in enumerate((64, 128, 256, 512, 1_024, 2_048), 1)]
)
async def test_large_messages_that_come_in_small_pieces(world: World, size: int) -> None:
    message = b"\x00\xfe\x23\xfa" * (64 << 8)
    data = frame(BINARY, message)
    async with await world.open() as raw:
        await send(raw, [data[at : at + size] for at in range(0, len(data), size)], BY_FRAME)
        await expect_echo(raw, message)


async def test_1_2_8_pieces_of_997_bytes(world: World) -> None:
    data = frame(BINARY, b"\xfe" * 65_536)
    async with await world.open() as raw:
        await send(raw, [data[at : at + 997] for at in range(0, len(data), 997)], BY_FRAME)
        await expect_echo(raw, b"\xfe" * 65_536)


@pytest.mark.parametrize(
    "size", [pytest.param(size, id=f"9.8.{number}") for number, size in enumerate((0, 16, 64, 256, 1_024, 4_096), 1)]
)
async def test_a_thousand_round_trips(world: World, size: int) -> None:
    async with await world.open() as raw:
        for number in range(1_000):
            message = (b"%4d" % number * (size // 4 + 1))[:size]
            raw.message(message)
            assert await raw.receive() == Frame(BINARY, message)
        await close(raw)


async def test_10_1_1_fragments_of_1_300_bytes(world: World) -> None:
    message = b"*" * 65_536
    async with await world.open() as raw:
        raw.send(b"".join(fragments(message, 1_300)))
        await expect_echo(raw, message)
