"""One connection to NATS that reconnects for ever; calls under way fail as soon as the connection is lost.

nats-py buffers messages while the connection is down and sends them after the reconnection, perhaps minutes after the
call failed.  This client sends nothing late: publishing without a connection raises, and data that a lost connection
had not sent is discarded.

Requests use one inbox of the client, with one timer each and no task, because nats-py's `request` does not notice a
lost connection.  nats-py's `flush` is not used: a late reply to a cancelled `flush` ends its read loop.
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

_UNSENT_BYTES_MAX = 64 << 20
"""Bytes that may wait for the socket; a publish beyond that raises."""
_RECONNECT_WAIT_S = 0.25
_PING_S = 1
_SILENT_PINGS = 2
_CLOSE_S = 2.0
_UNSENT_MS = 3000
"""The kernel closes a connection whose other end has acknowledged no data for this long."""
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

    def __init__(self, address: str, log: Log) -> None:
        self.statistics = NatsStatistics()
        self._address = address
        self._log = log
        self._nats = Client()
        self._waiting: set[asyncio.Future[Any]] = set()
        self._replies: dict[str, asyncio.Future[Msg]] = {}
        """By the last token of their subject in the inbox."""
        self._requests = 0
        self._inbox = ""
        self._replayed = False
        self._closing = False
        self._closed_by_server = asyncio.Event()
        self._logged: set[str] = set()
        self._last_error: Exception | None = None
        self._connecting: asyncio.Timeout | None = None

    @classmethod
    async def connect(cls, url: str, log: Log, *, name: str = "meshim", timeout_s: float = 5.0) -> Self:
        """Connect with the user and password, or the token, of the URL.

        Raises `UsageError` for a wrong URL, and `BackendUnavailable` when the connection is not made in `timeout_s`.
        """
        try:
            parts = urlsplit(url)
            address = f"{parts.hostname}:{parts.port or 4222}"
        except ValueError as error:
            raise UsageError(f"backends.nats is not a NATS URL: {error}.") from error
        if parts.scheme not in ("nats", "tls") or not parts.hostname:
            raise UsageError("backends.nats is not a NATS URL: write nats://user:password@host:4222.")
        user = unquote(parts.username) if parts.username is not None else None
        password = unquote(parts.password) if parts.password is not None else None
        client = cls(address, log)
        await client._connect(f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}", user, password, name, timeout_s)
        return client

    async def _connect(self, url: str, user: str | None, password: str | None, name: str, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s) as self._connecting:
                await self._nats.connect(
                    [url],
                    name=name,
                    user=user if password is not None else None,
                    password=password,
                    token=user if password is None else None,
                    max_reconnect_attempts=-1,
                    reconnect_time_wait=_RECONNECT_WAIT_S,  # type: ignore[arg-type]  # it goes to asyncio.sleep
                    ping_interval=_PING_S,
                    max_outstanding_pings=_SILENT_PINGS,
                    # Never reached: at this limit nats-py would wait for room and swallow a cancellation.
                    pending_size=2 * _UNSENT_BYTES_MAX,
                    error_cb=self._on_error,
                    disconnected_cb=self._on_disconnected,
                    reconnected_cb=self._on_reconnected,
                    closed_cb=self._on_closed,
                )
        except (TimeoutError, OSError, nats.errors.Error) as error:
            await self.close()
            cause = self._last_error or error
            reason = _driver_message(cause)
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
        await self.subscribe(f"{inbox}.*", self._on_reply)

    @property
    def connected(self) -> bool:
        """Whether the connection is up and the server has processed every subscription.

        nats-py calls itself connected before it has sent the subscriptions again, let alone before the server has
        processed them.
        """
        return self._replayed and self._nats.is_connected

    @property
    def server_id(self) -> str:
        """The id of the server of this connection, or of the last one; each start of a server makes a new id."""
        return str(self._nats._server_info.get("server_id", ""))  # nats-py has no public way to it

    async def wait_closed(self) -> None:
        """Return when the server has closed the connection for good, because it refuses our credentials.

        The client does not reconnect after that: the process has to be started again.
        """
        await self._closed_by_server.wait()

    async def publish(self, subject: str, data: bytes, *, reply: str = "") -> None:
        """Send a message without confirmation.  Raises `BackendUnavailable` when there is no connection."""
        await self._send(subject, data, reply, None)

    async def request(
        self, subject: str, data: bytes, timeout_s: float, *, headers: dict[str, str] | None = None
    ) -> Msg:
        """Send a message and return the reply.

        Raises `BackendUnavailable` when there is no connection, when it is lost meanwhile, when the subject has no
        subscriber, or when no reply has come within `timeout_s`.
        """
        inbox, reply = self._new_request(timeout_s)
        message = await self._wait(reply, self._send(subject, data, inbox, headers))
        if message.headers and message.headers.get("Status") == _NO_RESPONDERS:
            raise BackendUnavailable(f"NATS at {self._address} has nobody who answers on {subject}.")
        return message

    async def round_trip(self, timeout_s: float) -> None:
        """Return when the server has processed everything sent before.  Raises `BackendUnavailable`."""
        inbox, reply = self._new_request(timeout_s)
        await self._wait(reply, self._send(inbox, b"", "", None))

    def _new_request(self, timeout_s: float) -> tuple[str, "asyncio.Future[Msg]"]:
        """Return a unique subject in the inbox, and the future of the message to it."""
        reply: asyncio.Future[Msg] = self.expect(timeout_s)
        self._requests += 1
        token = str(self._requests)
        self._replies[token] = reply
        reply.add_done_callback(lambda _: self._replies.pop(token, None))
        return self._inbox + token, reply

    async def _wait(self, reply: "asyncio.Future[Msg]", sending: Coroutine[None, None, None]) -> Msg:
        try:
            await sending
        except BaseException:
            reply.cancel()
            raise
        return await reply

    def expect(self, timeout_s: float) -> "asyncio.Future[Any]":
        """Return a future that fails with `BackendUnavailable` after `timeout_s`, or when the connection is lost."""
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
        """Return a unique subject."""
        return self._nats.new_inbox()

    async def subscribe(
        self, subject: str, callback: Callable[[Msg], Awaitable[None]], *, bytes_max: int = 128 << 20
    ) -> Subscription:
        """Call the callback with every message of the subject, also after reconnections.

        Messages that wait for the callback are dropped beyond `bytes_max` bytes, and counted.
        """
        try:
            return await self._nats.subscribe(subject, cb=callback, pending_bytes_limit=bytes_max)
        except nats.errors.Error as error:
            raise self._unavailable(error) from error

    async def unsubscribe(self, subscription: Subscription) -> None:
        """End a subscription, whether the connection is up or not."""
        if not self._nats.is_closed:
            await subscription.unsubscribe()

    async def close(self) -> None:
        """Wait up to 2 s until the server has processed what was sent, then close.  Can be called twice."""
        if self._closing:
            return
        self._closing = True
        try:
            if self._inbox and self.connected:
                await self.round_trip(_CLOSE_S)
        except BackendUnavailable as error:
            self._log.warning("nats closed without an answer", reason=error)
        try:
            async with asyncio.timeout(_CLOSE_S):  # a stopped server does not read what is in the socket
                await self._nats.close()
        except TimeoutError:
            self._log.warning("nats closed with unsent data", address=self._address)
        writer = self._writer()
        if writer is not None:
            writer.transport.abort()  # does nothing after a complete close

    async def _send(self, subject: str, data: bytes, reply: str, headers: dict[str, str] | None) -> None:
        if not self.connected:
            raise BackendUnavailable(f"NATS at {self._address} is not connected.")
        if self._nats.pending_data_size + len(data) > _UNSENT_BYTES_MAX:
            raise BackendUnavailable(f"NATS at {self._address} takes nothing at the moment.")
        try:
            # This does not pause before the data is in the buffer, so the connection cannot be lost in between.
            await self._nats.publish(subject, data, reply, headers)
        except nats.errors.Error as error:
            raise self._unavailable(error) from error

    def _unavailable(self, error: Exception) -> BackendUnavailable:
        return BackendUnavailable(f"NATS at {self._address} is not available: {_driver_message(error)}.")

    def _fail(self, future: "asyncio.Future[Any]", why: str) -> None:
        if not future.done():
            future.set_exception(BackendUnavailable(f"NATS at {self._address} {why}."))

    def _limit_unsent_data(self) -> None:
        """Make the kernel close a connection whose other end acknowledges no data for `_UNSENT_MS`.

        nats-py closes a silent connection only after the data in the socket has been sent.  To a stopped server, or
        over a cut wire, that takes until TCP gives up: a quarter of an hour.
        """
        writer = self._writer()
        if writer is not None and sys.platform == "linux":
            connection: socket.socket = writer.get_extra_info("socket")
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNSENT_MS)

    def _writer(self) -> asyncio.StreamWriter | None:
        """Return the connection beneath nats-py, which has no public way to it."""
        writer: asyncio.StreamWriter | None = getattr(self._nats._transport, "_io_writer", None)
        return writer

    async def _on_reply(self, message: Msg) -> None:
        reply = self._replies.get(message.subject[len(self._inbox) :])
        if reply is not None and not reply.done():
            reply.set_result(message)

    async def _on_error(self, error: Exception) -> None:
        self._last_error = error
        if isinstance(error, nats.errors.SlowConsumerError):
            self.statistics.dropped += 1
        else:
            self.statistics.errors += 1
        if self._connecting is not None and "authorization" in str(error).lower():
            self._connecting.reschedule(0.0)  # another attempt would be refused too
        # Log each kind of error once per connection, not once per attempt or message.
        kind = type(error).__name__
        if kind not in self._logged:
            self._logged.add(kind)
            self._log.warning("nats error", kind=kind, reason=_driver_message(error))

    async def _on_disconnected(self) -> None:
        self._replayed = False
        # nats-py has no public way to discard unsent data.
        self._nats._pending = []
        self._nats._pending_data_size = 0
        for future in tuple(self._waiting):
            self._fail(future, "closed the connection")
        if not self._closing:
            self._log.warning("nats disconnected", address=self._address)

    async def _on_reconnected(self) -> None:
        self.statistics.reconnects += 1
        self._replayed = True  # the server has answered a PING that was sent after the subscriptions
        self._limit_unsent_data()
        self._logged.clear()
        self._log.info("nats reconnected", address=self._address)

    async def _on_closed(self) -> None:
        if not self._closing:
            self._log.error("nats closed the connection for good", reason=_driver_message(self._nats.last_error))
            self._closed_by_server.set()


def _driver_message(error: Exception | None) -> str:
    """Return the message of an error of nats-py on one line, without the prefix that all of them have."""
    return one_line(error).removeprefix("nats: ")
