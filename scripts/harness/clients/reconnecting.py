"""Thousands of devices in one process that stay connected as the client library does: with its own connection loop.

They have no state file, no outbox and no HTTP client: they send no messages, and ask REST on a socket of their own.
"""

import asyncio
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple
from urllib.parse import urlsplit

import msgspec

from meshim.client import events as e
from meshim.client.connection import Connection
from meshim.client.session import CONNECTORS_TIMEOUT_S, AskSchedule
from meshim.errors import Code
from meshim.protocol.timeouts import GREET_TIMEOUT_S
from meshim.runtime.crypto import format_token
from meshim.wire import client as wire
from meshim.wire.client import Greet, Welcome
from meshim.wire.envelope import WIRE_VERSION
from meshim.wire.link import Ack, Close, Data, Ping, Pong, Reset
from meshim.wire.rest import Connector, Connectors
from scripts.harness.clients.connections import Transport
from scripts.harness.mesh.seed_database import SeededUser

WINDOW = 32

_decode_connectors = msgspec.json.Decoder(Connectors).decode


class Service(NamedTuple):
    """The REST service, and what its answers were, by their status."""

    api: str
    answers: Counter[str]


class Answer(NamedTuple):
    """The connectors; or None, and the Retry-After (0 without one)."""

    connectors: Sequence[Connector] | None
    retry_after_s: float = 0.0


async def ask(service: Service, user: SeededUser, patience_s: float) -> Answer:
    """Ask for connectors on a connection of its own.  Raises OSError and TimeoutError."""
    at = urlsplit(service.api)
    service.answers["asked"] += 1
    try:
        async with asyncio.timeout(patience_s):
            reader, writer = await asyncio.open_connection(at.hostname, at.port)
            try:
                writer.write(
                    f"GET /v1/connectors HTTP/1.1\r\nhost: {at.netloc}\r\nconnection: close\r\n"
                    f"authorization: Bearer {format_token(user.token)}\r\n\r\n".encode()
                )
                head, _, body = (await reader.read(-1)).partition(b"\r\n\r\n")
            finally:
                writer.transport.abort()
    except (OSError, TimeoutError) as error:
        service.answers[type(error).__name__] += 1
        raise
    first, *headers = head.decode().lower().split("\r\n")
    status = first.split(" ")[1] if first else "nothing"
    service.answers[status] += 1
    if status == "200":
        return Answer(_decode_connectors(body).connectors)
    told = [value for name, _, value in (header.partition(": ") for header in headers) if name == "retry-after"]
    return Answer(None, float(told[0]) if told else 0.0)


class ReconnectingClient:
    """One device.  `welcomed_at` is the time of the loop when a connector has welcomed it; None while none has."""

    def __init__(
        self, service: Service, user: SeededUser, known: Sequence[Connector], transport: Transport, ends: Counter[str]
    ) -> None:
        """`ends` counts why attempts and connections have ended."""
        self.user = user
        self.welcomed_at: float | None = None
        self._service = service
        self._known = known
        self._ends = ends
        self._loop = asyncio.get_running_loop()
        self._asks = AskSchedule()
        self._link = self._number = 0
        self._greeting: asyncio.TimerHandle | None = None
        self._connection = Connection(self, self._connectors, self._token, transport)
        self._task = self._loop.create_task(self._connection.run())

    @property
    def online(self) -> asyncio.Event:
        """Set while a connector has welcomed it."""
        return self._connection.online

    async def close(self) -> None:
        """Leave."""
        self._task.cancel()
        await asyncio.wait([self._task])
        self._connection.close()

    # ---------------------------------------------------------------- what the connection asks for

    async def _token(self, refused: bytes | None) -> bytes:
        assert refused is None, "the tokens of these users do not end"
        return self.user.token

    async def _connectors(self, fresh: bool) -> Sequence[Connector]:
        """As `meshim.client.session.Session.connectors`."""
        while fresh:
            await asyncio.sleep(self._asks.wait_s(self._loop.time()))
            try:
                answer = await ask(self._service, self.user, CONNECTORS_TIMEOUT_S)
            except (OSError, TimeoutError):
                answer = Answer(None)
            if answer.connectors is None:
                self._asks.failed(self._loop.time(), answer.retry_after_s)
            else:
                self._asks.answered()
                self._known = answer.connectors or self._known
                break
        return self._known

    # ---------------------------------------------------------------- what happens on it

    def receive(self, event: e.Event) -> None:
        """Do what the core of the client library does, for a device that sends nothing."""
        if isinstance(event, e.FramesReceived):
            for frame in event.batch:
                self._take(wire.decode_from_connector(frame))
        elif isinstance(event, e.Connected):
            self._link, self._number = event.link, 0
            self._send(Greet(WIRE_VERSION, event.token, self.user.epoch, self._link, WINDOW))
            self._greeting = self._loop.call_later(GREET_TIMEOUT_S, self._end, None, "the greeting was not answered")
        elif isinstance(event, e.ConnectionLost):
            self._end(None, "the connection was lost")

    def _take(self, frame: wire.ConnectorFrame) -> None:
        if isinstance(frame, Welcome):
            self._greeted()
            self.welcomed_at = self._loop.time()
            self._connection.welcomed()
        elif isinstance(frame, Ping):
            self._send(Pong(self._link))
        elif isinstance(frame, Data):
            self._number = frame.number
            self._send(Ack(self._link, self._number))
        elif isinstance(frame, Close):
            self._end(Code(frame.code), f"the connector says {Code(frame.code).name}", frame.wait_ms / 1000)
        elif isinstance(frame, Reset):
            self._end(Code.UNKNOWN_EPOCH, "the connector says Reset")

    def _send(self, frame: wire.ClientFrame) -> None:
        self._connection.send(wire.encode(frame))

    def _greeted(self) -> None:
        if self._greeting is not None:
            self._greeting.cancel()
            self._greeting = None

    def _end(self, code: Code | None, why: str, wait_s: float = 0.0) -> None:
        self._greeted()
        self.welcomed_at = None
        self._ends[why] += 1
        self._connection.ended(e.Disconnect(code, why, wait_s))
