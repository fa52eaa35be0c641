"""Calls to JetStream that several ports need: append, read by position, delete, and the rest of its API by name."""

import json
from collections.abc import Mapping
from typing import TypeVar

import msgspec
from nats.aio.msg import Msg

from meshim.errors import BackendUnavailable, UsageError
from meshim.stores.nats.client import NatsClient

# Error codes of the server: server/errors.json in its repository.
_NO_SUCH_MESSAGE = (10037, 10043, 10057)
NO_SUCH_STREAM = 10059


class Error(msgspec.Struct):
    """An error of the JetStream API; `code` is like an HTTP status, `err_code` names the error."""

    code: int = 0
    err_code: int = 0
    description: str = ""


class Answer(msgspec.Struct):
    """Any answer of the JetStream API."""

    error: Error | None = None


class _Stored(Answer):
    seq: int = 0


AnswerType = TypeVar("AnswerType", bound=Answer)

_answer = msgspec.json.Decoder(Answer)
_stored = msgspec.json.Decoder(_Stored)


def refused(what: str, error: Error) -> UsageError:
    """Return the error for a refusal that lasts until the operator changes something."""
    return UsageError(f"NATS refused {what}: {error.description} (JetStream error {error.err_code}).")


class JetStream:
    """Calls over a shared connection.  Every method raises `BackendUnavailable` when NATS does not answer in time."""

    def __init__(self, client: NatsClient, timeout_s: float) -> None:
        """`timeout_s` limits each call."""
        self._client = client
        self._timeout_s = timeout_s

    async def call(
        self, method: str, request: Mapping[str, object], decoder: "msgspec.json.Decoder[AnswerType]"
    ) -> AnswerType:
        """Call the API and return the answer, whose `error` the caller must check.

        Raises `BackendUnavailable` when the error is temporary (code 503).
        """
        message = await self._client.request(f"$JS.API.{method}", json.dumps(request).encode(), self._timeout_s)
        answer = decoder.decode(message.data)
        if answer.error is not None and answer.error.code == 503:
            raise BackendUnavailable(f"JetStream is not available: {answer.error.description}.")
        return answer

    async def append(self, subject: str, data: bytes, timeout_s: float, headers: dict[str, str] | None = None) -> int:
        """Publish to the stream of that subject; return the position once the server has stored the message."""
        answer = await self._client.request(subject, data, timeout_s, headers=headers)
        stored = _stored.decode(answer.data)
        if stored.error is not None:
            raise BackendUnavailable(f"The log does not take {subject}: {stored.error.description}.")
        return stored.seq

    async def get(self, stream: str, request: Mapping[str, object]) -> Msg | None:
        """Return the message that a DIRECT.GET request names; None when it does not exist."""
        subject = f"$JS.API.DIRECT.GET.{stream}"
        message = await self._client.request(subject, json.dumps(request).encode(), self._timeout_s)
        status = message.headers.get("Status") if message.headers else None
        if status is None:
            return message
        if status == "404":
            return None
        raise BackendUnavailable(f"The stream {stream} cannot be read now: status {status}.")

    async def delete(self, stream: str, position: int) -> bool:
        """Delete one message; return False when it does not exist."""
        request = {"seq": position, "no_erase": True}
        answer = await self.call(f"STREAM.MSG.DELETE.{stream}", request, _answer)
        if answer.error is None:
            return True
        if answer.error.err_code in _NO_SUCH_MESSAGE:
            return False
        raise BackendUnavailable(f"Position {position} of {stream} is not deleted: {answer.error.description}.")
