"""A pull consumer of JetStream that leaves no request open on the server.

A pull request that asks for many messages and waits stays open after the first messages came: later messages are sent
to a writer that may no longer own the partition.  So this consumer sends two kinds of request: many messages without
waiting, or one message with waiting.
"""

import asyncio
import json
from collections.abc import Iterable
from typing import Any

from nats.aio.msg import Msg

from meshim.errors import BackendUnavailable
from meshim.stores.nats.client import NatsClient
from meshim.stores.ports import LogMessage

# Status codes that end a pull request (nats-server, ADR-13).
_NO_MESSAGES = "404"
_EXPIRED = "408"
_CONFLICT = "409"
_BYTES_REACHED = "Message Size Exceeds MaxBytes"


class PullConsumer:
    """Fetches from one durable consumer, and remembers the reply subject that acknowledges each message."""

    def __init__(
        self,
        client: NatsClient,
        stream: str,
        consumer: str,
        *,
        bytes_max: int,
        ack_pending_max: int,
        timeout_s: float,
    ) -> None:
        self._client = client
        self._next = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        self._bytes_max = bytes_max
        self._ack_pending_max = ack_pending_max
        self._timeout_s = timeout_s
        self._inbox = ""
        self._requests = 0
        self._missing = 0
        self._ended: asyncio.Future[Any] | None = None
        self._arrived: dict[int, bytes] = {}
        self._replies: dict[int, str] = {}

    async def open(self) -> None:
        """Subscribe to the inbox of the requests."""
        inbox = self._client.new_inbox()
        self._inbox = f"{inbox}."
        # Twice: messages of an earlier request may still be under way.
        await self._client.subscribe(f"{inbox}.*", self._on_message, bytes_max=2 * self._bytes_max)

    async def fetch(self, limit: int, wait_s: float) -> list[LogMessage]:
        """Return at most `limit` messages by position; none after `wait_s`.  Raises `BackendUnavailable`."""
        if not self._arrived:
            await self._request(limit, 0.0)
        if not self._arrived and wait_s > 0.0:
            await self._request(1, wait_s)
            if self._arrived and limit > 1:
                await self._request(limit - 1, 0.0)
        positions = sorted(self._arrived)[:limit]
        return [LogMessage(position, self._arrived.pop(position)) for position in positions]

    def replies(self, positions: Iterable[int]) -> dict[int, str]:
        """Return the reply subjects of those positions that were fetched here, by position."""
        return {position: self._replies[position] for position in positions if position in self._replies}

    def forget(self, positions: Iterable[int]) -> None:
        """Drop the reply subjects of these positions: they are acknowledged."""
        for position in positions:
            self._replies.pop(position, None)

    async def _request(self, batch: int, wait_s: float) -> None:
        """Request messages, and return when the server has ended the request."""
        assert self._ended is None, "one fetch at a time"
        request: dict[str, int | bool] = {"batch": batch, "max_bytes": self._bytes_max}
        if wait_s > 0.0:
            request["expires"] = round(wait_s * 1e9)
        else:
            request["no_wait"] = True
        before = len(self._arrived)
        self._requests += 1
        self._missing = batch
        self._ended = self._client.expect(wait_s + self._timeout_s)
        try:
            await self._client.publish(self._next, json.dumps(request).encode(), reply=f"{self._inbox}{self._requests}")
            await self._ended
        except BackendUnavailable:
            # The server does not end a request that reaches `max_ack_pending`.
            if len(self._arrived) == before:
                raise
        finally:
            self._ended.cancel()
            self._ended = None

    async def _on_message(self, message: Msg) -> None:
        if message.headers and not message.data and "Status" in message.headers:
            if message.subject == f"{self._inbox}{self._requests}":
                self._end(message.headers["Status"], message.headers.get("Description", ""))
            return
        position = position_of(message.reply)
        self._arrived[position] = message.data
        self._replies.pop(position, None)
        self._replies[position] = message.reply
        if len(self._replies) > self._ack_pending_max:
            self._replies.pop(next(iter(self._replies)))
        self._missing -= 1
        if self._missing == 0:
            self._end(_NO_MESSAGES, "")

    def _end(self, status: str, description: str) -> None:
        if self._ended is None or self._ended.done():
            return
        if status in (_NO_MESSAGES, _EXPIRED) or (status == _CONFLICT and description == _BYTES_REACHED):
            self._ended.set_result(None)
        else:
            self._ended.set_exception(
                BackendUnavailable(f"The log does not hand out messages: status {status} {description.strip()}.")
            )


def position_of(reply: str) -> int:
    """Return the position in the stream, from the reply subject of a message (nats-server, ADR-15).

    ``$JS.ACK.<stream>.<consumer>.<deliveries>.<position>...``, or, with a domain and account
    in front, ``$JS.ACK.<domain>.<account>.<stream>.<consumer>.<deliveries>.<position>...``
    """
    tokens = reply.split(".", 8)
    return int(tokens[5] if len(tokens) == 9 and "." not in tokens[8] else tokens[7])
