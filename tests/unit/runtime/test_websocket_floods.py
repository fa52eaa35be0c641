"""Strangers who connect to the WebSocket server again and again, and what one of them may send."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from meshim.errors import Code
from meshim.protocol.token_bucket import UNNUMBERED_BURST
from meshim.runtime.websocket import server as server_module
from tests.unit.runtime.raw_websocket import BINARY, CLOSE, CONTINUATION, PING, PONG, RawWebSocket, frame, request
from tests.unit.runtime.websocket_world import MESSAGE_BYTES, Make, until, worlds

NEVER = 1e-9
"""Handshakes a second: none within a test."""


@pytest.fixture
async def make(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Make]:
    monkeypatch.setattr(server_module, "CHECK_S", 0.01)
    async with worlds() as make:
        yield make


async def ask(url: str, host: str | None = None) -> RawWebSocket:
    """Connect, and send the request of a handshake with a message behind it."""
    raw = await RawWebSocket.connect(url, host)
    raw.send(request() + frame(BINARY, b"hello"))
    return raw


async def close_all(*connections: RawWebSocket) -> None:
    for each in connections:
        await each.close()


async def test_handshakes_beyond_the_rate_wait_unread_and_are_served_in_time(make: Make) -> None:
    world = await make(handshakes=20, handshakes_at_once=2)
    loop = asyncio.get_running_loop()
    began = loop.time()
    raws = [await ask(world.url) for _ in range(8)]
    served = [(await raw.answer()).status for raw in raws]
    took_s = loop.time() - began
    assert served == [101] * 8
    assert took_s > 0.25, "6 waited for their tokens, 0.05 s each"
    await until(lambda: len(world.messages) == 8)
    assert world.counted == {"delayed": 6}
    await close_all(*raws)


async def test_what_waits_is_not_read(make: Make) -> None:
    world = await make(handshakes=NEVER, handshakes_at_once=1)
    first, second = await ask(world.url), await ask(world.url)
    assert (await first.answer()).status == 101
    for _ in range(100):
        second.send(bytes(10_000))
    await until(lambda: world.messages)
    waiting = next(each for each in world.server._connections if each.is_waiting)
    await until(lambda: waiting._held)
    assert len(waiting._held) <= 16_385
    assert len(world.messages) == 1
    await close_all(first, second)


async def test_who_has_waited_too_long_is_told(make: Make) -> None:
    world = await make(handshakes=NEVER, handshakes_at_once=1, handshake_s=0.2)
    first, second = await ask(world.url), await ask(world.url)
    assert (await first.answer()).status == 101
    assert (await second.answer()).status == 408
    assert world.counted == {"delayed": 1, "refused_late": 1}
    await close_all(first, second)


async def test_a_flood_takes_the_room_of_its_own_address(make: Make) -> None:
    """Those that wait from there go first: neither other addresses, nor who has been served."""
    world = await make(handshakes=NEVER, handshakes_at_once=1, waiting=3)
    served = await ask(world.url)
    assert (await served.answer()).status == 101
    other = await ask(world.url, "127.0.0.2")
    flood = []
    for _ in range(10):
        flood.append(await ask(world.url))
        await until(lambda: world.server.statistics.accepted == 2 + len(flood))
    for each in flood[:8]:
        assert await each.ended() == b""
    await until(lambda: len(world.server._connections) == 4)
    hosts = sorted(each.host for each in world.server._connections)
    assert hosts == ["127.0.0.1", "127.0.0.1", "127.0.0.1", "127.0.0.2"]
    assert world.counted == {"delayed": 11, "cut": 8}
    await close_all(served, other, *flood)


async def test_another_address_finds_room_where_a_flood_has_filled_it(make: Make) -> None:
    world = await make(handshakes=NEVER, handshakes_at_once=1, waiting=3)
    flood = [await ask(world.url) for _ in range(6)]
    await until(lambda: world.server.statistics.accepted == 6)
    other = await ask(world.url, "127.0.0.2")
    await until(lambda: world.server.statistics.accepted == 7)
    hosts = sorted(each.host for each in world.server._connections if each.is_waiting)
    assert hosts == ["127.0.0.1", "127.0.0.1", "127.0.0.2"]
    await close_all(other, *flood)


async def test_those_that_are_served_in_time_stay_within_their_limit(make: Make) -> None:
    world = await make(handshakes=100, handshakes_at_once=1, unauthenticated=3)
    raws = [await ask(world.url) for _ in range(8)]
    await until(lambda: world.server.statistics.opened == 8)
    assert world.counted == {"delayed": 7, "cut": 5}
    assert len(world.server._strangers) == 3
    await close_all(*raws)


async def test_the_total_is_bounded_also_by_those_that_wait(make: Make) -> None:
    world = await make(handshakes=NEVER, handshakes_at_once=1, connections=4)
    raws = [await ask(world.url) for _ in range(8)]
    await until(lambda: world.server.statistics.accepted == 8)
    await until(lambda: len(world.server._connections) == 4)
    assert (await raws[0].answer()).status == 101, "what waits goes first"
    assert world.counted == {"delayed": 7, "cut": 4}
    await close_all(*raws)


async def test_another_address_is_served_between_those_of_a_flood(make: Make) -> None:
    world = await make(handshakes=100, handshakes_at_once=1)
    flood = [await ask(world.url) for _ in range(30)]
    await until(lambda: world.server.statistics.accepted == 30)
    async with await ask(world.url, "127.0.0.2") as other:
        assert (await other.answer()).status == 101
        assert world.server.statistics.opened < 25, "it did not wait for all of them"
    await close_all(*flood)


async def test_who_leaves_while_it_waits_is_forgotten(make: Make) -> None:
    world = await make(handshakes=NEVER, handshakes_at_once=1)
    first = await ask(world.url)
    silent = await RawWebSocket.connect(world.url)
    await until(lambda: len(world.server._admission) == 1)
    await close_all(first, silent)
    await until(lambda: not world.server._connections)
    assert len(world.server._admission) == 0


# ---------------------------------------------------------------- what one of them may send


async def test_a_stranger_sends_no_large_message(make: Make) -> None:
    world = await make(unauthenticated_bytes=500)
    async with await world.open() as raw:
        raw.send(frame(BINARY, bytes(501)))
        assert (await raw.receive()).code == 1009
    async with await world.open() as raw:
        world.authenticated.add(await world.peer_of(raw))
        raw.message(b"now it is known")
        await until(lambda: len(world.messages) == 2)
        raw.message(bytes(MESSAGE_BYTES))
        await until(lambda: len(world.messages) == 3)
    assert world.counted == {"too_large": 1}


async def test_who_greets_may_send_large_messages_at_once(make: Make) -> None:
    """The server asks as soon as the greeting was taken, not when the next message comes."""
    world = await make(unauthenticated_bytes=500)
    world.server._on_batch = lambda batch: (world.batches.append(batch), world.authenticated.add(batch[0][0]))
    async with await world.open() as raw:
        await world.peer_of(raw)
        raw.message(bytes(MESSAGE_BYTES))
        await until(lambda: len(world.messages) == 2)
    assert world.counted == {}


async def test_only_the_first_bad_message_of_a_connection_is_looked_at(make: Make) -> None:
    world = await make()
    world.server._on_batch = lambda batch: (
        world.batches.append(batch), [world.server.close_peer(peer) for peer, _ in batch]
    )  # fmt: skip
    async with await RawWebSocket.connect(world.url) as raw:
        raw.send(request() + frame(BINARY, b"garbage") * 20)
        assert (await raw.answer()).status == 101
        assert (await raw.receive()).opcode == CLOSE
    assert [message for _, message in world.messages] == [b"garbage"]


async def test_pings_without_end_end_the_connection(make: Make) -> None:
    world = await make()
    async with await world.open() as raw:
        world.authenticated.add(await world.peer_of(raw))
        raw.send(frame(PING, b"?") * int(UNNUMBERED_BURST))
        for _ in range(int(UNNUMBERED_BURST)):
            assert (await raw.receive()).opcode == PONG
        raw.send(frame(PING, b"?") * 200)
        while (received := await raw.receive()).opcode == PONG:
            pass
        assert received.code == 4000 + Code.WINDOW_EXCEEDED
    assert world.counted == {"cut": 1}


async def test_small_fragments_without_end_end_the_connection(make: Make) -> None:
    """Of one message or of many.  What is not small is bounded in bytes, and the last of a message by its message."""
    world = await make(message_bytes=4_000)
    small = frame(BINARY, b"x", fin=False) + frame(CONTINUATION, b"y")
    large = frame(BINARY, bytes(server_module.FRAGMENT_BYTES), fin=False) + frame(CONTINUATION, b"y")
    async with await world.open() as raw:
        world.authenticated.add(await world.peer_of(raw))
        burst = int(UNNUMBERED_BURST)
        raw.send(large * 2 * burst + small * burst)
        await until(lambda: len(world.messages) == 1 + 3 * burst)
        raw.send(small * 200)
        assert (await raw.receive()).code == 4000 + Code.WINDOW_EXCEEDED
    assert world.counted == {"cut": 1}
