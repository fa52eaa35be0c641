"""One connection to NATS that reconnects for ever, and fails what is under way the moment it is lost.

nats-py keeps what is published while the connection is down, and sends it when it is up again,
perhaps minutes after the caller was told that it failed.  Here nothing is sent late: publishing
without a connection raises, and what a lost connection had not sent is thrown away.

Questions are asked through one inbox of the client's own, with a timer each and no task,
because nats-py's `request` does not notice that the connection was lost.  Its `flush` is not
used: its read loop ends when an answer comes for a waiter that has gone.
"""

import asyncio
import socket
import ssl
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Self
from urllib.parse import unquote, urlsplit

import msgspec
import nats.errors
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from meshim.errors import BackendUnavailable, UsageError, one_line
from meshim.runtime.log import Log

_UNSENT_BYTES_MOST = 64 << 20
"""What may wait to be written to the socket; more is refused."""
_RECONNECT_WAIT_S = 0.25
_PING_S = 1
_SILENT_PINGS = 2
_CLOSE_S = 2.0
_UNSENT_MS = 3000
_NO_RESPONDERS = "503"


class NatsStatistics(msgspec.Struct):
    """Counters of one client since its start."""

    reconnects: int = 0
    errors: int = 0
    """Errors that nats-py reported about the connection, without `dropped`."""
    dropped: int = 0
    """Times a subscription was full and nats-py dropped a message of it."""


class NatsClient:
    """A connection, made by `connect`."""

    def __init__(self, place: str, log: Log) -> None:
        self.statistics = NatsStatistics()
        self._address = place
        self._log = log
        self._nats = Client()
        self._waiting: set[asyncio.Future[Any]] = set()
        self._asked: dict[str, asyncio.Future[Msg]] = {}
        self._asked_last = 0
        self._inbox = ""
        self._replayed = False
        self._closing = False
        self._closed_by_server = asyncio.Event()
        self._told: set[str] = set()
        self._last_error: Exception | None = None
        self._connecting: asyncio.Timeout | None = None

    @classmethod
    async def connect(cls, url: str, log: Log, *, name: str = "meshim", timeout_s: float = 5.0) -> Self:
        """Connect, with user and password or a token from the URL.

        Raises `UsageError` for a wrong URL and `BackendUnavailable` when it did not work within `timeout_s`.
        """
        try:
            parts = urlsplit(url)
            place = f"{parts.hostname}:{parts.port or 4222}"
        except ValueError as error:
            raise UsageError(f"backends.nats is not a NATS URL: {error}.") from error
        if parts.scheme not in ("nats", "tls") or not parts.hostname:
            raise UsageError("backends.nats is not a NATS URL: write nats://user:password@host:4222.")
        user = unquote(parts.username) if parts.username is not None else None
        password = unquote(parts.password) if parts.password is not None else None
        client = cls(place, log)
        await client._connect(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}", user, password, name, timeout_s)
        return client

    async def _connect(self, address: str, user: str | None, password: str | None, name: str, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s) as self._connecting:
                await self._nats.connect(
                    [address],
                    name=name,
                    user=user if password is not None else None,
                    password=password,
                    token=user if password is None else None,
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=_RECONNECT_WAIT_S,  # type: ignore[arg-type]  # it goes to asyncio.sleep
                    ping_interval=_PING_S,
                    max_outstanding_pings=_SILENT_PINGS,
                    # Never reached: nats-py would wait for room then, and swallow a cancellation.
                    pending_size=2 * _UNSENT_BYTES_MOST,
                    error_cb=self._on_error,
                    disconnected_cb=self._on_disconnected,
                    reconnected_cb=self._on_reconnected,
                    closed_cb=self._on_closed,
                )
        except (TimeoutError, OSError, nats.errors.Error) as error:
            await self.close()
            cause = self._last_error or error
            reason = _reason(cause)
            unreachable = isinstance(cause, OSError | TimeoutError | nats.errors.NoServersError)
            if unreachable and not isinstance(cause, ssl.SSLError):
                raise BackendUnavailable(
                    f"NATS at {self._address} does not answer: start it, or correct `backends.nats` ({reason})."
                ) from error
            raise BackendUnavailable(f"NATS at {self._address} did not let us in: {reason}.") from error
        self._connecting = None
        self._replayed = True
        self._limit_unsent_data()
        inbox = self.new_inbox()
        self._inbox = f"{inbox}."
        await self.subscribe(f"{inbox}.*", self._on_answer)

    @property
    def connected(self) -> bool:
        """Whether the server lets us in and has every subscription: what is published from now on is heard here.

        nats-py calls itself connected before it has sent the subscriptions again, let alone the server processed them.
        """
        return self._replayed and self._nats.is_connected

    @property
    def server(self) -> str:
        """Which run of which server the connection is, or was last, to: each start of a server has another id."""
        return str(self._nats._server_info.get("server_id", ""))  # there is no public way to it

    async def lost(self) -> None:
        """Return when the server has closed the connection for good (it no longer lets us in).

        There is no way back from that: the process has to be started again.
        """
        await self._closed_by_server.wait()

    async def publish(self, subject: str, data: bytes, *, reply: str = "") -> None:
        """Send a message that nobody confirms.  Raises `BackendUnavailable` when there is no connection."""
        await self._send(subject, data, reply, None)

    async def ask(self, subject: str, data: bytes, timeout_s: float, *, headers: dict[str, str] | None = None) -> Msg:
        """Send a message and return the answer.

        Raises `BackendUnavailable` when there is no connection, it is lost meanwhile, nobody listens to the
        subject, or no answer has come in time.
        """
        inbox, answer = self._question(timeout_s)
        message = await self._answer(answer, self._send(subject, data, inbox, headers))
        if message.headers and message.headers.get("Status") == _NO_RESPONDERS:
            raise BackendUnavailable(f"NATS at {self._address} has nobody who answers on {subject}.")
        return message

    async def round_trip(self, timeout_s: float) -> None:
        """Return when the server has processed everything that was sent before.  Raises `BackendUnavailable`."""
        inbox, answer = self._question(timeout_s)
        await self._answer(answer, self._send(inbox, b"", "", None))

    def _question(self, timeout_s: float) -> tuple[str, "asyncio.Future[Msg]"]:
        """Return an inbox that nobody else uses, and what will come to it."""
        answer: asyncio.Future[Msg] = self.expect(timeout_s)
        self._asked_last += 1
        token = str(self._asked_last)
        self._asked[token] = answer
        answer.add_done_callback(lambda _: self._asked.pop(token, None))
        return self._inbox + token, answer

    async def _answer(self, answer: "asyncio.Future[Msg]", sending: Coroutine[None, None, None]) -> Msg:
        try:
            await sending
        except BaseException:
            answer.cancel()
            raise
        return await answer

    def expect(self, timeout_s: float) -> "asyncio.Future[Any]":
        """Return a future that fails with `BackendUnavailable` after that time, or when the connection is lost."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        timer = loop.call_later(timeout_s, self._fail, future, f"did not answer within {timeout_s:g} s")
        self._waiting.add(future)

        def done(_: asyncio.Future[Any]) -> None:
            timer.cancel()
            self._waiting.discard(future)

        future.add_done_callback(done)
        return future

    def new_inbox(self) -> str:
        """Return a subject that nobody else uses."""
        return self._nats.new_inbox()

    async def subscribe(
        self, subject: str, callback: Callable[[Msg], Awaitable[None]], *, bytes_most: int = 128 << 20
    ) -> Subscription:
        """Have the callback called with every message; it is made again by itself after a reconnection.

        What the callback does not take in time is dropped beyond `bytes_most`, and counted.
        """
        try:
            return await self._nats.subscribe(subject, cb=callback, pending_bytes_limit=bytes_most)
        except nats.errors.Error as error:
            raise self._unavailable(error) from error

    async def unsubscribe(self, subscription: Subscription) -> None:
        """End a subscription, whatever state the connection is in."""
        if not self._nats.is_closed:
            await subscription.unsubscribe()

    async def close(self) -> None:
        """Wait a moment until the server has processed what was sent, then close.  Can be called twice."""
        if self._closing:
            return
        self._closing = True
        try:
            if self._inbox and self.connected:
                await self.round_trip(_CLOSE_S)
        except BackendUnavailable as error:
            self._log.warning("nats closed without an answer", reason=error)
        try:
            async with asyncio.timeout(_CLOSE_S):  # a server that was stopped does not take what is in the socket
                await self._nats.close()
        except TimeoutError:
            self._log.warning("nats closed with unsent data", place=self._address)
        writer = self._writer()
        if writer is not None:
            writer.transport.abort()  # does nothing after a close that came to its end

    async def _send(self, subject: str, data: bytes, reply: str, headers: dict[str, str] | None) -> None:
        if not self.connected:
            raise BackendUnavailable(f"NATS at {self._address} is not connected.")
        if self._nats.pending_data_size + len(data) > _UNSENT_BYTES_MOST:
            raise BackendUnavailable(f"NATS at {self._address} takes nothing at the moment.")
        try:
            # Up to the buffer this runs without a pause, so that it cannot lose the connection before.
            await self._nats.publish(subject, data, reply, headers)
        except nats.errors.Error as error:
            raise self._unavailable(error) from error

    def _unavailable(self, error: Exception) -> BackendUnavailable:
        return BackendUnavailable(f"NATS at {self._address} is not available: {_reason(error)}.")

    def _fail(self, future: "asyncio.Future[Any]", why: str) -> None:
        if not future.done():
            future.set_exception(BackendUnavailable(f"NATS at {self._address} {why}."))

    def _limit_unsent_data(self) -> None:
        """Have the kernel give up on a connection whose other end takes nothing for a while.

        nats-py closes a silent connection only after what is in the socket has been sent, which
        to a stopped server, or one behind a cut wire, takes until TCP gives up: a quarter of an hour.
        """
        writer = self._writer()
        if writer is not None and sys.platform == "linux":
            connection: socket.socket = writer.get_extra_info("socket")
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNSENT_MS)

    def _writer(self) -> asyncio.StreamWriter | None:
        """The connection beneath nats-py, which has no public way to it."""
        writer: asyncio.StreamWriter | None = getattr(self._nats._transport, "_io_writer", None)
        return writer

    async def _on_answer(self, message: Msg) -> None:
        answer = self._asked.get(message.subject[len(self._inbox) :])
        if answer is not None and not answer.done():
            answer.set_result(message)

    async def _on_error(self, error: Exception) -> None:
        self._last_error = error
        if isinstance(error, nats.errors.SlowConsumerError):
            self.statistics.dropped += 1
        else:
            self.statistics.errors += 1
        if self._connecting is not None and "authorization" in str(error).lower():
            self._connecting.reschedule(0.0)  # trying again will not help
        # Once for each connection, not once for each attempt or message.
        kind = type(error).__name__
        if kind not in self._told:
            self._told.add(kind)
            self._log.warning("nats error", kind=kind, reason=_reason(error))

    async def _on_disconnected(self) -> None:
        self._replayed = False
        # There is no public way to throw away what was not sent.
        self._nats._pending = []
        self._nats._pending_data_size = 0
        for future in tuple(self._waiting):
            self._fail(future, "closed the connection")
        if not self._closing:
            self._log.warning("nats disconnected", place=self._address)

    async def _on_reconnected(self) -> None:
        self.statistics.reconnects += 1
        self._replayed = True  # it has answered a ping that was sent behind the subscriptions
        self._limit_unsent_data()
        self._told.clear()
        self._log.info("nats reconnected", place=self._address)

    async def _on_closed(self) -> None:
        if not self._closing:
            self._log.error("nats closed the connection for good", reason=_reason(self._nats.last_error))
            self._closed_by_server.set()


def _reason(error: Exception | None) -> str:
    """What the error says, without the prefix that all of this driver have."""
    return one_line(error).removeprefix("nats: ")
