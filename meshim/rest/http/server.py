"""uvicorn for peers that may be hostile: what one of them can hold is bounded in bytes and in time.

uvicorn bounds the number of connections.  It takes headers without end, waits without end for a request to arrive and
for an answer to be read, and refuses everybody once the connections of one peer are too many.
"""

import asyncio
import socket
from collections.abc import Generator
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from typing import Any, cast

import httptools
import msgspec
import uvicorn
from litestar import Litestar
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle
from uvicorn.protocols.utils import get_remote_addr

from meshim.rest import core
from meshim.rest.connectors import IS_GONE
from meshim.rest.http.client_address import TrustedProxies
from meshim.rest.http.connection_table import ConnectionTable
from meshim.rest.statistics import Statistics
from meshim.runtime.service import descriptors_for_connections
from meshim.runtime.websocket.admission import network_of
from meshim.wire.rest import PROBLEM_JSON

BACKLOG = 4096
"""A connection beyond is tried again by its client's system after 1 s.  The system may allow fewer (somaxconn)."""
_TCP_ESTABLISHED = 1
"""The first byte of struct tcp_info while neither end has closed (linux/tcp.h)."""
_LINGER_S = 2.0
"""So long a peer may take to read the end of an answer."""


class HttpLimits(msgspec.Struct, frozen=True):
    """What a peer may hold."""

    connections: int = 4096
    """Of all peers; for one more, the one that `ConnectionTable` names is cut."""
    overhead_bytes: int = 16 * 1024
    """Of a request, everything but its body: request line, headers, frames of chunks, trailers."""
    request_s: float = 10.0
    """From the first byte of a request, or from the beginning of the connection, until all of it has arrived."""
    keep_alive_s: int = 15
    """From an answer to the next request."""
    unread_s: float = 10.0
    """So long an answer may find no room because its reader does not read."""


def limits_of_process() -> HttpLimits:
    """Return the limits, with no more connections than there are descriptors for."""
    limits, descriptors = HttpLimits(), descriptors_for_connections()
    if descriptors is None or descriptors >= limits.connections:
        return limits
    return msgspec.structs.replace(limits, connections=descriptors)


class Connection(HttpToolsProtocol):
    """One connection of a client."""

    def __init__(
        self,
        limits: HttpLimits,
        table: "ConnectionTable[Connection]",
        proxies: TrustedProxies,
        statistics: Statistics,
        **uvicorn: Any,
    ) -> None:
        """`uvicorn` is what uvicorn gives each of its protocols."""
        super().__init__(**uvicorn)
        self._limits = limits
        self._proxies = proxies
        self._host = ""
        """The address of the peer."""
        self._table = table
        self._statistics = statistics
        self._overhead = 0
        self._arriving: asyncio.TimerHandle | None = None
        """Until a request has to be there."""
        self._reading: asyncio.TimerHandle | None = None
        """Until the peer has to have read."""
        self._unread = False
        """Whether an answer finds no room."""
        self._refused = False

    # ---------------------------------------------------------------- life

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        remote = get_remote_addr(transport)
        self._host = remote[0] if remote else ""
        address = network_of(self._host)
        if len(self._table) >= self._limits.connections:
            victim = self._table.to_cut_for(address)
            self._statistics.connections_cut += 1
            if victim is None:
                transport.abort()
                return
            victim.transport.abort()
            self._table.remove(victim)
        self._table.add(self, address)
        self._begin_arriving()

    def connection_lost(self, exc: Exception | None) -> None:
        self._table.remove(self)
        self._end_arriving()
        self._end_reading()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()

    def _begin_arriving(self) -> None:
        if self._arriving is None:
            self._arriving = self.loop.call_later(self._limits.request_s, self._late)

    def _end_arriving(self) -> None:
        if self._arriving is not None:
            self._arriving.cancel()
            self._arriving = None

    def _late(self) -> None:
        self._arriving = None
        self._statistics.requests_late += 1
        if self._overhead:
            self._refuse("too_slow", f"A request has to arrive within {self._limits.request_s:g} seconds.")
        else:  # nothing was asked
            self._close()

    # ---------------------------------------------------------------- what the peer sends

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        if self._refused or self.transport.is_closing():
            return
        self._overhead += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self.cycle.keep_alive = False  # it is answered as if it asked for no upgrade; what follows is not parsed
        except httptools.HttpParserError as error:
            if isinstance(error.__context__, _TooLarge):
                self._refuse_overhead()
            else:  # also when `on_headers_complete` cannot read the URL
                self._statistics.requests_malformed += 1
                self._refuse("malformed", "This is no HTTP request.")
        else:
            if self._overhead > self._limits.overhead_bytes:
                self._refuse_overhead()
            elif not self._asked:
                self._begin_arriving()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._begin_arriving()

    def on_headers_complete(self) -> None:
        size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
        if size > self._limits.overhead_bytes:
            raise _TooLarge
        forwarded = [value.decode("latin-1") for name, value in self.headers if name == b"x-forwarded-for"]
        if forwarded:
            self._table.move(self, network_of(self._proxies.client_of(self._host, forwarded)))
        super().on_headers_complete()
        # Not a method: a cycle with the scope would keep each connection that was cut until the garbage collector runs.
        self.scope[IS_GONE] = partial(_is_gone, self.transport)  # type: ignore[literal-required]  # of meshim alone

    def on_body(self, body: bytes) -> None:
        self._overhead -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._overhead = 0
        self._end_arriving()
        super().on_message_complete()
        self._place()

    @property
    def _asked(self) -> bool:
        """Whether a request, of which the headers are there, has not been answered."""
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is not None and not cycle.response_complete

    def _place(self) -> None:
        """Tell the table who waits for whom."""
        if self._asked and not self.cycle.more_body and not self._unread:
            self._table.works(self)
        else:
            self._table.waits(self)

    # ---------------------------------------------------------------- what the peer reads

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.transport.is_closing():
            self._begin_reading(_LINGER_S)
        self._place()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = True
        self._place()
        self._begin_reading(self._limits.unread_s)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._unread = False
        self._place()
        self._end_reading()

    def timeout_keep_alive_handler(self) -> None:
        self._close()

    def _begin_reading(self, within_s: float) -> None:
        self._end_reading()
        self._reading = self.loop.call_later(within_s, self.transport.abort)

    def _end_reading(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    # ---------------------------------------------------------------- the end

    def _refuse_overhead(self) -> None:
        self._statistics.requests_too_large += 1
        allowed = self._limits.overhead_bytes
        self._refuse("headers_too_large", f"Send at most {allowed:,} bytes of headers, and nothing but a body behind.")

    def _refuse(self, code: str, sentence: str) -> None:
        """Answer with a problem, unless an answer is under way, and close."""
        self._refused = True
        self._statistics.refuse(code)
        if not self._asked or not self.cycle.response_started:
            error = core.refusal(code, sentence)
            body = msgspec.json.encode(core.problem(error))
            head = f"HTTP/1.1 {error.status} {HTTPStatus(error.status).phrase}\r\ncontent-type: {PROBLEM_JSON}\r\n"
            self.transport.write(f"{head}content-length: {len(body)}\r\nconnection: close\r\n\r\n".encode() + body)
        self._close()

    def _close(self) -> None:
        self._end_arriving()
        self.transport.close()
        self._begin_reading(_LINGER_S)


class _TooLarge(Exception):
    """The headers of a request are larger than is allowed."""


class Server(uvicorn.Server):
    """uvicorn without its signal handlers: `Service` handles signals."""

    def __init__(
        self,
        app: Litestar,
        finish_s: float,
        statistics: Statistics,
        proxies: TrustedProxies,
        limits: HttpLimits | None = None,
    ) -> None:
        """`finish_s` is the time that requests under way have to end after `stop`."""
        limits = limits or limits_of_process()
        connection = partial(Connection, limits, ConnectionTable(), proxies, statistics)
        super().__init__(
            uvicorn.Config(
                app,
                http=cast("type[asyncio.Protocol]", connection),  # uvicorn calls it, and does nothing else with it
                ws="none",
                lifespan="off",
                log_config=None,
                log_level="warning",
                access_log=False,
                proxy_headers=False,  # `TrustedProxies` reads them, and /v1/import has to know the peer
                server_header=False,
                backlog=BACKLOG,
                timeout_keep_alive=limits.keep_alive_s,
                timeout_graceful_shutdown=max(1, round(finish_s)),
            )
        )
        self.up = asyncio.Event()
        self._down = asyncio.Event()

    async def startup(self, sockets: list[Any] | None = None) -> None:
        await super().startup(sockets)
        self.up.set()

    async def serve(self, sockets: list[Any] | None = None) -> None:
        try:
            await super().serve(sockets)
        finally:
            self._down.set()

    async def stop(self) -> None:
        """Take no more connections, finish the requests under way, and return."""
        self.should_exit = True
        await self._down.wait()

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


def _is_gone(transport: asyncio.Transport) -> bool:
    """Whether the peer has closed the connection: the system knows it before the loop has read that far."""
    if transport.is_closing():
        return True
    connection = socket.socket(fileno=transport.get_extra_info("socket").fileno())
    try:
        return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != _TCP_ESTABLISHED
    except OSError:
        return True
    finally:
        connection.detach()  # it belongs to the transport
