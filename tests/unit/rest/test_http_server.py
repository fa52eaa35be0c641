"""Bytes that are hostile, or come slowly, or not at all, on a real socket."""

import asyncio
import json
import resource
import socket
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest
from litestar import Litestar

from meshim.rest.http_server import HttpLimits, Server, limits_of_process
from meshim.rest.statistics import Statistics

LIMITS = HttpLimits(connections=8, overhead_bytes=4096, request_s=0.3, keep_alive_s=1, unread_s=0.3)
SOON_S = 5.0
GET = b"GET / HTTP/1.1\r\nhost: x\r\n"
POST = b"POST / HTTP/1.1\r\nhost: x\r\n"


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Answers with as many bytes as the query says, or with the length of the body."""
    length, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            return
        length, more = length + len(message["body"]), message["more_body"]
    body = bytes(int(scope["query_string"])) if scope["query_string"] else b"%d" % length
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


class World:
    def __init__(self, server: Server, statistics: Statistics, port: int) -> None:
        self.server = server
        self.statistics = statistics
        self.port = port

    async def connect(self, host: str = "127.0.0.1") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port, local_addr=(host, 0))

    async def ask(self, data: bytes) -> tuple[int, bytes]:
        """Send bytes; return the status of the answer, 0 if there is none, and its body, once the server closes."""
        reader, writer = await self.connect()
        writer.write(data)
        head, _, body = (await asyncio.wait_for(reader.read(), SOON_S)).partition(b"\r\n\r\n")
        writer.close()
        return int(head.split()[1]) if head else 0, body

    async def code(self, data: bytes) -> tuple[int, str]:
        status, body = await self.ask(data)
        return status, json.loads(body)["code"]


@pytest.fixture
async def world() -> AsyncIterator[World]:
    statistics = Statistics()
    with socket.create_server(("127.0.0.1", 0)) as bound:
        server = Server(cast(Litestar, application), 0.5, statistics, LIMITS)  # noqa: TC006
        serving = asyncio.create_task(server.serve([bound]))
        await server.up.wait()
        yield World(server, statistics, bound.getsockname()[1])
        await server.stop()
        await serving


async def test_an_honest_request_is_answered_and_so_is_the_next_one(world: World) -> None:
    reader, writer = await world.connect()
    for length in (0, 3, 200_000):
        writer.write(POST + b"content-length: %d\r\n\r\n" % length + bytes(length))
        answer = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), SOON_S)
        assert answer.startswith(b"HTTP/1.1 200")
        assert await reader.readexactly(len(b"%d" % length)) == b"%d" % length
    writer.close()


@pytest.mark.parametrize(
    "data",
    [
        GET + b"a: " + b"x" * 5000,
        GET + b"a: " + b"x" * 5000 + b"\r\n\r\n",
        GET + b"a: b\r\n" * 1000,
        b"GET /" + b"x" * 5000 + b" HTTP/1.1\r\n\r\n",
        POST + b"transfer-encoding: chunked\r\n\r\n0\r\na: " + b"x" * 5000,
        POST + b"transfer-encoding: chunked\r\n\r\n" + b"1;" + b"x" * 5000,
        POST + b"transfer-encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 2000,
    ],
    ids=["a header", "a header that ends", "headers", "the url", "a trailer", "a chunk's extension", "tiny chunks"],
)
async def test_what_is_beside_the_body_is_bounded(world: World, data: bytes) -> None:
    assert await world.code(data) == (431, "headers_too_large")
    assert world.statistics.requests_too_large == 1


@pytest.mark.parametrize(
    "data",
    [b"\0\1\2\r\n\r\n", b"GET http://[ HTTP/1.1\r\n\r\n", b"GET /\xff HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\0\1"],
    ids=["no HTTP", "no URL", "no ASCII", "TLS"],
)
async def test_what_is_no_request_is_refused_with_a_problem(world: World, data: bytes) -> None:
    assert await world.code(data) == (400, "malformed")
    assert world.statistics.requests_malformed == 1


@pytest.mark.parametrize(
    "data",
    [b"GET / HT", GET, POST + b"content-length: 5\r\n\r\nx", POST + b"transfer-encoding: chunked\r\n\r\n"],
    ids=["request line", "headers", "body", "chunks"],
)
async def test_a_request_has_to_arrive_in_time(world: World, data: bytes) -> None:
    assert await world.code(data) == (408, "too_slow")


async def test_a_request_that_comes_byte_by_byte_gets_no_more_time(world: World) -> None:
    reader, writer = await world.connect()
    answer = asyncio.create_task(reader.readline())
    writer.write(GET)
    async with asyncio.timeout(SOON_S):
        while not answer.done():
            writer.write(b"a")
            await asyncio.sleep(0.02)
    assert (await answer).startswith(b"HTTP/1.1 408")
    writer.close()


@pytest.mark.parametrize("data", [b"", GET + b"\r\n", GET + b"\r\n\r\n\r\n"], ids=["nothing", "one", "line ends"])
async def test_a_connection_without_a_request_is_closed(world: World, data: bytes) -> None:
    await world.ask(data)
    assert len(world.server.server_state.connections) == 0


async def test_a_request_for_an_upgrade_is_answered_without_one(world: World) -> None:
    assert (await world.ask(GET + b"connection: upgrade\r\nupgrade: websocket\r\n\r\n"))[0] == 200


async def test_an_answer_that_is_not_read_ends_the_connection(world: World) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", world.port, limit=1)
    writer.write(b"GET /?50000000 HTTP/1.1\r\nhost: x\r\n\r\n")
    async with asyncio.timeout(SOON_S):
        while not world.server.server_state.connections:
            await asyncio.sleep(0.01)
        while world.server.server_state.connections or world.server.server_state.tasks:
            await asyncio.sleep(0.01)
    writer.close()
    del reader


async def test_h06_an_answer_that_is_read_byte_by_byte_ends_the_connection(world: World) -> None:
    loop = asyncio.get_running_loop()
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        slow.setblocking(False)
        await loop.sock_connect(slow, ("127.0.0.1", world.port))
        await loop.sock_sendall(slow, b"GET /?50000000 HTTP/1.1\r\nhost: x\r\n\r\n")
        async with asyncio.timeout(SOON_S):
            assert await loop.sock_recv(slow, 1) == b"H"
            while world.server.server_state.connections or world.server.server_state.tasks:
                await loop.sock_recv(slow, 1)
                await asyncio.sleep(0.02)


async def test_an_address_with_all_connections_keeps_no_other_one_out(world: World) -> None:
    held = [await world.connect() for _ in range(3 * LIMITS.connections)]
    reader, writer = await world.connect("127.0.0.2")
    writer.write(GET + b"\r\n")
    assert (await asyncio.wait_for(reader.readline(), SOON_S)).startswith(b"HTTP/1.1 200")
    later = [await world.connect() for _ in range(3 * LIMITS.connections)]
    writer.write(GET + b"\r\n")
    async with asyncio.timeout(SOON_S):
        while not (await reader.readline()).startswith(b"0HTTP/1.1 200"):
            assert not reader.at_eof(), "others cut it"
    assert world.statistics.connections_cut >= 5 * LIMITS.connections
    for _, each in held + later + [(reader, writer)]:
        each.close()


def test_there_are_no_more_connections_than_descriptors_for_them() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1_000, hard))
    try:
        few = limits_of_process()
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(1_000, min(hard, 5_120)), hard))
        many = limits_of_process()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert few == HttpLimits(connections=800)
    assert many.connections == min(HttpLimits().connections, max(800, hard * 4 // 5))
