"""The WebSocket server with real sockets: good and bad handshakes, messages, limits, and each kind of end."""

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from meshim.errors import UsageError
from meshim.runtime.send_result import SendResult
from meshim.runtime.websocket import WebSocketClient, listen
from meshim.runtime.websocket import server as server_module
from tests.certificates import make_certificate
from tests.unit.runtime.raw_websocket import (
    BINARY,
    CLOSE,
    CONTINUATION,
    DEADLINE_S,
    PING,
    PONG,
    TEXT,
    Frame,
    RawWebSocket,
    frame,
    request,
)
from tests.unit.runtime.websocket_world import MESSAGE_BYTES, TAG, Make, until, worlds


@pytest.fixture
async def make(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Make]:
    monkeypatch.setattr(server_module, "CHECK_S", 0.01)
    async with worlds() as make:
        yield make


# ---------------------------------------------------------------- messages


async def test_messages_both_ways_and_a_batch_of_what_is_ready(make: Make) -> None:
    world = await make()
    async with await world.open() as raw:
        peer = await world.peer_of(raw)
        world.authenticated.add(peer)
        raw.send(b"".join(frame(BINARY, b"%d" % number) for number in range(5)))
        await until(lambda: len(world.messages) == 6)
        assert world.batches[1:] == [[(peer, b"0")], [(peer, b"%d" % number) for number in range(1, 5)]]
        assert peer[0] == TAG
        for size in (0, 125, 126, 65_535, 65_536):
            assert world.server.send(peer, bytes(size)) is SendResult.OK
        assert [len((await raw.receive()).payload) for _ in range(5)] == [0, 125, 126, 65_535, 65_536]
    await until(lambda: world.gone == [peer])
    assert world.server.send(peer, b"late") is SendResult.GONE
    assert world.counted == {"gone": 1}


async def test_two_connections_never_have_the_same_id(make: Make) -> None:
    world = await make()
    peers = set()
    for _ in range(3):
        async with await world.open() as raw:
            peers.add(await world.peer_of(raw))
    assert len(peers) == 3


async def test_fragments_are_put_together_and_pings_are_answered_between_them(make: Make) -> None:
    world = await make()
    async with await world.open() as raw:
        raw.send(frame(BINARY, b"one ", fin=False) + frame(PING, b"?") + frame(CONTINUATION, b"two ", fin=False))
        raw.send(frame(CONTINUATION, b"three"))
        assert await raw.receive() == Frame(PONG, b"?")
        await until(lambda: world.messages)
        assert world.messages[0][1] == b"one two three"


async def test_the_last_messages_come_before_the_departure(make: Make) -> None:
    world = await make()
    order: list[str] = []
    world.server._on_batch = lambda batch: order.append("batch")
    world.server._on_gone = lambda peer: order.append("gone")
    async with await world.open() as raw:
        raw.send(frame(BINARY, b"last") + frame(CLOSE, b"\x03\xe8"))
        assert (await raw.receive()).code == 1000
        assert await raw.ended() == b""
    assert order == ["batch", "gone"]


# ---------------------------------------------------------------- the end


async def test_a_closed_peer_gets_its_last_frame_and_the_code(make: Make) -> None:
    world = await make()
    async with await world.open() as raw:
        peer = await world.peer_of(raw)
        world.server.send(peer, b"last")
        world.server.set_close(peer, 4_011, "replaced " + "x" * 200 + "é")
        world.server.close_peer(peer)
        assert world.server.send(peer, b"too late") is SendResult.GONE
        assert await raw.receive() == Frame(BINARY, b"last")
        close = await raw.receive()
        assert (close.code, close.payload[2:11], len(close.payload)) == (4_011, b"replaced ", 125)
        raw.message(b"not read any more")
        raw.send(frame(CLOSE, close.payload))
        assert await raw.ended() == b""
    assert [message for _, message in world.messages] == [b"who am I"]
    assert world.gone == [], "the owner knows"


async def test_a_closed_peer_that_does_not_answer_is_cut(make: Make) -> None:
    world = await make()
    async with await world.open() as raw:
        world.server.close_peer(await world.peer_of(raw))
        assert (await raw.receive()).code == 1000
        assert await raw.ended() == b""


async def test_at_the_end_every_peer_is_told(make: Make) -> None:
    world = await make()
    async with await world.open() as raw, await RawWebSocket.connect(world.url) as silent:
        await world.peer_of(raw)
        world.server.close(linger_ms=100)
        assert (await raw.receive()).code == 1001
        assert (await raw.ended(), await silent.ended()) == (b"", b"")
        await world.server.wait_closed()
    with pytest.raises(ConnectionRefusedError):
        await RawWebSocket.connect(world.url)


async def test_a_peer_that_does_not_read_gets_full_and_bounds_memory(make: Make) -> None:
    world = await make(write_bytes=50_000)
    async with await world.open() as raw:
        peer = await world.peer_of(raw)
        results = [world.server.send(peer, bytes(40_000)) for _ in range(1_000)]
        assert results[0] is SendResult.OK
        assert results[-1] is SendResult.FULL
        waiting = world.server._peers[peer]._transport.get_write_buffer_size()
        assert waiting <= 50_000
        assert world.counted == {"full": results.count(SendResult.FULL)}
        taken = results.count(SendResult.OK)
        for _ in range(taken):
            assert len((await raw.receive()).payload) == 40_000
        assert world.server.send(peer, b"room again") is SendResult.OK


async def test_a_peer_that_pings_and_does_not_read_is_cut(make: Make) -> None:
    world = await make(write_bytes=50_000, unauthenticated_frames=1 << 30)
    async with await world.open() as raw:
        raw.send(frame(PING, bytes(125)) * 200_000)
        await until(lambda: world.gone)
    assert world.counted == {"cut": 1}
    await world.expect_alive()


# ---------------------------------------------------------------- bad frames


@pytest.mark.parametrize(
    ("sent", "code", "counter"),
    [
        (frame(TEXT, b"hello"), 1003, "text"),
        (frame(TEXT, b"\xff"), 1003, "text"),
        (frame(BINARY, b"hello", masked=False), 1002, "malformed"),
        (frame(BINARY, b"hello", rsv=4), 1002, "malformed"),
        (frame(3, b"hello"), 1002, "malformed"),
        (frame(CONTINUATION, b"hello"), 1002, "malformed"),
        (frame(BINARY, b"a", fin=False) + frame(BINARY, b"b"), 1002, "malformed"),
        (frame(PING, bytes(126)), 1002, "malformed"),
        (frame(PING, b"", fin=False), 1002, "malformed"),
        (frame(CLOSE, b"\x03"), 1002, "malformed"),
        (frame(CLOSE, b"\x03\xe8\xff"), 1007, "malformed"),
        (frame(CLOSE, b"\x00\x01"), 1002, "malformed"),
        (frame(BINARY, bytes(MESSAGE_BYTES + 1)), 1009, "too_large"),
        (b"\x82\xff" + (1 << 62).to_bytes(8, "big"), 1009, "too_large"),
        (frame(BINARY, bytes(MESSAGE_BYTES), fin=False) + frame(CONTINUATION, b"x"), 1009, "too_large"),
    ],
)
async def test_a_bad_frame_is_answered_with_a_code_and_counted(
    make: Make, sent: bytes, code: int, counter: str
) -> None:
    world = await make(unauthenticated_frames=10_000)
    async with await world.open() as raw:
        peer = await world.peer_of(raw)
        raw.send(frame(BINARY, b"good") + sent + frame(BINARY, b"not read"))
        assert (await raw.receive()).code == code
        assert await raw.ended() == b""
    assert [message for _, message in world.messages[1:]] == [b"good"]
    assert world.gone == [peer]
    assert world.counted == {counter: 1}
    await world.expect_alive()


async def test_a_message_without_end_is_ended(make: Make) -> None:
    """Its fragments are empty, so that it never becomes too large."""
    world = await make(unauthenticated_frames=10_000)
    async with await world.open() as raw:
        raw.send(frame(BINARY, b"", fin=False) + frame(CONTINUATION, b"", fin=False) * 2_000)
        assert (await raw.receive()).code == 4009
        assert await raw.ended() == b""
    assert world.counted == {"cut": 1}


async def test_a_message_that_is_too_large_is_not_read(make: Make) -> None:
    """Its header is enough: the code comes while the client still sends."""
    world = await make()
    async with await world.open() as raw:
        raw.send(b"\x82\xff" + (64 << 20).to_bytes(8, "big") + bytes(4))
        for _ in range(100):
            raw.send(bytes(100_000))
        assert (await raw.receive()).code == 1009


# ---------------------------------------------------------------- handshakes


@pytest.mark.parametrize(
    ("sent", "status", "counter"),
    [
        (request("Origin: https://evil.example"), 403, "refused_origin"),
        (request("Origin: null"), 403, "refused_origin"),
        (request("Origin: https://chat.example.evil.example"), 403, "refused_origin"),
        (request("Origin: https://chat.example", "Origin: https://chat.example"), 400, "refused_request"),
        (request(protocol=None), 400, "refused_subprotocol"),
        (request(protocol="meshim.2, chat"), 400, "refused_subprotocol"),
        (request().replace(b"Upgrade: websocket\r\n", b""), 426, "refused_request"),
        (request().replace(b"GET", b"POST"), 405, "refused_request"),
        (request().replace(b"HTTP/1.1", b"HTTP/1.0"), 505, "refused_request"),
        (request().replace(b"Version: 13", b"Version: 8"), 426, "refused_request"),
        (request().replace(b"dGhlIHNhbXBsZSBub25jZQ==", b"short"), 400, "refused_request"),
        (request().replace(b"Host: x", b"no colon"), 400, "refused_request"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 426, "refused_request"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n", 400, "refused_request"),
        (bytes(200) + b"\n", 400, "refused_request"),
        (frame(BINARY, b"no handshake\n", masked=False), 400, "refused_request"),
        (b"GET /" + b"x" * 9_000 + b" HTTP/1.1\r\n", 414, "refused_request"),
        (request("X: " + "y" * 9_000), 431, "refused_request"),
        (request(*(f"X{number}: y" for number in range(200))), 431, "refused_request"),
        (request("X: " + "y" * (1 << 20)), 431, "refused_request"),
    ],
)
async def test_a_bad_handshake_is_answered_with_a_status_and_counted(
    make: Make, sent: bytes, status: int, counter: str
) -> None:
    world = await make()
    async with await RawWebSocket.connect(world.url) as raw:
        raw.send(sent)
        assert (await raw.answer()).status == status
        raw.send(frame(BINARY, b"not read"))
        await raw.ended()
    assert (world.messages, world.gone) == ([], [])
    assert world.counted == {counter: 1}
    await world.expect_alive()


async def test_many_headers_of_a_good_size_are_too_large_together(make: Make) -> None:
    world = await make()
    async with await RawWebSocket.connect(world.url) as raw:
        raw.send(request(*(f"X{number}: {'y' * 1_000}" for number in range(17))))
        assert (await raw.answer()).status == 431
    assert world.counted == {"refused_request": 1}


@pytest.mark.parametrize("origin", ["https://chat.example", None])
async def test_listed_pages_and_programs_may_connect(make: Make, origin: str | None) -> None:
    world = await make()
    async with await RawWebSocket.connect(world.url) as raw:
        raw.send(request(*([f"Origin: {origin}"] if origin else [])))
        assert (await raw.answer()).status == 101


async def test_a_star_lets_every_page_connect(make: Make) -> None:
    world = await make(origins=("*",))
    async with await RawWebSocket.connect(world.url) as raw:
        raw.send(request("Origin: https://any.example"))
        assert (await raw.answer()).status == 101


async def test_compression_is_not_negotiated_and_the_subprotocol_is(make: Make) -> None:
    world = await make()
    async with await RawWebSocket.connect(world.url) as raw:
        raw.send(
            request(
                "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits", protocol="chat, meshim.1",
                path="/any?path=1",
            )
        )  # fmt: skip
        answer = await raw.answer()
        assert answer.status == 101
        assert b"extensions" not in answer.head.lower()
        assert b"Sec-WebSocket-Protocol: meshim.1\r\n" in answer.head


async def test_a_slow_handshake_ends_in_time(make: Make) -> None:
    world = await make(handshake_s=0.3)
    async with await RawWebSocket.connect(world.url) as slow, await RawWebSocket.connect(world.url) as silent:
        for byte in request()[:20]:
            slow.send(bytes((byte,)))
            await asyncio.sleep(0.005)
        for raw in (slow, silent):
            assert (await raw.answer()).status == 408
            await raw.ended()
    assert world.counted == {"refused_late": 2}
    await world.expect_alive()


async def test_frames_with_the_handshake_are_read_after_it(make: Make) -> None:
    world = await make()
    async with await RawWebSocket.connect(world.url) as raw:
        raw.send(request() + frame(BINARY, b"early"))
        assert (await raw.answer()).status == 101
        await until(lambda: world.messages)
        assert world.messages[0][1] == b"early"


# ---------------------------------------------------------------- connections that are not authenticated


async def test_who_never_greets_is_closed_in_time_and_the_others_stay(make: Make) -> None:
    world = await make(unauthenticated_s=0.4, handshake_s=0.1)
    async with await world.open() as good, await world.open() as silent:
        world.authenticated.add(await world.peer_of(good))
        close = await silent.receive()
        assert (close.code, close.payload[2:]) == (4_003, b"no greeting came within 0.4 s")
        good.message(b"still here")
        await until(lambda: world.messages[-1][1] == b"still here")
    assert world.counted == {"cut": 1}


@pytest.mark.parametrize(
    "flood",
    [frame(BINARY, b"x") * 101, frame(PING) * 101, frame(BINARY, bytes(1_000)) * 51],
    ids=["frames", "pings", "bytes"],
)
async def test_who_sends_too_much_before_a_greeting_is_closed(make: Make, flood: bytes) -> None:
    world = await make()
    async with await world.open() as raw:
        raw.send(flood)
        frames: list[Frame] = []
        while not frames or frames[-1].opcode != CLOSE:
            frames.append(await raw.receive())
        assert frames[-1].code == 4_003
    assert len(world.messages) <= 100
    assert world.counted == {"cut": 1}


async def test_a_greeting_in_a_flood_counts(make: Make) -> None:
    world = await make()
    world.server._on_batch = lambda batch: world.authenticated.update(peer for peer, _ in batch)
    async with await world.open() as raw:
        raw.send(frame(BINARY, b"greeting") * 500)
        await until(lambda: world.authenticated)
        raw.send(frame(PING))
        assert (await raw.receive()).opcode == PONG
    assert world.counted == {}


@pytest.mark.parametrize("opens", [True, False])
async def test_newer_connections_take_the_room_of_the_oldest_that_never_greeted(make: Make, opens: bool) -> None:
    world = await make(unauthenticated=10)
    async with await world.open() as good:
        world.authenticated.add(await world.peer_of(good))
        strangers = []
        for _ in range(30):
            strangers.append(await (world.open() if opens else RawWebSocket.connect(world.url)))
            await until(lambda: world.server.statistics.accepted == 1 + len(strangers))
        if opens:
            assert (await strangers[0].receive()).code == 4_010
        assert await strangers[1].ended() == b"" or opens
        await until(lambda: len(world.server._connections) <= 11)
        good.message(b"still here")
        await until(lambda: world.messages[-1][1] == b"still here")
        for stranger in strangers:
            await stranger.close()
    assert world.counted == {"cut": 20}


async def test_the_total_is_bounded_while_those_that_are_authenticated_stay(make: Make) -> None:
    world = await make(connections=5)
    good = [await world.open() for _ in range(4)]
    world.authenticated.update([await world.peer_of(each) for each in good])
    strangers = [await world.open() for _ in range(4)]
    await until(lambda: world.server.statistics.cut == 3)
    for each in good:
        each.message(b"still here")
    await until(lambda: [message for _, message in world.messages].count(b"still here") == 4)
    for each in good + strangers:
        await each.close()


async def test_refused_connections_that_linger_make_room_first(make: Make) -> None:
    world = await make(connections=5, linger_s=60.0)
    refused = []
    for _ in range(4):
        refused.append(await RawWebSocket.connect(world.url))
        refused[-1].send(request(protocol=None))
        assert (await refused[-1].answer()).status == 400
    strangers = [await world.open() for _ in range(4)]
    assert world.counted == {"refused_subprotocol": 4}, "no stranger was cut"
    for each in refused + strangers:
        await each.close()


# ---------------------------------------------------------------- addresses and TLS


def test_an_address_that_cannot_be_bound_is_one_sentence() -> None:
    first = listen("ws://127.0.0.1:0")
    with first.socket, pytest.raises(UsageError, match="is in use: stop what listens there"):
        listen(first.url)
    with pytest.raises(UsageError, match="cannot be bound"):
        listen("ws://192.0.2.1:0")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    made = make_certificate(tmp_path_factory.mktemp("tls"))
    return str(made.certificate), str(made.key)


async def test_tls(make: Make, certificate: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", certificate[0])
    world = await make(bind="wss://127.0.0.1:0", files=certificate)
    got: list[bytes] = []
    connected = asyncio.Event()
    client = WebSocketClient(
        world.url, frame_bytes=100_000, on_batch=got.extend, on_connected=connected.set, on_lost=None
    )
    async with asyncio.timeout(DEADLINE_S):
        await connected.wait()
    assert client.send(b"hello")
    await until(lambda: world.messages)
    peer, message = world.messages[0]
    assert message == b"hello"
    world.server.send(peer, bytes(70_000))
    await until(lambda: got)
    assert got == [bytes(70_000)]
    client.close(100)
    await until(lambda: world.gone == [peer])


def test_files_of_tls_that_are_of_no_use_are_one_sentence(certificate: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.pem cannot be read: No such file or directory"):
        listen("wss://127.0.0.1:0", certificate[0], str(tmp_path / "none.pem"))
    with pytest.raises(UsageError, match="are no certificate and its key"):
        listen("wss://127.0.0.1:0", certificate[0], certificate[0])
    encrypted = tmp_path / "encrypted.pem"
    subprocess.run(
        ["openssl", "ec", "-in", certificate[1], "-out", str(encrypted), "-aes256", "-passout", "pass:secret"],
        check=True, capture_output=True,
    )  # fmt: skip
    with pytest.raises(UsageError, match="the key without a password"):
        listen("wss://127.0.0.1:0", certificate[0], str(encrypted))


# ---------------------------------------------------------------- the client


class Connected:
    """A WebSocketClient and what it reported."""

    def __init__(self, url: str, frame_bytes: int = 1_000) -> None:
        self.order: list[str] = []
        self.got: list[bytes] = []
        self.client = WebSocketClient(
            url, frame_bytes=frame_bytes, on_batch=self._on_batch,
            on_connected=lambda: self.order.append("connected"), on_lost=lambda: self.order.append("lost"),
        )  # fmt: skip

    def _on_batch(self, batch: list[bytes]) -> None:
        self.order.append("batch")
        self.got += batch


async def test_the_client_reports_its_end_once_after_the_last_batch(make: Make) -> None:
    world = await make()
    connected = Connected(world.url)
    assert not connected.client.send(b"too early")
    await until(lambda: connected.order == ["connected"])
    assert connected.client.send(b"hello")
    await until(lambda: world.messages)
    peer = world.messages[0][0]
    world.server.send(peer, b"last")
    world.server.close_peer(peer)
    await until(lambda: "lost" in connected.order)
    assert connected.order == ["connected", "batch", "lost"]
    assert connected.got == [b"last"]
    assert not connected.client.send(b"too late")
    connected.client.close()
    await until(lambda: not world.server._connections)
    assert world.counted == {}


async def test_the_client_reports_a_server_that_refuses_or_is_not_there(make: Make) -> None:
    world = await make(handshake_s=0.1)
    world.server.close()
    await world.server.wait_closed()
    nobody = Connected(world.url)
    await until(lambda: nobody.order)
    assert nobody.order == ["lost"]
    server = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0)
    async with server:
        refusing = Connected(f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}")
        await until(lambda: refusing.order)
    assert refusing.order == ["lost"]


async def test_the_client_does_not_trust_the_certificate_of_a_stranger(
    make: Make, certificate: tuple[str, str]
) -> None:
    world = await make(bind="wss://127.0.0.1:0", files=certificate)
    stranger = Connected(world.url)
    await until(lambda: stranger.order)
    assert stranger.order == ["lost"]
    assert ssl.create_default_context().verify_mode is ssl.CERT_REQUIRED


async def test_a_frame_over_the_limit_of_the_client_ends_its_connection(make: Make) -> None:
    world = await make()
    connected = Connected(world.url, frame_bytes=100)
    await until(lambda: connected.client.send(b"hello"))
    await until(lambda: world.messages)
    world.server.send(world.messages[0][0], bytes(101))
    await until(lambda: connected.order == ["connected", "lost"])
    connected.client.close()


async def test_a_closed_client_reports_nothing(make: Make) -> None:
    world = await make()
    early, late = Connected(world.url), Connected(world.url)
    early.client.close()
    await until(lambda: late.client.send(b"last words"))
    late.client.close(linger_ms=1_000)
    await until(lambda: world.gone)
    assert [message for _, message in world.messages] == [b"last words"]
    assert early.order == []
    assert late.order == ["connected"]
