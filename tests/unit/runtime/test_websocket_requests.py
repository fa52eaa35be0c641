"""Requests that the WebSocket server must not take for handshakes, and what it does not offer."""

import asyncio
import ssl
import zlib
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import pytest

from meshim.runtime.websocket import server as server_module
from tests.certificates import Certificate, make_certificate
from tests.unit.runtime.raw_websocket import BINARY, CONTINUATION, PING, PONG, RawWebSocket, frame, request
from tests.unit.runtime.websocket_world import MESSAGE_BYTES, Make, until, worlds

MIB = 1 << 20


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    async with worlds() as make:
        yield make


def without(header: bytes) -> bytes:
    """A good request without one header."""
    return b"\r\n".join(line for line in request().split(b"\r\n") if not line.startswith(header + b":"))


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (without(b"Host"), 400),
        (request("Host: y"), 400),
        (without(b"Connection"), 426),
        (request().replace(b"Connection: Upgrade", b"Connection: keep-alive"), 426),
        (request().replace(b"Upgrade: websocket", b"Upgrade: h2c"), 426),
        (without(b"Sec-WebSocket-Key"), 400),
        (request("Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="), 400),
        (request().replace(b"dGhlIHNhbXBsZSBub25jZQ==", b"A" * 24), 400),
        (request().replace(b"dGhlIHNhbXBsZSBub25jZQ==", b"\xff" * 24), 400),
        (request().replace(b"GET", b"HEAD"), 405),
        (request().replace(b"GET", b"CONNECT"), 405),
        (request().replace(b"HTTP/1.1", b"HTTP/1.0"), 505),
        (request().replace(b"HTTP/1.1", b"HTTP/2.0"), 400),
        (request().replace(b"GET / ", b"GET /\xff "), 400),
        (request().replace(b"GET / ", b"GET  / "), 400),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
        # Requests that two parsers may understand differently.
        (request("Content-Length: 5") + b"hello", 400),
        (request("Content-Length: 0", "Content-Length: 5"), 400),
        (request("Content-Length: 5", "Content-Length: 0"), 400),
        (request("Transfer-Encoding: chunked") + b"0\r\n\r\n", 400),
        (request("Content-Length: 0", "Transfer-Encoding: identity"), 400),
        (request("X: a", " folded: b"), 400),
        (request("X : a"), 400),
        (request("X: a\0b"), 400),
        (request("X\0: a"), 400),
        (request("X: a\rb"), 400),
        (request(": nameless"), 400),
        (request().replace(b"\r\n", b"\n"), 400),
        (request("X: a\nY: b"), 400),
        (b"\r\n" + request(), 400),
        # Too many bytes.
        (request("X: " + "y" * MIB), 431),
        (request()[:-2] + b"X: y\r\n" * 100_000, 431),
        (request()[:-2] + b"a:\r\n" * 129, 431),
        (request(path="/" + "x" * 9_000), 414),
        (request(path="/" + "x" * MIB), 431),
        (b"x" * MIB, 431),
        (b"\r\n" * MIB, 400),
    ],
)  # fmt: skip
async def test_it_is_no_handshake(make: Make, sent: bytes, status: int) -> None:
    """Nothing behind it is looked at, either."""
    world = await make()
    async with await RawWebSocket.connect(world.url) as raw:
        raw.send(sent + request() + frame(BINARY, b"hello"))
        assert (await raw.answer()).status == status, sent[:200]
        await raw.ended()
    assert world.counted == {"refused_request": 1}
    assert (world.messages, world.server.statistics.opened) == ([], 0)
    await world.expect_alive()


@pytest.mark.parametrize("version", [None, "8", "0", "14", "13, 8", "x", "-1"])
async def test_another_version_is_told_which_one_is_spoken(make: Make, version: str | None) -> None:
    """RFC 6455, 4.4."""
    world = await make()
    given = b"" if version is None else f"Sec-WebSocket-Version: {version}\r\n".encode()
    async with await RawWebSocket.connect(world.url) as raw:
        raw.send(request().replace(b"Sec-WebSocket-Version: 13\r\n", given))
        answer = await raw.answer()
    assert answer.status == 426
    assert b"\r\nSec-WebSocket-Version: 13\r\n" in answer.head
    assert world.counted == {"refused_request": 1}


async def test_headers_without_an_end_that_trickle_are_too_many_together(make: Make) -> None:
    world = await make()
    async with await RawWebSocket.connect(world.url) as raw:
        raw.send(request()[:-2])
        for _ in range(100):
            raw.send(b"X: " + b"y" * 200 + b"\r\n")
            await asyncio.sleep(0)
        assert (await raw.answer()).status == 431
    assert world.counted == {"refused_request": 1}


@pytest.mark.parametrize("piece", [1, 2, 3, 5, 64])
async def test_a_request_in_pieces_and_a_message_behind_it(make: Make, piece: int) -> None:
    """Wherever the pieces end, what is behind the request is a frame."""
    world = await make()
    sent = request() + frame(BINARY, b"\r\n\r\n")
    async with await RawWebSocket.connect(world.url) as raw:
        for at in range(0, len(sent), piece):
            raw.send(sent[at : at + piece])
            await raw.has_ended()
            await asyncio.sleep(0)
        assert (await raw.answer()).status == 101
        await until(lambda: world.messages)
    assert world.messages[0][1] == b"\r\n\r\n"
    assert world.counted == {}


@pytest.mark.parametrize("missing", [1, 2, 3])
async def test_a_request_whose_end_comes_later_with_garbage_behind_it(make: Make, missing: int) -> None:
    world = await make()
    bad = without(b"Host")
    async with await RawWebSocket.connect(world.url) as raw:
        raw.send(bad[:-missing])
        await until(lambda: [each._header_bytes for each in world.server._connections] == [len(bad) - missing])
        raw.send(bad[-missing:] + b"\xff" * 200)
        assert (await raw.answer()).status == 400
    assert world.counted == {"refused_request": 1}


async def test_a_second_request_behind_the_handshake_is_a_bad_frame(make: Make) -> None:
    world = await make()
    async with await RawWebSocket.connect(world.url) as raw:
        raw.send(request() + request())
        assert (await raw.answer()).status == 101
        assert (await raw.receive()).code == 1002
    assert world.counted == {"malformed": 1}


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("tls"))


async def test_tls_on_the_port_without(make: Make) -> None:
    world = await make()
    where = urlsplit(world.url)
    trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    trusting.check_hostname = False
    trusting.verify_mode = ssl.CERT_NONE
    with pytest.raises(ssl.SSLError):
        await asyncio.open_connection(where.hostname, where.port, ssl=trusting)
    await until(lambda: world.counted == {"refused_request": 1} or world.server.statistics.lost)
    assert set(world.counted) <= {"refused_request"}
    await world.expect_alive()


async def test_plain_http_on_the_port_of_tls(make: Make, certificate: Certificate) -> None:
    world = await make(bind="wss://127.0.0.1:0", files=(str(certificate.certificate), str(certificate.key)))
    async with await RawWebSocket.connect(world.url) as raw:
        raw.send(request())
        assert not (await raw.ended()).startswith(b"HTTP")
    assert world.server.statistics.accepted == 0
    trusting = ssl.create_default_context(cafile=certificate.certificate)
    where = urlsplit(world.url)
    reader, writer = await asyncio.open_connection(where.hostname, where.port, ssl=trusting)
    writer.write(request())
    assert (await reader.readline()).startswith(b"HTTP/1.1 101")
    writer.close()


# ---------------------------------------------------------------- compression


OFFERS = (
    "permessage-deflate",
    "permessage-deflate; client_max_window_bits",
    "permessage-deflate; server_max_window_bits=8; client_max_window_bits=8",
    "permessage-deflate; server_no_context_takeover; client_no_context_takeover",
    'permessage-deflate; server_max_window_bits="15"',
    "permessage-deflate, permessage-deflate; client_max_window_bits",
    "x-webkit-deflate-frame",
    "PERMESSAGE-DEFLATE",
    "permessage-bzip2, permessage-snappy",
)


@pytest.mark.parametrize("offer", OFFERS)
async def test_compression_is_declined_and_a_bomb_is_no_frame(make: Make, offer: str) -> None:
    """A megabyte of zeros is a kilobyte when it is compressed: it is refused for its bit, and never inflated."""
    world = await make()
    deflate = zlib.compressobj(9, wbits=-15)
    bomb = (deflate.compress(bytes(MIB // 2)) + deflate.flush(zlib.Z_SYNC_FLUSH))[:-4]
    assert len(bomb) < MESSAGE_BYTES
    async with await RawWebSocket.connect(world.url) as raw:
        raw.send(request(f"Sec-WebSocket-Extensions: {offer}"))
        answer = await raw.answer()
        assert answer.status == 101
        assert b"extensions" not in answer.head.lower()
        raw.send(frame(BINARY, bomb, rsv=4))
        assert (await raw.receive()).code == 1002
    assert world.messages == []
    assert world.counted == {"malformed": 1}


# ---------------------------------------------------------------- masks and fragments


async def test_a_mask_of_zeros_is_a_mask(make: Make) -> None:
    world = await make()
    async with await world.open() as raw:
        raw.send(b"\x82\x85" + bytes(4) + b"hello")
        await until(lambda: world.messages)
        assert world.messages[0][1] == b"hello"
    assert world.counted == {}


@pytest.mark.parametrize("cut", [1, 2, 4, 6])
async def test_a_mask_is_asked_for_as_soon_as_the_header_is_there(make: Make, cut: int) -> None:
    """Also of a frame whose bytes never come, and of one that is no message."""
    world = await make()
    unmasked = (b"\x82\x7e\x01\x00" + bytes(10), b"\x89\x00", b"\x88\x02\x03\xe8")[cut % 3]
    async with await world.open() as raw:
        raw.send(unmasked)
        assert (await raw.receive()).code == 1002
    assert world.counted == {"malformed": 1}


async def test_a_message_of_1024_fragments_is_the_longest(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "FRAGMENT_BYTES", 0)  # none is charged
    world = await make(unauthenticated_frames=10_000)
    async with await world.open() as raw:
        raw.send(frame(BINARY, b"x", fin=False) + frame(CONTINUATION, b"", fin=False) * 1_022 + frame(CONTINUATION))
        await until(lambda: world.messages)
        raw.send(frame(BINARY, b"x", fin=False) + frame(CONTINUATION, b"", fin=False) * 1_023 + frame(CONTINUATION))
        assert (await raw.receive()).code == 1009
    assert [message for _, message in world.messages] == [b"x"]
    assert world.counted == {"too_large": 1}


@pytest.mark.parametrize(
    ("fragments", "size", "counter", "code"),
    [(10, 1_024, "too_large", 1009), (1, 0, "cut", 4009), (10, 0, "cut", 4009)],
)
async def test_fragments_with_pings_between_them_for_ever(
    make: Make, fragments: int, size: int, counter: str, code: int
) -> None:
    """A message that is too large, or too many pings and small fragments, whichever comes first."""
    world = await make(unauthenticated_frames=100_000)
    async with await world.open() as raw:
        raw.send(frame(BINARY, b"", fin=False))
        raw.send((frame(PING, b"?") + frame(CONTINUATION, bytes(size), fin=False) * fragments) * 1_000)
        while (received := await raw.receive()).opcode == PONG:
            pass
        assert received.code == code
    assert world.counted == {counter: 1}


async def test_a_continuation_after_a_long_pause_completes_the_message(make: Make) -> None:
    """Silence is for the heartbeat of the link to judge."""
    world = await make()
    async with await world.open() as raw:
        raw.send(frame(BINARY, b"be", fin=False))
        raw.send(frame(PING, b"between"))
        assert (await raw.receive()).payload == b"between"
        assert world.messages == []
        raw.send(frame(CONTINUATION, b"gin"))
        await until(lambda: world.messages)
    assert world.messages[0][1] == b"begin"
