"""The connector's WebSocket transport around a real core: codes, tags, limits, and both transports at once."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec
import pytest

from meshim.connector import events as e
from meshim.connector.core import ConnectorCore
from meshim.connector.websocket_transport import WEBSOCKET_TAG, WebSocketTransport, write_bytes
from meshim.errors import Code
from meshim.runtime.send_result import SendResult
from meshim.runtime.websocket import listen
from meshim.topology import Limits
from meshim.wire import client
from meshim.wire.link import Close, Ping
from tests.unit.connector.test_shell import World
from tests.unit.connector.world import HERE, options
from tests.unit.runtime.raw_websocket import BINARY, DEADLINE_S, RawWebSocket

LIMITS = Limits()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(DEADLINE_S):
        while not condition():
            await asyncio.sleep(0.001)


Serve = Callable[[World], Awaitable[WebSocketTransport]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    served: list[WebSocketTransport] = []

    async def make(world: World) -> WebSocketTransport:
        transport = WebSocketTransport(
            listen("ws://127.0.0.1:0"), origins=(), limits=LIMITS, is_authenticated=lambda peer: True,
            on_batch=world.shell.clients_sent, on_gone=world.shell.client_gone,
        )  # fmt: skip
        served.append(transport)
        world.shell.serve(transport)
        await transport.start()
        return transport

    yield make
    for transport in served:
        transport.close()
        async with asyncio.timeout(DEADLINE_S):
            await transport.wait_closed()


async def test_the_code_of_a_close_frame_is_the_code_of_the_connection(serve: Serve) -> None:
    world = World(core=ConnectorCore(HERE, "c1", 4, options(), lambda: 0))
    transport = await serve(world)
    async with await RawWebSocket.open(transport.endpoint) as raw:
        raw.message(b"garbage")
        last = await raw.receive()
        assert last.opcode == BINARY
        close = client.decode_from_connector(last.payload)
        assert isinstance(close, Close)
        ended = await raw.receive()
        assert (ended.code, ended.payload[2:].decode()) == (4000 + Code.MALFORMED, close.sentence)


@pytest.mark.parametrize("code", [*Code, 99])
async def test_every_code_has_its_own(serve: Serve, code: int) -> None:
    world = World()
    transport = await serve(world)
    async with await RawWebSocket.open(transport.endpoint) as raw:
        raw.message(b"hello")
        await until(lambda: world.core.events)
        [(peer, frame)] = world.core.events[0].batch
        assert (peer[0], frame) == (WEBSOCKET_TAG, b"hello")
        world.perform(e.SendClient(peer, client.encode(Close(7, code, "why"))), e.ClosePeer(peer))
        assert client.decode_from_connector((await raw.receive()).payload) == Close(7, code, "why")
        ended = await raw.receive()
        assert (ended.code, ended.payload[2:]) == (4000 + code, b"why")


async def test_a_peer_that_is_closed_without_a_close_frame_ends_normally(serve: Serve) -> None:
    world = World()
    transport = await serve(world)
    async with await RawWebSocket.open(transport.endpoint) as raw:
        raw.message(b"hello")
        await until(lambda: world.core.events)
        [(peer, _)] = world.core.events[0].batch
        world.perform(e.SendClient(peer, client.encode(Ping(7))), e.ClosePeer(peer))
        assert (await raw.receive()).opcode == BINARY
        assert (await raw.receive()).code == 1000


async def test_a_departure_reaches_the_core_at_once(serve: Serve) -> None:
    world = World()
    transport = await serve(world)
    async with await RawWebSocket.open(transport.endpoint) as raw:
        raw.message(b"hello")
        await until(lambda: world.core.events)
        [(peer, _)] = world.core.events[0].batch
    await until(lambda: len(world.core.events) == 2)
    assert world.core.events[1] == e.ClientGone(peer)
    assert transport.send(peer, client.encode(Ping(7))) is SendResult.GONE
    assert transport.statistics.gone == 1


async def test_a_window_of_the_largest_frames_has_room_and_no_more_than_that(serve: Serve) -> None:
    world = World()
    transport = await serve(world)
    largest = msgspec.msgpack.encode((3, 7, 1, 0, (), bytes(LIMITS.body_bytes)))
    async with await RawWebSocket.open(transport.endpoint) as raw:
        raw.message(b"hello")
        await until(lambda: world.core.events)
        [(peer, _)] = world.core.events[0].batch
        results = [transport.send(peer, largest) for _ in range(LIMITS.client_window)]
        assert results == [SendResult.OK] * LIMITS.client_window
        while transport.send(peer, largest) is SendResult.OK:
            results.append(SendResult.OK)
        assert len(results) < 10 * LIMITS.client_window, "what the system buffers, too"
    assert write_bytes(LIMITS) < 3 << 20
