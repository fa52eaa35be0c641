"""Fetching from one JetStream consumer, without anything left open on the server.

A pull request for many messages that waits goes on after its first messages came: what is
stored later is sent to whoever asked, who may no longer own the partition.  So two kinds of
request are used: for many messages but without waiting, and waiting but for one message.
"""

import asyncio
import json
from collections.abc import Iterable
from typing import Any

from nats.aio.msg import Msg

from meshim.errors import BackendUnavailable
from meshim.stores.nats.client import NatsClient
from meshim.stores.ports import LogMessage

_NO_MESSAGES = "404"
_ENDED = "408"
_CONFLICT = "409"
_BYTES_REACHED = "Message Size Exceeds MaxBytes"


class Puller:
    """Fetches from one durable consumer, and remembers how to acknowledge what was fetched."""

    def __init__(
        self,
        client: NatsClient,
        stream: str,
        consumer: str,
        *,
        bytes_most: int,
        unacknowledged_most: int,
        timeout_s: float,
    ) -> None:
        self._client = client
        self._next = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"
        self._bytes_most = bytes_most
        self._unacknowledged_most = unacknowledged_most
        self._timeout_s = timeout_s
        self._inbox = ""
        self._requests = 0
        self._wanted = 0
        self._ended: asyncio.Future[Any] | None = None
        self._arrived: dict[int, bytes] = {}
        self._replies: dict[int, str] = {}

    async def open(self) -> None:
        """Begin to listen for what will be asked for."""
        inbox = self._client.new_inbox()
        self._inbox = f"{inbox}."
        # Twice, because of what an earlier request may still bring.
        await self._client.subscribe(f"{inbox}.*", self._on_message, bytes_most=2 * self._bytes_most)

    async def fetch(self, most: int, wait_s: float) -> list[LogMessage]:
        """Return up to `most` messages by position, or none after `wait_s`.  Raises `BackendUnavailable`."""
        if not self._arrived:
            await self._request(most, 0.0)
        if not self._arrived and wait_s > 0.0:
            await self._request(1, wait_s)
            if self._arrived and most > 1:
                await self._request(most - 1, 0.0)
        positions = sorted(self._arrived)[:most]
        return [LogMessage(position, self._arrived.pop(position)) for position in positions]

    def replies(self, positions: Iterable[int]) -> dict[int, str]:
        """Return where to acknowledge those of the positions that were fetched here."""
        return {position: self._replies[position] for position in positions if position in self._replies}

    def forget(self, positions: Iterable[int]) -> None:
        for position in positions:
            self._replies.pop(position, None)

    async def _request(self, batch: int, wait_s: float) -> None:
        """Ask for messages, and return when the server has nothing more for this request."""
        assert self._ended is None, "one fetch at a time"
        request: dict[str, int | bool] = {"batch": batch, "max_bytes": self._bytes_most}
        if wait_s > 0.0:
            request["expires"] = round(wait_s * 1e9)
        else:
            request["no_wait"] = True
        before = len(self._arrived)
        self._requests += 1
        self._wanted = batch
        self._ended = self._client.expect(wait_s + self._timeout_s)
        try:
            await self._client.publish(self._next, json.dumps(request).encode(), reply=f"{self._inbox}{self._requests}")
            await self._ended
        except BackendUnavailable:
            # A request that reaches the limit of unacknowledged messages is not told its end.
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
        if len(self._replies) > self._unacknowledged_most:
            self._replies.pop(next(iter(self._replies)))
        self._wanted -= 1
        if self._wanted == 0:
            self._end(_NO_MESSAGES, "")

    def _end(self, status: str, description: str) -> None:
        if self._ended is None or self._ended.done():
            return
        if status in (_NO_MESSAGES, _ENDED) or (status == _CONFLICT and description == _BYTES_REACHED):
            self._ended.set_result(None)
        else:
            self._ended.set_exception(
                BackendUnavailable(f"The log does not hand out messages: status {status} {description.strip()}.")
            )


def position_of(reply: str) -> int:
    """The position in the stream, from the subject to acknowledge on (nats-server, ADR-15).

    ``$JS.ACK.<stream>.<consumer>.<deliveries>.<position>...``, or, with a domain and account
    in front, ``$JS.ACK.<domain>.<account>.<stream>.<consumer>.<deliveries>.<position>...``
    """
    tokens = reply.split(".", 8)
    return int(tokens[5] if len(tokens) == 9 and "." not in tokens[8] else tokens[7])
