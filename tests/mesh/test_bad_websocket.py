"""Hostile WebSocket clients on a mesh: each is refused with a status or closed with a code, and is counted.

Two well-behaved users talk over WebSocket during every test, as in test_bad_input.  (Every single rule of RFC 6455 is
in tests/unit/runtime/test_websocket.py.)
"""

import asyncio
import random
import resource
from collections.abc import AsyncIterator, Iterator

import pytest

from meshim.errors import Code
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
LINK = 7


@pytest.fixture(autouse=True)
async def chat_over_websocket(mesh: RealMesh, users: Users) -> AsyncIterator[None]:
    async with background_chat(mesh.over("websocket"), users):
        yield


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
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n", 400),
    ):
        async with await RawWebSocket.connect(url) as raw:
            raw.send(sent)
            assert (await raw.answer()).status == status
    await until_counted(mesh, before)
    await expect_served(stranger, url)


async def test_compression_that_is_offered_is_declined(stranger: IndependentClient, url: str) -> None:
    async with await RawWebSocket.connect(url) as raw:
        raw.send(request("Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"))
        answer = await raw.answer()
        assert answer.status == 101
        assert b"extensions" not in answer.head.lower()
        raw.send(frame(ws.BINARY, greeting(stranger), rsv=4))
        assert (await raw.receive()).code == 1002


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
    for number in range(150):
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
    if hard != resource.RLIM_INFINITY and hard < 8_000:
        pytest.skip("too few descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 8_000), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def test_thousands_that_never_greet_are_bounded(
    mesh: RealMesh, stranger: IndependentClient, url: str, descriptors: None, users: Users
) -> None:
    before = mesh.counter_sum("websocket_cut")
    silent: list[RawWebSocket] = []
    for _ in range(50):
        silent += await asyncio.gather(*(RawWebSocket.open(url) for _ in range(100)))
    assert (await silent[0].receive()).code == 4_000 + Code.BUSY
    cut = len(silent) - UNAUTHENTICATED_MAX
    await until(lambda: mesh.counter_sum("websocket_cut") >= before + cut - 10, "the oldest were not cut")
    await expect_served(stranger, url)
    async with client(mesh.over("websocket"), users.trudy) as trudy:
        await asyncio.wait_for(trudy.online(), DEADLINE_S)
    assert (await silent[-1].receive(within_s=30.0)).code == 4_000 + Code.NOT_GREETED, "after 20 s"
    for raw in silent:
        await raw.close()
