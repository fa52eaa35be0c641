"""Whatever comes as HTTP, in whatever pieces: an answer, a problem, or the connection waits for more."""

import asyncio
from typing import Any, cast

import pytest
import uvicorn
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from uvicorn.server import ServerState

from meshim.rest.connection_table import ConnectionTable
from meshim.rest.http_server import Connection, HttpLimits
from meshim.rest.statistics import Statistics

LIMITS = HttpLimits(overhead_bytes=4_096)


class Wire(asyncio.Transport):
    """The transport of one connection: it keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closed = False

    def write(self, data: Any) -> None:
        self.written += bytes(data)

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True

    abort = close

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"peername": ("127.0.0.1", 1), "sockname": ("127.0.0.1", 2)}.get(name, default)

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...
    def pause_reading(self) -> None: ...
    def resume_reading(self) -> None: ...


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Reads the body, and answers."""
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
    await send({"type": "http.response.body", "body": b""})


async def answered(pieces: list[bytes]) -> tuple[bytes, bool]:
    """What is written for these pieces, and whether the connection was closed."""
    loop = asyncio.get_running_loop()
    failures: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: failures.append(context))
    table: ConnectionTable[Connection] = ConnectionTable()
    config = uvicorn.Config(cast("Any", application), log_config=None, access_log=False, lifespan="off", ws="none")
    statistics, wire = Statistics(), Wire()
    connection = Connection(
        LIMITS, table, statistics, config=config, server_state=ServerState(), app_state={}, _loop=loop
    )
    connection.connection_made(wire)
    for piece in pieces:
        connection.data_received(piece)
        for _ in range(4):
            await asyncio.sleep(0)
    connection.connection_lost(None)
    await asyncio.sleep(0)
    assert not failures, failures
    assert len(table) == 0
    return wire.written, wire.closed


words = st.sampled_from(
    [
        b"GET / HTTP/1.1\r\n", b"POST /v1/users?x HTTP/1.1\r\n", b"host: x\r\n", b"content-length: 3\r\n",
        b"content-length: -1\r\n", b"transfer-encoding: chunked\r\n", b"connection: upgrade\r\nupgrade: websocket\r\n",
        b"connection: close\r\n", b"expect: 100-continue\r\n", b"\r\n", b"abc", b"3\r\nabc\r\n", b"0\r\n\r\n", b"\n",
        b"\0", b"a: " + b"x" * 3_000 + b"\r\n", b"GET http://[ HTTP/1.1\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\xff\xfe",
    ]
)  # fmt: skip


@pytest.fixture
def loop() -> Any:
    with asyncio.Runner() as running:
        yield running


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(words | st.binary(max_size=40), min_size=1, max_size=12))
@example([b"GET / HTTP/1.1\r\nhost: x\r\ncontent-length: " + b"9" * 5_000 + b"\r\n\r\n"])
@example([b"POST / HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n", b"f" * 17 + b"\r\n"])
def test_of_pieces(loop: "asyncio.Runner", pieces: list[bytes]) -> None:
    written, closed = loop.run(answered(pieces))
    for answer in written.split(b"HTTP/1.1 ")[1:]:
        status = int(answer[:3])
        assert status in (100, 200) or (400 <= status < 500 and closed and b"application/problem+json" in answer)
