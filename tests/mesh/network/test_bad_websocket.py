"""Hostile WebSocket clients on a mesh: each is refused with a status or closed with a code, and is counted.

Two well-behaved users talk over WebSocket during every test, as in test_bad_input.  (Every single rule of RFC 6455 is
in tests/unit/runtime/test_websocket.py.)
"""

import asyncio
import random
import resource
import time
import zlib
from collections.abc import AsyncIterator, Iterator

import pytest

from meshim.errors import Code
from scripts.harness.mesh.process_stats import watch_memory
from tests.mesh.harness.background_chat import Users, background_chat
from tests.mesh.harness.independent_client import (
    CLOSE,
    GREET,
    PING,
    PONG,
    WELCOME,
    WINDOW,
    IndependentClient,
    pack,
    unpack,
)
from tests.mesh.harness.library_client import client
from tests.mesh.harness.real_mesh import DEADLINE_S, PASSWORD, RealMesh, in_thread, until
from tests.unit.runtime import raw_websocket as ws
from tests.unit.runtime.raw_websocket import RawWebSocket, frame, request

FRAME_BYTES = 262_144
UNAUTHENTICATED_MAX = 4_096
UNAUTHENTICATED_BYTES = 16_384
LINK = 7
MIB = 1 << 20
NEVER_GREET_MIB = 48
"""What 5,000 connections may take of a connector that never greet: 4,096 at once, 8 KiB each."""
UNFINISHED_MIB = 128
"""The same of requests that are never finished, with 15 KiB each."""
GREETINGS_S = 8.0
"""For two greetings, one with a login, while thousands are connected.  It takes half a second on idle cores."""


@pytest.fixture(autouse=True)
async def chat_over_websocket(mesh: RealMesh, users: Users) -> AsyncIterator[None]:
    """An exception of a connection would end that connection alone, and show nowhere but in the log."""
    async with background_chat(mesh.over("websocket"), users):
        yield
    for name in ("c1", "c2"):
        assert "Traceback" not in mesh.log("connector", name)


@pytest.fixture
async def stranger(mesh: RealMesh, users: Users) -> IndependentClient:
    """A hostile user: its token, and the addresses of the connectors."""
    made: IndependentClient = await in_thread(IndependentClient, mesh.api, users.mallory, PASSWORD)
    return made


@pytest.fixture
def url(stranger: IndependentClient) -> str:
    return str(stranger.connectors[0]["url"])


def greeting(stranger: IndependentClient) -> bytes:
    return pack([GREET, 1, stranger.token, stranger.epoch, LINK, WINDOW])


async def greeted(stranger: IndependentClient, url: str) -> RawWebSocket:
    """A connection that the connector has welcomed."""
    raw = await RawWebSocket.open(url)
    raw.message(greeting(stranger))
    assert unpack((await raw.receive()).payload)[0] == WELCOME
    return raw


async def until_counted(mesh: RealMesh, before: dict[str, int]) -> None:
    def missing() -> list[str]:
        return [name for name in before if mesh.counter_sum(name) <= before[name]]

    await until(lambda: not missing(), f"not counted: {list(before)}")


def counts(mesh: RealMesh, *names: str) -> dict[str, int]:
    return {f"websocket_{name}": mesh.counter_sum(f"websocket_{name}") for name in names}


async def expect_served(stranger: IndependentClient, url: str) -> None:
    """The same user can still connect, and is answered."""
    async with await greeted(stranger, url) as raw:
        raw.message(pack([PING, LINK]))
        while unpack((await raw.receive()).payload)[0] != PONG:
            pass


# ---------------------------------------------------------------- handshakes


async def test_bad_handshakes_are_refused_and_counted(mesh: RealMesh, stranger: IndependentClient, url: str) -> None:
    before = counts(mesh, "refused_origin", "refused_subprotocol", "refused_request")
    for sent, status in (
        (request("Origin: https://evil.example"), 403),
        (request(protocol=None), 400),
        (request(protocol="meshim.0"), 400),
        (request("X: " + "y" * (1 << 20)), 431),
        (request(*(f"X{number}: {'y' * 1_000}" for number in range(20))), 431),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 426),
        (request()[:-2] + b"X: y\r\n" * 100_000, 431),
        (request().replace(b"Version: 13", b"Version: 8"), 426),
        (request().replace(b"Host: x\r\n", b""), 400),
        (request().replace(b"HTTP/1.1", b"HTTP/1.0"), 505),
        (request().replace(b"GET", b"POST"), 405),
        (request("Content-Length: 5", "Content-Length: 0") + b"hello", 400),
        (request("Transfer-Encoding: chunked") + b"0\r\n\r\n", 400),
        (request("X: a", " folded: b"), 400),
        (request("X: a\0b"), 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n", 400),
    ):
        for behind in (b"", b"\xff" * 200, request()):
            async with await RawWebSocket.connect(url) as raw:
                raw.send(sent + behind)
                assert (await raw.answer()).status == status, sent[:200]
    await until_counted(mesh, before)
    await expect_served(stranger, url)


async def test_hundreds_of_endless_headers_take_little_memory(
    mesh: RealMesh, stranger: IndependentClient, url: str
) -> None:  # fmt: skip
    """Each sends a megabyte, and none of it is kept."""
    before = mesh.counter_sum("websocket_refused_request")

    async def flood() -> None:
        async with await RawWebSocket.connect(url) as raw:
            raw.send(request("X: " + "y" * MIB))
            assert (await raw.answer()).status == 431

    with watch_memory(mesh.role_pids()) as memory:
        for _ in range(4):
            await asyncio.gather(*(flood() for _ in range(100)))
        await expect_served(stranger, url)
    assert max(memory.growth.values()) < 64, memory.growth
    await until(lambda: mesh.counter_sum("websocket_refused_request") >= before + 400, "not counted")


async def test_compression_that_is_offered_is_declined(stranger: IndependentClient, url: str) -> None:
    async with await RawWebSocket.connect(url) as raw:
        raw.send(request("Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"))
        answer = await raw.answer()
        assert answer.status == 101
        assert b"extensions" not in answer.head.lower()
        raw.send(frame(ws.BINARY, greeting(stranger), rsv=4))
        assert (await raw.receive()).code == 1002


@pytest.mark.parametrize("after_greeting", [False, True])
async def test_bombs_are_not_inflated(
    mesh: RealMesh, stranger: IndependentClient, url: str, after_greeting: bool
) -> None:  # fmt: skip
    """200 MiB of zeros take 200 KiB when they are compressed: a frame of the allowed size."""
    deflate = zlib.compressobj(9, wbits=-15)
    zeros_mib, most = (200, FRAME_BYTES) if after_greeting else (12, UNAUTHENTICATED_BYTES)
    bomb = b"".join(deflate.compress(bytes(MIB)) for _ in range(zeros_mib)) + deflate.flush(zlib.Z_SYNC_FLUSH)
    assert most // 2 < len(bomb) < most
    before = counts(mesh, "malformed")
    with watch_memory(mesh.role_pids()) as memory:
        for _ in range(10):
            async with await (greeted(stranger, url) if after_greeting else RawWebSocket.open(url)) as raw:
                raw.send(frame(ws.BINARY, bomb, rsv=4))
                while (received := await raw.receive()).opcode != ws.CLOSE:
                    pass
                assert received.code == 1002
    assert max(memory.growth.values()) < 32, memory.growth
    await until_counted(mesh, before)
    await expect_served(stranger, url)


async def test_a_message_without_end_ends(mesh: RealMesh, stranger: IndependentClient, url: str) -> None:
    """Of a client with a session: fragments for ever, with control frames between them."""
    before = counts(mesh, "too_large", "cut")
    for fragment, code in ((b"", 4009), (b"x", 4009), (b"x" * 2_000, 1009)):
        async with await greeted(stranger, url) as raw:
            raw.send(frame(ws.BINARY, fragment, fin=False))
            endless = frame(ws.PING, b"?") + frame(ws.CONTINUATION, fragment, fin=False) * 10
            for _ in range(120):
                raw.send(endless)
            while (received := await raw.receive()).opcode != ws.CLOSE:
                pass
            assert received.code == code
    await until_counted(mesh, before)
    await expect_served(stranger, url)


async def test_control_frames_without_end_end(mesh: RealMesh, stranger: IndependentClient, url: str) -> None:
    """Of a client with a session, which the connector would have to answer."""
    before = counts(mesh, "cut")
    async with await greeted(stranger, url) as raw:
        for _ in range(1_000):
            raw.send(frame(ws.PING, b"?"))
        while (received := await raw.receive()).opcode != ws.CLOSE:
            pass
        assert received.code == 4009
    await until_counted(mesh, before)
    await expect_served(stranger, url)


async def test_a_message_may_take_its_time(stranger: IndependentClient, url: str) -> None:
    """The heartbeat of the link judges silence, not the fragments."""
    ping = pack([PING, LINK])
    async with await greeted(stranger, url) as raw:
        raw.send(frame(ws.BINARY, ping[:1], fin=False))
        await asyncio.sleep(3.0)
        raw.send(frame(ws.PING, b"?") + frame(ws.CONTINUATION, ping[1:]))
        while (received := await raw.receive()).opcode != ws.BINARY or unpack(received.payload)[0] != PONG:
            pass


async def test_slow_handshakes_end_in_time(mesh: RealMesh, stranger: IndependentClient, url: str) -> None:
    before = counts(mesh, "refused_late")
    slow = [await RawWebSocket.connect(url) for _ in range(50)]
    for byte in request()[:22]:  # 11 s
        for raw in slow:
            raw.send(bytes((byte,)))
        await asyncio.sleep(0.5)
    for raw in slow:
        assert (await raw.answer()).status == 408
        await raw.close()
    await until_counted(mesh, before)
    await expect_served(stranger, url)


# ---------------------------------------------------------------- frames


@pytest.mark.parametrize("after_greeting", [False, True])
async def test_bad_frames_are_answered_with_a_code_and_counted(
    mesh: RealMesh, stranger: IndependentClient, url: str, after_greeting: bool
) -> None:
    before = counts(mesh, "text", "malformed", "too_large")
    for sent, code in (
        (frame(ws.TEXT, b"hello"), 1003),
        (frame(ws.BINARY, b"hello", masked=False), 1002),
        (frame(ws.BINARY, b"hello", rsv=4), 1002),
        (frame(ws.CONTINUATION, b"hello"), 1002),
        (frame(ws.CLOSE, b"\x03\xe8\xff"), 1007),
        (frame(ws.BINARY, bytes(FRAME_BYTES + 1)), 1009),
        (b"\x82\xff" + (1 << 40).to_bytes(8, "big"), 1009),
        (b"".join((frame(ws.BINARY, b"x", fin=False), frame(ws.CONTINUATION, bytes(10_000), fin=False) * 27)), 1009),
        (frame(ws.BINARY, b"garbage"), 4_000 + Code.MALFORMED),
        (frame(ws.BINARY, b""), 4_000 + Code.MALFORMED),
    ):
        async with await (greeted(stranger, url) if after_greeting else RawWebSocket.open(url)) as raw:
            raw.send(sent)
            frames = [await raw.receive()]
            while frames[-1].opcode != ws.CLOSE:
                frames.append(await raw.receive())
            assert frames[-1].code == code
            if code > 4_000:
                assert unpack(frames[-2].payload)[0] == CLOSE
    await until_counted(mesh, before)
    await expect_served(stranger, url)


@pytest.mark.parametrize("after_greeting", [False, True])
async def test_any_bytes_leave_the_client_able_to_connect(
    stranger: IndependentClient, url: str, after_greeting: bool
) -> None:
    """As frames, as messages, and instead of the handshake."""
    seeded = random.Random(2)
    for number in range(80 if after_greeting else 150):  # a token may greet 100 times at once
        noise = seeded.randbytes(seeded.randint(1, 2_000))
        async with await (greeted(stranger, url) if after_greeting else RawWebSocket.open(url)) as raw:
            raw.send(noise if number % 2 else frame(ws.BINARY, noise))
    for _ in range(50):
        async with await RawWebSocket.connect(url) as raw:
            raw.send(seeded.randbytes(seeded.randint(1, 20_000)))
    await expect_served(stranger, url)


async def test_a_client_that_never_reads_is_cut_off(mesh: RealMesh, stranger: IndependentClient, url: str) -> None:
    """It asks for answers and reads none: the connector keeps a bounded number, and ends the session in time."""
    ping = frame(ws.BINARY, pack([PING, LINK])) + frame(ws.PING, bytes(125))
    async with await greeted(stranger, url) as raw:
        async with asyncio.timeout(DEADLINE_S):
            while not await raw.has_ended():
                raw.send(ping * 5_000)
    await expect_served(stranger, url)


# ---------------------------------------------------------------- connections that never greet


@pytest.fixture
def descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert hard == resource.RLIM_INFINITY or hard >= 8_000, "raise the hard limit of open files to 8,000"
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 8_000), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_thousands_that_never_greet_are_bounded(
    mesh: RealMesh, stranger: IndependentClient, url: str, descriptors: None, users: Users
) -> None:
    """The oldest make room, every one is cut in time and counted, and others greet meanwhile."""
    before = mesh.counter_sum("websocket_cut")
    silent: list[RawWebSocket] = []
    with watch_memory(mesh.role_pids()) as memory:
        for _ in range(50):
            silent += await asyncio.gather(*(RawWebSocket.open(url) for _ in range(100)))
        assert (await silent[0].receive()).code == 4_000 + Code.BUSY
        cut = len(silent) - UNAUTHENTICATED_MAX
        await until(lambda: mesh.counter_sum("websocket_cut") >= before + cut - 10, "the oldest were not cut")
        await expect_greetings(mesh, stranger, url, users)
        assert (await silent[-1].receive(within_s=30.0)).code == 4_000 + Code.NOT_GREETED, "after 20 s"
    assert max(memory.growth.values()) < NEVER_GREET_MIB, memory.growth
    await until(lambda: mesh.counter_sum("websocket_cut") >= before + len(silent), "not all were cut")
    for raw in silent:
        await raw.close()


async def test_thousands_of_unfinished_requests_are_bounded(
    mesh: RealMesh, stranger: IndependentClient, url: str, descriptors: None, users: Users
) -> None:
    """Each has sent 15 KiB of headers, and never says more."""
    before = counts(mesh, "refused_late", "cut")
    unfinished = request("X: " + "y" * 7_000, "Y: " + "y" * 7_000)[:-2]
    raws: list[RawWebSocket] = []
    with watch_memory(mesh.role_pids()) as memory:
        for _ in range(50):
            some = await asyncio.gather(*(RawWebSocket.connect(url) for _ in range(100)))
            for raw in some:
                raw.send(unfinished)
                await raw.has_ended()
            raws += some
        await expect_greetings(mesh, stranger, url, users)
        assert (await raws[-1].answer(within_s=30.0)).status == 408, "after 10 s"
    assert max(memory.growth.values()) < UNFINISHED_MIB, memory.growth

    def ended() -> int:
        after = counts(mesh, "refused_late", "cut")
        return sum(after[name] - before[name] for name in before)

    await until(lambda: ended() >= len(raws), "not all have ended")
    for raw in raws:
        await raw.close()


async def expect_greetings(mesh: RealMesh, stranger: IndependentClient, url: str, users: Users) -> None:
    """Others are welcomed meanwhile, raw ones and those on the client library, and soon."""
    began = time.monotonic()
    await expect_served(stranger, url)
    async with client(mesh.over("websocket"), users.trudy) as trudy:
        await asyncio.wait_for(trudy.online(), DEADLINE_S)
    assert time.monotonic() - began < GREETINGS_S
